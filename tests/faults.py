"""Real workers on a real database, a seeded schedule of faults, and what must hold afterwards.

    python -m tests.faults [--storage sqlite|postgresql] [--faults 200] [--workers 4] [--levels 51] [--seed 0]

Workers train a study; whoever ends is started again. Meanwhile, at moments that the seed draws, one fault
after the other: a worker is killed (SIGKILL), asked to leave (SIGTERM), or stopped for longer than the grace
(SIGSTOP, SIGCONT); connections are cut; PostgreSQL is shut down and started; a checkpoint is cut short or has
a bit flipped. Then:

- exactly one complete or pruned trial for each ticket, no running one, and no worker left that trains;
- curves without gaps or doubles;
- every value, and the answer, as of the same study left in peace;
- as many lost trials as `status` shows, each with its reason.

Printed: the epochs that were trained more than once; a checkpoint is saved every `INTERVAL` seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from floodsearch import queue
from floodsearch.analysis import latest
from floodsearch.answers import answer, status
from floodsearch.catalog import known
from floodsearch.heart import Leave, Settings
from floodsearch.retry import persistently
from floodsearch.spec import Spec
from floodsearch.storage import tables
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import StoredStudy, find_study, put_study, read_trials
from floodsearch.studyfile import parse
from floodsearch.tasks.synthetic import two_gaussians
from floodsearch.tasks.task import Task
from floodsearch.training import checkpoint
from floodsearch.worker import work
from tests.conftest import private_postgres

BEAT, GRACE, INTERVAL = 0.2, 1.5, 0.5
STEP_SECONDS = 0.004
"""A step waits so long: the faults are to meet workers that train, not a machine that is busy."""
CONTEXT = multiprocessing.get_context("forkserver")


def task(*, wait: float = STEP_SECONDS) -> Task:
    """Return Two Gaussians with eight units, whose steps take their time."""
    whole = two_gaussians(label_noise=0.1, width=8, depth=1)

    def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        time.sleep(wait if outputs.requires_grad else 0)
        return whole.loss(outputs, labels)

    return Task(data=whole.data, model=whole.model, recipe=whole.recipe, loss=loss, correct=whole.correct)


def spec_of(levels: int, epochs: int, pruner: str, *, wait: float = STEP_SECONDS) -> Spec:
    """Return the study, by the name of its pruner."""
    content: dict[str, Any] = {
        "name": f"faults-{pruner}",
        "task": "tests.faults:task",
        "options": {"wait": wait},
        "levels": {"high": 1.0, "count": levels},
        "training": {"epochs": epochs, "seeds": 2, "validate_every": 2, "learning_rate": 0.02},
        "search": {"pruner": pruner},
    }
    if pruner == "halving":
        content["halving"] = {"levels": levels, "first": 0.3, "brackets": 4}
    return parse(content, known())


def worker(url: str, name: str, folder: str) -> None:
    """Be a worker process."""
    logging.basicConfig(filename=Path(folder, f"worker-{os.getpid()}.log"), level=logging.INFO)
    torch.set_num_threads(1)
    checkpoint.SECONDS, checkpoint.SHARE = INTERVAL, 1e9
    leave = Leave()
    leave.on_signals(signal.SIGTERM, grace=20)
    settings = Settings(
        device="cpu",
        threads=1,
        beat_seconds=BEAT,
        grace_seconds=GRACE,
        checkpoints=Path(folder, "checkpoints"),
    )
    database = persistently(lambda: open_database(url))
    work(persistently(lambda: find_study(database, name)), settings, leave)
    database.close()


@dataclass
class Faults:
    """A study, its workers, and what is done to them.

    Args:
        url: of the storage.
        spec: of the study.
        folder: for checkpoints and logs.
        server: stops and starts the database; None where that cannot be done.
        seed: of the schedule.
    """

    url: str
    spec: Spec
    folder: Path
    server: Callable[[str], None] | None
    seed: int
    processes: list[Any] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
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
        if self.database.engine.dialect.name == "postgresql":
            self.kinds["connections cut"] = self.disconnect
        if self.server is not None:
            self.kinds["server down"] = self.restart

    def start(self, count: int) -> None:
        """Let so many workers live."""
        self.processes = [one for one in self.processes if one.is_alive()]
        for _ in range(count - len(self.processes)):
            process = CONTEXT.Process(target=worker, args=(self.url, self.spec.name, str(self.folder)))
            process.start()
            self.processes.append(process)

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

    def disconnect(self) -> None:
        """Cut all connections to the database but ours, in mid-transaction or not."""
        with self.database.write() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    def restart(self) -> None:
        """Take the database away for a while that is longer than the grace."""
        assert self.server is not None
        self.server("stop")
        time.sleep(2 * GRACE)  # the fault itself
        self.server("start")

    def _file(self) -> Path | None:
        found = sorted(self.folder.glob("checkpoints/**/*.pt"))
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

    def close(self) -> None:
        """End what is left."""
        for process in self.processes:
            process.kill()
            process.join()
        self.database.close()


def undisturbed(spec: Spec, folder: Path) -> tuple[StoredStudy, Callable[[], None]]:
    """Return the study of a spec that was trained in peace, and what closes it."""
    database = open_database(f"sqlite:///{folder}/peace.db", create=True)
    study = put_study(database, spec)
    queue.fill(study)
    work(study, Settings(device="cpu", threads=1, checkpoints=folder / "peace"), Leave())
    return study, database.close


def check(study: StoredStudy, peace: StoredStudy) -> int:
    """Assert what must hold; return the epochs that were trained more than in peace."""
    trials, expected = read_trials(study), {one.ticket: one for one in read_trials(peace)}
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
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        url, server = f"sqlite:///{folder}/floodsearch.db", None
        if arguments.storage == "postgresql":
            url, server = stack.enter_context(private_postgres())
        spec = spec_of(arguments.levels, arguments.epochs, arguments.pruner)
        peace, close = undisturbed(
            spec_of(arguments.levels, arguments.epochs, arguments.pruner, wait=0.0), folder
        )
        began = time.monotonic()
        faults = Faults(url, spec, folder, server, arguments.seed)
        try:
            faults.run(arguments.faults, arguments.workers)
            seconds = time.monotonic() - began
            more = check(faults.study, peace)
        finally:
            faults.close()
            close()
    print(f"{arguments.storage}, {spec.search.pruner}: {dict(faults.done)} in {seconds:.0f} s")
    interval = INTERVAL / STEP_SECONDS
    print(f"{more:,} epochs more than in peace, {more / faults.done.total():.0f} a fault")
    print(f"a checkpoint at least every {INTERVAL} s: up to {interval:.0f} epochs of one run")


if __name__ == "__main__":
    main()
