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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from floodsearch import queue
from floodsearch.answers import answer, status
from floodsearch.catalog import known
from floodsearch.defaults import CHECKPOINTS, LOGS, STORAGE
from floodsearch.devices import devices, find_device
from floodsearch.errors import UsageError, WorkersFailedError
from floodsearch.files import check_place, expanded
from floodsearch.imports import FOLDERS, beside, own_folders
from floodsearch.records import BestLevel, StudyStatus
from floodsearch.retry import persistently
from floodsearch.spec import Spec
from floodsearch.storage import tables
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import StoredStudy, put_study
from floodsearch.studyfile import parse, read

FLOODSEARCH = (sys.executable, "-P", str(Path(__file__).parents[1] / "__main__.py"))
"""The command line, as processes of our own are started: this package, and no module of the current folder
in the place of Python's own."""
RESTARTS = 3
"""How often a worker that died is started again."""
POLL_SECONDS = 0.5
STOP_SECONDS = 30.0
"""How long workers may take to hand their tickets back before they are killed."""
MOST_CPU_WORKERS = 8


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
        WorkersFailedError: if the workers kept dying.
    """
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
    database = open_database(storage, create=True)
    try:
        stored = put_study(database, spec)
        queue.fill(stored)
        with Launch(stored, storage, crew, logs=logs, checkpoints=checkpoints, folders=folders) as launched:
            for _ in launched.watch():
                pass
        return answer(stored)
    finally:
        database.close()


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Slot:
    """The place of one worker: its process now, and how often it was started again."""

    device: str
    log: Path
    process: subprocess.Popen[bytes]
    restarts: int = 0
    done: bool = False


@dataclass
class Launch:
    """The local workers of one study, from start to end; use it as a context manager.

    Args:
        study: what they train; its queue is filled.
        storage: the URL, handed to the workers through their environment: arguments show in `ps`.
        crew: how many and where.
        logs: the folder for one log file a worker.
        checkpoints: the folder or URL of those of all studies.
        folders: where the user's code lies.
    """

    study: StoredStudy
    storage: str
    crew: Crew
    logs: Path = LOGS
    checkpoints: Path | str = CHECKPOINTS
    folders: Sequence[Path] = ()
    slots: list[Slot] = field(default_factory=list)

    def __enter__(self) -> Launch:
        if status(self.study).finished:
            return self
        folder = self.logs / self.study.name
        folder.mkdir(parents=True, exist_ok=True)
        for index, device in enumerate(self.crew.devices):
            log = folder / f"worker-{index}.log"
            self.slots.append(Slot(device, log, self._start(device, log)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, device: str, log: Path) -> subprocess.Popen[bytes]:
        command = [*FLOODSEARCH, "work", self.study.name, "--leave-on-eof"]
        command += ["--device", device, "--checkpoints", str(self.checkpoints), "--logs", str(self.logs)]
        if (trust := self.study.spec.trust) is not None:  # whoever launches a study file trusts what it names
            command += ["--trust", trust]
        # Workers find the code that this process finds, and read the URL where `ps` does not show it.
        folders = json.dumps([str(folder) for folder in self.folders])
        environment = {**os.environ, FOLDERS: folders, "FLOODSEARCH_STORAGE": self.storage}
        if device == "cpu":
            command += ["--threads", str(self.crew.threads)]
            # Libraries beside torch size their thread pools from this, before any code of ours runs.
            environment["OMP_NUM_THREADS"] = str(self.crew.threads)
            # Threads that wait for each other must not spin: on a busy machine that is 40 times slower.
            environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        with log.open("ab") as output:
            return subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def watch(self) -> Iterator[StudyStatus]:
        """Yield where the study stands, about twice a second, until the workers are done.

        Raises:
            WorkersFailedError: if the last worker died more often than it is restarted.
        """
        yield self._status()
        while not all(slot.done for slot in self.slots):
            time.sleep(POLL_SECONDS)
            for slot in self.slots:
                self._look_after(slot)
            yield self._status()
        failed = [slot for slot in self.slots if slot.process.returncode != 0]
        now = self._status()
        if failed and not now.finished and now.stopped is None:
            slot = failed[0]
            raise WorkersFailedError(
                f"the workers died {RESTARTS + 1} times (exit status {slot.process.returncode}); "
                f"see {slot.log}, which ends with: {last_line(slot.log)}"
            )

    def _look_after(self, slot: Slot) -> None:
        code = slot.process.poll()
        if slot.done or code is None:
            return
        if code != 0:
            persistently(lambda: self._release(slot.process.pid, f"its worker died (exit status {code})"))
        _close_lifeline(slot.process)
        if code == 0 or slot.restarts >= RESTARTS:
            slot.done = True
        else:
            slot.restarts += 1
            slot.process = self._start(slot.device, slot.log)

    def _status(self) -> StudyStatus:
        """Ask where the study stands; a storage that is away for a moment ends no launch."""
        return persistently(lambda: status(self.study))

    def _release(self, pid: int, reason: str) -> None:
        """Queue the tickets of a dead process again: its parent knows at once what others learn late."""
        for worker in tables.read_workers(self.study.database, self.study.uuid):
            if (worker.host, worker.pid, worker.left) == (socket.gethostname(), pid, None):
                queue.release(self.study, worker.id, reason)

    def stop(self) -> None:
        """Let the workers hand their tickets back and leave; kill those that take too long."""
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
                self._release(process.pid, "its worker took too long to leave and was killed")
        for slot in self.slots:
            _close_lifeline(slot.process)


def _close_lifeline(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "nothing"


def detach(arguments: Sequence[str], name: str, storage: str, logs: Path = LOGS) -> int:
    """Launch a study in the background, in a session of its own; return the process's number.

    Args:
        arguments: of `floodsearch launch`.
        name: of the study.
        storage: the URL, handed on where `ps` does not show it.
        logs: the folder of all logs.
    """
    folder = logs / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "launch.log").open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*FLOODSEARCH, "launch", *arguments],
            env={**os.environ, "FLOODSEARCH_STORAGE": storage},
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
        for path in sorted((logs / name).rglob("*.log")):
            new = path.read_bytes()[read.get(path, 0) :]
            whole = new[: new.rfind(b"\n") + 1]  # what is being written comes the next time
            lines = whole.decode("utf-8", errors="replace").splitlines()
            for line in lines if path in read else lines[-last:]:
                yield f"{path.stem}: {line}"
            read[path] = read.get(path, 0) + len(whole)
        yield ""
