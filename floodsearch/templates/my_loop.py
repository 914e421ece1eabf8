"""A training loop that floodsearch searches: put your data, model and loop in the place of these."""

import torch
from torch import nn


def build(seed):
    """Return model, optimizer, training and validation data of a seed: make here all that a run changes."""
    torch.manual_seed(seed)
    inputs = torch.randn(400, 10)
    labels = (inputs.sum(dim=1) > 0).long()
    labels = torch.where(torch.rand(400) < 0.15, 1 - labels, labels)  # wrong ones
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return model, optimizer, (inputs[:200], labels[:200]), (inputs[200:], labels[200:])


def evaluate(model, inputs, labels):
    """Return the share of right answers, and the mean loss."""
    model.eval()
    with torch.no_grad():
        outputs = model(inputs)
        accuracy = (outputs.argmax(dim=1) == labels).float().mean().item()
        return accuracy, nn.functional.cross_entropy(outputs, labels).item()


def train(run):
    """Train one run: run.level, run.seed, run.device and run.settings say which."""
    model, optimizer, (inputs, labels), validation = build(run.seed)
    run.restore(model=model, optimizer=optimizer)  # also a scheduler, a scaler: all that changes
    for epoch in run.epochs():  # the study's number; goes on where it stopped
        model.train()
        for batch in torch.randperm(len(inputs)).split(run.settings["batch_size"]):
            loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
            loss = run.flood(loss)  # the mean loss of the batch
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        accuracy, loss = evaluate(model, *validation)
        print(f"epoch {epoch}: accuracy {accuracy:.3f}")  # floodsearch logs my-loop --run ticket-0
        run.report(val_accuracy=accuracy, val_loss=loss)  # once an epoch: prunes, saves
