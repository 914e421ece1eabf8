"""Does flooding help? The gain over level 0 on seeds that did not choose the level.

Notation: L levels, S seeds; a *value* is larger where the level is better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from floodsearch.answer.smoothing import Array, peak, smooth, student
from floodsearch.findings import Verdict

LEVEL = 0.9
"""Coverage of the interval of the gain, two-sided."""
SEEDS_FOR_P = 6
"""With fewer seeds even a gain on every one of them has a chance of more than 1 in 20, two-sided."""
MOST_SEEDS = 100
"""Where more than this many seeds in all would be needed, no number is named."""


@dataclass(frozen=True)
class Gain:
    """The gain of flooding, in the metric's unit, positive where it is better.

    Args:
        mean: value at the level minus value at level 0.
        se: standard error of `mean`; None with one seed.
        seeds: S.
    """

    mean: float
    se: float | None
    seeds: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """90 %, by Student's t; None with one seed."""
        if self.se is None:
            return None
        half = _quantile(self.seeds) * self.se
        return self.mean - half, self.mean + half

    @property
    def p_value(self) -> float | None:
        """Two-sided probability of so large a gain if there were none; None below six seeds."""
        if self.se is None or self.seeds < SEEDS_FOR_P:
            return None
        if self.se == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * special.stdtr(self.seeds - 1, -abs(self.mean) / self.se))

    @property
    def verdict(self) -> Verdict | None:
        """On which side of 0 the interval lies; None with one seed."""
        if self.interval is None:
            return None
        low, high = self.interval
        return "helps" if low > 0 else "hurts" if high < 0 else "not shown"

    @property
    def more_seeds(self) -> int | None:
        """About how many more seeds would decide, if the gain and its spread stayed as they are.

        None where it is decided, where one seed shows no spread, and where it would take too many.
        """
        if self.se is None or self.verdict != "not shown":
            return None
        spread = self.se * math.sqrt(self.seeds)
        for total in range(self.seeds + 1, MOST_SEEDS + 1):
            if _quantile(total) * spread / math.sqrt(total) < abs(self.mean):
                return total - self.seeds
        return None


def gain_over_zero(
    levels: Array, values: Array, measured: NDArray[np.bool_], top: int, *, highest: float
) -> Gain:
    """Return the gain of the best flooded level over level 0, measured on seeds that did not choose it.

    Each seed is measured at the level that the other seeds choose, so that no seed's luck chooses where it is
    measured. The measurements share most of their choosers; with Student's t alone the interval held the
    true gain in .80 to .94 of simulated searches instead of .90. How much better the chosen level looks on
    the seeds that chose it says how much the choice still matters, and its square is added to that of the
    standard error (.88 to .98 then). With one seed there is no other to choose: its gain is that of the
    luckiest level, and its error not known.

    Args:
        levels: ascending, the first one 0, (L,), at least one above.
        values: (S, L).
        measured: where a seed may be measured, (S, L); elsewhere `values` only helps to choose.
        top: index of the best flooded level on all seeds; measured for all of them.
        highest: of all levels of the study.
    """
    seeds = len(values)
    chosen = values[:, top] - values[:, 0]
    if seeds == 1:
        return Gain(float(chosen[0]), None, 1)
    held_out = np.empty(seeds)
    for seed in range(seeds):
        curve = smooth(levels, np.delete(values, seed, axis=0), highest=highest)
        best = peak(curve.mean, (levels > 0) & measured[seed])
        held_out[seed] = values[seed, best] - values[seed, 0]
    mean = float(held_out.mean())
    optimism = float(chosen.mean()) - mean
    return Gain(mean, math.hypot(float(held_out.std(ddof=1)) / math.sqrt(seeds), optimism), seeds)


def _quantile(seeds: int) -> float:
    return student((1 + LEVEL) / 2, seeds - 1)
