"""Trials in the hands of workers: whose one is, and how it leaves them other than by its own end."""

from __future__ import annotations

from optuna.trial import TrialState
from sqlalchemy import Connection

from floodsearch.errors import TicketLostError
from floodsearch.records import Attribute
from floodsearch.storage import trials
from floodsearch.storage.studies import StoredStudy
from floodsearch.storage.trials import RunningTrial


def held(connection: Connection, trial_id: int, worker: int) -> bool:
    """Lock a trial and return whether it runs in this worker's hands."""
    return trials.lock(connection, trial_id) == (TrialState.RUNNING, worker)


def lost(number: int) -> TicketLostError:
    """Return the error of a worker that ends or changes a ticket which is no longer its own."""
    return TicketLostError(f"ticket {number} was taken from this worker: thought dead, or ended by hand")


def held_by(study: StoredStudy, worker: int) -> list[RunningTrial]:
    """Return the trials that run in a worker's hands."""
    return [trial for trial in running(study) if trial.worker == worker]


def running(study: StoredStudy) -> list[RunningTrial]:
    """Return the trials of a study that run, in whosever hands."""
    with study.database.read() as connection:
        return trials.running(connection, study.id)


def put_back(
    study: StoredStudy, trial_id: int, worker: int, counter: Attribute = Attribute.HANDED_BACK
) -> bool:
    """Put a trial back into the queue and count that; return whether it was in this worker's hands."""
    with study.database.write() as connection:
        if not held(connection, trial_id, worker):
            return False
        trials.put_back(connection, trial_id, counter)
    return True


def lose(study: StoredStudy, trial_id: int, worker: int | None, reason: str, cause: str = "lost") -> bool:
    """End a running trial that is lost, or for another cause, unless it has just ended or changed hands."""
    with study.database.write() as connection:
        if trials.lock(connection, trial_id) != (TrialState.RUNNING, worker):
            return False
        trials.annotate(connection, trial_id, {Attribute.CAUSE: cause, Attribute.REASON: reason})
        trials.finish(connection, trial_id, TrialState.FAIL, None)
    return True
