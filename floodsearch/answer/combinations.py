"""The response to the level in each combination of the parameters beside it, and which of these is best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from floodsearch.answer.response import Response, measure_response
from floodsearch.answer.smoothing import CONFIDENCE, student
from floodsearch.answer.tickets import comparable
from floodsearch.answer.values import Criterion, mean_and_se
from floodsearch.records import MeasuredTrial


def responses(trials: Sequence[MeasuredTrial], criterion: Criterion) -> list[Response]:
    """Return the response of each combination that has a complete trial, by its first ticket."""
    complete = comparable(trials)
    if not complete:
        return []
    highest = criterion.scale or max(trial.level or 0.0 for trial in trials)
    groups = _by_combination(trial for trial in trials if trial.epochs == complete[0].epochs)
    found = (measure_response(own, maximize=criterion.maximize, highest=highest) for own in groups)
    return [one for one in found if one is not None]


def _by_combination(trials: Iterable[MeasuredTrial]) -> list[list[MeasuredTrial]]:
    """Return the complete and pruned trials of each combination of the parameters beside the level.

    The combinations are in the order of their first tickets.

    The settings of a schedule mean nothing at level 0, so that its trial has none: it is the baseline of all
    combinations that agree with it in the rest, and one of its own only where there is none. Settings from a
    range are hardly ever equal: each of their tickets is then a combination of its own.
    """
    flooded: dict[frozenset[tuple[str, object]], list[MeasuredTrial]] = {}
    plain: dict[frozenset[tuple[str, object]], list[MeasuredTrial]] = {}
    for trial in trials:
        if trial.level is not None and trial.state in ("complete", "pruned") and trial.cause != "diverged":
            group = flooded if trial.level else plain
            group.setdefault(frozenset(trial.beside.items()), []).append(trial)
    found = [
        [*own, *(one for of, ones in plain.items() if of <= beside for one in ones)]
        for beside, own in flooded.items()
    ]
    found += [own for of, own in plain.items() if not any(of <= beside for beside in flooded)]
    return sorted(found, key=lambda own: sorted((one.ticket, one.trial) for one in own))


def best_response(found: Iterable[Response]) -> Response:
    """Return the response with the best answer."""
    return max(with_most_seeds(found), key=lambda one: one.curve.mean[one.chosen])


def has_curve(response: Response, found: Sequence[Response]) -> bool:
    """Return whether a response compares flooded levels with each other.

    Where a study has several combinations, some of them hold one flooded level only, and compare nothing.
    """
    return int(np.count_nonzero(response.levels)) > (0 if len(found) == 1 else 1)


def with_most_seeds(found: Iterable[Response]) -> list[Response]:
    """Return the responses that have seeds which the others lack.

    Those got more seeds because they were not worse. What a seed adds to all levels differs by more than
    levels do, so that means over different seeds say nothing.
    """
    found = list(found)
    most = max(len(one.values) for one in found)
    return [one for one in found if len(one.values) == most]


def is_worse(response: Response, best: Response) -> bool:
    """Return whether the answer of one combination is told apart from the best one, seed by seed."""
    seeds = min(len(response.values), len(best.values))
    difference = best.values[:seeds, best.chosen] - response.values[:seeds, response.chosen]
    mean, se = mean_and_se(difference.tolist())
    return se is not None and mean > student(CONFIDENCE, seeds - 1) * se
