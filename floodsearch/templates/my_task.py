"""A task that floodsearch trains: put your data, your model and your recipe in the place of these."""

import torch
from torch import nn

from floodsearch.tasks.task import Data, Recipe, Split, Task


def task(*, width: int = 64) -> Task:
    """Return what is trained; the keyword parameters are the [options] of the study file."""

    def data(seed: int) -> Data:
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(600, 10, generator=generator)
        labels = (inputs.sum(dim=1) > 0).long()
        wrong = torch.rand(600, generator=generator) < 0.15
        labels = torch.where(wrong, 1 - labels, labels)
        training, validation, test = (
            Split(inputs[first : first + 200], labels[first : first + 200]) for first in (0, 200, 400)
        )
        return Data(training, validation, test)

    return Task(
        data=data,
        model=lambda: nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 2)),
        recipe=Recipe(batch_size=50, optimizer="adam", learning_rate=0.002),
    )
