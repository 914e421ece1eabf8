"""Where a study searches: its levels, its tickets and their order."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from floodsearch.records import Parameter
from floodsearch.spec import Spec

RESOLUTION = 1000  # a continuous range is told apart in this many steps when a level was proposed before


@dataclass(frozen=True)
class Space:
    """The levels and the choices beside them.

    Args:
        low: lowest level to propose, in the unit of the loss.
        high: highest level.
        grid: the only levels to propose, ascending, or None for any in the range.
        choices: the values of each parameter that is searched beside the level.
    """

    low: float
    high: float
    grid: tuple[float, ...] | None = None
    choices: Mapping[str, tuple[Parameter, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: Spec) -> Space:
        """Return the space of a study."""
        return cls(spec.levels.low, spec.levels.high, spec.levels.grid(), spec.training.searched)

    def combinations(self) -> list[dict[str, Parameter]]:
        """Return every combination of the choices; one empty combination if there are none."""
        return [
            dict(zip(self.choices, values, strict=True))
            for values in itertools.product(*self.choices.values())
        ]

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return Optuna's distributions; the level's starts at 0, so that the baseline fits in it."""
        level: dict[str, BaseDistribution] = {"level": FloatDistribution(0.0, self.high)}
        return level | {name: CategoricalDistribution(values) for name, values in self.choices.items()}

    def candidates(self) -> tuple[float, ...]:
        """Return the levels that can be told apart, ascending, inside [low, high]."""
        if self.grid is not None:
            return tuple(level for level in self.grid if self.low <= level <= self.high)
        return tuple(np.linspace(self.low, self.high, RESOLUTION + 1).tolist())

    def nearest_untried(self, level: float, tried: Sequence[float]) -> float:
        """Return the level itself if it is new (and on the grid), else the nearest one that is.

        Of two that are equally near the higher one is taken. If all were tried, the level comes back.
        """
        level = min(max(level, self.low), self.high)
        width = self.high - self.low
        closest = width / RESOLUTION / 2 if self.grid is None else width * 1e-9
        if self.grid is None and all(abs(level - other) >= closest for other in tried):
            return level
        untried = [
            candidate
            for candidate in self.candidates()
            if all(abs(candidate - other) >= closest for other in tried)
        ]
        return min(untried, key=lambda candidate: (abs(candidate - level), -candidate), default=level)


def tickets(spec: Spec) -> list[dict[str, Parameter] | None]:
    """Return what each ticket of a study evaluates, by ticket number; None is an open ticket.

    Level 0 comes first, once for each combination of choices. A grid follows in van der Corput order, so
    that any first part of it is spread over the whole range; a sampled search has open tickets, whose
    level is proposed when a worker takes one. The tickets of a grown study begin with those of the old.
    """
    space = Space.of(spec)
    combinations = space.combinations()
    fixed: list[dict[str, Parameter] | None] = [{"level": 0.0, **beside} for beside in combinations]
    if spec.search.sampler != "grid":
        return fixed + [None] * ((spec.search.trials or 0) - len(fixed))
    levels = [level for level in space.grid or () if level != 0]
    return fixed + [
        {"level": levels[index], **beside} for index in van_der_corput(len(levels)) for beside in combinations
    ]


def van_der_corput(n: int) -> list[int]:
    """Return 0 to n - 1, ordered by their binary digits read backwards: 0, then half, quarters, ..."""
    bits = max(1, (n - 1).bit_length())
    return sorted(range(n), key=lambda index: int(f"{index:0{bits}b}"[::-1], 2))
