"""Successive halving of flood levels: at each rung the best part of a smoothed curve goes on.

A synchronous form of successive halving (Jamieson and Talwalkar, AISTATS 2016) for flooding. It differs where
flooding does: it looks at recent values, because runs of one seed share their first epochs and with them
their best value so far; it ranks levels by a curve smoothed over neighbours, because the value changes slowly
with the level and single values are noisy; and it does not judge a level that has not begun to flood.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from floodsearch.records import Decision
from floodsearch.smoothing import smooth


@dataclass(frozen=True)
class Standing:
    """How a level stands at a rung.

    Args:
        level: in the unit of the training loss.
        value: mean over seeds of the recent mean of the metric; larger is better, NaN is the worst.
        forked: whether a batch loss has been below the level yet; before, its value is that of level 0.
    """

    level: float
    value: float
    forked: bool = True


def halve(
    standings: Mapping[int, Standing], *, epoch: int, highest: float, reduction: float, ties: float
) -> dict[int, Decision]:
    """Return which levels go on after a rung: a pure function of what they came to at that rung.

    Args:
        standings: by ticket, all that have reached the rung; level 0 belongs to the curve, and is kept.
        epoch: of the rung, for the reasons.
        highest: level of the study, those that were pruned earlier included: the curve's scale.
        reduction: one level in this many is kept, rounded up.
        ties: levels within this many standard errors of the curve below the last one kept go on too.
    """
    # In one order, so that sums round alike whoever asks: a bracket is judged again when its worker died.
    standings = dict(sorted(standings.items(), key=lambda item: (item[1].level, item[0])))
    candidates = [ticket for ticket, one in standings.items() if one.level > 0]
    keep = math.ceil(len(candidates) / reduction)
    values = _without_nan([one.value for one in standings.values()])
    curve = smooth([one.level for one in standings.values()], values, highest=highest)
    mean = dict(zip(standings, curve.mean.tolist(), strict=True))
    error = dict.fromkeys(standings, 0.0)
    if curve.se is not None:
        error = dict(zip(standings, curve.se.tolist(), strict=True))
    for ticket in _without_value(standings):
        mean[ticket] = -math.inf
    ranked = sorted(candidates, key=lambda ticket: (-mean[ticket], standings[ticket].level))
    cut = mean[ranked[keep - 1]] if ranked else -math.inf
    decisions = {}
    for ticket, one in standings.items():
        if one.level == 0:
            decisions[ticket] = Decision(prune=False, reason="level 0 is never pruned")
            continue
        place = f"{ranked.index(ticket) + 1} of {len(ranked)} at epoch {epoch}"
        told = f"{place}, smoothed {abs(mean[ticket]):.4g}"
        if not one.forked:
            decisions[ticket] = Decision(prune=False, reason=f"kept: not flooded yet at epoch {epoch}")
        elif mean[ticket] >= cut:
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
