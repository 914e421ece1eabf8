"""Workers as processes of this machine, started, watched and restarted by `launch`.

Each worker is a session of its own, so that Ctrl-C reaches only the launch, and leaves when the launch is
gone: its standard input is a pipe whose other end the launch holds.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from floodsearch import queue
from floodsearch.defaults import CHECKPOINTS, LOGS
from floodsearch.errors import DONE, WRONG_USE, WorkersFailedError
from floodsearch.findings import StudyStatus
from floodsearch.launchers.crew import Crew, idle_text
from floodsearch.launchers.logs import log_size, open_log
from floodsearch.launchers.supervision import Death, Patience, last_line, memory_kills
from floodsearch.queries import status
from floodsearch.records import WorkerRecord
from floodsearch.storage import tables
from floodsearch.storage.retry import attempt, persistently
from floodsearch.storage.studies import StoredStudy
from floodsearch.storage.trial_records import read_trials
from floodsearch.usercode.reference import FOLDERS

FLOODSEARCH = (sys.executable, "-P", str(Path(__file__).parents[1] / "__main__.py"))
"""The command line, as processes of our own are started: this package, and no module of the current folder
in the place of Python's own."""
"""Exit statuses of a worker that has no more to do, and of one that can never work as it was told."""
POLL_SECONDS = 0.5
STOP_SECONDS = 30.0
"""How long workers may take to hand their tickets back before they are killed."""


@dataclass
class Slot:
    """The place of one worker, over all processes that take it.

    Attributes:
        name: in messages.
        known: epochs of the study that were in the database when a worker last died here.
        process: the last one.
        since: the byte of its log where that process began.
        due: when the next one is started, if it is to be; on the monotonic clock.
        closed: whether there is none to come: the work is done, or the place is given up.
        given_up: why.
    """

    name: str
    device: str
    log: Path
    known: int
    process: subprocess.Popen[bytes]
    since: int = 0
    due: float | None = None
    closed: bool = False
    given_up: str | None = None
    patience: Patience = field(default_factory=Patience)


class Look(NamedTuple):
    """The status of the study of a launch, and the messages since the last look at it."""

    status: StudyStatus
    said: tuple[str, ...] = ()


