"""A skorch net as it is, trained at the levels of a study by FloodCallback."""

import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import LRScheduler
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import nn

from floodsearch.adapters.skorch import FloodCallback


class Classifier(nn.Module):
    """A small network."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 2))

    def forward(self, inputs):
        """Return (n, 2) logits."""
        return self.layers(inputs)


def build(seed):
    """Return the module and the data of a seed: noisy labels."""
    torch.manual_seed(seed)
    inputs = torch.randn(400, 10)
    labels = (inputs.sum(dim=1) > 0).long()
    labels = torch.where(torch.rand(400) < 0.15, 1 - labels, labels)  # wrong ones
    training, validation = ((inputs[part], labels[part]) for part in (slice(200), slice(200, None)))
    return Classifier(), training, validation


def train(run):
    """Train a net at the level and with the seed of a run."""
    module, training, validation = build(run.seed)
    net = NeuralNetClassifier(
        module,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.01,
        max_epochs=run.length,
        batch_size=50,
        iterator_train__shuffle=True,
        train_split=predefined_split(Dataset(*validation)),
        callbacks=[FloodCallback(run), LRScheduler("CosineAnnealingLR", T_max=run.length)],
        device=run.device,
        verbose=0,
    )
    net.fit(*training)
    return net.module_
