"""The queue is the budget: the tickets of a study, filled, taken, finished, handed back and repaired.

A ticket is one experiment. It lies in the queue as a waiting Optuna trial and keeps its number when its
training is lost and done again under another trial. This is the only module that changes a trial's state.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from floodsearch.answer.follow_up import unconfirmed, worth_more_seeds
from floodsearch.answer.tickets import latest
from floodsearch.catalog import pruner_of, sampler_of
from floodsearch.errors import DivergedError, MistakeError, TicketLostError
from floodsearch.records import (
    BY_HAND,
    Attribute,
    Decision,
    EpochRecord,
    Parameter,
    TrialRecord,
    WorkerRecord,
    ended_by_us,
)
from floodsearch.search.halving import Standing
from floodsearch.search.pruners import HalvingPruner
from floodsearch.search.space import Space, ticket_count, tickets
from floodsearch.storage import tables, trials
from floodsearch.storage.rows import read_by_optuna
from floodsearch.storage.studies import STATES, StoredStudy, Wanted, lease, read_trials, record_of
from floodsearch.storage.trials import NewTrial
from floodsearch.study.spec import AUTO, MOST_LEVELS, Spec
from floodsearch.usercode.reference import said

ATTEMPTS = 3
"""How often a ticket is trained that ends in an error of the user's code."""
STOPPED_BY_COMMAND = "stopped by floodsearch stop"
FAILURES_IN_A_ROW = 3
"""After this many tickets in a row that failed the study stops: the code is at fault, not the level."""
GRACE_SECONDS = 60.0
"""Silence after which a worker is taken for dead."""
ROUND = 4
"""Open tickets that a worker takes at once under halving: a sampler sees results before it proposes more."""
SECONDS_PER_HOUR = 3600
TRACEBACK_CHARACTERS = 4000

log = logging.getLogger(__name__)

PILOT = "pilot"
"""The lease of the worker that finds the highest level."""


def pilot_holder(worker: int) -> str:
    """Return the name by which a worker holds the pilot's lease."""
    return f"worker {worker}"


@dataclass(frozen=True)
class Ticket:
    """One experiment in the hands of a worker.

    Args:
        number: of the ticket.
        study: whose it is, with its spec as of when the ticket was taken.
        asked: Optuna's object for the study, with its pruner.
        trial_id: Optuna's trial under which it is trained this time.
        level: flood level, in the unit of the loss.
        beside: the parameters searched beside the level.
        epochs: how long each run is.
        seeds: of its runs.
        attempt: how often it was taken up, from 1; more than that after a loss, or when the study grew.
        worker: the id of the worker that holds it.
        confirms: whether it is trained to its end whatever the pruner says, because it is the answer or was
            complete with fewer seeds.
    """

    number: int
    study: StoredStudy
    asked: optuna.Study
    trial_id: int
    level: float
    beside: Mapping[str, Parameter]
    epochs: int
    seeds: tuple[int, ...]
    attempt: int
    worker: int
    confirms: bool = False


@dataclass(frozen=True)
class Entry:
    """What a ticket has shown since it was last written down.

    Args:
        ticket: whose it is.
        records: its epochs.
        reports: the recent means that others see, by rung.
    """

    ticket: Ticket
    records: Sequence[EpochRecord]
    reports: Mapping[int, float]


