"""The tasks that come with floodsearch, by the name that a study file uses.

An entry names the function that builds the task, as `package.module:function`, the same form in which a user
names a task of their own, and the options that it takes. Nothing is imported until a task is built.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from floodsearch.tasks.options import (
    Digits,
    GreyImages,
    HouseNumbers,
    Photographs,
    Sinusoid,
    Spiral,
    TaskOptions,
    TwoGaussians,
)


@dataclass(frozen=True)
class BuiltIn:
    """A task that comes with floodsearch.

    Args:
        path: `package.module:function` that builds it.
        options: the class of what it may be given, whose parameters are those of the function.
    """

    path: str
    options: Callable[..., TaskOptions]


TASKS: Mapping[str, BuiltIn] = {
    "two_gaussians": BuiltIn("floodsearch.tasks.synthetic:two_gaussians", TwoGaussians),
    "sinusoid": BuiltIn("floodsearch.tasks.synthetic:sinusoid", Sinusoid),
    "spiral": BuiltIn("floodsearch.tasks.synthetic:spiral", Spiral),
    "digits": BuiltIn("floodsearch.tasks.images:digits", Digits),
    "mnist": BuiltIn("floodsearch.tasks.images:mnist", GreyImages),
    "kmnist": BuiltIn("floodsearch.tasks.images:kmnist", GreyImages),
    "fashion_mnist": BuiltIn("floodsearch.tasks.images:fashion_mnist", GreyImages),
    "svhn": BuiltIn("floodsearch.tasks.images:svhn", HouseNumbers),
    "cifar10": BuiltIn("floodsearch.tasks.images:cifar10", Photographs),
    "cifar100": BuiltIn("floodsearch.tasks.images:cifar100", Photographs),
}
