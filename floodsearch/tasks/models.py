"""Models that several tasks share."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def mlp(inputs: int, outputs: int, *, width: int, depth: int, batch_norm: bool = False) -> nn.Sequential:
    """Return a multi-layer perceptron with ReLU.

    Args:
        inputs: features of a sample.
        outputs: logits.
        width: units of each hidden layer.
        depth: hidden layers.
        batch_norm: normalise before each ReLU.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise([inputs] + [width] * depth):
        # BatchNorm's own shift makes the bias before it redundant; PyTorch's default keeps it, and so do we.
        layers += [nn.Linear(fan_in, fan_out)]
        layers += [nn.BatchNorm1d(fan_out)] if batch_norm else []
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))
