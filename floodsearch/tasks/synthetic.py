"""The three synthetic tasks of the flooding paper, to the letter, and the oracle of Two Gaussians.

Source: Ishida et al., "Do We Need Zero Training Loss After Achieving Zero Training Error?", ICML 2020,
section 4.1, and the authors' demo code for what the text leaves open: 100 training, 100 validation and 20,000
test samples, five hidden layers of 500 units, logistic loss, Adam at 0.001, the whole training set as one
batch. Exactly int(n * p) labels are flipped in each split, the test split too; the clean labels are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from floodsearch.tasks.models import mlp
from floodsearch.tasks.options import Sinusoid, Spiral, TwoGaussians
from floodsearch.tasks.streams import stream
from floodsearch.tasks.task import Data, Split, Task, binary_correct, built_from, logistic_loss

SIZES = {"train": 100, "validation": 100, "test": 20_000}

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""(n, generator) to inputs (n, features) and clean labels (n,), 0 and 1."""


@built_from(TwoGaussians)
def two_gaussians(options: TwoGaussians) -> Task:
    """Return the Two Gaussians task: identity covariance, means 0 and (1, ..., 1), equal classes."""

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = _equal_classes(n)
        return torch.randn(n, options.dimensions, generator=generator) + labels[:, None], labels

    return _synthetic(draw, options.dimensions, options)


@built_from(Sinusoid)
def sinusoid(options: Sinusoid) -> Task:
    """Return the Sinusoid task: the disc of radius 2, split by sign(1.5 x1 + sin(1.5 x2))."""

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        # The last two coordinates of a point on the sphere in four dimensions are uniform in the disc.
        normal = torch.randn(n, 4, generator=generator)
        inputs = 2 * normal[:, 2:] / normal.norm(dim=1, keepdim=True)
        return inputs, (1.5 * inputs[:, 0] + torch.sin(1.5 * inputs[:, 1]) > 0).float()

    return _synthetic(draw, 2, options)


@built_from(Spiral)
def spiral(options: Spiral) -> Task:
    """Return the Spiral task: two arms over two turns, with normal noise of deviation `spread`."""

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = _equal_classes(n)
        positive = int(labels.sum())
        angle = torch.cat(
            [torch.linspace(0, 4 * math.pi, n - positive), torch.linspace(0, 4 * math.pi, positive)]
        )
        # Class 1 winds at radius a, class 0 half a turn further out, at radius a + pi.
        radius = torch.where(labels.bool(), angle, angle + math.pi)
        arm = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
        return arm + options.spread * torch.randn(n, 2, generator=generator), labels

    return _synthetic(draw, 2, options)


def _synthetic(draw: Draw, inputs: int, options: TwoGaussians | Sinusoid | Spiral) -> Task:
    """Return the task of samples of so many inputs, drawn anew for each seed."""

    def data(seed: int) -> Data:
        splits = {}
        for name, n in SIZES.items():
            samples, labels = draw(n, stream(seed, "data", name))
            flipped = flip(n, options.label_noise, stream(seed, "label noise", name))
            splits[name] = Split(samples, torch.where(flipped, 1 - labels, labels), labels)
        return Data(**splits)

    return Task(
        data=data,
        model=lambda: mlp(inputs, 1, width=options.width, depth=options.depth, batch_norm=options.batch_norm),
        recipe=options.recipe,
        loss=logistic_loss,
        correct=binary_correct,
    )


def _equal_classes(n: int) -> Tensor:
    return (torch.arange(n) >= n - n // 2).float()  # (n,), the second half is class 1


def flip(n: int, label_noise: float, generator: torch.Generator) -> Tensor:
    """Return (n,) booleans, of which exactly int(n * label_noise) are true."""
    flipped = torch.zeros(n, dtype=torch.bool)
    # int(1000 * 0.29) is 289 in binary floats; the nearest millionth below keeps it at 290.
    count = int(round(n * label_noise, 6))
    flipped[torch.randperm(n, generator=generator)[:count]] = True
    return flipped


def two_gaussians_posterior(inputs: Tensor, *, label_noise: float = 0.0) -> Tensor:
    """Return (n,), the probability of label 1 given inputs (n, d), after label noise.

    The log-odds of the clean label are the sum of the coordinates minus d / 2.
    """
    clean = torch.sigmoid(inputs.sum(dim=1) - inputs.shape[1] / 2)
    return label_noise + (1 - 2 * label_noise) * clean


def two_gaussians_best_accuracy(*, label_noise: float = 0.0, dimensions: int = 10) -> float:
    """Return the highest test accuracy that any classifier can have, on labels with noise.

    The clean Bayes classifier errs with probability Phi(-sqrt(d) / 2).
    """
    clean = 0.5 * (1 + math.erf(math.sqrt(dimensions) / 2 / math.sqrt(2)))
    best = max(label_noise, 1 - label_noise)  # above one half of wrong labels the opposite answer is best
    return best * clean + (1 - best) * (1 - clean)


def two_gaussians_bayes_cross_entropy(*, label_noise: float = 0.0, dimensions: int = 10) -> float:
    """Return the lowest possible cross-entropy in nats, on labels with noise.

    The expected entropy of the posterior. By symmetry it is enough to integrate over class 1, whose
    log-odds are normal with mean d / 2 and variance d. The trapezoidal rule over twelve deviations: for a
    smooth integrand that vanishes at both ends it is exact to rounding.
    """
    mean, deviation = dimensions / 2, math.sqrt(dimensions)
    z, step = np.linspace(mean - 12 * deviation, mean + 12 * deviation, 10_001, retstep=True)
    density = np.exp(-0.5 * ((z - mean) / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))
    posterior = label_noise + (1 - 2 * label_noise) / (1 + np.exp(-z))
    entropy = -sum(p * np.log(np.clip(p, 1e-300, None)) for p in (posterior, 1 - posterior))
    return float(np.sum(density * entropy) * step)
