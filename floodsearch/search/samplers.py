"""Which level to try next: pure rules of what was tried, and the adapter that makes them Optuna samplers.

A rule is a function `(space, tried, rng, **settings) -> parameters`. It sees scores, of which larger is
better, and has no state: the same history gives the same proposal in any process. A level that was proposed
before is moved to the nearest new one by the adapter.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from floodsearch.records import Attribute, Parameter
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
    epoch: int
    """The last epoch that it reported, 0 for none."""
    complete: bool


Rule = Callable[..., dict[str, Parameter]]


def random(space: Space, tried: Sequence[Tried], rng: np.random.Generator) -> dict[str, Parameter]:
    """Propose any level with the same chance."""
    del tried
    return {"level": float(rng.uniform(space.low, space.high)), **_any_choices(space, rng)}


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
    Levels outside the range, such as the baseline when `low` is above 0, do not count.

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
    beside = _any_choices(space, rng)
    steps = sorted(
        (one for one in tried if one.beside == beside and space.low <= one.level <= space.high),
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
        proposal = self.rule(self.space, tried, np.random.default_rng([self.seed, ticket]))
        beside = {name: value for name, value in proposal.items() if name != "level"}
        levels = [one.level for one in tried if one.beside == beside]
        return {"level": self.space.nearest_untried(float(proposal["level"]), levels), **beside}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse a parameter that the space does not hold."""
        raise ValueError(
            f"parameter {param_name!r} is not searched; known: {', '.join(self.space.distributions())}"
        )

    def _tried(self, trial: FrozenTrial) -> Tried | None:
        parameters = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        # A failed trial says nothing of its level: its ticket is trained again under a new number. Others
        # may have added trials of their own, with other parameters.
        if "level" not in parameters or trial.state == TrialState.FAIL:
            return None
        beside = {name: value for name, value in parameters.items() if name != "level"}
        if beside not in self.space.combinations():
            return None
        # A diverged trial keeps its last report, which says nothing good or bad of its level.
        diverged = trial.user_attrs.get(Attribute.CAUSE) == "diverged"
        value = trial.value if trial.state.is_finished() and not diverged else None
        if value is not None:
            value = None if not math.isfinite(value) else value if self.maximize else -value
        return Tried(
            ticket=int(trial.user_attrs.get(Attribute.TICKET, trial.number)),
            level=float(parameters["level"]),
            beside=beside,
            score=value,
            epoch=max(trial.intermediate_values, default=0),
            complete=trial.state == TrialState.COMPLETE,
        )


def _ask(sampler: BaseSampler, space: Space, tried: Sequence[Tried]) -> dict[str, Parameter]:
    """Ask an Optuna sampler in a study in memory that holds what was tried.

    Optuna's samplers keep a random state and read their study's storage; made anew for each proposal, from
    the same history, they are pure.
    """
    distributions: dict[str, BaseDistribution] = {"level": FloatDistribution(space.low, space.high)}
    distributions |= {name: CategoricalDistribution(values) for name, values in space.choices.items()}
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for one in tried:
        if not space.low <= one.level <= space.high:
            continue
        state = TrialState.RUNNING
        if one.score is not None:
            state = TrialState.COMPLETE if one.complete else TrialState.PRUNED
        study.add_trial(
            optuna.create_trial(
                state=state,
                value=one.score if one.complete else None,
                params={"level": one.level, **one.beside},
                distributions=distributions,
                intermediate_values={} if one.score is None else {one.epoch: one.score},
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return dict(study.ask(distributions).params)


def _check_startup(startup: int) -> None:
    if startup < 0:
        raise ValueError(f"startup must be at least 0, but is {startup}")


def _any_choices(space: Space, rng: np.random.Generator) -> dict[str, Parameter]:
    combinations = space.combinations()
    return combinations[int(rng.integers(len(combinations)))]


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
