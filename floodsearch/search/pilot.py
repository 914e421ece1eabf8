"""When the pilot of a study has seen enough, and which level it bounds the others by: rules of its records.

The lowest validation loss of an unflooded run bounds the useful levels from above: to flood higher is to
underfit by choice. It is on the scale of whatever loss is trained. It is noisy, so all seeds are taken, and a
margin.
"""

from __future__ import annotations

from collections.abc import Sequence

from floodsearch.errors import LoopError
from floodsearch.records import EpochRecord
from floodsearch.study.spec import Training

MARGIN = 1.25
"""On the largest of the lowest validation losses: measured on Two Gaussians, single seeds gave .17 to .25 at
1 % wrong labels, where the best level is .17."""
STILL_VALIDATIONS = 3
"""So many validations in a row without a new lowest loss end the pilot of a seed."""
MOST = 0.2
"""Share of the epochs after which it ends in any case: a loss that still falls then bounds the levels too."""


def longest(training: Training) -> int:
    """Return the epoch at which the pilot of a seed ends in any case."""
    most = max(round(MOST * training.epochs), STILL_VALIDATIONS * training.validate_every)
    return min(most, training.epochs)


def settled(records: Sequence[EpochRecord]) -> bool:
    """Return whether the validation loss of a run has stopped falling.

    Its lowest value must be several validations old, and half as old as the run: a slow run pauses longer.
    """
    losses = [(record.val_loss, record.epoch) for record in records if record.val_loss is not None]
    if not losses:
        return False
    _, epoch = min(losses)
    since = sum(validated > epoch for _, validated in losses)
    return since >= STILL_VALIDATIONS and losses[-1][1] >= 2 * epoch


def bound(minima: Sequence[float], low: float) -> float:
    """Return the level above which flooding is underfitting by choice.

    Raises:
        LoopError: if the losses give none above `low`.
    """
    lowest, highest = max(minima), MARGIN * max(minima)
    if lowest <= 0:
        raise LoopError(
            f'levels.high = "auto" needs a validation loss that stays above 0, but it fell to {lowest:.4g}; '
            "a loss that can be 0 or negative has no such bound: give levels.high as a number, on the scale "
            "of the training loss (a level floods where the loss of a batch falls below it)"
        )
    if highest <= low:
        raise LoopError(
            f"the validation loss falls to {lowest:.4g}, so that levels are useful up to "
            f"{highest:.4g}, and levels.low is {low:g}; lower it, or give levels.high as a number"
        )
    return highest
