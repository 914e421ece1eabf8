"""Workers that stopped beating are found, and what they held is queued again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from floodsearch.queue.filling import fill
from floodsearch.queue.ownership import held_by, lose, running
from floodsearch.storage import tables
from floodsearch.storage.studies import StoredStudy

GRACE_SECONDS = 60.0
"""Silence after which a worker is taken for dead."""
PILOT = "pilot"
"""The lease of the worker that finds the highest level."""


def pilot_holder(worker: int) -> str:
    """Return the name by which a worker holds the pilot's lease."""
    return f"worker {worker}"


def release(study: StoredStudy, worker: int, reason: str) -> list[int]:
    """Declare the tickets of a dead worker lost and queue them again; return the trial numbers.

    If it was the pilot's, another worker may begin that again.
    """
    tables.release_lease(study.database, study.uuid, PILOT, pilot_holder(worker))
    lost = [trial.number for trial in held_by(study, worker) if lose(study, trial.id, worker, reason)]
    tables.bury_worker(study.database, worker)
    if lost:
        fill(study)
    return lost


Observed = tuple[str, int]
"""A worker or a trial, by its id."""


@dataclass(frozen=True)
class Silence:
    """A beat after which none came, as a reaper has seen it. Times are seconds of the database's clock.

    Args:
        beat: when it was written; 0 for a trial that no worker holds.
        since: when it was first seen to be the last one.
        full: when it was first seen to be the last one for a whole grace; None until then.
    """

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

    def look(self) -> list[int]:
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
        for trial in running(study):
            # Taken by a worker that never heard of its success, or left without finishing it.
            if trial.ticket is None or (trial.worker, trial.ticket) in holding:
                continue
            orphaned = self._silent(before, ("trial", trial.id), 0.0, now)
            if orphaned and lose(study, trial.id, trial.worker, "no worker holds it"):
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
