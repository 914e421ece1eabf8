"""The queue is the budget: the tickets of a study, filled, taken, finished, handed back and repaired.

A ticket is one experiment. It lies in the queue as a waiting Optuna trial and keeps its number when its
training is lost and done again under another trial. This is the only module that changes a trial's state.
"""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Connection, delete, select, update

from floodsearch.analysis import latest
from floodsearch.catalog import pruner_of, sampler_of
from floodsearch.errors import DivergedError, TicketLostError
from floodsearch.records import Attribute, Decision, Parameter, TrialRecord, WorkerRecord
from floodsearch.search.space import Space, tickets
from floodsearch.spec import Spec
from floodsearch.storage import tables
from floodsearch.storage.studies import StoredStudy, lease, read_trials

ATTEMPTS = 3
"""How often a ticket is trained that ends in an error of the user's code."""
FAILURES_IN_A_ROW = 3
"""After this many tickets in a row that failed the study stops: the code is at fault, not the level."""
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Ticket:
    """One experiment in the hands of a worker.

    Args:
        number: of the ticket.
        trial: Optuna's trial under which it is trained this time.
        level: flood level, in the unit of the loss.
        beside: the parameters searched beside the level.
        epochs: how long each run is.
        seeds: of its runs.
        worker: the id of the worker that holds it.
    """

    number: int
    trial: optuna.trial.Trial
    level: float
    beside: Mapping[str, Parameter]
    epochs: int
    seeds: tuple[int, ...]
    worker: int


def fill(study: StoredStudy) -> int:
    """Make the queue hold every ticket that should exist; return how many were added.

    Creating, extending and repairing are this one operation. Any number of processes may call it at once,
    and it may be cut short anywhere: the next call adds what is missing.
    """
    with lease(study.database, study.uuid, "fill"):
        study = study.reread()
        trials = read_trials(study, results=False)
        newest = latest(trials)
        added = 0
        for number, parameters in enumerate(tickets(study.spec)):
            last = newest.get(number)
            if last is not None and last.state == "waiting":
                _resize(study, last)
            elif last is None or _again(last, trials, study.spec):
                _enqueue(study, number, parameters, last)
                added += 1
        return added


def _again(last: TrialRecord, trials: Iterable[TrialRecord], spec: Spec) -> bool:
    """Return whether a ticket has to be trained once more, given its newest trial."""
    if last.state == "failed":
        errors = sum(one.ticket == last.ticket and one.cause == "error" for one in trials)
        return errors < ATTEMPTS
    grown = last.epochs < spec.training.epochs or last.seeds < len(spec.training.seeds)
    return last.state == "complete" and grown


def _resize(study: StoredStudy, waiting: TrialRecord) -> None:
    """Let a waiting ticket have the epochs and seeds that the study has grown to."""
    size = _size(study.spec)
    if size != {Attribute.EPOCHS: waiting.epochs, Attribute.SEEDS: waiting.seeds}:
        trial_id = study.database.optuna.get_trial_id_from_study_id_trial_number(study.id, waiting.number)
        for key, value in size.items():
            study.database.optuna.set_trial_user_attr(trial_id, key, value)


def _enqueue(
    study: StoredStudy, number: int, parameters: Mapping[str, Parameter] | None, last: TrialRecord | None
) -> None:
    # A level that was proposed for an open ticket stays its level.
    fixed = dict(last.parameters) if last is not None and last.parameters else parameters
    attributes = {
        Attribute.TICKET.value: number,
        Attribute.ATTEMPT.value: 1 if last is None else last.attempt + 1,
        **_size(study.spec),
    }
    template = optuna.create_trial(
        state=TrialState.WAITING,
        user_attrs=attributes,
        system_attrs={} if fixed is None else {"fixed_params": dict(fixed)},
    )
    study.database.optuna.create_new_trial(study.id, template)


def _size(spec: Spec) -> dict[str, int]:
    return {
        Attribute.EPOCHS.value: spec.training.epochs,
        Attribute.SEEDS.value: len(spec.training.seeds),
    }


def take(study: StoredStudy, worker: int) -> Ticket | None:
    """Take the next ticket, with its level; None if no ticket waits.

    Taking is atomic: no ticket is in two hands. A sampler is asked under a lease, one worker at a time, so
    that no two propose the same.
    """
    asked = study.optuna(sampler_of(study.spec), pruner_of(study.spec))
    # Optuna's own atomic pop. Private, but `ask()` invents a trial when the queue is empty.
    trial_id = asked._pop_waiting_trial_id()
    if trial_id is None:
        return None
    study.database.optuna.set_trial_user_attr(trial_id, Attribute.WORKER, worker)
    try:
        trial = optuna.trial.Trial(asked, trial_id)
        known = study.database.optuna.get_trial(trial_id)
        if "fixed_params" in known.system_attrs or "level" in known.params:
            parameters = _suggest(trial, study.spec)
        else:
            with lease(study.database, study.uuid, "propose"):
                parameters = _suggest(trial, study.spec)
    except BaseException:
        _hand_back(study, trial_id, worker)
        raise
    attributes = known.user_attrs
    return Ticket(
        number=attributes[Attribute.TICKET],
        trial=trial,
        level=float(parameters.pop("level")),
        beside=parameters,
        epochs=attributes[Attribute.EPOCHS],
        seeds=study.spec.training.seeds[: attributes[Attribute.SEEDS]],
        worker=worker,
    )


