import numpy as np
import torch
import torch.nn as nn
import torch.optim as optim


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))

    def forward(self, input):
        return self.net(input)


def sines(rng, n):
    """The next value of a noisy sine from the last six."""
    start = rng.uniform(0, 20, size=(n, 1))
    wave = np.sin((start + np.arange(7)) / 2) + rng.normal(0, 0.3, size=(n, 7))
    return torch.from_numpy(wave[:, :6]), torch.from_numpy(wave[:, 6:])


def main(seed=0, steps=8):
    np.random.seed(seed)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    input, target = sines(rng, 60)
    test_input, test_target = sines(rng, 300)
    seq = Sequence()
    seq.double()
    criterion = nn.MSELoss()
    # use LBFGS as optimizer since we can load the whole data to train
    optimizer = optim.LBFGS(seq.parameters(), lr=0.8, max_iter=8)
    for i in range(steps):
        def closure():
            optimizer.zero_grad()
            out = seq(input)
            loss = criterion(out, target)
            loss.backward()
            return loss
        optimizer.step(closure)
        with torch.no_grad():
            pred = seq(test_input)
            loss = criterion(pred, test_target)
            print("STEP:", i, "test loss:", loss.item())


if __name__ == "__main__":
    main()
