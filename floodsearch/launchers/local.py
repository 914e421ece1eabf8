"""Workers as processes of this machine, started, watched and restarted by `launch`.

Each worker is a session of its own, so that Ctrl-C reaches only the launch, and leaves when the launch is
gone: its standard input is a pipe whose other end the launch holds.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from floodsearch import queue
from floodsearch.artifacts.files import Folder, check_place, expanded
from floodsearch.catalog import known
from floodsearch.defaults import CHECKPOINTS, LOGS, STORAGE
from floodsearch.errors import UsageError, WorkersFailedError
from floodsearch.findings import BestLevel, StudyStatus
from floodsearch.launchers.supervision import Death, Patience, last_line, memory_kills
from floodsearch.process.nesting import refuse
from floodsearch.queries import answer, status
from floodsearch.records import WorkerRecord
from floodsearch.search.tickets import ticket_count
from floodsearch.storage import tables
from floodsearch.storage.database import open_database
from floodsearch.storage.retry import attempt, persistently
from floodsearch.storage.studies import StoredStudy, put_study
from floodsearch.storage.trial_records import read_trials
from floodsearch.study.reader import parse, read
from floodsearch.study.spec import Spec
from floodsearch.training.devices import devices, find_device
from floodsearch.usercode.reference import FOLDERS, beside, own_folders

FLOODSEARCH = (sys.executable, "-P", str(Path(__file__).parents[1] / "__main__.py"))
"""The command line, as processes of our own are started: this package, and no module of the current folder
in the place of Python's own."""
DONE, WRONG_USE = 0, 2
"""Exit statuses of a worker that has no more to do, and of one that can never work as it was told."""
POLL_SECONDS = 0.5
STOP_SECONDS = 30.0
"""How long workers may take to hand their tickets back before they are killed."""
MOST_CPU_WORKERS = 8

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Crew:
    """How many local workers, where, and with how many threads each.

    Args:
        devices: one for each worker.
        threads: of torch, for each worker on the CPU.
    """

    devices: tuple[str, ...]
    threads: int

    @classmethod
    def of(cls, where: str, workers: int | None, per_device: int | None, cores: int, portions: int) -> Crew:
        """Return the crew for a `--devices` list and a number of workers, in all or on each device.

        By default there is one worker a GPU, or one a core without a GPU, but at most eight, and no more
        than there are `portions` of work to take at once: those that are left train with more threads.

        Raises:
            UsageError: if a device does not exist, or a number is below 1 or both are given.
        """
        for option, number in (("--workers", workers), ("--workers-per-device", per_device)):
            if number is not None and number < 1:
                raise UsageError(f"{option} is {number}; give 1 or more")
        if workers is not None and per_device is not None:
            raise UsageError("--workers and --workers-per-device are both given; keep one of the two")
        names = [name.strip() for name in where.split(",") if name.strip()]
        if names in ([], ["auto"]):
            names = [name for name in devices() if name != "cpu"] or ["cpu"]
        names = [str(find_device(name)) for name in names]
        places = min(cores, MOST_CPU_WORKERS) if names == ["cpu"] else len(names)
        if per_device is not None:
            places = per_device * len(names)
        count = workers or min(places, portions)
        assigned = tuple(names[index % len(names)] for index in range(count))
        return cls(devices=assigned, threads=max(1, cores // max(1, assigned.count("cpu"))))


def launch(
    study: Spec | Path | str | Mapping[str, Any],
    *,
    storage: str = STORAGE,
    workers: int | None = None,
    devices: str = "auto",
    workers_per_device: int | None = None,
    checkpoints: Path | str = CHECKPOINTS,
    logs: Path | str = LOGS,
) -> BestLevel:
    """Create or resume a study, train it with local workers and return the answer.

    Args:
        study: a study file's path, or its content as a mapping, or a spec.
        storage: `sqlite:///PATH` or `postgresql://USER@HOST/DATABASE`.
        workers: local processes; one a GPU or core by default.
        devices: `auto`, `cpu`, `mps`, or a list such as `cuda:0,cuda:1`.
        workers_per_device: instead of `workers`: processes on each device, for models that do not fill a GPU.
        checkpoints: the folder or URL from which workers go on; one that other machines see lets them do so
            too.
        logs: the folder for what the workers say.

    Raises:
        UsageError: for bad input, before anything is created.
        NoAnswerError: if no ticket was completed.
        StorageFailedError: if the storage failed for too long, or its file is gone.
        WorkersFailedError: if the workers kept dying without having done anything, or one can never work.

    What happens to workers on the way is logged as warnings.
    """
    refuse("a search")
    folders = own_folders()
    if isinstance(study, Spec):
        spec = study
    elif isinstance(study, Mapping):
        spec = parse(study, known())
    else:
        path = expanded(Path(study))
        folders = (*beside(path), *folders)
        spec = read(path, known(folders))
    logs = expanded(Path(logs))
    crew = Crew.of(devices, workers, workers_per_device, available_cores(), queue.portions(spec))
    check_place(checkpoints)
    check_place(logs / spec.name, "logs")
    with open_database(storage, create=True) as database:
        stored = put_study(database, spec)
        queue.fill(stored)
        with Launch(stored, storage, crew, logs=logs, checkpoints=checkpoints, folders=folders) as launched:
            for look in launched.watch():
                for said in look.said:
                    log.warning(said)
        return answer(stored)


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    """What a look at a launch shows: where the study stands, and what is to be said since the last look."""

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
            since = _size(log)
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
        with _log_file(self.logs, self.study.name, log.name) as output:
            return subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def watch(self) -> Iterator[Look]:
        """Yield where the study stands, about twice a second, until the workers are done.

        Raises:
            WorkersFailedError: if the last worker was given up, or one can never work.
        """
        now, finished = self._status(), None
        idle = idle_text(self.study.spec, len(self.slots))
        yield Look(now, (*((idle,) if idle else ()), *_warned(now)))
        while not all(slot.closed for slot in self.slots):
            time.sleep(POLL_SECONDS)
            over = now.finished or now.stopped is not None
            said = [text for slot in self.slots if (text := self._look_after(slot, over))]
            before, now = now, self._status()
            said += _warned(now)[len(before.warnings) :]
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
                slot.due, slot.since = None, _size(slot.log)
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
        """Ask where the study stands; a storage that is away for a moment ends no launch."""
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


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _close_lifeline(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def _log_file(logs: Path, study: str, name: str) -> IO[bytes]:
    """Open a log of a study to add to it.

    Raises:
        UsageError: if it cannot be written, or is a link.
    """
    try:
        return Folder(logs.absolute()).within(study).append(name)
    except OSError as error:
        path = logs.absolute() / study / name
        raise UsageError(
            f"the log {path} cannot be written: {error.strerror}; remove what is in its way"
        ) from None


def _warned(status: StudyStatus) -> list[str]:
    """Return what is to be said of the warnings of a study's workers, the oldest first."""
    return [f"warning: {warning}" for warning in status.warnings]


def idle_text(spec: Spec, workers: int) -> str | None:
    """Return what to say where more workers are started than can train at once; None if there are not."""
    portions = queue.portions(spec)
    if (idle := workers - portions) <= 0:
        return None
    whom = f"{idle} of {workers} workers {'has' if idle == 1 else 'have'} nothing to train"
    if portions == ticket_count(spec):
        return f"{whom}: there are {portions} tickets, each of which one worker trains"
    parts = "1 bracket" if portions == 1 else f"{portions} brackets"
    return (
        f"{whom}: the levels are {parts}, and one worker trains a bracket; "
        f"a study of another name with brackets = {workers} in [halving] has work for all"
    )


def detach(
    arguments: Sequence[str], name: str, storage: str, checkpoints: Path | str, logs: Path = LOGS
) -> int:
    """Launch a study in the background, in a session of its own; return the process's number.

    Args:
        arguments: of `floodsearch launch`.
        name: of the study.
        storage: the URL, handed on where `ps` does not show it.
        checkpoints: their folder or URL, likewise.
        logs: the folder of all logs.
    """
    with _log_file(logs, name, "launch.log") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*FLOODSEARCH, "launch", *arguments],
            env={
                **os.environ,
                "FLOODSEARCH_STORAGE": storage,
                "FLOODSEARCH_CHECKPOINTS": str(checkpoints),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process.pid


def log_lines(name: str, last: int, logs: Path = LOGS) -> Iterator[str]:
    """Yield the last lines of each log of a study, then what is added, as it is; an empty line if nothing is.

    Args:
        name: of the study.
        last: lines of each log.
        logs: the folder of all logs.

    Raises:
        UsageError: if there are none.
    """
    if not (logs / name).is_dir():
        raise UsageError(
            f"there are no logs of {name!r} in {logs.absolute()}; ask where it was launched, or give --logs"
        )
    read: dict[Path, int] = {}
    while True:
        for path in sorted(one for one in (logs / name).rglob("*.log") if not one.is_symlink()):
            new = path.read_bytes()[read.get(path, 0) :]
            whole = new[: new.rfind(b"\n") + 1]  # what is being written comes the next time
            lines = whole.decode("utf-8", errors="replace").splitlines()
            for line in lines if path in read else lines[-last:]:
                yield f"{path.stem}: {line}"
            read[path] = read.get(path, 0) + len(whole)
        yield ""
