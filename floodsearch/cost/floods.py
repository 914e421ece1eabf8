"""When levels first flood, on which most of a search's cost depends: as measured, or as assumed before.

A task's level costs nothing until it floods, and halving judges no level before. So a search in which levels
flood late stops fewer of them, and one in which they never do trains one run a seed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

FIRST, POWER = 4.0, 1.25
"""Assumed where nothing is known: the highest level floods in the fourth epoch, one of half its height in the
tenth, as if the lowest batch loss fell by a power of the epoch. Of 13 studies in `studies/` these numbers
forecast 11 within 15 %; levels flood in the first epoch of some, and in another never, hence the range."""
LATE = tuple(2.0**power for power in range(-6, 11))
"""By how much earlier or later than expected levels may flood: the range of a forecast."""
SLOWEST = 0.02
"""A loss that falls more slowly than by this power of the epoch falls so."""


@dataclass(frozen=True, kw_only=True)
class Floods:
    """When the runs of a search first flood.

    Args:
        highest: level of the study, in the unit of the loss.
        lowest: the lowest batch loss of each epoch of an unflooded run, by seed, as far as it was trained;
            where runs of more seeds are asked for, these stand for them.
        late: how much later than expected the epochs come that are not known.
    """

    highest: float
    lowest: tuple[tuple[float, ...], ...] = ()
    late: float = 1.0

    def first(self, level: float, place: int) -> float:
        """Return the epoch in which a level above 0 first floods, with the seed at a place; inf if never."""
        if not self.lowest:
            return max(1.0, self.late * FIRST * _power(self.highest, level, POWER))
        so_far = self._so_far[place % len(self.lowest)]
        if so_far[-1] <= level:
            return float(next(epoch for epoch, loss in enumerate(so_far, start=1) if loss <= level))
        return len(so_far) + max(1.0, self.late * _beyond(so_far, level))

    @cached_property
    def _so_far(self) -> list[list[float]]:
        """The lowest loss up to each epoch, by seed."""
        return [list(accumulate(losses, min)) for losses in self.lowest]


def _beyond(so_far: Sequence[float], level: float) -> float:
    """Return how many epochs after the last one a loss is down at a level, if it goes on to fall as it did.

    Args:
        so_far: the lowest loss up to each epoch, all above the level.
        level: above 0.
    """
    epochs, last = len(so_far), so_far[-1]
    half = (epochs + 1) // 2
    power = 1 / POWER
    if half < epochs:
        power = max(SLOWEST, math.log(so_far[half - 1] / last) / math.log(epochs / half))
    return epochs * (_power(last, level, 1 / power) - 1)


def _power(above: float, level: float, exponent: float) -> float:
    """Return a power of how far something is above a level, however near to 0 that is."""
    try:
        return math.pow(above / level, exponent)
    except (OverflowError, ZeroDivisionError):
        return sys.float_info.max
