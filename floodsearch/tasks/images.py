"""Image tasks: real input."""

from __future__ import annotations

import torch
from torch import Tensor

from floodsearch.tasks.models import mlp
from floodsearch.tasks.streams import stream
from floodsearch.tasks.synthetic import check_label_noise, flip
from floodsearch.tasks.task import Data, Recipe, Split, Task

DIGITS_SIZES = (1000, 397, 400)


def digits(*, label_noise: float = 0.10, width: int = 256, depth: int = 2, batch_norm: bool = True) -> Task:
    """Return scikit-learn's handwritten digits: 1,797 images of 8 x 8, ten classes, no download.

    The seed draws 1,000 training, 397 validation and 400 test images. `label_noise` is the share of labels
    in each split that become another class, any with the same chance.
    """
    check_label_noise(label_noise)
    if width < 1 or depth < 1:
        raise ValueError(f"width and depth must be at least 1, but are {width} and {depth}")

    def data(seed: int) -> Data:
        images, labels = _load_digits()
        order = torch.randperm(len(images), generator=stream(seed, "data", "split"))
        splits = []
        for name, part in zip(("train", "validation", "test"), order.split(DIGITS_SIZES), strict=True):
            clean = labels[part]
            generator = stream(seed, "label noise", name)
            flipped = flip(len(part), label_noise, generator)
            shift = torch.randint(1, 10, clean.shape, generator=generator)
            splits.append(Split(images[part], torch.where(flipped, (clean + shift) % 10, clean), clean))
        return Data(*splits)

    return Task(
        data=data,
        model=lambda: mlp(64, 10, width=width, depth=depth, batch_norm=batch_norm),
        recipe=Recipe(batch_size=100, optimizer="sgd", learning_rate=0.1, momentum=0.9),
    )


def _load_digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # slow to import, and only this task needs it

    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images).float() / 16, torch.from_numpy(labels).long()  # (1797, 64), (1797,)
