"""Which levels to stop: pruners by the name that a study file uses.

An entry is a function `(training, **settings)` that makes the judge of a study. Judges are asked at rungs
only, because some of Optuna's pruners read every curve of the study on every call. A new pruner is one entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from optuna.pruners import HyperbandPruner, MedianPruner

from floodsearch.search.halving import rungs
from floodsearch.search.judge import Halving, Judge, OptunaJudge
from floodsearch.study.spec import Training


def successive_halving(
    training: Training,
    *,
    levels: int = 9,
    first: float = 0.08,
    growth: float = 2.0,
    reduction: float = 3.0,
    ties: float = 0.0,
    brackets: int = 1,
) -> Judge:
    """Stop all but the best part of a bracket at a few rungs, by recent values smoothed over levels.

    The defaults spend .10 of an exhaustive grid of 26 levels and .05 of one of 51: level 0 and the winner to
    their ends are .077 and .039 of that. Around them the choice is flat: 7 to 9 levels, a first rung at .06
    to .12 and one level in 3 or 4 kept differ by less than their errors (tests/benchmarks/RESULTS.md).

    Args:
        training: of the study.
        levels: of a grid that are tried, evenly spread; the others are not trained.
        first: the first rung, as a share of the epochs.
        growth: from one rung to the next.
        reduction: one level in this many is kept.
        ties: in standard errors of the smoothed curve.
        brackets: into how many parts the levels of a grid are cut, each judged and trained by itself.
    """
    if not 0 < first < 1:
        raise ValueError(f"first must be a share of the epochs in (0, 1), but is {first}")
    if growth <= 1 or reduction <= 1:
        raise ValueError(f"growth and reduction must be above 1, but are {growth} and {reduction}")
    if not (math.isfinite(ties) and ties >= 0):
        raise ValueError(f"ties must be at least 0, but is {ties}")
    _at_least(1, levels=levels, brackets=brackets)
    return Halving(
        rungs=rungs(training.epochs, training.validate_every, first=first, growth=growth),
        brackets=brackets,
        tried=math.ceil(levels / brackets),
        most_open=4,
        reduction=reduction,
        ties=ties,
    )


def median(training: Training, *, startup: int = 5, warmup: int = 0) -> Judge:
    """Stop what is worse than the median of the complete trials.

    Optuna compares each trial's *best* value so far, which is blind to much of what flooding does late in a
    run: it saves little here.

    Args:
        training: of the study.
        startup: complete trials before anything is stopped.
        warmup: epochs of a trial before it may be stopped.
    """
    _at_least(0, startup=startup, warmup=warmup)
    pruner = MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup)
    return OptunaJudge(name="median", pruner=pruner, rungs=training.report_epochs()[:-1])


def hyperband(training: Training, *, first: int | None = None, reduction: int = 3) -> Judge:
    """Stop by Hyperband: successive halving in several brackets, each trial against earlier ones.

    Args:
        training: of the study.
        first: epoch of the first decision; the first rung by default.
        reduction: one in this many goes on.
    """
    first = training.report_epochs()[0] if first is None else first
    _at_least(1, first=first)
    _at_least(2, reduction=reduction)
    if first > training.epochs:
        raise ValueError(f"first must be at most the {training.epochs} epochs, but is {first}")
    # Given as numbers: Optuna's "auto" is guessed by each process from what it happens to see first.
    pruner = HyperbandPruner(min_resource=first, max_resource=training.epochs, reduction_factor=reduction)
    return OptunaJudge(name="hyperband", pruner=pruner, rungs=training.report_epochs()[:-1])


def none(training: Training) -> Judge:
    """Stop nothing."""
    del training
    return Judge()


def _at_least(bound: int, **values: int) -> None:
    for name, value in values.items():
        if value < bound:
            raise ValueError(f"{name} must be at least {bound}, but is {value}")


PRUNERS: Mapping[str, Callable[..., Judge]] = {
    "halving": successive_halving,
    "median": median,
    "hyperband": hyperband,
    "none": none,
}
