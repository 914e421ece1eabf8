"""Which level to try next: pure rules of what was tried, and the adapter that makes them Optuna samplers.

A rule is a function `(space, tried, rng, **settings) -> parameters`. It sees scores, of which larger is
better, and has no state: the same history gives the same proposal in any process. The adapter makes the
scores of trials that were pruned comparable with those of complete ones, and moves a level that was proposed
before to the nearest new one.
"""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from floodsearch.records import Attribute, Parameter, ended_by_us
from floodsearch.search.space import Space

# Optuna tells of each study and trial on stderr; here they are many and short-lived.
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Tried:
    """One ticket for which a level was proposed."""

    ticket: int
    level: float
    beside: Mapping[str, Parameter]
    score: float | None
    """Larger is better; None while it trains, and for good if it diverged."""
    rungs: Mapping[int, float] = field(default_factory=dict)
    """The recent mean of the metric at each epoch that it reported; larger is better."""

    def counts_for(self, beside: Mapping[str, Parameter]) -> bool:
        """Return whether it is a level of these parameters: of all, or their baseline, which has fewer."""
        return self.beside.items() <= beside.items()


Rule = Callable[..., dict[str, Parameter]]

REDRAWS = 100
"""Draws until a value of a range is new: if nine in ten were tried, all of them fail 3 times in 100,000."""


def at_the_end(tried: Sequence[Tried]) -> list[Tried]:
    """Return the same with scores that can be compared: what each is worth at the end, not where it stopped.

    A trial that was pruned has the value of its last rung, and values of different rungs do not compare:
    unflooded runs get worse as they memorise their labels, flooded ones less so. Its score is therefore
    carried from rung to rung as that of the trials that went on: from the rung where it stopped to the next
    one that some of the others reported too, by their mean change between the two, and so on to the last
    rung. The change is taken at the trial's own level, linear in the level between those that went on and
    constant beyond them, and from those with the same parameters beside it where there are any.

    Those that go on were the better ones, by luck too, so that they change rather for the worse: a trial that
    was pruned is not flattered. Where nobody went on a score stays what it is, such as that of a complete
    trial; so does one without reports.
    """
    scores = {index: one.score for index, one in enumerate(tried) if one.score is not None and one.rungs}
    last = {index: max(tried[index].rungs) for index in scores}
    for rung in sorted({epoch for one in tried for epoch in one.rungs}):
        here = [index for index in scores if last[index] == rung]
        both = [one for one in tried if rung in one.rungs and max(one.rungs) > rung]
        if not here or not both:
            continue
        then = min(epoch for one in both for epoch in one.rungs if epoch > rung)
        both = [one for one in both if then in one.rungs]
        for index in here:
            scores[index] += _change(tried[index], both, rung, then)
            last[index] = then
    return [replace(one, score=scores.get(index, one.score)) for index, one in enumerate(tried)]


def _change(one: Tried, both: Sequence[Tried], rung: int, then: int) -> float:
    """Return by how much a trial would have changed between two rungs that others have both reported."""
    alike = [other for other in both if other.counts_for(one.beside)]
    if all(other.beside != one.beside for other in alike):
        alike = list(both)  # a value from a range is nobody else's, and a baseline alone says too little
    changes: dict[float, list[float]] = {}
    for other in alike:
        changes.setdefault(other.level, []).append(other.rungs[then] - other.rungs[rung])
    levels = sorted(changes)
    return float(np.interp(one.level, levels, [statistics.fmean(changes[level]) for level in levels]))


def random(space: Space, tried: Sequence[Tried], rng: np.random.Generator) -> dict[str, Parameter]:
    """Propose any level with the same chance."""
    del tried
    return {"level": float(rng.uniform(space.low, space.high)), **space.draw(rng)}


def tpe(
    space: Space, tried: Sequence[Tried], rng: np.random.Generator, *, startup: int = 10
) -> dict[str, Parameter]:
    """Propose by Optuna's tree-structured Parzen estimator; the first `startup` are random."""
    _check_startup(startup)
    sampler = TPESampler(seed=_seed(rng), n_startup_trials=startup)
    return _ask(sampler, space, tried)


def gp(
    space: Space, tried: Sequence[Tried], rng: np.random.Generator, *, startup: int = 5
) -> dict[str, Parameter]:
    """Propose by Optuna's Gaussian process with a noise term; the first `startup` are random."""
    _check_startup(startup)
    sampler = GPSampler(
        seed=_seed(rng),
        n_startup_trials=startup,
        deterministic_objective=False,
        warn_independent_sampling=False,
    )
    return _ask(sampler, space, tried)


def heuristic(
    space: Space,
    tried: Sequence[Tried],
    rng: np.random.Generator,
    *,
    step: float | None = None,
    tolerance: float = 0.0,
) -> dict[str, Parameter]:
    """Propose by climbing the validation metric, over trials.

    The adaptive rule for one run (step up by alpha after a gain of lambda, down after a loss) carried over to
    trials, where standing still would repeat a training. From the best level so far it steps on in the
    direction of the last gain, turns round after a loss, and halves the step after a loss on both sides.
    A level that is still training counts as a loss, so that several workers spread around the best one.
    Levels outside the range, such as the baseline when `low` is above 0, do not count. Each combination of
    choices beside the level is climbed by itself.

    Args:
        space: where to search.
        tried: what was proposed so far.
        rng: draws the choices beside the level; the climb itself is not random.
        step: alpha at the start, in the unit of the loss; a quarter of the range by default.
        tolerance: lambda, the smallest gain that counts, in the metric's unit.
    """
    if step is not None and step <= 0:
        raise ValueError(f"step must be above 0, but is {step}")
    if tolerance < 0:
        raise ValueError(f"tolerance must be at least 0, but is {tolerance}")
    if space.ranges:
        raise ValueError(
            f"the level is all that it climbs; search {', '.join(space.ranges)} with 'tpe', 'gp' or 'random'"
        )
    beside = space.draw(rng)
    steps = sorted(
        (one for one in tried if one.counts_for(beside) and space.low <= one.level <= space.high),
        key=lambda one: (one.score is None, one.ticket),
    )
    alpha = (space.high - space.low) / 4 if step is None else step
    here, reference, direction, turned = space.low, -math.inf, 1, False
    if not steps:
        return {"level": here, **beside}
    for one in steps:
        if one.score is not None and one.score >= reference + tolerance:
            direction = direction if one.level == here else int(math.copysign(1, one.level - here))
            here, reference, turned = one.level, one.score, False
        else:
            direction, alpha, turned = -direction, alpha / 2 if turned else alpha, not turned
    if not space.low <= here + direction * alpha <= space.high:
        direction = -direction
    return {"level": here + direction * alpha, **beside}