def fill(study: StoredStudy) -> int:
    """Make the queue hold every ticket that should exist; return how many were added.

    Creating, extending and repairing are this one operation. Any number of processes may call it at once,
    and it may be cut short anywhere: the next call adds what is missing.
    """
    with lease(study.database, study.uuid, "fill"):
        study = study.reread()
        if study.spec.levels.high == AUTO:
            return 0  # the pilot has to tell which levels there are
        history = read_trials(study, results=False)
        newest, wanted, size = latest(history), tickets(study.spec), _size(study.spec)
        bracket, proven = brackets(study.spec, len(wanted)), _trained_to_the_end(history, study.spec)
        new = [
            _new_trial(
                wanted[number],
                newest.get(number),
                size
                | _names(number, bracket(number))
                | ({Attribute.CONFIRMS: 1} if number in proven else {}),
            )
            for number in _to_queue(study, history)
        ]
        if not new and not _in_hand(newest):
            new = [
                _new_trial(one.parameters, one, {Attribute.TICKET: one.ticket, **size, Attribute.CONFIRMS: 1})
                for one in _unconfirmed(study)
            ]
        small = any(one.state == "waiting" and _grown(one, study.spec) for one in newest.values())
        if new or small:
            distributions = Space.of(study.spec).distributions()
            with study.database.write() as connection:
                trials.resize(connection, study.id, size)
                trials.add(connection, study.id, new, distributions)
        return len(new)


def _unconfirmed(study: StoredStudy) -> list[TrialRecord]:
    """Return the trial that was pruned although it is the maximum of the curve, if there is one.

    The answer must have been trained to its end; one that ended there already for another reason is left.
    """
    if study.spec.search.pruner == "none":
        return []
    found = unconfirmed(read_trials(study), study.question)
    return [found] if found is not None and found.cause == "pruned" else []


def unfinished(study: StoredStudy, history: Sequence[TrialRecord]) -> bool:
    """Return whether a ticket of the study is waiting, in training, or missing from the queue."""
    if study.spec.levels.high == AUTO:
        return True
    return _in_hand(latest(history)) or bool(_to_queue(study, history))


def _in_hand(newest: Mapping[int, TrialRecord]) -> bool:
    """Return whether a ticket waits or is in training."""
    return any(trial.state in ("waiting", "running") for trial in newest.values())


def _to_queue(study: StoredStudy, history: Sequence[TrialRecord]) -> list[int]:
    """Return the tickets that have to be queued now.

    Seeds that were added to a study are trained where they may change the answer, which is asked in rounds:
    only when nothing else is left to train, because until then the answer moves, and again after each round.
    A ticket is in at most one round, as it has all seeds then. Only a study with tickets of fewer seeds reads
    its curves here.
    """
    newest, spec = latest(history), study.spec
    missing = [n for n in range(len(tickets(spec))) if _missing(newest.get(n), history, spec)]
    fewer = [n for n, one in sorted(newest.items()) if one.state == "complete" and _grown(one, spec)]
    if missing or not fewer or _in_hand(newest):
        return missing
    known = history if any(one.results for one in history) else read_trials(study)
    worth = worth_more_seeds(known, study.question)
    return [number for number in fewer if number in worth]


def _trained_to_the_end(history: Iterable[TrialRecord], spec: Spec) -> set[int]:
    """Return the tickets that were trained to the end of the study's epochs, with however many seeds."""
    return {one.ticket for one in history if one.state == "complete" and one.epochs >= spec.training.epochs}


def _missing(last: TrialRecord | None, history: Iterable[TrialRecord], spec: Spec) -> bool:
    """Return whether a ticket has to be queued whatever the others came to, given its newest trial."""
    if last is None:
        return True
    if last.state == "failed":
        errors = sum(one.ticket == last.ticket and one.cause == "error" for one in history)
        return errors < ATTEMPTS
    return last.state == "complete" and last.epochs < spec.training.epochs


def _grown(trial: TrialRecord, spec: Spec) -> bool:
    """Return whether the study is larger now than when a trial was queued."""
    return trial.epochs < spec.training.epochs or trial.seeds < len(spec.training.seeds)


def _new_trial(
    parameters: Mapping[str, Parameter] | None, last: TrialRecord | None, attributes: Mapping[Attribute, int]
) -> NewTrial:
    attempt = 1 if last is None else last.attempt + 1
    # A level that was proposed for an open ticket stays its level.
    known = (last.parameters if last is not None else None) or parameters or {}
    return NewTrial({Attribute.ATTEMPT: attempt, **attributes}, known)


