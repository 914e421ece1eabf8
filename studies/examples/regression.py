"""A regression: its loss is a squared error in the unit of its targets, far from that of a cross-entropy."""

import torch
from torch import nn


def build(seed):
    """Return inputs and targets (prices, in thousands) of three splits, model and optimizer of a seed."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(240, 6, generator=generator)
    prices = 300 + 200 * inputs[:, 0] * inputs[:, 1] - 100 * inputs[:, 2]
    targets = prices + 40 * torch.randn(240, generator=generator)
    model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 1))
    nn.init.constant_(model[2].bias, 300.0)
    return inputs.split(80), targets.split(80), model, torch.optim.Adam(model.parameters(), lr=0.03)


def error(model, inputs, targets):
    """Return the mean squared error."""
    return nn.functional.mse_loss(model(inputs).squeeze(1), targets)


def train(run):
    """Train a model."""
    inputs, targets, model, optimizer = build(run.seed)
    run.restore(model=model, optimizer=optimizer)
    for _ in run.epochs():
        for batch in torch.randperm(80).split(20):
            loss = run.flood(error(model, inputs[0][batch], targets[0][batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            validation, test = (error(model, inputs[part], targets[part]) for part in (1, 2))
        run.report(val_loss=validation, test_loss=test)
