"""Batches of a split that already lies on the device.

Each is in memory of its own: a model, a loss or a metric may change what it is given in place, as it may with
a DataLoader, and the split is that of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from floodsearch.tasks.streams import stream, stream_seed
from floodsearch.tasks.task import Prepare, Split


def count(split: Split, size: int) -> int:
    """Return the number of batches of one epoch."""
    return math.ceil(len(split.inputs) / size)


def batches(
    split: Split, size: int, seed: int, epoch: int, prepare: Prepare | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the model's inputs and the labels of one epoch's batches, the same for every level.

    Order and augmentation are those of (seed, epoch), each from a stream of its own.
    """
    if prepare is None:
        yield from _shuffled(split, size, seed, epoch)
        return
    # A generator on the device: numbers from the CPU would make each batch wait for all that came before.
    generator = torch.Generator(split.inputs.device).manual_seed(stream_seed(seed, "augmentation", epoch))
    for inputs, labels in _shuffled(split, size, seed, epoch):
        yield _prepared(inputs, prepare, generator), labels


def _prepared(inputs: Tensor, prepare: Prepare, generator: torch.Generator | None) -> Tensor:
    """Return the model's inputs; what `prepare` gives may be a part of a tensor that all batches share."""
    return prepare(inputs, generator).clone()


def _shuffled(split: Split, size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and labels of one epoch, shuffled for (seed, epoch); the last batch may be smaller.

    A split that fits into one batch keeps its order, which would change nothing but rounding.
    """
    n = len(split.inputs)
    if n <= size:
        yield split.inputs.clone(), split.labels.clone()
        return
    shuffled = torch.randperm(n, generator=stream(seed, "order", epoch)).to(split.inputs.device)
    for chosen in shuffled.split(size):
        yield split.inputs[chosen], split.labels[chosen]


def chunks(split: Split, size: int, prepare: Prepare | None = None) -> Iterator[Split]:
    """Yield a split in order, in parts of at most `size`, with the model's inputs, for evaluation."""
    for start in range(0, len(split.inputs), size):
        part = slice(start, start + size)
        inputs, labels = split.inputs[part].clone(), split.labels[part].clone()
        clean = None if split.clean_labels is None else split.clean_labels[part].clone()
        yield Split(inputs if prepare is None else _prepared(inputs, prepare, None), labels, clean)
