"""What the worker of a ticket writes down: what it shows, and how its training ends."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence

from optuna.trial import TrialState

from floodsearch.errors import DivergedError, MistakeError
from floodsearch.queue.ownership import held, held_by, lost, put_back
from floodsearch.queue.ticket import Entry, Ticket
from floodsearch.records import BY_HAND, Attribute, Decision
from floodsearch.storage import tables, trials
from floodsearch.storage.studies import StoredStudy
from floodsearch.usercode.reference import said

FAILURES_IN_A_ROW = 3
"""After this many tickets in a row that failed the study stops: the code is at fault, not the level."""
TRACEBACK_CHARACTERS = 4000


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
            if not held(connection, entry.ticket.trial_id, entry.ticket.worker):
                lost.add(entry.ticket.number)
                continue
            tables.write_curves(connection, study.uuid, entry.ticket.number, entry.records)
            tables.end_curves(connection, study.uuid, entry.ticket.number, entry.ends)
            trials.report(connection, entry.ticket.trial_id, entry.reports)
    return lost


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
    """Return the attribute that says whether a ticket was ever flooded, if that is known."""
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
    """Finish the trial of a ticket with its cause among the attributes, in one transaction, once.

    Raises:
        TicketLostError: if the trial is not in this worker's hands any more.
    """
    with ticket.study.database.write() as connection:
        found = trials.lock(connection, ticket.trial_id)
        cause = trials.cause(connection, ticket.trial_id)
        if found == (state, ticket.worker) and cause == attributes[Attribute.CAUSE]:
            return  # it worked the last time, and only the answer was lost
        if found != (TrialState.RUNNING, ticket.worker):
            raise lost(ticket.number)
        trials.annotate(connection, ticket.trial_id, attributes)
        trials.finish(connection, ticket.trial_id, state, value)


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
    return put_back(ticket.study, ticket.trial_id, ticket.worker, counter)


def hand_all_back(study: StoredStudy, worker: int) -> None:
    """Put all tickets of a worker back into the queue."""
    for trial in held_by(study, worker):
        put_back(study, trial.id, worker)
