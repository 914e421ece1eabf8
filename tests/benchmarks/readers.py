"""Whether reading holds up those who write, on SQLite: the waits of 8 writers with and without a reader.

    python -m tests.benchmarks.readers [--rounds 3] [--readers FOLDER]

A study of 500 levels and 100 epochs of five seeds is written without training. Each writer then writes what a
worker does, an epoch of five seeds and a report, 20 times a second. In turn nobody reads, `best` and `status`
are asked for, and the study is looked at in `serve`, from its first page on. `--readers` takes these commands
from another checkout.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.trial import TrialState

from floodsearch import queue
from floodsearch.catalog import known
from floodsearch.records import Attribute, EpochRecord
from floodsearch.storage import tables, trials
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import find_study, put_study
from floodsearch.study.reader import parse

LEVELS, EPOCHS, SEEDS, WRITERS, PORT = 500, 100, 5, 8, 18097
CONTENT = {
    "name": "large",
    "task": "two_gaussians",
    "levels": {"high": 0.5, "count": LEVELS},
    "training": {"epochs": EPOCHS, "seeds": SEEDS, "validate_every": 1},
    "search": {"pruner": "none"},
}
WITHOUT = "nobody"


def epoch_of(ticket: int, epoch: int) -> list[EpochRecord]:
    """Return an epoch of all seeds of a ticket."""
    return [
        EpochRecord(
            seed=seed,
            epoch=epoch,
            level=ticket / 1000,
            train_loss=0.5,
            train_accuracy=0.8,
            flooded=0.5,
            val_loss=0.6,
            val_accuracy=0.7 + (ticket * 7919 + seed * 104729) % 997 / 10**5,
            test_loss=0.6 if epoch == EPOCHS else None,
            test_accuracy=0.7 if epoch == EPOCHS else None,
        )
        for seed in range(SEEDS)
    ]


def fill_study(url: str) -> None:
    """Write a study in which all tickets but those of the writers are complete."""
    with open_database(url, create=True) as database:
        study = put_study(database, parse(CONTENT, known()))
        queue.fill(study)
        worker = tables.enter_worker(database, study.uuid, host="here", pid=1, device="cpu", versions={})
        for trial in database.optuna.get_all_trials(study.id, deepcopy=False)[:-WRITERS]:
            ticket = trial.user_attrs[Attribute.TICKET]
            records = [record for epoch in range(1, EPOCHS + 1) for record in epoch_of(ticket, epoch)]
            with database.write() as connection:
                trials.annotate(connection, trial._trial_id, {Attribute.WORKER: worker})
                tables.write_curves(connection, study.uuid, ticket, records)
                trials.report(connection, trial._trial_id, dict.fromkeys(range(1, EPOCHS + 1), 0.7))
                trials.finish(connection, trial._trial_id, TrialState.COMPLETE, 0.7)


def write(url: str, index: int, waits: multiprocessing.Queue[tuple[float, float]]) -> None:
    """Write an epoch again and again, and tell when each write began and how long it took."""
    database = open_database(url)
    study = find_study(database, "large")
    trial = database.optuna.get_all_trials(study.id, deepcopy=False)[-1 - index]
    ticket, epoch = trial.user_attrs[Attribute.TICKET], 0
    while True:
        epoch = epoch % EPOCHS + 1
        began = time.perf_counter()
        with database.write() as connection:
            trials.lock(connection, trial._trial_id)
            tables.write_curves(connection, study.uuid, ticket, epoch_of(ticket, epoch))
            trials.report(connection, trial._trial_id, {epoch: 0.7})
        waits.put((began, time.perf_counter() - began))
        time.sleep(0.05)


@contextmanager
def readers(url: str, folder: Path, checkout: Path) -> Iterator[dict[str, Callable[[], object]]]:
    """Give what reads, by name; a server answers for the dashboard as long as this is open."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "FLOODSEARCH_STORAGE": url}
    command = [sys.executable, "-m", "floodsearch"]

    def run(*arguments: str) -> Callable[[], object]:
        def read() -> None:
            done = subprocess.run(
                [*command, *arguments], check=False, env=environment, cwd=folder, capture_output=True
            )
            if done.returncode not in (0, 1):  # 1 of `best`: level 0 is not complete
                raise RuntimeError(done.stderr.decode())

        return read

    def look() -> None:
        with serving([*command, "serve", "--port", str(PORT)], environment, folder):
            for _ in range(3):  # the first reads all, the others what is new
                ask("/api/studies/1")

    yield {
        WITHOUT: lambda: time.sleep(60),
        "best": run("best", "large"),
        "status": run("status", "large"),
        "serve": look,
    }


@contextmanager
def serving(command: list[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    """Run a server until it is left."""
    server = subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.DEVNULL)
    try:
        while not ask("/api/meta"):
            time.sleep(0.2)
        yield
    finally:
        server.terminate()
        server.wait()


def ask(path: str) -> bool:
    """Return whether the server answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=120) as answer:
            return bool(answer.read())
    except OSError:
        return False


def main() -> None:
    """Write and read, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--readers", type=Path, default=Path(__file__).parents[2])
    asked = parser.parse_args()
    waits: multiprocessing.Queue[tuple[float, float]] = multiprocessing.Queue()
    spans: dict[str, list[tuple[float, float]]] = {}
    found: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/floodsearch.db"
        fill_study(url)
        writers = [
            multiprocessing.Process(target=write, args=(url, index, waits), daemon=True)
            for index in range(WRITERS)
        ]
        for one in writers:
            one.start()
        for _ in range(WRITERS):
            waits.get()  # all of them write
        with readers(url, Path(folder), asked.readers.absolute()) as reading:
            for name, read in [*reading.items()] * asked.rounds:
                began = time.perf_counter()
                read()
                spans.setdefault(name, []).append((began, time.perf_counter()))
                while not waits.empty():
                    found.append(waits.get())
        for one in writers:
            one.kill()
    print(f"{WRITERS} writers, {asked.rounds} rounds; a write in ms")
    print("| reader | seconds | writes | median | 99 % | longest |\n|---|---|---|---|---|---|")
    for name, when in spans.items():
        its = sorted(
            1000 * wait for at, wait in found if any(begin < at + wait and at < end for begin, end in when)
        )
        seconds = statistics.mean(end - begin for begin, end in when)
        numbers = f"{statistics.median(its):.1f} | {its[int(0.99 * len(its))]:.0f} | {its[-1]:.0f}"
        print(f"| {name} | {seconds:.1f} | {len(its)} | {numbers} |")


if __name__ == "__main__":
    main()