RULES: Mapping[str, Rule] = {"random": random, "tpe": tpe, "gp": gp, "heuristic": heuristic}
SAMPLERS: Mapping[str, Rule | None] = {"grid": None, **RULES}
"""The valid samplers. A grid proposes nothing: its tickets are fixed when the queue is filled."""


class RuleSampler(BaseSampler):
    """A rule as an Optuna sampler that works with any number of workers.

    Args:
        rule: the rule, its settings already bound.
        space: where to search.
        seed: of the search; each proposal draws from a generator seeded by (seed, ticket).
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
        # A study under Hyperband shows samplers one bracket only, so ask the storage.
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        tried = [one for one in map(self._tried, trials) if one is not None]
        ticket = int(trial.user_attrs.get(Attribute.TICKET, trial.number))
        rng = np.random.default_rng([self.seed, ticket])
        return self._moved(self.rule(self.space, at_the_end(tried), rng), tried, rng)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse a parameter that the space does not hold."""
        raise ValueError(
            f"parameter {param_name!r} is not searched; known: {', '.join(self.space.distributions())}"
        )

    def _moved(
        self, proposal: dict[str, Parameter], tried: Sequence[Tried], rng: np.random.Generator
    ) -> dict[str, Parameter]:
        """Return the nearest level that is new, with other parameters only where these were tried everywhere.

        Choices move on to the next ones, values of ranges to any: a rule that repeats itself to the step has
        nothing more to learn there.
        """
        beside = self.space.settled({name: value for name, value in proposal.items() if name != "level"})
        others = itertools.chain(
            [beside],
            ({**beside, **choices} for choices in self.space.combinations()),
            (self.space.draw(rng) for _ in range(REDRAWS if self.space.ranges else 0)),
        )
        for other in others:
            gone = [one.level for one in tried if one.counts_for(other)]
            level = self.space.nearest_untried(float(proposal["level"]), gone)
            if level is not None:
                return {"level": level, **other}
        return {**proposal, **beside}

    def _tried(self, trial: FrozenTrial) -> Tried | None:
        parameters = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        # A failed trial says nothing of its level: its ticket is trained again under a new number. Others
        # may have added trials of their own, with other parameters.
        if "level" not in parameters or trial.state == TrialState.FAIL:
            return None
        beside = {name: value for name, value in parameters.items() if name != "level"}
        if not self.space.holds(beside) or _told_by_hand(trial):
            return None
        one = Tried(
            ticket=int(trial.user_attrs.get(Attribute.TICKET, trial.number)),
            level=float(parameters["level"]),
            beside=beside,
            score=None,
        )
        if trial.user_attrs.get(Attribute.CAUSE) == "diverged":
            return one  # its last reports say nothing good or bad of its level
        sign = 1.0 if self.maximize else -1.0
        rungs = {
            epoch: sign * value for epoch, value in trial.intermediate_values.items() if math.isfinite(value)
        }
        value = trial.value if trial.state.is_finished() else None
        if value is None or not math.isfinite(value):
            return replace(one, rungs=rungs)
        return replace(one, score=sign * value, rungs=rungs)


def _told_by_hand(trial: FrozenTrial) -> bool:
    """Return whether somebody else has ended the trial of a ticket, so that its value means nothing."""
    ended = Attribute.TICKET in trial.user_attrs and trial.state.is_finished()
    return ended and not ended_by_us(trial.state.name.lower(), trial.user_attrs.get(Attribute.CAUSE))


def _ask(sampler: BaseSampler, space: Space, tried: Sequence[Tried]) -> dict[str, Parameter]:
    """Ask an Optuna sampler in a study in memory that holds what was tried.

    Optuna's samplers keep a random state and read their study's storage; made anew for each proposal, from
    the same history, they are pure. What has a score is shown to them as complete: their own way with pruned
    trials is to leave them out (GP) or to rank them behind all others (TPE), although their scores compare.
    """
    distributions = {**space.distributions(), "level": FloatDistribution(space.low, space.high)}
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for one in tried:
        parameters = {"level": one.level, **one.beside}
        # Not the baseline outside the range, or without the settings that are searched beside other levels.
        if parameters.keys() != distributions.keys() or not space.low <= one.level <= space.high:
            continue
        study.add_trial(
            optuna.create_trial(
                state=TrialState.RUNNING if one.score is None else TrialState.COMPLETE,
                value=one.score,
                params=parameters,
                distributions=distributions,
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return dict(study.ask(distributions).params)


def _check_startup(startup: int) -> None:
    if startup < 0:
        raise ValueError(f"startup must be at least 0, but is {startup}")


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
