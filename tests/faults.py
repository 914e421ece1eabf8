"""Real workers on a real database, a seeded schedule of faults, and what must hold afterwards.

    python -m tests.faults [--storage sqlite|postgresql] [--faults 200] [--workers 4] [--levels 51] [--seed 0]
    python -m tests.faults --storage postgresql --only "server down" --faults 1 --outage 60

Workers train a study, some of them under `floodsearch launch`; whoever ends is started again. Each has a time
zone of its own. Meanwhile, at moments that the seed draws, one fault after the other: a worker is killed
(SIGKILL), asked to leave (SIGTERM), or stopped for longer than the grace (SIGSTOP, SIGCONT); the launch is
killed; a checkpoint is cut short or has a bit flipped; the disk is full (where a tmpfs can be mounted: SQLite
and the checkpoints lie on it). With PostgreSQL also: connections are cut, all of them hang for longer than
the grace, and the server is shut down and started. Then:

- exactly one complete or pruned trial for each ticket, no running one, and no worker left that trains;
- curves without gaps or doubles;
- every value, and the answer, as of the same study left in peace;
- as many lost trials as `status` shows, each with its reason;
- on average a fault cost no more than what is trained between two checkpoints; where no worker was killed,
  stopped or asked to leave, no trial was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from sqlalchemy.engine import make_url

from floodsearch import queue
from floodsearch.answer.tickets import latest
from floodsearch.catalog import known
from floodsearch.queries import answer, status
from floodsearch.storage import tables
from floodsearch.storage.database import open_database
from floodsearch.storage.retry import persistently
from floodsearch.storage.studies import StoredStudy, find_study, put_study
from floodsearch.storage.trial_records import read_measured
from floodsearch.study.reader import parse
from floodsearch.study.spec import Spec
from floodsearch.study.trust import trust_in
from floodsearch.tasks.synthetic import two_gaussians
from floodsearch.tasks.task import Task
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work
from tests.conftest import private_postgres
from tests.link import Link
from tests.quick import GRACE, INTERVAL, hurry

STEP_SECONDS = 0.004
"""A step waits so long: the faults are to meet workers that train, not a machine that is busy."""
HARMLESS = {"disk full", "connections cut", "connections hang", "server down"}
"""Faults after which no trial may be lost: no worker is killed."""
ZONES = ("UTC", "America/New_York", "Asia/Tokyo", "Pacific/Apia")
DISK_BYTES = 256 * 2**20
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["floodsearch.worker.work", "floodsearch.tasks.synthetic", "tests.conftest"])
"""So that whoever is killed is soon back."""


def task(*, wait: float = STEP_SECONDS) -> Task:
    """Return Two Gaussians with eight units, whose steps take their time."""
    whole = two_gaussians(label_noise=0.1, width=8, depth=1)

    def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        time.sleep(wait if outputs.requires_grad else 0)
        return whole.loss(outputs, labels)

    return Task(data=whole.data, model=whole.model, recipe=whole.recipe, loss=loss, correct=whole.correct)


def study_file(levels: int, epochs: int, pruner: str, *, wait: float = STEP_SECONDS) -> str:
    """Return the study file, named by its pruner."""
    halving = f"[halving]\nlevels = {levels}\nfirst = 0.3\nbrackets = 4"
    return f"""
