"""Our rules and judges as a sampler and a pruner of Optuna's, for a study that floodsearch does not run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from floodsearch.search.halving import Standing
from floodsearch.search.history import ticket_of, tried_in
from floodsearch.search.judge import Judge, Rung
from floodsearch.search.samplers import Rule, propose
from floodsearch.search.space import Space


class RuleSampler(BaseSampler):
    """A rule as an Optuna sampler that works with any number of workers.

    Args:
        rule: the rule, its settings already bound.
        space: where to search.
        seed: of the search; each proposal draws from a generator seeded by (seed, trial).
        maximize: whether a larger value is better.
    """

    def __init__(self, rule: Rule, space: Space, *, seed: int, maximize: bool) -> None:
        self.rule, self.space, self.seed, self.maximize = rule, space, seed, maximize

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return all parameters: they are proposed together."""
        del study, trial
        return self.space.distributions()

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the rule's proposal, moved to the nearest level that is new."""
        del search_space
        tried = tried_in(_every_trial(study), self.space, maximize=self.maximize)
        return propose(self.rule, self.space, tried, seed=self.seed, ticket=ticket_of(trial))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse a parameter that the space does not hold."""
        raise ValueError(
            f"parameter {param_name!r} is not searched; known: {', '.join(self.space.distributions())}"
        )


class JudgePruner(BasePruner):
    """A judge as an Optuna pruner, which decides on each trial among those that came as far before it.

    For trials with a parameter `level` and the same seeds: one that has reported the very values of a trial
    at level 0 so far has not flooded yet, and is not judged.

    Args:
        judge: that decides, made for the epochs at which the trials report.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether a trial stops at the last epoch that it has reported."""
        epoch = max(trial.intermediate_values, default=0)
        if epoch not in self.judge.rungs or "level" not in trial.params:
            return False
        maximize = study.direction == optuna.study.StudyDirection.MAXIMIZE
        trials = {one.number: one for one in (*_every_trial(study), trial)}
        reached = _standings(trials, epoch, maximize=maximize)
        others = {number: one for number, one in trials.items() if number != trial.number}
        rung = Rung(
            epoch=epoch,
            standings={trial.number: reached[trial.number]},
            scale=max(one.level for one in reached.values()),
            maximize=maximize,
            ended=lambda epoch: _standings(others, epoch, maximize=maximize),
            ask=lambda pruner, _: pruner.prune(study, trial),
        )
        return self.judge.judge(rung)[trial.number].prune


def _every_trial(study: optuna.Study) -> list[FrozenTrial]:
    """Return all trials of a study, also of one that Hyperband has narrowed to those of one bracket."""
    return study._storage.get_all_trials(study._study_id, deepcopy=False)


def _standings(trials: Mapping[int, FrozenTrial], epoch: int, *, maximize: bool) -> dict[int, Standing]:
    """Return the standings at an epoch, by number, of those trials that have a level and reported there."""
    unflooded = [_until(epoch, one) for one in trials.values() if one.params.get("level") == 0]
    sign = 1.0 if maximize else -1.0
    return {
        number: Standing(
            one.params["level"],
            sign * one.intermediate_values[epoch],
            forked=_until(epoch, one) not in unflooded,
        )
        for number, one in trials.items()
        if epoch in one.intermediate_values and "level" in one.params
    }


def _until(epoch: int, trial: FrozenTrial) -> dict[int, float]:
    """Return the intermediate values of a trial up to an epoch."""
    return {step: value for step, value in trial.intermediate_values.items() if step <= epoch}
