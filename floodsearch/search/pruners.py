"""Which trials to stop: pruners by the name that a study file uses.

An entry makes an Optuna pruner for the runs of a study. Pruners are asked at rungs
only, because some of them read every curve of the study on every call. `halving` is ours: workers let it
judge all tickets of a bracket together; asked as an Optuna pruner, it judges a trial among those before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner

from floodsearch.records import Decision
from floodsearch.search.halving import Standing, halve, spread
from floodsearch.search.halving import rungs as halving_rungs
from floodsearch.study.spec import Training

PrunerFactory = Callable[..., BasePruner]


@dataclass(frozen=True)
class HalvingPruner(BasePruner):
    """Successive halving of a bracket of flood levels.

    Args:
        rungs: the epochs at which levels are judged.
        levels: of a grid that are tried, over all its parts.
        reduction: one level in this many is kept at a rung.
        ties: levels within this many standard errors below the last one kept go on too.
        brackets: into how many parts a grid is cut.
    """

    rungs: tuple[int, ...]
    levels: int
    reduction: float
    ties: float
    brackets: int

    @property
    def together(self) -> int:
        """How many levels of one part of a grid are tried."""
        return math.ceil(self.levels / self.brackets)

    def begin(self, levels: Mapping[int, float]) -> dict[int, Decision]:
        """Return which levels of one part of a grid are not tried, by ticket."""
        tried = spread([*levels.values()], self.together)
        aside = Decision(
            prune=True, reason=f"pruned before the first epoch: {len(tried)} levels, evenly spread, are tried"
        )
        return {ticket: aside for ticket, level in levels.items() if level > 0 and level not in tried}

    def judge(
        self, standings: Mapping[int, Standing], epoch: int, highest: float, began: int
    ) -> dict[int, Decision]:
        """Return the decisions on all levels that have reached a rung; at other epochs all go on.

        Args:
            standings: by ticket.
            epoch: that they have reached.
            highest: level of the study.
            began: how many levels above 0 have reached the first rung. What is kept is a share of these, not
                of those that are left: where levels flood late, each rung has new ones to judge.
        """
        if epoch not in self.rungs:
            return {ticket: Decision(prune=False, reason="not judged") for ticket in standings}
        share = self.reduction ** (self.rungs.index(epoch) + 1)
        keep = max(1, math.ceil(began / share - 1e-9))
        return halve(standings, epoch=epoch, highest=highest, keep=keep, ties=self.ties)

    def plan(self, levels: int, epoch: int, epochs: int) -> Iterator[tuple[int, int, int]]:
        """Yield (after which epoch, up to which one, how many levels) a bracket will train, if none ties.

        Args:
            levels: above 0, alive and behind the same epoch.
            epoch: that they have reached.
            epochs: of a run.
        """
        for rung in (*(rung for rung in self.rungs if rung > epoch), epochs):
            yield epoch, rung, levels
            levels, epoch = math.ceil(levels / self.reduction), rung

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Return whether a trial with a parameter `level` stops, among all that reported at its last rung.

        For a study of Optuna's own, with the same seeds in each trial: one that has reported the very values
        of a trial at level 0 so far has not flooded yet, and is not judged.
        """
        epoch = max(trial.intermediate_values, default=0)
        if epoch not in self.rungs or "level" not in trial.params:
            return False
        sign = 1.0 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1.0
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        unflooded = [_until(epoch, one) for one in trials if one.params.get("level") == 0]
        reached = {
            one.number: Standing(
                one.params["level"],
                sign * one.intermediate_values[epoch],
                forked=_until(epoch, one) not in unflooded,
            )
            for one in (*trials, trial)
            if epoch in one.intermediate_values and "level" in one.params
        }
        highest = max(one.level for one in reached.values())
        began = sum(
            self.rungs[0] in one.intermediate_values and one.params.get("level", 0) > 0 for one in trials
        )
        return self.judge(reached, epoch, highest, began)[trial.number].prune


def _until(epoch: int, trial: optuna.trial.FrozenTrial) -> dict[int, float]:
    """Return what a trial has reported until an epoch."""
    return {step: value for step, value in trial.intermediate_values.items() if step <= epoch}


def halving(
    training: Training,
    *,
    levels: int = 9,
    first: float = 0.08,
    growth: float = 2.0,
    reduction: float = 3.0,
    ties: float = 0.0,
    brackets: int = 1,
) -> BasePruner:
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
    judged_at = halving_rungs(training.epochs, training.validate_every, first=first, growth=growth)
    return HalvingPruner(judged_at, levels, reduction, ties, brackets)


def median(training: Training, *, startup: int = 5, warmup: int = 0) -> BasePruner:
    """Stop what is worse than the median of the complete trials.

    Optuna compares each trial's *best* value so far, which is blind to much of what flooding does late in a
    run: it saves little here.

    Args:
        training: of the study.
        startup: complete trials before anything is stopped.
        warmup: epochs of a trial before it may be stopped.
    """
    del training
    _at_least(0, startup=startup, warmup=warmup)
    return MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup)


def hyperband(training: Training, *, first: int | None = None, reduction: int = 3) -> BasePruner:
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
    return HyperbandPruner(min_resource=first, max_resource=training.epochs, reduction_factor=reduction)


def none(training: Training) -> BasePruner:
    """Stop nothing."""
    del training
    return NopPruner()


def _at_least(bound: int, **values: int) -> None:
    for name, value in values.items():
        if value < bound:
            raise ValueError(f"{name} must be at least {bound}, but is {value}")


PRUNERS: Mapping[str, PrunerFactory] = {
    "halving": halving,
    "median": median,
    "hyperband": hyperband,
    "none": none,
}
