"""Which tickets are to be trained further, because they could change the answer."""

from __future__ import annotations

from collections.abc import Sequence

from floodsearch.answer.combinations import best_response, has_curve, is_worse, responses, with_most_seeds
from floodsearch.answer.tickets import latest
from floodsearch.answer.values import Criterion
from floodsearch.records import MeasuredTrial


def unconfirmed(trials: Sequence[MeasuredTrial], criterion: Criterion) -> MeasuredTrial | None:
    """Return the pruned trial at the maximum of the curve: it must be trained to the end to be the answer.

    None if the maximum is complete, or nothing is. Ask again when that trial is complete: the measured values
    may then show another maximum. A combination of one level has no curve whose maximum it could be: where
    that was pruned, it stays so.
    """
    found = responses(trials, criterion)
    if not found:
        return None
    candidates = [one for one in with_most_seeds(found) if one.complete[one.maximum] or has_curve(one, found)]
    response = max(candidates, key=lambda one: one.curve.mean[one.maximum], default=None)
    return (
        None if response is None or response.complete[response.maximum] else response.trials[response.maximum]
    )


def worth_more_seeds(trials: Sequence[MeasuredTrial], criterion: Criterion) -> set[int]:
    """Return the tickets for which more seeds could change the answer.

    Those of the answer, of the levels that cannot be told apart from it, and of the two that the gain is
    measured between, level 0 and the best flooded one; the same for each combination whose answer cannot be
    told apart from the best. All tickets while nothing is complete.
    """
    found = responses(trials, criterion)
    if not found:
        return set(latest(trials))
    best = best_response(found)
    worth = set()
    for response in found:
        if not is_worse(response, best):
            every = range(len(response.trials))
            tied = response.tied()
            worth |= {
                response.trials[index].ticket for index in (every if tied is None else [*tied, response.top])
            }
            worth |= set() if response.baseline is None else {response.baseline.ticket}
    return worth