def _suggest(trial: optuna.trial.Trial, spec: Spec) -> dict[str, Any]:
    space = Space.of(spec)
    beside = {name: trial.suggest_categorical(name, values) for name, values in space.choices.items()}
    return {"level": trial.suggest_float("level", 0.0, space.high), **beside}


def report(ticket: Ticket, value: float, epoch: int) -> None:
    """Show the recent mean of the metric at a rung to the pruner, the dashboard and `status`.

    Raises:
        TicketLostError: if the ticket is no longer this worker's.
    """
    with _owned(ticket):
        ticket.trial.report(value, epoch)


def judge(ticket: Ticket, pruner: str, epoch: int, value: float) -> Decision:
    """Ask the study's pruner about the ticket at a rung. Level 0 is the baseline: it is never pruned."""
    if ticket.level == 0 or pruner == "none":
        return Decision(prune=False, reason="not judged")
    prune = ticket.trial.should_prune()
    told = f"by {pruner} at epoch {epoch}, with a recent mean of {value:.4g}"
    return Decision(prune=prune, reason=f"pruned {told}" if prune else f"kept {told}")


def complete(ticket: Ticket, value: float, attributes: Mapping[str, float | None]) -> None:
    """Finish a ticket with its value, in the metric's unit, and a few numbers for the dashboard."""
    with _owned(ticket):
        for key, number in attributes.items():
            if number is not None and math.isfinite(number):
                ticket.trial.set_user_attr(key, number)
        ticket.trial.study.tell(ticket.trial, value, skip_if_finished=True)


def prune(ticket: Ticket, decision: Decision) -> None:
    """Finish a ticket that the pruner stopped; its last report is its value."""
    _end(ticket, TrialState.PRUNED, "pruned", decision.reason)


def diverge(ticket: Ticket, error: DivergedError) -> None:
    """Finish a ticket whose loss is no longer finite; its level is not proposed again."""
    _end(ticket, TrialState.PRUNED, "diverged", str(error))


def fail(study: StoredStudy, ticket: Ticket, error: BaseException) -> None:
    """Finish a ticket whose code raised; it is tried again, and several in a row stop the study."""
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    with _owned(ticket):
        trace = "".join(traceback.format_exception(error))
        ticket.trial.set_user_attr(Attribute.TRACEBACK, trace[-4000:])
    _end(ticket, TrialState.FAIL, "error", reason)
    if _failing(study):
        study.stop(f"{FAILURES_IN_A_ROW} tickets in a row failed, the last with {reason}")


def _failing(study: StoredStudy) -> bool:
    trials = study.database.optuna.get_all_trials(study.id, deepcopy=False)
    finished = [trial for trial in trials if trial.state.is_finished() and trial.datetime_complete]
    finished.sort(key=lambda trial: (trial.datetime_complete, trial.number))
    last = [trial for trial in finished if trial.user_attrs.get(Attribute.CAUSE) != "lost"][
        -FAILURES_IN_A_ROW:
    ]
    failed = {trial.user_attrs.get(Attribute.TICKET) for trial in last if trial.state == TrialState.FAIL}
    return len(failed) == FAILURES_IN_A_ROW


def _end(ticket: Ticket, state: TrialState, cause: str, reason: str) -> None:
    with _owned(ticket):
        ticket.trial.set_user_attr(Attribute.CAUSE, cause)
        ticket.trial.set_user_attr(Attribute.REASON, reason)
        ticket.trial.study.tell(ticket.trial, state=state, skip_if_finished=True)


class _owned:  # noqa: N801 - a context manager that is used like a function
    """Turn Optuna's word for "someone else has finished this trial" into ours."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UpdateFinishedTrialError):
            raise TicketLostError(
                f"ticket {self.ticket.number} was taken from this worker, which was thought dead"
            ) from None


def hand_back(study: StoredStudy, ticket: Ticket) -> bool:
    """Put a ticket back into the queue; return whether it was still this worker's to give."""
    return _hand_back(study, ticket.trial._trial_id, ticket.worker)


def _hand_back(study: StoredStudy, trial_id: int, worker: int) -> bool:
    with study.database.write() as connection:
        if not _still_running(connection, trial_id, worker):
            return False
        # The next worker starts from the beginning, so what was reported is not true of it yet.
        values = models.TrialIntermediateValueModel
        connection.execute(delete(values).where(values.trial_id == trial_id))
        waiting = update(models.TrialModel).where(models.TrialModel.trial_id == trial_id)
        connection.execute(waiting.values(state=TrialState.WAITING, datetime_start=None))
    return True


