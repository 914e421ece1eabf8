"""Batches of a split that already lies on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from floodsearch.tasks.streams import stream
from floodsearch.tasks.task import Split


def count(split: Split, size: int) -> int:
    """Return the number of batches of one epoch."""
    return math.ceil(len(split.inputs) / size)


def batches(split: Split, size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and labels of one epoch, shuffled for (seed, epoch); the last batch may be smaller.

    A split that fits into one batch is yielded as it is: its order would change nothing but rounding.
    """
    n = len(split.inputs)
    if n <= size:
        yield split.inputs, split.labels
        return
    shuffled = torch.randperm(n, generator=stream(seed, "order", epoch)).to(split.inputs.device)
    for chosen in shuffled.split(size):
        yield split.inputs[chosen], split.labels[chosen]


def chunks(split: Split, size: int) -> Iterator[Split]:
    """Yield a split in order, in parts of at most `size`, for evaluation."""
    clean = split.clean_labels
    for start in range(0, len(split.inputs), size):
        part = slice(start, start + size)
        yield Split(split.inputs[part], split.labels[part], None if clean is None else clean[part])
