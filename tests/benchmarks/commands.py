"""How quick the commands are that people type often, beside the imports that they cannot do without.

    python -m tests.benchmarks.commands [--repeats 5]

`floodsearch --help` beside a bare Python, `best` and `status` on a finished study of 51 trials, one seed and
500 epochs each, beside `import optuna` with its SQLite storage.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from floodsearch import queue
from floodsearch.catalog import known
from floodsearch.queue import Entry
from floodsearch.records import EpochRecord
from floodsearch.storage import tables
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study
from floodsearch.study.reader import parse

CONTENT = {
    "name": "fifty-one",
    "task": "two_gaussians",
    "levels": {"high": 0.5, "count": 51},
    "training": {"epochs": 500, "seeds": 1},
}
BARE = [sys.executable, "-c", "pass"]
OPTUNA = [sys.executable, "-c", "import optuna; optuna.storages.get_storage('sqlite:///floodsearch.db')"]


def fill_study(folder: Path) -> None:
    """Write a finished study without training it."""
    database = open_database(f"sqlite:///{folder}/floodsearch.db", create=True)
    study = put_study(database, parse(CONTENT, known()))
    queue.fill(study)
    worker = tables.enter_worker(database, study.uuid, host="here", pid=1, device="cpu", versions={})
    for ticket in queue.take(study, worker):
        records = [
            EpochRecord(
                seed=0,
                epoch=epoch,
                level=ticket.level,
                train_loss=0.5,
                train_accuracy=0.8,
                flooded=0.5,
                val_loss=0.6 if epoch % 5 == 0 else None,
                val_accuracy=0.7 if epoch % 5 == 0 else None,
                test_loss=0.6 if epoch == 500 else None,
                test_accuracy=0.7 if epoch == 500 else None,
            )
            for epoch in range(1, 501)
        ]
        queue.record([Entry(ticket, records, dict.fromkeys(range(20, 501, 20), 0.7))])
        queue.complete(ticket, 0.7, {})
    tables.beat(database, worker, epochs_run=51 * 500, training=[], leaving=True)
    database.close()


def seconds(command: list[str], folder: Path) -> float:
    """Return how long a command takes, from start to exit."""
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure each command and what it is compared with in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill_study(folder)
        for arguments, beside in ((["--help"], BARE), (["best", "fifty-one"], OPTUNA), (["status"], OPTUNA)):
            command = [sys.executable, "-m", "floodsearch", *arguments]
            seconds(command, folder)  # warm-up
            pairs = [(seconds(command, folder), seconds(beside, folder)) for _ in range(repeats)]
            ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            shown = " ".join(arguments)
            print(f"floodsearch {shown:<16} {ours:.2f} s, beside {theirs:.2f} s: ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