name = "faults-{pruner}"
task = "tests.faults:task"
[options]
wait = {wait}
[levels]
high = 1.0
count = {levels}
[training]
epochs = {epochs}
seeds = 2
validate_every = 2
learning_rate = 0.02
[search]
pruner = "{pruner}"
{halving if pruner == "halving" else ""}
"""


def spec_of(levels: int, epochs: int, pruner: str, *, wait: float = STEP_SECONDS) -> Spec:
    """Return the study."""
    return parse(tomllib.loads(study_file(levels, epochs, pruner, wait=wait)), known())


def worker(url: str, name: str, folder: str, checkpoints: str, zone: str) -> None:
    """Be a worker process."""
    os.environ |= {"TZ": zone, "PGTZ": zone}
    time.tzset()
    logging.basicConfig(filename=Path(folder, f"worker-{os.getpid()}.log"), level=logging.INFO)
    hurry()
    leave = LeaveRequest()
    leave.on_signals(signal.SIGTERM, grace=20)
    settings = WorkerSettings(device="cpu", threads=1, checkpoints=checkpoints)
    database = persistently(lambda: open_database(url))
    study = persistently(lambda: find_study(database, name))
    work(replace(study, trusts=trust_in(study.spec)), settings, leave)
    database.close()


@dataclass
class Faults:
    """A study, its workers, and what is done to them.

    Args:
        url: of the storage.
        spec: of the study.
        folder: for logs.
        disk: for checkpoints.
        seed: of the schedule.
        server: stops and starts the database; None where that cannot be done.
        link: to the database, for the workers; None where there is none.
        full: whether the disk can be filled without harm to others.
        launched: workers under a launch.
        outage: seconds for which the server is down.
        only: the kind of faults to choose from; all if empty.
    """

    url: str
    spec: Spec
    folder: Path
    disk: Path
    seed: int
    server: Callable[[str], None] | None = None
    link: Link | None = None
    full: bool = False
    launched: int = 0
    outage: float = 2 * GRACE
    only: str = ""
    processes: list[Any] = field(default_factory=list)
    launch: subprocess.Popen[bytes] | None = None
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        url = make_url(self.url)
        if self.link is not None:
            url = url.set(port=self.link.port)
        self.workers_url = url.render_as_string(hide_password=False)
        self.database = open_database(self.url, create=True)
        self.study = put_study(self.database, self.spec)
        queue.fill(self.study)
        self.draw = random.Random(self.seed)
        self.kinds: dict[str, Callable[[], None]] = {
            "killed": self.kill,
            "asked to leave": self.terminate,
            "stopped": self.suspend,
            "checkpoint cut": self.cut,
            "checkpoint flipped": self.flip,
        }
        if self.launched:
            self.kinds["launch killed"] = self.kill_launch
        if self.full:
            self.kinds["disk full"] = self.fill_disk
        if self.link is not None:
            self.kinds |= {"connections cut": self.link.cut, "connections hang": self.hang}
        if self.server is not None:
            self.kinds["server down"] = self.restart
        self.kinds = {kind: fault for kind, fault in self.kinds.items() if self.only in ("", kind)}

    def start(self, count: int) -> None:
        """Let so many workers live, and the launch."""
        self.processes = [one for one in self.processes if one.is_alive()]
        for _ in range(count - self.launched - len(self.processes)):
            place, zone = str(self.disk / "checkpoints"), self.draw.choice(ZONES)
            arguments = (self.workers_url, self.spec.name, str(self.folder), place, zone)
            process = CONTEXT.Process(target=worker, args=arguments)
            process.start()
            self.processes.append(process)
        if self.launched and (self.launch is None or self.launch.poll() is not None):
            zone = self.draw.choice(ZONES)
            command = [sys.executable, "-m", "tests.quick", "launch", str(self.folder / "study.toml")]
            command += ["--workers", str(self.launched), "--checkpoints", str(self.disk / "checkpoints")]
            with (self.folder / "launch.log").open("ab") as output:
                self.launch = subprocess.Popen(
                    command,
                    env={**os.environ, "TZ": zone, "PGTZ": zone, "FLOODSEARCH_STORAGE": self.workers_url},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )

    def victim(self) -> Any:
        """Return a worker that trains, as soon as there is one; any where there is none any more."""
        while True:
            rows = persistently(lambda: tables.read_workers(self.database, self.study.uuid))
            trains = {row.pid for row in rows if row.left is None and row.training}
            alive = [one for one in self.processes if one.is_alive()]
            if found := [one for one in alive if one.pid in trains]:
                return self.draw.choice(found)
            if alive and self.finished():
                return alive[0]
            self.start(len(self.processes))
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill a worker."""
        self.victim().kill()

    def terminate(self) -> None:
        """Ask a worker to leave."""
        self.victim().terminate()

    def suspend(self) -> None:
        """Stop a worker until it is taken for dead, and let it go on."""
        victim = self.victim()
        os.kill(victim.pid, signal.SIGSTOP)
        time.sleep(2.5 * GRACE)  # the fault itself
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGCONT)

    def kill_launch(self) -> None:
        """Kill the launch; its workers see that it is gone."""
        assert self.launch is not None
        self.launch.kill()

    def fill_disk(self) -> None:
        """Leave no byte free for a while."""
        ballast = self.disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        time.sleep(GRACE)  # the fault itself
        ballast.unlink()

    def hang(self) -> None:
        """Let nothing pass between workers and database for longer than the grace."""
        assert self.link is not None
        with self.link.hanging():
            time.sleep(2 * GRACE)  # the fault itself

    def restart(self) -> None:
        """Take the database away for a while that is longer than the grace."""
        assert self.server is not None
        self.server("stop")
        time.sleep(self.outage)  # the fault itself
        self.server("start")

    def _file(self) -> Path | None:
        found = sorted(self.disk.glob("checkpoints/**/*.pt"))
        return self.draw.choice(found) if found else None

    def cut(self) -> None:
        """Cut a checkpoint short, and kill a worker."""
        if (path := self._file()) is not None:
            with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
                file.truncate(path.stat().st_size // 2)
        self.kill()

    def flip(self) -> None:
        """Flip a bit of a checkpoint, and kill a worker."""
        if (path := self._file()) is not None:
            with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
                file.seek(self.draw.randrange(path.stat().st_size))
                byte = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte[0] ^ 1]))
        self.kill()

    def finished(self) -> bool:
        """Return whether the study is."""
        return persistently(lambda: status(self.study)).finished

    def run(self, faults: int, workers: int) -> None:
        """Train the study to its end, with so many faults on the way."""
        self.start(workers)
        while not self.finished():
            time.sleep(self.draw.uniform(0.2, 1.5))
            if self.done.total() < faults and any(one.is_alive() for one in self.processes):
                kind = self.draw.choice(sorted(self.kinds))
                self.kinds[kind]()
                self.done[kind] += 1
            self.start(workers)
        for process in self.processes:
            process.join(60)
            assert process.exitcode is not None, "a worker did not leave a finished study"
        if self.launch is not None:
            assert self.launch.wait(60) == 0, (self.folder / "launch.log").read_text()

    def close(self) -> None:
        """End what is left."""
        for process in self.processes:
            process.kill()
            process.join()
        if self.launch is not None:
            self.launch.kill()
            self.launch.wait()
        self.database.close()


