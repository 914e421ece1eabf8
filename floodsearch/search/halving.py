"""Successive halving of flood levels: a few are tried, and at each rung the best part of them goes on.

A synchronous form of successive halving (Jamieson and Talwalkar, AISTATS 2016) for flooding. It differs where
flooding does: it looks at recent values, because runs of one seed share their first epochs and with them
their best value so far; it ranks levels by a curve smoothed over neighbours, because the value changes slowly
with the level and single values are noisy; and it does not judge a level that has not begun to flood.

It begins with a few levels of a grid. For the same epochs, few levels that are judged late say more than
many that are judged early: early in a run the best levels are not those that are best at its end, and what
neighbours would add is what the smoothing takes from them anyway. (Measured on recorded grids of 26 levels:
all of them judged from 3 % of the epochs on lost .008 of test accuracy against the exhaustive grid with one
seed and .016 with five, where flooding helps; nine of them, judged from 8 % on, lost .003 and nothing, at
the same cost.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from floodsearch.answer.smoothing import smooth
from floodsearch.records import Decision


@dataclass(frozen=True)
class Standing:
    """A level with its value at a rung.

    Args:
        level: in the unit of the training loss.
        value: mean over seeds of the recent mean of the metric; larger is better, NaN is the worst.
        forked: whether a batch loss has been below the level yet; before, its value is that of level 0.
    """

    level: float
    value: float
    forked: bool = True


def spread(levels: Sequence[float], count: int) -> list[float]:
    """Return so many of the levels above 0, or all if they are fewer, spread evenly over them.

    The highest is among them. At the other end stands level 0, which is always trained.
    """
    above = sorted({level for level in levels if level > 0})
    if len(above) <= count:
        return above
    return [above[math.floor(len(above) * place / count + 0.5) - 1] for place in range(1, count + 1)]


def halve(
    standings: Mapping[int, Standing], *, epoch: int, highest: float, keep: int, ties: float
) -> dict[int, Decision]:
    """Return a decision on each level that has reached a rung: a pure function of the values there.

    A level that has not flooded yet goes on without a place among those that are kept: until it floods it
    costs nothing.

    Args:
        standings: by ticket, all that have reached the rung; level 0 belongs to the curve, and is kept.
        epoch: of the rung, for the reasons.
        highest: level of the study, those that were pruned earlier included: the curve's scale.
        keep: so many levels that have flooded go on, at least one.
        ties: levels within this many standard errors of the curve below the last one kept go on too.
    """
    # In one order, so that sums round alike whoever asks: a bracket is judged again when its worker died.
    standings = dict(sorted(standings.items(), key=lambda item: (item[1].level, item[0])))
    judged = [ticket for ticket, one in standings.items() if one.level > 0 and one.forked]
    values = _without_nan([one.value for one in standings.values()])
    curve = smooth([one.level for one in standings.values()], values, highest=highest)
    mean = dict(zip(standings, curve.mean.tolist(), strict=True))
    error = dict.fromkeys(standings, 0.0)
    if curve.se is not None:
        error = dict(zip(standings, curve.se.tolist(), strict=True))
    for ticket in _without_value(standings):
        mean[ticket] = -math.inf
    ranked = sorted(judged, key=lambda ticket: (-mean[ticket], standings[ticket].level))
    cut = mean[ranked[:keep][-1]] if ranked else -math.inf
    decisions = {}
    for ticket, one in standings.items():
        if one.level == 0:
            decisions[ticket] = Decision(prune=False, reason="level 0 is never pruned")
            continue
        if not one.forked:
            decisions[ticket] = Decision(prune=False, reason=f"kept: not flooded yet at epoch {epoch}")
            continue
        place = f"{ranked.index(ticket) + 1} of {len(ranked)} at epoch {epoch}"
        told = f"{place}, smoothed {abs(mean[ticket]):.4g}"
        if mean[ticket] >= cut:
            decisions[ticket] = Decision(prune=False, reason=f"kept: {told}")
        elif mean[ticket] >= cut - ties * error[ticket]:
            decisions[ticket] = Decision(prune=False, reason=f"kept: {told}, tied with the best {keep}")
        else:
            decisions[ticket] = Decision(
                prune=True, reason=f"pruned: {told}; the best {keep} go on, down to {abs(cut):.4g}"
            )
    return decisions


def _without_value(standings: Mapping[int, Standing]) -> list[int]:
    """Return the tickets whose value is not finite; none if no level above 0 has a better one."""
    finite = [math.isfinite(one.value) for one in standings.values() if one.level > 0]
    return [ticket for ticket, one in standings.items() if any(finite) and not math.isfinite(one.value)]


def _without_nan(values: list[float]) -> np.ndarray:
    """Return (L,) values, in which one that is not finite has become the lowest."""
    array = np.array(values, dtype=float)
    finite = array[np.isfinite(array)]
    return np.where(np.isfinite(array), array, finite.min() if len(finite) else 0.0)


def rungs(epochs: int, validate_every: int, *, first: float, growth: float) -> tuple[int, ...]:
    """Return the epochs at which levels are judged, ascending and all before the last one.

    Args:
        epochs: length of a run.
        validate_every: a rung is a validated epoch.
        first: of the first rung, as a share of the epochs.
        growth: from one rung to the next.
    """
    found: list[int] = []
    target = first * epochs
    while True:
        rung = max(1, math.ceil(target / validate_every - 1e-9)) * validate_every
        if rung >= epochs:
            return tuple(found)
        if not found or rung > found[-1]:
            found.append(rung)
        target = max(target * growth, rung * growth)