def brackets(spec: Spec, total: int) -> Callable[[int], int | None]:
    """Return which bracket a ticket of so many belongs to: a block of a grid, in spread order; or none."""
    pruner = pruner_of(spec)
    if spec.search.sampler != "grid" or not isinstance(pruner, HalvingPruner):
        return lambda number: None
    return lambda number: number * pruner.brackets // total


def _names(number: int, bracket: int | None) -> dict[Attribute, int]:
    """Return the attributes that say which ticket a trial is of, and of which bracket."""
    return {Attribute.TICKET: number} | ({} if bracket is None else {Attribute.BRACKET: bracket})


def portions(spec: Spec) -> int:
    """Return how many workers can have tickets of a study in their hands at once."""
    total = ticket_count(spec) or MOST_LEVELS
    bracket = brackets(spec, total)
    together = {bracket(number) for number in range(total)}
    return total if None in together else len(together)


def _size(spec: Spec) -> dict[Attribute, int]:
    return {Attribute.EPOCHS: spec.training.epochs, Attribute.SEEDS: len(spec.training.seeds)}


def take(
    study: StoredStudy,
    worker: int,
    revision: str | None = None,
    *,
    most: int | None = None,
    again: bool = False,
) -> list[Ticket]:
    """Take the next tickets that are trained together, with their levels; none if no ticket waits.

    Of a grid under halving this is a bracket; of open tickets under halving a few, so that the sampler sees
    results before it proposes more; else one. Taking is atomic: no ticket is in two hands. Where a sampler
    proposes levels, one worker at a time takes, so that each sees what the one before was given.

    Args:
        study: whose tickets.
        worker: who takes them.
        revision: of the user's own code that will train them.
        most: that fit into the worker's memory; None if that is not known to be less.
        again: whether an earlier call failed, so that the worker, whose hands are empty, may have taken
            tickets and not heard of it; then these are given.
    """
    if study.spec.search.sampler == "grid":
        return _take(study, worker, revision, most, again)
    with lease(study.database, study.uuid, "propose"):
        return _take(study, worker, revision, most, again)


def _take(
    study: StoredStudy, worker: int, revision: str | None, fits: int | None, again: bool
) -> list[Ticket]:
    signature = {Attribute.WORKER: worker} | ({} if revision is None else {Attribute.REVISION: revision})
    most = ROUND if study.spec.search.pruner == "halving" else 1
    with study.database.write() as connection:
        claimed = trials.signed(connection, study.id, worker) if again else []
        claimed = claimed or trials.claim(connection, study.id, signature, most=most, fits=fits)
    if not claimed:
        return []
    try:
        found = _records(study, claimed)
        if any(one.cause == BY_HAND for _, one in found):
            study = study.reread()  # if it has grown since this worker looked, nothing is wrong
            found = _records(study, claimed)
        asked = study.optuna(sampler_of(study.spec), pruner_of(study.spec))
        for trial, record in found:
            if record.cause == BY_HAND:
                _discard(study, trial._trial_id, worker, record)
        sound = [(trial, record) for trial, record in found if record.cause != BY_HAND]
        return [_ticket(study, asked, trial, record, worker) for trial, record in sound]
    except BaseException:
        for trial_id in claimed:
            _put_back(study, trial_id, worker)
        raise


def _records(study: StoredStudy, trial_ids: Iterable[int]) -> list[tuple[FrozenTrial, TrialRecord]]:
    """Return trials of tickets, with what they may be in the study as it was read."""
    wanted = Wanted.of(study.spec)
    with read_by_optuna(f"a trial of study {study.name!r}"):
        found = [study.database.optuna.get_trial(trial_id) for trial_id in trial_ids]
    records = [(trial, record_of(trial, study, wanted)) for trial in found]
    return [(trial, record) for trial, record in records if record is not None]