def release(study: StoredStudy, worker: int, reason: str) -> list[int]:
    """Declare the tickets of a dead worker lost and queue them again; return the trial numbers."""
    lost = []
    for trial in study.database.optuna.get_all_trials(study.id, deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get(Attribute.WORKER) == worker and _lose(study, trial._trial_id, worker, reason):
            lost.append(trial.number)
    tables.bury_worker(study.database, worker)
    if lost:
        fill(study)
    return lost


def _lose(study: StoredStudy, trial_id: int, worker: int | None, reason: str) -> bool:
    """Mark a running trial as lost, unless it has just ended or changed hands."""
    attributes = models.TrialUserAttributeModel
    with study.database.write() as connection:
        if not _still_running(connection, trial_id, worker):
            return False
        for key, value in ((Attribute.CAUSE, "lost"), (Attribute.REASON, reason)):
            row = {"trial_id": trial_id, "key": key.value, "value_json": json.dumps(value)}
            add: Any = tables.UPSERT[connection.dialect.name](attributes)
            connection.execute(add.values(row).on_conflict_do_nothing())
        failed = update(models.TrialModel).where(models.TrialModel.trial_id == trial_id)
        now = datetime.now(UTC).replace(tzinfo=None)  # Optuna stores naive UTC
        connection.execute(failed.values(state=TrialState.FAIL, datetime_complete=now))
    return True


def _still_running(connection: Connection, trial_id: int, worker: int | None) -> bool:
    """Lock a trial and return whether it runs and, if `worker` is given, in that worker's hands."""
    trial, attributes = models.TrialModel, models.TrialUserAttributeModel
    locked = select(trial.state).where(trial.trial_id == trial_id).with_for_update()
    if connection.execute(locked).scalar_one() != TrialState.RUNNING:
        return False
    owned = select(attributes.value_json).where(
        (attributes.trial_id == trial_id) & (attributes.key == Attribute.WORKER.value)
    )
    owner = connection.execute(owned).scalar_one_or_none()
    return worker is None or (owner is not None and json.loads(owner) == worker)


def closed(study: StoredStudy, workers: Iterable[WorkerRecord]) -> str | None:
    """Return why no ticket is handed out any more: the study was stopped, or its budget is spent."""
    if (reason := study.stopped()) is not None:
        return reason
    budget, workers = study.spec.budget, list(workers)
    if budget.epochs is not None and sum(one.epochs_run for one in workers) >= budget.epochs:
        return f"the budget of {budget.epochs} epochs is spent"
    if budget.hours is not None and seconds_worked(workers) >= budget.hours * SECONDS_PER_HOUR:
        return f"the budget of {budget.hours:g} hours is spent"
    return None


def seconds_worked(workers: Iterable[WorkerRecord]) -> float:
    """Return for how many seconds at least one worker was alive."""
    total, until = 0.0, -math.inf
    for start, end in sorted((one.started, one.left or one.last_beat) for one in workers):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


class Reaper:
    """Finds workers that stopped beating and queues their tickets again.

    It acts only when it has seen the same beat twice, a full grace apart by the database's clock, on an
    unbroken connection: an outage must not kill the living. One reaper works at a time, under a lease.

    Args:
        study: whose workers it watches.
        holder: names this process in the lease.
        grace_seconds: how long a worker may be silent.
    """

    def __init__(self, study: StoredStudy, holder: str, *, grace_seconds: float) -> None:
        self.study, self.holder, self.grace_seconds = study, holder, grace_seconds
        self.seen: dict[tuple[str, int], tuple[float, float]] = {}

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
        present = {worker.id for worker in workers if worker.left is None}
        lost: list[int] = []
        for worker in workers:
            if worker.left is None and self._silent(("worker", worker.id), worker.last_beat, now):
                lost += release(study, worker.id, f"worker {worker.id} on {worker.host} stopped beating")
        for trial in database.optuna.get_all_trials(study.id, deepcopy=False, states=(TrialState.RUNNING,)):
            # Taken by a worker that died before it could sign, or that left without finishing it.
            if trial.user_attrs.get(Attribute.WORKER) in present or Attribute.TICKET not in trial.user_attrs:
                continue
            orphaned = self._silent(("trial", trial._trial_id), 0.0, now)
            if orphaned and _lose(study, trial._trial_id, None, "no worker holds it"):
                lost.append(trial.number)
                fill(study)
        return lost

    def _silent(self, key: tuple[str, int], beat: float, now: float) -> bool:
        last, since = self.seen.get(key, (math.nan, now))
        if last != beat:
            self.seen[key] = (beat, now)
            return False
        return now - since >= self.grace_seconds
