"""Where a study searches: its levels, its tickets and their order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from floodsearch.records import Parameter
from floodsearch.study.spec import Choices, Range, Spec, combinations, exhaustive

RESOLUTION = 1000  # in so many steps a continuous range is told apart when something was proposed before


@dataclass(frozen=True)
class Space:
    """The levels and what is searched beside them.

    Args:
        low: lowest level to propose, in the unit of the loss.
        high: highest level.
        grid: the only levels to propose, ascending, or None for any in the range.
        choices: the values of each recipe field that is searched beside the level.
        settings: the schedule's settings that are searched beside the level. They mean nothing at level 0, so
            that the baseline has none of them.
    """

    low: float
    high: float
    grid: tuple[float, ...] | None = None
    choices: Mapping[str, tuple[Parameter, ...]] = field(default_factory=dict)
    settings: Mapping[str, Choices | Range] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: Spec) -> Space:
        """Return the space of a study."""
        grid = spec.levels.grid()
        above = [level for level in grid or () if level > 0]
        # Level 0 is trained in any case; with one level beside it, no level is left to be proposed.
        low = above[0] if len(above) == 1 else spec.levels.low
        return cls(low, spec.levels.highest, grid, spec.searched, spec.searched_settings)

    @property
    def ranges(self) -> dict[str, Range]:
        """The parameters beside the level that may have any value between two."""
        return {name: values for name, values in self.settings.items() if isinstance(values, Range)}

    def baselines(self) -> list[dict[str, Parameter]]:
        """Return every combination of the recipe's choices; one empty combination if there are none."""
        return _combinations(self.choices)

    def combinations(self) -> list[dict[str, Parameter]]:
        """Return every combination of all choices, those of the schedule's settings included."""
        of_schedule = {
            name: values.choices for name, values in self.settings.items() if isinstance(values, Choices)
        }
        return _combinations({**self.choices, **of_schedule})

    def draw(self, rng: np.random.Generator) -> dict[str, Parameter]:
        """Return any parameters beside the level, each with the same chance."""
        combinations = self.combinations()
        drawn = combinations[int(rng.integers(len(combinations)))]
        return drawn | {name: float(rng.choice(_steps(values))) for name, values in self.ranges.items()}

    def settled(self, beside: Mapping[str, Parameter]) -> dict[str, Parameter]:
        """Return parameters beside the level with those of ranges on the nearest of their steps.

        Proposals that differ by less would be the same experiment.
        """
        steps = {name: _steps(values) for name, values in self.ranges.items()}
        nearest = {name: of[np.abs(of - float(beside[name])).argmin()] for name, of in steps.items()}
        return {**beside, **{name: float(value) for name, value in nearest.items()}}

    def holds(self, beside: Mapping[str, Parameter]) -> bool:
        """Return whether these parameters beside a level are of this space: those of a baseline, or all."""
        if beside in self.baselines():
            return True
        ranges = self.ranges
        chosen = {name: value for name, value in beside.items() if name not in ranges}
        return (
            ranges.keys() <= beside.keys()
            and chosen in self.combinations()
            and all(values.low <= float(beside[name]) <= values.high for name, values in ranges.items())
        )

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return Optuna's distributions; the level's starts at 0, so that the baseline fits in it."""
        found: dict[str, BaseDistribution] = {"level": FloatDistribution(0.0, self.high)}
        for name, choices in self.choices.items():
            found[name] = CategoricalDistribution(choices)
        for name, values in self.settings.items():
            if isinstance(values, Range):
                found[name] = FloatDistribution(values.low, values.high, log=values.log)
            else:
                found[name] = CategoricalDistribution(values.choices)
        return found

    def candidates(self) -> tuple[float, ...]:
        """Return the levels that can be told apart, ascending, inside [low, high]."""
        if self.grid is not None:
            return tuple(level for level in self.grid if self.low <= level <= self.high)
        return tuple(np.linspace(self.low, self.high, RESOLUTION + 1).tolist())

    def nearest_untried(self, level: float, tried: Sequence[float]) -> float | None:
        """Return the level itself if it is new (and on the grid), else the nearest one that is.

        Of two that are equally near the higher one is taken. If all were tried, there is none.
        """
        level = min(max(level, self.low), self.high)
        width = self.high - self.low
        closest = width / RESOLUTION / 2 if self.grid is None else width * 1e-9
        closest = max(closest, math.ulp(0.0))  # a range of one level: an equal one is not new either
        if self.grid is None and all(abs(level - other) >= closest for other in tried):
            return level
        untried = [
            candidate
            for candidate in self.candidates()
            if all(abs(candidate - other) >= closest for other in tried)
        ]
        return min(untried, key=lambda candidate: (abs(candidate - level), -candidate), default=None)


def tickets(spec: Spec) -> list[dict[str, Parameter] | None]:
    """Return what each ticket of a study evaluates, by ticket number; None is an open ticket.

    Level 0 comes first, once for each combination of recipe fields; it has no settings of the schedule, which
    mean nothing there. A grid follows in van der Corput order, so that any first part of it is spread over
    the whole range; a sampled search has open tickets, whose parameters are proposed when a worker takes one.
    A schedule that finds the level in each run has one level here, the highest that it may take. The tickets
    of a grown study begin with those of the old.

    Raises:
        ValueError: while the pilot has to find the highest level.
    """
    space = Space.of(spec)
    fixed: list[dict[str, Parameter] | None] = [{"level": 0.0, **beside} for beside in space.baselines()]
    if spec.search.sampler != "grid":
        return fixed + [None] * ((spec.search.trials or 0) - len(fixed))
    levels = [level for level in space.grid or () if level != 0]
    return fixed + [
        {"level": levels[index], **beside}
        for index in van_der_corput(len(levels))
        for beside in space.combinations()
    ]


def ticket_count(spec: Spec) -> int | None:
    """Return how many tickets a study has, or None if the pilot decides that: with a step and no end."""
    if spec.search.sampler == "grid":
        return exhaustive(spec.levels, spec.training_settings, spec.schedule_settings)
    return max(spec.search.trials or 0, combinations(spec.training_settings))


def van_der_corput(n: int) -> list[int]:
    """Return 0 to n - 1, ordered by their binary digits read backwards: 0, then half, quarters, ..."""
    bits = max(1, (n - 1).bit_length())
    return sorted(range(n), key=lambda index: int(f"{index:0{bits}b}"[::-1], 2))


def _combinations(choices: Mapping[str, tuple[Parameter, ...]]) -> list[dict[str, Parameter]]:
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def _steps(values: Range) -> np.ndarray:
    """Return the (RESOLUTION + 1,) values of a range that are told apart, ascending."""
    spaced = np.geomspace if values.log else np.linspace
    return spaced(values.low, values.high, RESOLUTION + 1)
