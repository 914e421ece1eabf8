"""Image tasks: real input.

The settings are those of the flooding paper (Ishida et al., ICML 2020, section 4.2), and of its reproductions
where it leaves something open: SGD at 0.1 with momentum 0.9, a batch of 200, a fifth of the training images
for validation. With augmentation a batch of 128, 15 % for validation, and a tenth of the learning rate after
each of the epochs 250 and 400. An MLP of two hidden layers of 1000 with BatchNorm for the kinds of MNIST,
ResNet-18 for SVHN, ResNet-34 for CIFAR, ResNet-44 for CIFAR with augmentation. Labels are clean unless noise
is asked for.

Splits hold row numbers of one tensor of bytes, which lies on the device once for all seeds and levels; each
batch is gathered, augmented and normalised there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ParamSpec

import torch
from torch import Tensor, nn

from floodsearch.tasks.augmentation import crop, normalise
from floodsearch.tasks.image_sets import SOURCES, Source, load
from floodsearch.tasks.models import mlp
from floodsearch.tasks.options import Digits, GreyImages, HouseNumbers, Model, Photographs
from floodsearch.tasks.resnet import resnet18, resnet34, resnet44
from floodsearch.tasks.streams import stream
from floodsearch.tasks.synthetic import flip
from floodsearch.tasks.task import Data, Split, Task, built_from

DIGITS_SIZES = (1000, 397, 400)
Parameters = ParamSpec("Parameters")

RESNETS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet44": resnet44,
}


def _task_of(name: str, options: Callable[Parameters, GreyImages], what: str) -> Callable[Parameters, Task]:
    """Return the function that makes the task of an image set.

    Args:
        name: of `SOURCES`.
        options: the class of what it may be given.
        what: its images are.
    """

    def task(chosen: GreyImages) -> Task:
        return _images(name, chosen)

    task.__name__ = task.__qualname__ = name
    task.__doc__ = f"Return the task of {what}."
    return built_from(options)(task)


mnist = _task_of("mnist", GreyImages, "MNIST: 70,000 handwritten digits")
kmnist = _task_of("kmnist", GreyImages, "Kuzushiji-MNIST: 70,000 cursive Japanese characters of ten kinds")
fashion_mnist = _task_of("fashion_mnist", GreyImages, "Fashion-MNIST: 70,000 pieces of clothing of ten kinds")
svhn = _task_of("svhn", HouseNumbers, 'SVHN: 99,289 digits of house numbers, without the "extra" part')
cifar10 = _task_of("cifar10", Photographs, "CIFAR-10: 60,000 photographs of ten kinds of things")
cifar100 = _task_of("cifar100", Photographs, "CIFAR-100: 60,000 photographs of a hundred kinds of things")


def _images(name: str, options: GreyImages) -> Task:
    """Return the task of an image set of `SOURCES`; nothing is read before its data are asked for."""
    source, percent = SOURCES[name], 15 if options.augment else 20  # of the training images, for validation

    def data(seed: int) -> Data:
        images = load(name, options.data_dir, download=options.download)
        order = torch.randperm(images.train, generator=stream(seed, "data", "split"))
        validation = images.train * percent // 100
        rows = {
            "train": order[validation:],
            "validation": order[:validation],
            "test": torch.arange(images.train, len(images.labels)),
        }
        splits = {}
        for split, part in rows.items():
            generator = stream(seed, "label noise", split)
            splits[split] = _noisy(part, images.labels[part], source.classes, options.label_noise, generator)
        return Data(**splits)

    def prepare(rows: Tensor, generator: torch.Generator | None) -> Tensor:
        resident = load(name, options.data_dir, download=options.download).on(rows.device)
        chosen = resident.images[rows]
        if options.augment and generator is not None:
            chosen = crop(chosen, generator, mirror=source.mirrored)
        return normalise(chosen, resident.mean, resident.std)

    return Task(
        data=data,
        prepare=prepare,
        samples=source.train - source.train * percent // 100,
        model=lambda: _model(options.model, source),
        recipe=options.recipe,
    )


def _model(name: Model, source: Source) -> nn.Module:
    """Return a new model for images of (n, channels, height, width)."""
    channels, height, width = source.shape
    if name == "mlp":
        layers = mlp(channels * height * width, source.classes, width=1000, depth=2, batch_norm=True)
        return nn.Sequential(nn.Flatten(), *layers)
    return RESNETS[name](channels, source.classes)


@built_from(Digits)
def digits(options: Digits) -> Task:
    """Return scikit-learn's handwritten digits: 1,797 images of 8 x 8, ten classes, no download.

    The seed draws 1,000 training, 397 validation and 400 test images. `label_noise` is the share of labels
    in each split that become another class, any with the same chance.
    """

    def data(seed: int) -> Data:
        images, labels = _load_digits()
        order = torch.randperm(len(images), generator=stream(seed, "data", "split"))
        splits = []
        for name, part in zip(("train", "validation", "test"), order.split(DIGITS_SIZES), strict=True):
            generator = stream(seed, "label noise", name)
            splits.append(_noisy(images[part], labels[part], 10, options.label_noise, generator))
        return Data(*splits)

    return Task(
        data=data,
        model=lambda: mlp(64, 10, width=options.width, depth=options.depth, batch_norm=options.batch_norm),
        recipe=options.recipe,
    )


def _noisy(
    inputs: Tensor, clean: Tensor, classes: int, label_noise: float, generator: torch.Generator
) -> Split:
    """Return a split in which a share of the labels, (n,), became another of the classes."""
    flipped = flip(len(clean), label_noise, generator)
    shift = torch.randint(1, classes, clean.shape, generator=generator)
    return Split(inputs, torch.where(flipped, (clean + shift) % classes, clean), clean)


def _load_digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # slow to import, and only this task needs it

    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images).float() / 16, torch.from_numpy(labels).long()  # (1797, 64), (1797,)