def check(study: StoredStudy, peace: StoredStudy) -> int:
    """Assert what must hold; return the epochs that were trained more than in peace."""
    trials, expected = read_measured(study), {one.ticket: one for one in read_measured(peace)}
    ended = Counter(one.ticket for one in trials if one.state in ("complete", "pruned"))
    assert ended == Counter(list(expected)), "one complete or pruned trial for each ticket"
    assert {one.state for one in trials} <= {"complete", "pruned", "failed"}
    assert {one.cause for one in trials if one.state == "failed"} <= {"lost"}
    for ticket, one in latest(trials).items():
        known = expected[ticket]
        assert (one.state, one.epoch, one.value) == (known.state, known.epoch, known.value), (one, known)
        assert one.results == known.results
    curves = tables.read_curves(study.database, study.uuid, set(expected))
    for ticket, curve in tables.read_curves(peace.database, peace.uuid, set(expected)).items():
        assert sorted(curves[ticket], key=repr) == sorted(curve, key=repr), f"the curves of ticket {ticket}"
    ours, theirs = answer(study), answer(peace)
    same = ("level", "interval", "tied", "value", "gain", "gain_se", "verdict")
    assert [getattr(ours, name) for name in same] == [getattr(theirs, name) for name in same]
    now = status(study)
    assert now.finished
    lost = [one for one in trials if one.cause == "lost"]
    assert now.interruptions.get("lost", 0) == len(lost)
    assert all(one.reason for one in lost)
    assert now.interruptions.keys() <= {"lost", "handed back"}
    print(f"interrupted: {dict(now.interruptions)}")
    return now.epochs_run - status(peace).epochs_run


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small file system on a folder; give whether that can be done here."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def made(
    storage: str,
    folder: Path,
    levels: int,
    epochs: int,
    pruner: str,
    *,
    wait: float = STEP_SECONDS,
    server: tuple[str, Callable[[str], None]] | None = None,
    **options: Any,
) -> Iterator[tuple[Faults, StoredStudy]]:
    """Give a study with its faults, and the same study in peace; `server` is a PostgreSQL that is there."""
    spec = spec_of(levels, epochs, pruner, wait=wait)
    (folder / "study.toml").write_text(study_file(levels, epochs, pruner, wait=wait))
    with contextlib.ExitStack() as stack:
        disk = folder / "disk"
        full = stack.enter_context(small_disk(disk))
        if storage == "postgresql":
            url, options["server"] = server or stack.enter_context(private_postgres())
            options["link"] = Link(make_url(url).port or 5432)
            stack.callback(options["link"].close)
        else:
            url = f"sqlite:///{disk}/floodsearch.db"
        database = open_database(f"sqlite:///{folder}/peace.db", create=True)
        stack.callback(database.close)
        peace = put_study(database, spec_of(levels, epochs, pruner, wait=0.0))
        queue.fill(peace)
        work(peace, WorkerSettings(device="cpu", threads=1, checkpoints=folder / "peace"), LeaveRequest())
        faults = Faults(url, spec, folder, disk, full=full, **options)
        stack.callback(faults.close)
        yield faults, peace


def main() -> None:
    """Run the faults and print what they cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--levels", type=int, default=51)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--pruner", choices=["none", "halving"], default="none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launched", type=int, default=2, help="of the workers, those under a launch")
    parser.add_argument("--wait", type=float, default=STEP_SECONDS, help="seconds of a step")
    parser.add_argument("--outage", type=float, default=2 * GRACE, help="seconds that the server is down")
    parser.add_argument("--only", default="", help="one kind of faults")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    names = ("seed", "launched", "outage", "only", "wait")
    options = {name: getattr(asked, name) for name in names}
    with (
        tempfile.TemporaryDirectory() as name,
        made(asked.storage, Path(name), asked.levels, asked.epochs, asked.pruner, **options) as (
            faults,
            peace,
        ),
    ):
        began = time.monotonic()
        faults.run(asked.faults, asked.workers)
        seconds = time.monotonic() - began
        more = check(faults.study, peace)
        interruptions = status(faults.study).interruptions
    print(f"{asked.storage}, {asked.pruner}: {dict(sorted(faults.done.items()))} in {seconds:.0f} s")
    # In peace one worker trained it: several have more than one unflooded start, which no fault has lost.
    interval, each = INTERVAL / asked.wait, more / max(1, faults.done.total())
    print(f"{more:,} epochs more than in peace, {each:.0f} a fault")
    print(f"a checkpoint at least every {INTERVAL} s: up to {interval:.0f} epochs of one run")
    if faults.done.keys() <= HARMLESS:
        assert not interruptions, "a trial ended that nobody had killed"
    else:
        assert each <= interval, "a fault costs more than what is trained between two checkpoints"


if __name__ == "__main__":
    main()
