"""Image data sets of torchvision: from files to one tensor, which lies on a device once for all runs."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from torch import Tensor

from floodsearch.artifacts.files import expanded
from floodsearch.errors import TaskError


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set of torchvision.

    Args:
        kind: its class in `torchvision.datasets`.
        train: training images.
        classes: labels are 0 to this, exclusively.
        shape: (channels, height, width) of an image.
        mean: of the training images, by channel, in units of the largest pixel.
        std: likewise.
        mirrored: whether a mirrored image is one of the same class.
    """

    kind: str
    train: int
    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirrored: bool


GREY, COLOUR = (1, 28, 28), (3, 32, 32)

SOURCES: Mapping[str, Source] = {
    # The means and deviations are those that are in general use, to four digits.
    "mnist": Source(
        kind="MNIST", train=60_000, classes=10, shape=GREY, mean=(0.1307,), std=(0.3081,), mirrored=False
    ),
    "kmnist": Source(
        kind="KMNIST", train=60_000, classes=10, shape=GREY, mean=(0.1918,), std=(0.3483,), mirrored=False
    ),
    "fashion_mnist": Source(
        kind="FashionMNIST",
        train=60_000,
        classes=10,
        shape=GREY,
        mean=(0.2860,),
        std=(0.3530,),
        mirrored=True,
    ),
    "svhn": Source(
        kind="SVHN",
        train=73_257,
        classes=10,
        shape=COLOUR,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        mirrored=False,
    ),
    "cifar10": Source(
        kind="CIFAR10",
        train=50_000,
        classes=10,
        shape=COLOUR,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        mirrored=True,
    ),
    "cifar100": Source(
        kind="CIFAR100",
        train=50_000,
        classes=100,
        shape=COLOUR,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        mirrored=True,
    ),
}


class Resident(NamedTuple):
    """The images of a data set on a device, and the numbers that normalise them."""

    images: Tensor  # (n, channels, height, width), bytes
    mean: Tensor  # (channels, 1, 1)
    std: Tensor  # (channels, 1, 1)


@dataclass(frozen=True)
class ImageSet:
    """All images of a data set with their labels, on the CPU: training images first, then test images."""

    images: Tensor  # (n, channels, height, width), bytes
    labels: Tensor  # (n,)
    train: int  # how many of them are training images
    source: Source
    _on: dict[torch.device, Resident] = field(default_factory=dict)

    def on(self, device: torch.device) -> Resident:
        """Return the images on a device, the same tensors each time."""
        if device not in self._on:
            mean, std = (
                torch.tensor(one, device=device)[:, None, None] for one in (self.source.mean, self.source.std)
            )
            self._on[device] = Resident(self.images.to(device), mean, std)
        return self._on[device]


@functools.lru_cache(maxsize=1)  # a process trains one study
def load(name: str, data_dir: str, *, download: bool) -> ImageSet:
    """Return a data set, the same object each time.

    Args:
        name: of `SOURCES`.
        data_dir: the folder that holds the data sets of torchvision; `~` is the user's own.
        download: whether to fetch what is not there. Of several processes one does, and the others wait.

    Raises:
        TaskError: if it is not there, damaged, or cannot be fetched.
    """
    source, folder = SOURCES[name], expanded(Path(data_dir))
    datasets = _torchvision_datasets()
    try:
        with _alone_in(folder) if download else contextlib.nullcontext():
            images, labels = zip(
                *(_read(datasets, source, folder, part, download) for part in ("train", "test")), strict=True
            )
    except Exception as error:  # of the files, the network, or torchvision's own
        remedy = (
            "delete damaged files; without a network, copy the files there and set download = false"
            if download
            else "copy its files there, or set download = true"
        )
        raise TaskError(
            f"{source.kind} cannot be read from {folder}: {_one_line(error)}; {remedy}"
        ) from error
    return ImageSet(torch.cat(images), torch.cat(labels), len(labels[0]), source)


def _torchvision_datasets() -> Any:
    """Return the module `torchvision.datasets`, which takes a second to import and only these tasks need."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: it was compiled for another torch
        raise TaskError(
            f"torchvision does not fit torch {torch.__version__}: {_one_line(error)}; "
            "install both from the same place"
        ) from error
    return datasets


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _alone_in(folder: Path) -> contextlib.AbstractContextManager[Any]:
    """Keep other processes out of a folder while something may be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # whoever filled it has ended
        return contextlib.nullcontext()
    return FileLock(folder / ".floodsearch.lock")


def _read(datasets: Any, source: Source, folder: Path, part: str, download: bool) -> tuple[Tensor, Tensor]:
    """Return the images of a part, (n, channels, height, width), and their labels, (n,)."""
    which = {"split": part} if source.kind == "SVHN" else {"train": part == "train"}
    found = getattr(datasets, source.kind)(folder, download=download, **which)
    images = torch.as_tensor(found.data)
    labels = torch.as_tensor(found.labels if source.kind == "SVHN" else found.targets)
    if source.kind.startswith("CIFAR"):
        images = images.permute(0, 3, 1, 2)  # its channels are last
    images = images.reshape(-1, *source.shape)  # those of one channel have no dimension for it
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images of the {part} part have {len(labels)} labels")
    return images, labels
