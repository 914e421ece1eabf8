"""Which level to try next: pure rules of what was tried, by the name that a study file uses.

A rule is a function `(space, tried, rng, **settings) -> parameters`. It sees scores, of which larger is
better, and has no state: the same history gives the same proposal in any process. `propose` makes the
scores of trials that were pruned comparable with those of complete ones, and moves a level that was proposed
before to the nearest new one. A new sampler is one entry of `SAMPLERS`.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import TrialState

from floodsearch.process.terminal import hush
from floodsearch.records import Parameter
from floodsearch.search.history import Tried, at_the_end
from floodsearch.search.space import Space

Rule = Callable[..., dict[str, Parameter]]

REDRAWS = 100
"""Draws until a value of a range is new: if nine in ten were tried, all of them fail 3 times in 100,000."""


def propose(
    rule: Rule, space: Space, tried: Sequence[Tried], *, seed: int, ticket: int
) -> dict[str, Parameter]:
    """Return the level that a ticket evaluates, and the parameters beside it: a new one where there is one.

    A pure function of these: any process proposes the same for the same ticket.

    Args:
        rule: its settings already bound.
        space: where to search.
        tried: what was proposed for others so far.
        seed: of the search; each proposal draws from a generator seeded by (seed, ticket).
        ticket: its number.
    """
    rng = np.random.default_rng([seed, ticket])
    return _moved(rule(space, at_the_end(tried), rng), space, tried, rng)


def _moved(
    proposal: dict[str, Parameter], space: Space, tried: Sequence[Tried], rng: np.random.Generator
) -> dict[str, Parameter]:
    """Return the nearest level that is new, with other parameters only where these were tried everywhere.

    Choices move on to the next ones, values of ranges to any: a rule that repeats itself to the step has
    nothing more to learn there.
    """
    beside = space.settled({name: value for name, value in proposal.items() if name != "level"})
    others = itertools.chain(
        [beside],
        ({**beside, **choices} for choices in space.combinations()),
        (space.draw(rng) for _ in range(REDRAWS if space.ranges else 0)),
    )
    for other in others:
        gone = [one.level for one in tried if one.counts_for(other)]
        level = space.nearest_untried(float(proposal["level"]), gone)
        if level is not None:
            return {"level": level, **other}
    return {**proposal, **beside}


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


@dataclass(frozen=True)
class Sampler:
    """A way to choose the levels of a study.

    Args:
        rule: proposes the level of an open ticket when a worker takes it. None where nothing is proposed:
            each level of a grid is a ticket, and they are fixed when the queue is filled.
    """

    rule: Rule | None

    @property
    def fixed(self) -> bool:
        """Whether all tickets have their levels from the start."""
        return self.rule is None


SAMPLERS: Mapping[str, Sampler] = {
    "grid": Sampler(None),
    "random": Sampler(random),
    "tpe": Sampler(tpe),
    "gp": Sampler(gp),
    "heuristic": Sampler(heuristic),
}


def _ask(sampler: BaseSampler, space: Space, tried: Sequence[Tried]) -> dict[str, Parameter]:
    """Ask an Optuna sampler in a study in memory that holds what was tried.

    Optuna's samplers keep a random state and read their study's storage; made anew for each proposal, from
    the same history, they are pure. What has a score is shown to them as complete: their own way with pruned
    trials is to leave them out (GP) or to rank them behind all others (TPE), although their scores compare.
    """
    distributions = {**space.distributions(), "level": FloatDistribution(space.low, space.high)}
    hush("optuna.storages")  # it would tell of each new study, and these live for one question
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