def _discard(study: StoredStudy, trial_id: int, worker: int, record: TrialRecord) -> None:
    """End a trial that was changed by hand, so that its ticket is queued again as it was."""
    log.warning("ticket %d is queued again: %s", record.ticket, record.reason)
    _lose(study, trial_id, worker, str(record.reason), BY_HAND)


def _ticket(
    study: StoredStudy, asked: optuna.Study, trial: FrozenTrial, record: TrialRecord, worker: int
) -> Ticket:
    parameters = dict(record.parameters) or _propose(study, asked, trial, worker)
    return Ticket(
        number=record.ticket,
        study=study,
        asked=asked,
        trial_id=trial._trial_id,
        level=float(parameters.pop("level")),
        beside=parameters,
        epochs=record.epochs,
        seeds=study.spec.training.seeds[: record.seeds],
        attempt=record.attempt,
        worker=worker,
        confirms=bool(trial.user_attrs.get(Attribute.CONFIRMS)),
    )


def _propose(
    study: StoredStudy, asked: optuna.Study, trial: FrozenTrial, worker: int
) -> dict[str, Parameter]:
    """Ask the sampler for the level of an open ticket and write it down."""
    distributions = Space.of(study.spec).distributions()
    proposed = asked.sampler.sample_relative(asked, trial, distributions)
    with study.database.write() as connection:
        if not _held(connection, trial._trial_id, worker):
            raise _lost(trial.user_attrs[Attribute.TICKET])
        trials.set_parameters(connection, trial._trial_id, proposed, distributions)
    return proposed


def _held(connection: Connection, trial_id: int, worker: int) -> bool:
    """Lock a trial and return whether it runs in this worker's hands."""
    return trials.lock(connection, trial_id) == (TrialState.RUNNING, worker)


def record(entries: Sequence[Entry]) -> set[int]:
    """Write down what tickets of one study have shown, in one transaction.

    Returns:
        The tickets that are no longer this worker's; of these nothing is written.
    """
    if not entries:
        return set()
    study, lost = entries[0].ticket.study, set()
    with study.database.write() as connection:
        for entry in entries:
            if not _held(connection, entry.ticket.trial_id, entry.ticket.worker):
                lost.add(entry.ticket.number)
                continue
            tables.write_curves(connection, study.uuid, entry.ticket.number, entry.records)
            trials.report(connection, entry.ticket.trial_id, entry.reports)
    return lost


def set_aside(together: Sequence[Ticket]) -> dict[int, Decision]:
    """Return which tickets of a bracket halving does not begin with, by number.

    A pure function of the grid: a bracket that another worker takes up again begins with the same levels.

    Args:
        together: of one bracket, with the same parameters beside the level.
    """
    first = together[0]
    spec, pruner = first.study.spec, first.asked.pruner
    if spec.search.sampler != "grid" or not isinstance(pruner, HalvingPruner):
        return {}
    wanted = tickets(spec)
    bracket = brackets(spec, len(wanted))
    levels = {}
    for number, parameters in enumerate(wanted):
        beside = dict(parameters or {})
        level = float(beside.pop("level", 0.0))
        if level > 0 and bracket(number) == bracket(first.number) and beside == dict(first.beside):
            levels[number] = level
    aside = pruner.begin(levels)
    return {one.number: aside[one.number] for one in together if one.number in aside and not one.confirms}


