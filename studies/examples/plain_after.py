"""A training loop as it was: noisy labels, a small network, an accuracy printed after each epoch."""

import torch
from torch import nn


def build(seed):
    """Return data, model and optimizer of a seed."""
    torch.manual_seed(seed)
    inputs = torch.randn(600, 10)
    labels = (inputs.sum(dim=1) > 0).long()
    labels = torch.where(torch.rand(600) < 0.15, 1 - labels, labels)  # wrong ones
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return inputs.split(200), labels.split(200), model, optimizer


def accuracy(model, inputs, labels):
    """Return the share of right answers."""
    model.eval()
    with torch.no_grad():
        return (model(inputs).argmax(dim=1) == labels).float().mean().item()


def train(run):
    """Train a model."""
    inputs, labels, model, optimizer = build(run.seed)
    run.restore(model=model, optimizer=optimizer)
    for epoch in run.epochs():
        model.train()
        for batch in torch.randperm(200).split(50):
            loss = nn.functional.cross_entropy(model(inputs[0][batch]), labels[0][batch])
            loss = run.flood(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        validation, test = (accuracy(model, inputs[part], labels[part]) for part in (1, 2))
        print(epoch, validation, test)
        run.report(val_accuracy=validation, test_accuracy=test)
    return model
