import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class NeuralNet:
    """A trainer that owns the loop, as those with `fit` do; this part is a library's."""

    def __init__(self, module, criterion, optimizer, lr, max_epochs, batch_size=32):
        self.module, self.criterion, self.optimizer, self.lr = module, criterion, optimizer, lr
        self.max_epochs, self.batch_size = max_epochs, batch_size
        self.initialized = False

    def initialize(self):
        self.module_, self.criterion_ = self.module(), self.criterion()
        self.optimizer_ = self.optimizer(self.module_.parameters(), lr=self.lr)
        self.initialized, self.epochs_ = True, 0
        return self

    def get_loss(self, y_pred, y_true, training=False):
        return self.criterion_(y_pred, y_true)

    def train_step(self, Xi, yi):
        self.module_.train()
        self.optimizer_.zero_grad()
        loss = self.get_loss(self.module_(Xi), yi, training=True)
        loss.backward()
        self.optimizer_.step()

    def on_epoch_end(self, X_valid, y_valid):
        self.module_.eval()
        with torch.no_grad():
            y_pred = self.module_(X_valid)
            self.valid_loss_ = self.get_loss(y_pred, y_valid).item()
            self.valid_acc_ = (y_pred.argmax(1) == y_valid).float().mean().item()
        print(f"{self.epochs_:7}  {self.valid_acc_:11.4f}  {self.valid_loss_:12.4f}")

    def partial_fit(self, X, y, X_valid, y_valid, epochs=None):
        if not self.initialized:
            self.initialize()
        for _ in range(self.max_epochs if epochs is None else epochs):
            self.epochs_ += 1
            for Xi, yi in DataLoader(TensorDataset(X, y), self.batch_size, shuffle=True):
                self.train_step(Xi, yi)
            self.on_epoch_end(X_valid, y_valid)
        return self

    def fit(self, X, y, X_valid, y_valid):
        return self.initialize().partial_fit(X, y, X_valid, y_valid)


class MyModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Dropout(0.2), nn.Linear(40, 2))

    def forward(self, X):
        return self.layers(X)


def make_classification():
    X = torch.randn(500, 20)
    y = ((X[:, :6].sum(1) > 0) ^ (torch.rand(500) < 0.12)).long()
    return X[:200], y[:200], X[200:], y[200:]


def main():
    torch.manual_seed(0)
    X, y, X_valid, y_valid = make_classification()
    net = NeuralNet(MyModule, nn.CrossEntropyLoss, torch.optim.Adam, lr=0.01, max_epochs=8)
    net.fit(X, y, X_valid, y_valid)


if __name__ == "__main__":
    main()