@dataclass
class Launch:
    """The local workers of one study, from start to end; use it as a context manager.

    Args:
        study: what they train; its queue is filled.
        storage: the URL, handed to the workers through their environment, as that of the checkpoints is:
            arguments show in `ps`.
        crew: how many and where.
        logs: the folder for one log file a worker.
        checkpoints: the folder or URL of those of all studies.
        folders: where the user's code lies.
    """

    study: StoredStudy
    storage: str = field(repr=False)
    crew: Crew
    logs: Path = LOGS
    checkpoints: Path | str = field(default=CHECKPOINTS, repr=False)
    folders: Sequence[Path] = ()
    slots: list[Slot] = field(default_factory=list)
    memory_kills: int = field(default_factory=memory_kills)

    def __enter__(self) -> Launch:
        if status(self.study).finished:
            return self
        known = tables.count_epochs(self.study.database, self.study.uuid)
        for index, device in enumerate(self.crew.devices):
            log = self.logs / self.study.name / f"worker-{index}.log"
            since = log_size(log)
            process = self._start(device, log)
            self.slots.append(Slot(f"worker {index}", device, log, known, process, since))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, device: str, log: Path) -> subprocess.Popen[bytes]:
        command = [*FLOODSEARCH, "work", self.study.name, "--leave-on-eof"]
        command += ["--device", device, "--logs", str(self.logs)]
        for token in sorted(self.study.trusts.tokens):  # of the spec that was launched, not of the stored one
            command += ["--trust", token]
        # Workers find the code that this process finds, and read URLs where `ps` does not show them.
        folders = json.dumps([str(folder) for folder in self.folders])
        environment = {**os.environ, FOLDERS: folders, "FLOODSEARCH_STORAGE": self.storage}
        environment["FLOODSEARCH_CHECKPOINTS"] = str(self.checkpoints)
        if device == "cpu":
            command += ["--threads", str(self.crew.threads)]
            # Libraries beside torch size their thread pools from this, before any code of ours runs.
            environment["OMP_NUM_THREADS"] = str(self.crew.threads)
            # Threads that wait for each other must not spin: on a busy machine that is 40 times slower.
            environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        with open_log(self.logs, self.study.name, log.name) as output:
            return subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def watch(self) -> Iterator[Look]:
        """Yield the status of the study, about twice a second, until the workers are done.

        Raises:
            WorkersFailedError: if the last worker was given up, or one can never work.
        """
        now, finished = self._status(), None
        idle = idle_text(self.study.spec, len(self.slots))
        yield Look(now, (*((idle,) if idle else ()), *_warning_lines(now)))
        while not all(slot.closed for slot in self.slots):
            time.sleep(POLL_SECONDS)
            over = now.finished or now.stopped is not None
            said = [text for slot in self.slots if (text := self._look_after(slot, over))]
            before, now = now, self._status()
            said += _warning_lines(now)[len(before.warnings) :]
            finished = (finished or time.monotonic()) if now.finished else None
            if finished is not None and time.monotonic() - finished > STOP_SECONDS:
                self.stop()  # threads that code of the user's own has left behind keep a process
                said.append("workers that did not leave a finished study were ended")
            yield Look(now, tuple(said))
        now = self._status()  # when nobody is left to change it, nor to notice that the database is gone
        given_up = [slot.given_up for slot in self.slots if slot.given_up is not None]
        if given_up and not now.finished and now.stopped is None:
            raise WorkersFailedError(given_up[-1])

    def _look_after(self, slot: Slot, over: bool) -> str | None:
        """See to a place, and return what there is to say of it.

        Args:
            slot: the place.
            over: whether the study hands out no more tickets, so that nobody has to take it again.
        """
        if slot.due is not None:
            if over:
                slot.due, slot.closed = None, True
            elif time.monotonic() >= slot.due:
                slot.due, slot.since = None, log_size(slot.log)
                slot.process = self._start(slot.device, slot.log)
            return None
        status = slot.process.poll()
        if slot.closed or status is None:
            return None
        _close_lifeline(slot.process)
        death, done = self._bury(slot, status)
        if status == WRONG_USE:
            slot.closed = True
            raise WorkersFailedError(f"{slot.name} cannot work: {death.said}; see {slot.log}")
        if done or over or self._status().finished:
            slot.closed = True
            return None
        return self._replace(slot, death)

    def _bury(self, slot: Slot, status: int) -> tuple[Death, bool]:
        """Queue the tickets of a process that has ended; return how it ended, and whether it was done.

        Code of the user's own can end a process with any exit status, also with that of a worker which has
        no more to do; but only that one says in the database that it leaves.
        """
        kills = memory_kills()
        short, self.memory_kills = kills > self.memory_kills, kills
        said = last_line(slot.log, slot.since)
        death = Death(status, status == -signal.SIGKILL and short, progress=False, said=said)
        worker = persistently(self._release, slot.process.pid, f"its worker {death.cause}")
        done = status == DONE and worker is not None and worker.left is not None
        return replace(death, progress=persistently(self._progress, slot, worker)), done

    def _progress(self, slot: Slot, worker: WorkerRecord | None) -> bool:
        """Return whether a worker has trained anything that nobody had trained before.

        Its count of epochs alone would not tell: one that dies in the same epoch each time has one, too.
        """
        known = tables.count_epochs(self.study.database, self.study.uuid)
        trials = read_trials(self.study)
        grown, slot.known = known > slot.known, known
        if worker is None or not grown:
            return False
        ended = (one.worker == worker.id and one.state in ("complete", "pruned") for one in trials)
        return worker.epochs_run > 0 or any(ended)

    def _replace(self, slot: Slot, death: Death) -> str | None:
        """Let another worker take a place when it is due, or give that up; return what is to be said.

        That the last place is given up is said by what `watch` raises.
        """
        pause = slot.patience.pause(death)
        ends = f"{slot.log} ends with: {death.said}"
        if pause is not None:
            slot.due = time.monotonic() + pause
            when = f" in {pause:g} s" if pause else ""
            return f"{slot.name} {death.cause}; it is started again{when}; {ends}"
        slot.closed = True
        times = f"died {slot.patience.deaths} times in a row without having trained anything new"
        slot.given_up = f"{slot.name} is given up: it {times}, and {death.cause}; {ends}"
        left = sum(not other.closed for other in self.slots)
        return f"{slot.given_up}; {left} of {len(self.slots)} workers are left" if left else None

    def _status(self) -> StudyStatus:
        """Read the status of the study; a storage that is away for a moment ends no launch."""
        return persistently(status, self.study)

    def _release(self, pid: int, reason: str) -> WorkerRecord | None:
        """Queue the tickets of a process that has ended again, and return its row, if it had one.

        Its parent knows at once what others learn late, or never: it may have left without a word of them.
        """
        workers = tables.read_workers(self.study.database, self.study.uuid)
        own = [one for one in workers if (one.host, one.pid) == (socket.gethostname(), pid)]
        for worker in own[-1:]:  # numbers of processes come again
            queue.release(self.study, worker.id, reason)
            return worker
        return None

    def stop(self) -> None:
        """Let the workers hand their tickets back and leave; kill those that take too long."""
        for slot in self.slots:
            slot.due, slot.closed = None, True
        running = [slot.process for slot in self.slots if slot.process.poll() is None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for process in (slot.process for slot in self.slots):
            _close_lifeline(process)
            attempt(self._release, process.pid, "its worker took too long to leave")


def _close_lifeline(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def _warning_lines(status: StudyStatus) -> list[str]:
    """Return the warnings of a study's workers as lines, the oldest first."""
    return [f"warning: {warning}" for warning in status.warnings]


def detach(launched: Launch, file: Path, settings: Sequence[str] = ()) -> int:
    """Leave a launch that has not begun to a process in the background, in a session of its own.

    Args:
        launched: which study, where, and with which workers.
        file: the study file.
        settings: of the command line, in the place of what the file says.

    Returns:
        The process's number.
    """
    name, devices = launched.study.spec.name, launched.crew.devices
    arguments = [str(file.absolute()), "--logs", str(launched.logs)]
    arguments += ["--devices", ",".join(devices), "--workers", str(len(devices))]
    arguments += [f"--set={setting}" for setting in settings]
    with open_log(launched.logs, name, "launch.log") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*FLOODSEARCH, "launch", *arguments],
            env={
                **os.environ,
                "FLOODSEARCH_STORAGE": launched.storage,
                "FLOODSEARCH_CHECKPOINTS": str(launched.checkpoints),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process.pid
