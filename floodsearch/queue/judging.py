"""Tickets that have reached a rung are judged, with those that ended before them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from optuna.pruners import BasePruner
from optuna.trial import TrialState

from floodsearch.catalog import judge_of
from floodsearch.queue.brackets import bracket_of
from floodsearch.queue.ticket import Ticket
from floodsearch.records import Attribute, Decision, ended_by_us
from floodsearch.search.halving import Standing
from floodsearch.search.judge import Rung
from floodsearch.search.samplers import SAMPLERS
from floodsearch.search.space import Space
from floodsearch.search.tickets import tickets
from floodsearch.storage.studies import StoredStudy
from floodsearch.storage.trial_records import STATES


def set_aside(taken: Sequence[Ticket]) -> dict[int, Decision]:
    """Return the decision on each ticket of a bracket that its judge does not begin with, by number.

    A pure function of the grid: a bracket that another worker takes up again begins with the same levels.

    Args:
        taken: of one bracket, with the same parameters beside the level.
    """
    first = taken[0]
    spec = first.study.spec
    if not SAMPLERS[spec.search.sampler].fixed:
        return {}
    wanted = tickets(spec)
    bracket = bracket_of(spec, len(wanted))
    levels = {}
    for number, parameters in enumerate(wanted):
        beside = dict(parameters or {})
        level = float(beside.pop("level", 0.0))
        if level > 0 and bracket(number) == bracket(first.number) and beside == dict(first.beside):
            levels[number] = level
    aside = judge_of(spec).begin(levels)
    return {one.number: aside[one.number] for one in taken if one.number in aside and not one.confirms}


def judge(standings: Mapping[int, tuple[Ticket, Standing]], epoch: int) -> dict[int, Decision]:
    """Ask the study's judge about tickets that have reached a rung together; their reports are written.

    Level 0 is the baseline: it is never pruned. Neither is a ticket that confirms the answer.

    Args:
        standings: by ticket number, in the metric's unit with the sign that makes larger better.
        epoch: the rung.

    Returns:
        A decision on each ticket.
    """
    tickets = {number: ticket for number, (ticket, _) in standings.items()}
    first = next(iter(tickets.values()))
    rung = Rung(
        epoch=epoch,
        standings={number: one for number, (_, one) in standings.items()},
        scale=_scale(first.study),
        maximize=first.study.spec.maximize,
        ended=lambda epoch: _rivals(first, tickets, epoch),
        ask=lambda pruner, number: _stops(pruner, tickets[number]),
    )
    decisions = judge_of(first.study.spec).judge(rung)
    confirmed = Decision(prune=False, reason="kept: it confirms the answer")
    return {number: confirmed if tickets[number].confirms else one for number, one in decisions.items()}


def _scale(study: StoredStudy) -> float:
    """Return the range of levels over which their curve is smooth, in the unit of the loss."""
    return study.criterion.scale or study.spec.levels.highest


def _stops(pruner: BasePruner, ticket: Ticket) -> bool:
    """Return whether one of Optuna's pruners stops the trial of a ticket."""
    trial = ticket.study.database.optuna.get_trial(ticket.trial_id)
    return pruner.prune(ticket.study.optuna(pruner=pruner), trial)


def _rivals(first: Ticket, judged: Collection[int], epoch: int) -> dict[int, Standing]:
    """Return the standings at a rung of tickets that have ended: of the same bracket, or of earlier rounds.

    They ended before, because a lost bracket is trained again without what it had pruned already, or
    because open tickets are taken a few at a time. Keyed below zero, apart from tickets in training.

    Levels are compared where the choices beside them are equal. Settings from a range never are, and nobody
    would be judged: a level is judged there by what it and those around it came to with whatever settings.
    """
    study = first.study
    states = (TrialState.PRUNED, TrialState.COMPLETE)
    ended = study.database.optuna.get_all_trials(study.id, deepcopy=False, states=states)
    own = study.database.optuna.get_trial(first.trial_id).user_attrs.get(Attribute.BRACKET)
    sign, ranges = 1.0 if study.spec.maximize else -1.0, Space.of(study.spec).ranges
    chosen = {name: value for name, value in first.beside.items() if name not in ranges}
    rivals = {}
    for trial in ended:
        if not ended_by_us(STATES[trial.state], trial.user_attrs.get(Attribute.CAUSE)):
            continue
        number, parameters = trial.user_attrs.get(Attribute.TICKET), dict(trial.params)
        level = parameters.pop("level", None)
        its = {name: value for name, value in parameters.items() if name not in ranges}
        # At level 0 the settings of the schedule mean nothing, so that its trial has none of them.
        alike = its.items() <= chosen.items() if level == 0 else its == chosen
        same = trial.user_attrs.get(Attribute.BRACKET) == own and alike
        value = trial.intermediate_values.get(epoch)
        if not same or number is None or level is None or value is None or number in judged:
            continue
        flooded = trial.user_attrs.get(Attribute.FLOODED) is not False
        rivals[-1 - number] = Standing(float(level), sign * value, flooded)
    return rivals
