"""What keeps a worker among the living, and what makes it leave."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import IO

from floodsearch import queue
from floodsearch.artifacts.files import Files, files_at
from floodsearch.defaults import CHECKPOINTS, LOGS
from floodsearch.errors import (
    HANDED_BACK,
    INTERRUPTED,
    FloodsearchError,
    StorageFailedError,
    StudyDeletedError,
)
from floodsearch.process.signals import listen
from floodsearch.queue import Reaper
from floodsearch.storage import tables
from floodsearch.storage.failures import cause
from floodsearch.storage.retry import attempt
from floodsearch.storage.studies import StoredStudy

SECONDS_TO_END = 2.0
"""For a worker without tickets to leave after a signal, and for one that is overdue to hand them back."""

log = logging.getLogger(__name__)


class Leave:
    """A reason to leave, given by a signal, the study, or the end of `launch`; the first one stays."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.wanted = threading.Event()
        self.signal: int | None = None
        self.abandoned = False
        self.error: FloodsearchError | None = None
        """Why nothing can be trained any more, if that is the reason."""
        self.overdue: Callable[[], None] | None = None

    @property
    def status(self) -> int:
        """The exit status of a worker that leaves because of a signal."""
        return INTERRUPTED if self.signal == signal.SIGINT else HANDED_BACK

    def ask(self, reason: str) -> None:
        """Ask the worker to hand its tickets back and leave."""
        if not self.wanted.is_set():
            self.reason = reason
            self.wanted.set()

    def fail(self, error: FloodsearchError) -> None:
        """Ask the worker to leave, as nothing can be trained any more."""
        self.error = error
        self.ask(str(error))

    def on_signals(self, *numbers: int, grace: float) -> None:
        """Leave on these signals; a second one ends the process at once.

        Whatever the process does then: a thread hears them, as a call into C may last longer than the grace.

        Args:
            numbers: of the signals.
            grace: seconds to leave in, to the end of the epoch; then `overdue` is called, if it is set, and
                the process ended.
        """
        # Each comes in two ways, or, where code of the user's own listens too, in the first only. Neither a
        # handler, which interrupts whatever the main thread does, nor its thread may wait for a lock.
        arrivals: SimpleQueue[tuple[str, int]] = SimpleQueue()

        def handle(number: int, frame: object) -> None:
            del frame
            signal.signal(number, signal.SIG_DFL)  # the system ends us at the second one
            arrivals.put(("by Python", number))

        for number in numbers:
            signal.signal(number, handle)
        listen(lambda number: arrivals.put(("at once", number)))
        threading.Thread(target=self._obey, args=[arrivals, grace], name="leave", daemon=True).start()

    def _obey(self, arrivals: SimpleQueue[tuple[str, int]], grace: float) -> None:
        heard: Counter[str] = Counter()
        while True:
            way, number = arrivals.get()
            heard[way] += 1
            if heard[way] > 1:
                os._exit(128 + number)
            if self.signal is None:
                self.signal = number
                self.ask(f"signal {signal.Signals(number).name}")
                threading.Thread(target=self._end_after, args=[grace], daemon=True).start()

    def _end_after(self, grace: float) -> None:
        """End the process after a grace, or soon if it has nothing to hand back."""
        soon = min(grace, SECONDS_TO_END)
        time.sleep(soon)
        if self.overdue is not None:
            time.sleep(grace - soon)
        if self.overdue is not None:
            threading.Thread(target=self.overdue, daemon=True).start()
            time.sleep(SECONDS_TO_END)  # the database may be what holds us up
        os._exit(self.status)

    def on_end_of(self, stream: IO[bytes]) -> None:
        """Leave when a stream ends: its other end was held by a process that is gone."""

        def wait() -> None:
            while os.read(stream.fileno(), 4096):
                pass
            self.abandoned = True
            self.ask("whoever started this worker is gone")

        threading.Thread(target=wait, name="lifeline", daemon=True).start()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a worker works; nothing here changes a result.

    Args:
        device: where it trains, as torch names it, or `auto`.
        threads: of torch, on the CPU; None leaves torch's own choice.
        beat_seconds: between two signs of life.
        grace_seconds: silence after which a worker is taken for dead; the same for all workers.
        checkpoints: the folder or URL of those of all studies.
        logs: the folder of what workers and scripts print.
        folders: where files of a command are looked for before the current folder.
    """

    device: str = "auto"
    threads: int | None = None
    beat_seconds: float = 5.0
    grace_seconds: float = queue.GRACE_SECONDS
    # Absolute, as a user's code may change the current folder.
    checkpoints: Path | str = field(default_factory=CHECKPOINTS.absolute, repr=False)
    logs: Path = field(default_factory=LOGS.absolute)
    folders: tuple[Path, ...] = ()

    def files(self, study: StoredStudy) -> Files:
        """Return the files of a study."""
        return files_at(self.checkpoints).within(study.folder)


@dataclass
class Heart:
    """The thread that beats for a worker, counts its epochs, watches the study and reaps the dead.

    It survives every error of the storage: a worker whose database is away for a while is not dead.
    """

    study: StoredStudy
    worker: int
    settings: Settings
    leave: Leave
    epochs_run: int = 0
    training: tuple[int, ...] = ()
    lease: tuple[str, str] | None = None
    """The name and the holder of a lease that lasts as long as this worker lives."""
    _stopped: bool = False
    _wake: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Heart:
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)
        self._thread.start()
        self.leave.overdue = self._leave_at_once
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:  # whatever it is, nobody has to wait until this worker is missed
            with contextlib.suppress(KeyError):  # Optuna's word for a study that somebody deleted
                attempt(queue.hand_all_back, self.study, self.worker)
        self.leave.overdue = None
        self._stopped = True
        self._wake.set()
        self._thread.join()
        attempt(self.beat, leaving=True)

    def _run(self) -> None:
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
        """Say what is trained from now on; written by the thread, so that training waits for no database."""
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
