"""The options of the built-in tasks: what each may be given, and the recipe that it then comes with.

A record of options checks its values when it is made. It needs no torch: a study file is read, and a study
created, without building the task. `synthetic` and `images` build the tasks from these records.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from floodsearch.artifacts.files import expanded
from floodsearch.defaults import DATA_DIR
from floodsearch.tasks.recipe import Recipe

METRICS = ("val_accuracy", "val_loss")
"""What the training of each built-in task reports."""

Model = Literal["mlp", "resnet18", "resnet34", "resnet44"]

SYNTHETIC = Recipe(batch_size=100, optimizer="adam", learning_rate=0.001)


class TaskOptions(Protocol):
    """The options of a built-in task."""

    @property
    def recipe(self) -> Recipe:
        """The recipe of the task with these options, which the study file may change."""


def _check_label_noise(label_noise: float) -> None:
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise must be a share in [0, 1], but is {label_noise}")


class _Layered:
    """Options of tasks on a network of equal layers, checked."""

    label_noise: float
    width: int
    depth: int

    def __post_init__(self) -> None:
        _check_label_noise(self.label_noise)
        if self.width < 1 or self.depth < 1:
            raise ValueError(f"width and depth must be at least 1, but are {self.width} and {self.depth}")


class _Synthetic(_Layered):
    """Options of the synthetic tasks: all are trained by the recipe of the paper."""

    @property
    def recipe(self) -> Recipe:
        """The recipe of the flooding paper."""
        return SYNTHETIC


@dataclass(frozen=True, kw_only=True)
class TwoGaussians(_Synthetic):
    """Options of `two_gaussians`.

    Args:
        label_noise: share of the labels of each split that are wrong, in [0, 1].
        dimensions: of a sample, at least 1.
        width: units of each hidden layer, at least 1.
        depth: hidden layers, at least 1.
        batch_norm: normalise before each ReLU.
    """

    label_noise: float = 0.10
    dimensions: int = 10
    width: int = 500
    depth: int = 5
    batch_norm: bool = False

    def __post_init__(self) -> None:
        if self.dimensions < 1:
            raise ValueError(f"dimensions must be at least 1, but is {self.dimensions}")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class Sinusoid(_Synthetic):
    """Options of `sinusoid`; each as in `TwoGaussians`."""

    label_noise: float = 0.10
    width: int = 500
    depth: int = 5
    batch_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class Spiral(_Synthetic):
    """Options of `spiral`; the others are as in `TwoGaussians`.

    Args:
        spread: standard deviation of the noise around the arms, at least 0.
    """

    label_noise: float = 0.10
    spread: float = 1.0
    width: int = 500
    depth: int = 5
    batch_norm: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.spread) and self.spread >= 0):
            raise ValueError(f"spread must be at least 0, but is {self.spread}")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class Digits(_Layered):
    """Options of `digits`; each as in `TwoGaussians`, and a wrong label may be that of any other class."""

    label_noise: float = 0.10
    width: int = 256
    depth: int = 2
    batch_norm: bool = True

    @property
    def recipe(self) -> Recipe:
        """Plain SGD with momentum, ten batches an epoch."""
        return Recipe(batch_size=100, optimizer="sgd", learning_rate=0.1, momentum=0.9)


@dataclass(frozen=True, kw_only=True)
class GreyImages:
    """Options of the image sets of the kind of MNIST.

    Args:
        model: an MLP with BatchNorm, or a residual network; by default the paper's model for these images.
        augment: shift each training image by up to four pixels, and mirror half of them, unless they are
            characters. It comes with a recipe of its own.
        label_noise: share of labels in each split that become another class, any with the same chance.
        data_dir: folder of torchvision's data sets; `~` is the user's own.
        download: whether to fetch what is not there.
    """

    model: Model = "mlp"
    augment: bool = False
    label_noise: float = 0.0
    data_dir: str = DATA_DIR
    download: bool = True

    def __post_init__(self) -> None:
        _check_label_noise(self.label_noise)
        expanded(Path(self.data_dir))  # says so where there is no such home
        if self.model not in get_args(Model):
            raise ValueError(f"model must be one of {', '.join(get_args(Model))}, but is {self.model!r}")

    @property
    def recipe(self) -> Recipe:
        """The recipe of the flooding paper, with and without augmentation."""
        if self.augment:
            return Recipe(
                batch_size=128, optimizer="sgd", learning_rate=0.1, momentum=0.9, milestones=(250, 400)
            )
        return Recipe(batch_size=200, optimizer="sgd", learning_rate=0.1, momentum=0.9)


@dataclass(frozen=True, kw_only=True)
class HouseNumbers(GreyImages):
    """Options of `svhn`; as those of `GreyImages`, with another model."""

    model: Model = "resnet18"


@dataclass(frozen=True, kw_only=True)
class Photographs(GreyImages):
    """Options of `cifar10` and `cifar100`; as those of `GreyImages`, with another model."""

    model: Model = "resnet34"