def judge(standings: Mapping[int, tuple[Ticket, Standing]], epoch: int) -> dict[int, Decision]:
    """Ask the study's pruner about tickets that have reached a rung together; their reports are written.

    Level 0 is the baseline: it is never pruned. Neither is a ticket that confirms the answer.

    Args:
        standings: by ticket number, in the metric's unit with the sign that makes larger better.
        epoch: the rung.

    Returns:
        A decision on each ticket.
    """
    tickets = {number: ticket for number, (ticket, _) in standings.items()}
    first = next(iter(tickets.values()))
    pruner = first.asked.pruner
    if isinstance(pruner, HalvingPruner):
        own = {number: one for number, (_, one) in standings.items()}
        rivals, began = {}, own
        if epoch in pruner.rungs:
            rivals = _rivals(first, tickets, epoch)
            began = {**own, **_rivals(first, tickets, pruner.rungs[0])}
        above = sum(one.level > 0 for one in began.values())
        together = pruner.judge({**rivals, **own}, epoch, _scale(first.study), above)
        decisions = {number: together[number] for number in tickets}
    else:
        decisions = {number: _asked(ticket, epoch) for number, ticket in tickets.items()}
    confirmed = Decision(prune=False, reason="kept: it confirms the answer")
    return {number: confirmed if tickets[number].confirms else one for number, one in decisions.items()}


def _scale(study: StoredStudy) -> float:
    """Return the range of levels over which their curve is smooth, in the unit of the loss."""
    return study.question.scale or study.spec.levels.highest


def _asked(ticket: Ticket, epoch: int) -> Decision:
    """Ask one of Optuna's pruners about one ticket."""
    if ticket.level == 0:
        return Decision(prune=False, reason="level 0 is never pruned")
    trial = ticket.study.database.optuna.get_trial(ticket.trial_id)
    prune = ticket.asked.pruner.prune(ticket.asked, trial)
    value = trial.intermediate_values.get(epoch, math.nan)
    told = f"by {ticket.study.spec.search.pruner} at epoch {epoch}, with a recent mean of {value:.4g}"
    return Decision(prune=prune, reason=f"pruned {told}" if prune else f"kept {told}")


