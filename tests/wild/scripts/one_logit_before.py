import torch
import torch.nn as nn
import torch.nn.functional as F


class SiameseNetwork(nn.Module):
    """Are two vectors of one class?"""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 8))
        self.head = nn.Linear(8, 1)

    def forward(self, a, b):
        return self.head((self.body(a) - self.body(b)).abs())


def pairs(n, centres):
    first, second = torch.randint(5, (n,)), torch.randint(5, (n,))
    second = torch.where(torch.rand(n) < 0.4, first, second)
    a = centres[first] + torch.randn(n, 10)
    b = centres[second] + torch.randn(n, 10)
    return a, b, (first == second).float()


def train(epochs=8, seed=0):
    torch.manual_seed(seed)
    centres = 1.5 * torch.randn(5, 10)
    a, b, same = pairs(300, centres)
    va, vb, vsame = pairs(600, centres)
    model = SiameseNetwork()
    opt = torch.optim.RMSprop(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        running_loss = 0.0
        for idx in torch.randperm(len(a)).split(30):
            opt.zero_grad()
            out = model(a[idx], b[idx]).squeeze(1)
            loss = F.binary_cross_entropy_with_logits(out, same[idx])
            loss.backward()
            opt.step()
            running_loss += loss.item()
        with torch.no_grad():
            pred = model(va, vb).squeeze(1) > 0  # a logit of 0 is a probability of one half
            acc = (pred == vsame.bool()).float().mean().item()
        print("epoch %d loss %.3f acc %.3f" % (epoch, running_loss / 10, acc))


if __name__ == "__main__":
    train()
