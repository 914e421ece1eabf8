"""The numbers of a training, which a study file may set; without torch, so that a file is read quickly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers by which a task is trained; a study file may set each of them.

    Args:
        batch_size: samples a step, at least 1; the last batch of an epoch may be smaller.
        optimizer: `adam`, `adamw` or `sgd`.
        learning_rate: above 0.
        momentum: of `sgd`, in [0, 1).
        weight_decay: at least 0; the optimizer adds it to the gradient, so it is never flooded.
        milestones: epochs after which the learning rate is multiplied by `gamma`.
        gamma: above 0.
    """

    batch_size: int = 100
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 0.001
    momentum: float = 0.0
    weight_decay: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        bounds = {
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "optimizer": (self.optimizer in ("adam", "adamw", "sgd"), "'adam', 'adamw' or 'sgd'"),
            "learning_rate": (_positive(self.learning_rate), "above 0"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "weight_decay": (_positive(self.weight_decay) or self.weight_decay == 0, "at least 0"),
            "milestones": (all(epoch >= 1 for epoch in self.milestones), "epochs from 1"),
            "gamma": (_positive(self.gamma), "above 0"),
        }
        for name, (holds, bound) in bounds.items():
            if not holds:
                raise ValueError(f"{name} must be {bound}, but is {getattr(self, name)!r}")

    def learning_rate_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 1."""
        return self.learning_rate * self.gamma ** sum(milestone < epoch for milestone in self.milestones)


def _positive(number: float) -> bool:
    return math.isfinite(number) and number > 0