def _rivals(first: Ticket, together: Collection[int], epoch: int) -> dict[int, Standing]:
    """Return how other tickets stood at a rung: of the same bracket, or of all earlier rounds.

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
        if not same or number is None or level is None or value is None or number in together:
            continue
        flooded = trial.user_attrs.get(Attribute.FLOODED) is not False
        rivals[-1 - number] = Standing(float(level), sign * value, flooded)
    return rivals


def complete(
    ticket: Ticket,
    value: float,
    attributes: Mapping[Attribute, float | None],
    *,
    flooded: bool | None = None,
) -> None:
    """Finish a ticket with its value, in the metric's unit, and a few numbers for the dashboard.

    Here and below, `flooded` tells whether a batch of any seed was ever below the level, if that is known.
    """
    known = {
        key: number for key, number in attributes.items() if number is not None and math.isfinite(number)
    }
    _end(ticket, TrialState.COMPLETE, {Attribute.CAUSE: "complete", **known, **_known(flooded)}, value)


def prune(ticket: Ticket, decision: Decision, *, flooded: bool | None = None) -> None:
    """Finish a ticket that the pruner stopped; its last report is its value."""
    why = {Attribute.CAUSE: "pruned", Attribute.REASON: decision.reason}
    _end(ticket, TrialState.PRUNED, {**why, **_known(flooded)})


def diverge(ticket: Ticket, error: DivergedError) -> None:
    """Finish a ticket whose loss is no longer finite; its level is not proposed again."""
    _end(ticket, TrialState.PRUNED, {Attribute.CAUSE: "diverged", Attribute.REASON: str(error)})


def _known(flooded: bool | None) -> dict[Attribute, bool]:
    return {} if flooded is None else {Attribute.FLOODED: flooded}


def fail(ticket: Ticket, error: BaseException) -> None:
    """Finish a ticket whose code raised; it is tried again. Several in a row stop the study, or a mistake."""
    reason = said(error)
    trace = "".join(traceback.format_exception(error))[-TRACEBACK_CHARACTERS:]
    why = {Attribute.CAUSE: "error", Attribute.REASON: reason, Attribute.TRACEBACK: trace}
    _end(ticket, TrialState.FAIL, why)
    if isinstance(error, MistakeError):
        ticket.study.stop(str(error))
    elif _failing(ticket.study):
        ticket.study.stop(f"{FAILURES_IN_A_ROW} tickets in a row failed, the last with {reason}")


def _end(
    ticket: Ticket, state: TrialState, attributes: Mapping[Attribute, object], value: float | None = None
) -> None:
    with ticket.study.database.write() as connection:
        found = trials.lock(connection, ticket.trial_id)
        cause = trials.cause(connection, ticket.trial_id)
        if found == (state, ticket.worker) and cause == attributes[Attribute.CAUSE]:
            return  # it worked the last time, and only the answer was lost
        if found != (TrialState.RUNNING, ticket.worker):
            raise _lost(ticket.number)
        trials.annotate(connection, ticket.trial_id, attributes)
        trials.finish(connection, ticket.trial_id, state, value)


def _lost(number: int) -> TicketLostError:
    return TicketLostError(f"ticket {number} was taken from this worker: thought dead, or ended by hand")


def _failing(study: StoredStudy) -> bool:
    """Return whether the last trials that ended are errors of different tickets; lost ones do not count."""
    ended = [
        trial
        for trial in study.database.optuna.get_all_trials(study.id, deepcopy=False)
        if trial.datetime_complete is not None
        and trial.user_attrs.get(Attribute.CAUSE) not in (None, "lost", BY_HAND)
    ]
    ended.sort(key=lambda trial: (trial.datetime_complete, trial.number))
    last = ended[-FAILURES_IN_A_ROW:]
    failed = {trial.user_attrs.get(Attribute.TICKET) for trial in last if trial.state == TrialState.FAIL}
    return len(failed) == FAILURES_IN_A_ROW


def hand_back(ticket: Ticket, counter: Attribute = Attribute.HANDED_BACK) -> bool:
    """Put a ticket back into the queue; return whether it was still this worker's to give.

    The next worker reports from the first epoch on, though it may train from a checkpoint.

    Args:
        ticket: that is put back.
        counter: what counts how often, `HANDED_BACK` or `OUT_OF_MEMORY`.
    """
    return _put_back(ticket.study, ticket.trial_id, ticket.worker, counter)


def hand_all_back(study: StoredStudy, worker: int) -> None:
    """Put all tickets of a worker back into the queue."""
    for trial in _held_by(study, worker):
        _put_back(study, trial._trial_id, worker)


def _put_back(
    study: StoredStudy, trial_id: int, worker: int, counter: Attribute = Attribute.HANDED_BACK
) -> bool:
    with study.database.write() as connection:
        if not _held(connection, trial_id, worker):
            return False
        trials.put_back(connection, trial_id, counter)
    return True


def release(study: StoredStudy, worker: int, reason: str) -> list[int]:
    """Declare the tickets of a dead worker lost and queue them again; return the trial numbers.

    If it was the pilot's, another worker may begin that again.
    """
    tables.release_lease(study.database, study.uuid, PILOT, pilot_holder(worker))
    lost = [
        trial.number for trial in _held_by(study, worker) if _lose(study, trial._trial_id, worker, reason)
    ]
    tables.bury_worker(study.database, worker)
    if lost:
        fill(study)
    return lost


def _running(study: StoredStudy) -> list[FrozenTrial]:
    states = (TrialState.RUNNING,)
    return study.database.optuna.get_all_trials(study.id, deepcopy=False, states=states)


def _held_by(study: StoredStudy, worker: int) -> list[FrozenTrial]:
    return [trial for trial in _running(study) if trial.user_attrs.get(Attribute.WORKER) == worker]


def _lose(study: StoredStudy, trial_id: int, worker: int | None, reason: str, cause: str = "lost") -> bool:
    """End a running trial that is lost, or for another cause, unless it has just ended or changed hands."""
    with study.database.write() as connection:
        if trials.lock(connection, trial_id) != (TrialState.RUNNING, worker):
            return False
        trials.annotate(connection, trial_id, {Attribute.CAUSE: cause, Attribute.REASON: reason})
        trials.finish(connection, trial_id, TrialState.FAIL, None)
    return True


def closed(study: StoredStudy, workers: Iterable[WorkerRecord]) -> str | None:
    """Return why no ticket is handed out any more: the study was stopped, or its budget is spent."""
    if (reason := study.stopped()) is not None:
        return reason
    budget, workers = study.spec.budget, list(workers)
    if budget.epochs is not None and sum(one.epochs_run for one in workers) >= budget.epochs:
        return f"the budget of {budget.epochs} epochs is spent; {_raise('epochs')}"
    if budget.hours is not None and seconds_worked(workers) >= budget.hours * SECONDS_PER_HOUR:
        return f"the budget of {budget.hours:g} hours is spent; {_raise('hours')}"
    return None


def _raise(key: str) -> str:
    return f"raise budget.{key} in the study file and launch it again to go on"


def seconds_worked(workers: Iterable[WorkerRecord]) -> float:
    """Return for how many seconds at least one worker was alive."""
    total, until = 0.0, -math.inf
    for start, end in sorted((one.started, one.left or one.last_beat) for one in workers):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


Observed = tuple[str, int]
"""A worker or a trial, by its id."""


@dataclass(frozen=True)
class Silence:
    """Since when a beat is the last one, and when that was first seen to last a grace."""

    beat: float
    since: float
    full: float | None = None


class Reaper:
    """Finds workers that stopped beating and queues their tickets again.

    It acts only when it has seen the same beat for a full grace by the database's clock, on an unbroken
    connection, and once more a quarter later: an outage must not kill the living, nor must a moment that
    held up everybody, this reaper included, such as a laptop's sleep. One works at a time, under a lease.

    Args:
        study: whose workers it watches.
        holder: names this process in the lease.
        grace_seconds: how long a worker may be silent.
    """

    def __init__(self, study: StoredStudy, holder: str, *, grace_seconds: float) -> None:
        self.study, self.holder, self.grace_seconds = study, holder, grace_seconds
        self.seen: dict[Observed, Silence] = {}

    def forget(self) -> None:
        """Start all observations again, after an error of the storage."""
        self.seen.clear()

    def step(self) -> list[int]:
        """Look once; return the numbers of the trials that were declared lost."""
        database, study = self.study.database, self.study
        if not tables.acquire_lease(database, study.uuid, "reaper", self.holder, self.grace_seconds):
            self.forget()
            return []
        now = tables.now(database)
        workers = tables.read_workers(database, study.uuid)
        holding = {
            (worker.id, ticket) for worker in workers if worker.left is None for ticket in worker.training
        }
        before, self.seen = self.seen, {}  # what is not seen this time was well in between
        lost: list[int] = []
        for worker in workers:
            if worker.left is None and self._silent(before, ("worker", worker.id), worker.last_beat, now):
                lost += release(study, worker.id, f"worker {worker.id} on {worker.host} stopped beating")
        for trial in _running(study):
            # Taken by a worker that never heard of its success, or left without finishing it.
            worker_id = trial.user_attrs.get(Attribute.WORKER)
            ticket = trial.user_attrs.get(Attribute.TICKET)
            if ticket is None or (worker_id, ticket) in holding:
                continue
            orphaned = self._silent(before, ("trial", trial._trial_id), 0.0, now)
            if orphaned and _lose(study, trial._trial_id, worker_id, "no worker holds it"):
                lost.append(trial.number)
                fill(study)
        return lost

    def _silent(self, before: Mapping[Observed, Silence], key: Observed, beat: float, now: float) -> bool:
        """Return whether a beat has been the last one for too long, and note it for the next time."""
        silence = before.get(key)
        if silence is None or silence.beat != beat:
            silence = Silence(beat, now)
        elif silence.full is None and now - silence.since >= self.grace_seconds:
            silence = replace(silence, full=now)
        self.seen[key] = silence
        return silence.full is not None and now - silence.full >= self.grace_seconds / 4
