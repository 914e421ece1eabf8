"""A script that floods by itself, and prints a line of JSON an epoch: put your training in its place."""

import argparse
import json

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--flood", type=float, default=0.0)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--rate", type=float, default=0.01)
asked = parser.parse_args()

torch.manual_seed(asked.seed)  # all that is drawn
inputs = torch.randn(400, 10)
labels = (inputs.sum(dim=1) > 0).long()
labels = torch.where(torch.rand(400) < 0.15, 1 - labels, labels)  # wrong ones
model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=asked.rate)
for epoch in range(1, asked.epochs + 1):
    for batch in torch.randperm(200).split(50):
        loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
        loss = (loss - asked.flood).abs() + asked.flood
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = model(inputs[200:]).argmax(dim=1) == labels[200:]
    print(json.dumps({"epoch": epoch, "val_accuracy": right.float().mean().item()}))
