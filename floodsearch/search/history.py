"""What was tried in a study so far, with scores that can be compared.

The rules that propose levels see this and nothing else, so that a proposal is a pure function of it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from floodsearch.records import Attribute, Parameter, ended_by_us
from floodsearch.search.space import Space


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
        """Return whether a level was tried with these parameters beside it: with all, or as their baseline.

        Level 0 has none of the schedule's settings, and is the baseline of all of them.
        """
        return self.beside.items() <= beside.items()


def tried_in(trials: Iterable[FrozenTrial], space: Space, *, maximize: bool) -> list[Tried]:
    """Return all levels that were proposed in a study, with the scores of its trials, in their order.

    A failed trial says nothing of its level: its ticket is trained again under a new number. A trial that
    somebody else has added counts where its parameters are of the space, under its own number.

    Args:
        trials: of Optuna's, all of the study.
        space: where it searches.
        maximize: whether a larger value of its metric is better.
    """
    found = (_tried(trial, space, 1.0 if maximize else -1.0) for trial in trials)
    return [one for one in found if one is not None]


def _tried(trial: FrozenTrial, space: Space, sign: float) -> Tried | None:
    parameters = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    if "level" not in parameters or trial.state == TrialState.FAIL:
        return None
    beside = {name: value for name, value in parameters.items() if name != "level"}
    if not space.holds(beside) or _told_by_hand(trial):
        return None
    one = Tried(
        ticket=ticket_of(trial),
        level=float(parameters["level"]),
        beside=beside,
        score=None,
    )
    if trial.user_attrs.get(Attribute.CAUSE) == "diverged":
        return one  # its last reports say nothing good or bad of its level
    rungs = {
        epoch: sign * value for epoch, value in trial.intermediate_values.items() if math.isfinite(value)
    }
    value = trial.value if trial.state.is_finished() else None
    if value is None or not math.isfinite(value):
        return replace(one, rungs=rungs)
    return replace(one, score=sign * value, rungs=rungs)


def ticket_of(trial: FrozenTrial) -> int:
    """Return the number of a trial's ticket; a trial of plain Optuna is its own."""
    return int(trial.user_attrs.get(Attribute.TICKET, trial.number))


def _told_by_hand(trial: FrozenTrial) -> bool:
    """Return whether somebody else has ended the trial of a ticket, so that its value means nothing."""
    ended = Attribute.TICKET in trial.user_attrs and trial.state.is_finished()
    return ended and not ended_by_us(trial.state.name.lower(), trial.user_attrs.get(Attribute.CAUSE))


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
