"""The tasks that come with floodsearch, by the name that a study file uses.

An entry is `package.module:function`, the same form in which a user names a task of their own; nothing is
imported until a task is used.
"""

from collections.abc import Mapping

TASKS: Mapping[str, str] = {
    "two_gaussians": "floodsearch.tasks.synthetic:two_gaussians",
    "sinusoid": "floodsearch.tasks.synthetic:sinusoid",
    "spiral": "floodsearch.tasks.synthetic:spiral",
    "digits": "floodsearch.tasks.images:digits",
    "mnist": "floodsearch.tasks.images:mnist",
    "kmnist": "floodsearch.tasks.images:kmnist",
    "fashion_mnist": "floodsearch.tasks.images:fashion_mnist",
    "svhn": "floodsearch.tasks.images:svhn",
    "cifar10": "floodsearch.tasks.images:cifar10",
    "cifar100": "floodsearch.tasks.images:cifar100",
}
