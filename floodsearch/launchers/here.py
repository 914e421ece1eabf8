"""A worker in this process: it trains with a function that no other process has."""

from __future__ import annotations

import contextvars
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from floodsearch.artifacts.files import is_url
from floodsearch.errors import (
    DivergedError,
    FirstCallError,
    FloodsearchError,
    MistakeError,
    UsageError,
)
from floodsearch.launchers.local import POLL_SECONDS, Look
from floodsearch.queries import status
from floodsearch.records import TrialRecord
from floodsearch.storage.database import Database
from floodsearch.storage.retry import persistently
from floodsearch.storage.studies import StoredStudy, find_study, study_names
from floodsearch.storage.trial_records import read_trials
from floodsearch.usercode.function import Function

if TYPE_CHECKING:
    from floodsearch.training.loop import LoopRun
    from floodsearch.worker.leave import LeaveRequest

EPOCH_SECONDS = 10.0
"""How long an epoch may go on after Ctrl-C; what of it was trained is lost then."""
INTERRUPTED = "interrupted: the epoch is trained to its end; interrupt once more to leave at once"


def check_one_worker(function: Function, workers: int | None, per_device: int | None, devices: str) -> None:
    """Refuse more than one worker for a function that only this process has.

    Raises:
        UsageError: if more were asked for.
    """
    asked = {
        "workers": workers or 1,
        "workers_per_device": per_device or 1,
        "devices": devices.count(",") + 1,
    }
    for name, count in asked.items():
        if count > 1:
            given = repr(devices) if name == "devices" else count
            raise UsageError(
                f"{name} is {given}, but {function.name!r} {function.why_here}, so that one worker in this "
                f"process calls it; remove {name}, or put the function into a file and import it from there: "
                "workers can then, too"
            )


def check_same_function(database: Database, name: str, function: Function) -> None:
    """Refuse to go on with a study of which another version of a function has trained levels to their ends.

    Raises:
        UsageError: if there is such a study.
    """
    if name not in study_names(database):
        return
    study = find_study(database, name)
    if function.revision is None or study.spec.objective != function.reference:
        return  # nothing tells, or the difference is in the spec and told of that
    others = [one for one in _ended(study) if one.revision not in (None, function.revision)]
    if others:
        tickets = "1 ticket" if len(others) == 1 else f"{len(others)} tickets"
        raise UsageError(
            f"{tickets} of study {name!r} were trained by another version of {function.name!r}: choose "
            f"another name, or begin again with floodsearch delete {name}"
        )


def _ended(study: StoredStudy) -> list[TrialRecord]:
    """Return the trials that came to an end after some epochs."""
    return [one for one in read_trials(study) if one.state in ("complete", "pruned") and one.epoch > 0]


@dataclass
class WorkHere:
    """The search of a study by one worker in this process, in the thread that calls it.

    Args:
        study: what it trains; its queue is filled.
        function: that trains.
        device: where.
        checkpoints: the folder or URL of those of all studies.
        logs: the folder of the logs of all studies.
    """

    study: StoredStudy
    function: Function
    device: str
    checkpoints: Path | str = field(repr=False)
    logs: Path

    def run(self, show: Callable[[Look], None] | None = None) -> None:
        """Train until no ticket is left or the study is closed.

        After the first Ctrl-C the epoch is trained to its end, unless that takes too long; the second one
        ends the function where it is. Both hand back. The function runs in the thread that calls this.

        Args:
            show: is given a look at the study about twice a second, from another thread.

        Raises:
            Exception: of the function, if it raised before it had trained one level to an end.
            KeyboardInterrupt: after a Ctrl-C.
            UsageError: if the device does not exist, or somebody changed or deleted the study.
            StorageFailedError: if the database's file is gone.
        """
        from floodsearch.worker.leave import LeaveRequest
        from floodsearch.worker.settings import WorkerSettings
        from floodsearch.worker.work import work

        leave = LeaveRequest()
        place = self.checkpoints if is_url(self.checkpoints) else Path(self.checkpoints).absolute()
        settings = WorkerSettings(device=self.device, checkpoints=place, logs=self.logs.absolute())

        @functools.wraps(self.function.call)  # whose module is looked at where runs depend on each other
        def call(run: LoopRun) -> object:
            return self._call(run)

        try:
            with self._shown(show, leave), _ctrl_c(leave.ask):
                work(self.study, settings, leave, handed=replace(self.function, call=call))
        except FirstCallError as error:
            raise error.__cause__ or error from None
        if leave.reason == INTERRUPTED:
            raise KeyboardInterrupt

    def _call(self, run: LoopRun) -> object:
        """Call the function with a run.

        Raises:
            FirstCallError: from what it raised, if it never did well before: it is wrong, not the level.
        """
        try:
            return self.function.call(run)
        except (DivergedError, MistakeError, MemoryError):
            raise
        except Exception as error:
            own = run.interrupted is None and not _ended(self.study)
            if own and "OutOfMemory" not in type(error).__name__:
                raise FirstCallError(str(error)) from error
            raise

    @contextmanager
    def _shown(self, show: Callable[[Look], None] | None, leave: LeaveRequest) -> Iterator[None]:
        """Show where the study stands from a thread of its own for as long as this lasts, and at its end."""
        if show is None:
            yield
            return
        ended = threading.Event()

        def look() -> None:
            said: tuple[str, ...] = ()
            with suppress(FloodsearchError):  # which the worker comes upon, too, and raises
                while not ended.wait(POLL_SECONDS):
                    before, said = said, (INTERRUPTED,) if leave.reason == INTERRUPTED else ()
                    show(Look(persistently(status, self.study), said[len(before) :]))

        # What a notebook shows belongs to the cell of the thread's context.
        thread = threading.Thread(
            target=contextvars.copy_context().run, args=[look], name="progress", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(POLL_SECONDS * 4)
        show(Look(persistently(status, self.study)))


@contextmanager
def _ctrl_c(ask: Callable[[str], None]) -> Iterator[None]:
    """Let the first Ctrl-C ask to leave, and the second one raise KeyboardInterrupt, or time in its place.

    In another thread than the main one, where no signal is heard, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    main = threading.main_thread().ident or 0
    late = threading.Timer(EPOCH_SECONDS, lambda: signal.pthread_kill(main, signal.SIGINT))
    late.daemon = True

    def handle(number: int, frame: object) -> None:
        del frame
        signal.signal(number, signal.default_int_handler)
        ask(INTERRUPTED)
        late.start()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        late.cancel()
        signal.signal(signal.SIGINT, before)
