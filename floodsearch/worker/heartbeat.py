"""What keeps a worker among the living: a thread that beats, watches the study and reaps the dead."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from dataclasses import dataclass, field

from floodsearch import queue
from floodsearch.errors import StorageFailedError, StudyDeletedError
from floodsearch.queue import Reaper
from floodsearch.storage import tables
from floodsearch.storage.failures import cause
from floodsearch.storage.retry import attempt
from floodsearch.storage.studies import StoredStudy
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings

log = logging.getLogger(__name__)


@dataclass
class Heartbeat:
    """The thread that beats for a worker, counts its epochs, watches the study and reaps the dead.

    It survives every error of the storage: a worker whose database is away for a while is not dead.

    Args:
        study: whose tickets the worker trains.
        worker: its id.
        settings: how often it beats, and how long others may be silent.
        leave: told when the study is stopped or deleted.
        epochs_run: member-epochs that the worker has trained.
        training: the tickets in its hands.
        lease: the name and the holder of one that lasts as long as this worker lives.
    """

    study: StoredStudy
    worker: int
    settings: WorkerSettings
    leave: LeaveRequest
    epochs_run: int = 0
    training: tuple[int, ...] = ()
    lease: tuple[str, str] | None = None
    _stopped: bool = False
    _wake: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Heartbeat:
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()
        self.leave.overdue = self._leave_at_once
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is not None:  # whatever it is, nobody has to wait until this worker is missed
                with contextlib.suppress(KeyError):  # Optuna's word for a study that somebody deleted
                    attempt(queue.hand_all_back, self.study, self.worker)
        finally:
            self.leave.overdue = None
            self._stopped = True
            self._wake.set()
            self._thread.join()
        attempt(self.beat, leaving=True)

    def _run(self) -> None:
        """Beat until the worker is done, and look at the study and at other workers when that is due."""
        reaper = Reaper(self.study, uuid.uuid4().hex, grace_seconds=self.settings.grace_seconds)
        due = time.monotonic() + self.settings.beat_seconds
        # Often enough to see a silence of a grace soon after it is full.
        reaps_every = max(self.settings.beat_seconds, self.settings.grace_seconds / 4)
        reap = time.monotonic() + reaps_every
        while not self._stopped:
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            try:
                self.beat()
                # Woken early, only what this worker trains is new. However short its tickets are, it looks
                # at the study and at other workers when that is due.
                if time.monotonic() < due:
                    continue
                due = time.monotonic() + self.settings.beat_seconds
                if (reason := self.study.stopped()) is not None:
                    self.leave.ask(reason)
                if time.monotonic() < reap:
                    continue
                reap = time.monotonic() + reaps_every
                for trial in reaper.look():
                    log.warning("trial %d was lost; its ticket waits again", trial)
            except (StudyDeletedError, StorageFailedError) as error:
                self.leave.fail(error)
                return
            except Exception as error:  # whatever it is, the next beat may work
                due = time.monotonic() + self.settings.beat_seconds
                reaper.forget()
                log.warning("no beat: %s: %s", type(error).__name__, cause(error))

    def _leave_at_once(self) -> None:
        """Hand the tickets back without the epoch that takes too long, and end the process."""
        log.warning("the epoch takes too long: tickets are handed back without it")
        attempt(queue.hand_all_back, self.study, self.worker)
        attempt(self.beat, leaving=True)
        os._exit(self.leave.status)

    def train(self, *tickets: int) -> None:
        """Note the tickets in training; the thread writes them, so that training waits for no database."""
        self.training = tickets
        self._wake.set()

    def beat(self, *, leaving: bool = False) -> None:
        """Write a sign of life now."""
        tables.beat(
            self.study.database,
            self.worker,
            epochs_run=self.epochs_run,
            training=self.training,
            leaving=leaving,
        )
        if (lease := self.lease) is not None:
            tables.acquire_lease(self.study.database, self.study.uuid, *lease, queue.GRACE_SECONDS)
