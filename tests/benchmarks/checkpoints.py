"""What checkpoints cost: the share of a worker's time that it spends on saving them.

    python -m tests.benchmarks.checkpoints [--seconds 180] [STUDY.toml]

Trains a study here, in one worker, and asks it to leave after a while. The last save, when it leaves, is
counted apart: it comes once, whatever the pace.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

import torch

from floodsearch import queue
from floodsearch.artifacts.checkpoint import SECONDS, Checkpoint
from floodsearch.catalog import known
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study
from floodsearch.study.reader import read
from floodsearch.training.cohort import Cohort
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

STUDIES = Path(__file__).parents[2] / "studies"


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", type=Path, default=STUDIES / "two_gaussians_10.toml")
    parser.add_argument("--seconds", type=float, default=180.0)
    asked = parser.parse_args()
    leave, saves, files = LeaveRequest(), [], [0]
    save_all, save_one = Cohort.save, Checkpoint.save

    def timed(cohort: Cohort) -> None:
        began = time.perf_counter()
        save_all(cohort)
        saves.append((time.perf_counter() - began, leave.wanted.is_set()))

    def counted(one: Checkpoint, content: object) -> None:
        save_one(one, content)
        files[0] += 1

    Cohort.save, Checkpoint.save = timed, counted
    timer = threading.Timer(asked.seconds, leave.ask, ["the time is over"])
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(f"sqlite:///{folder}/floodsearch.db", create=True)
        study = put_study(database, read(asked.study, known()))
        queue.fill(study)
        threads = torch.get_num_threads()
        began = time.perf_counter()
        timer.start()
        work(study, WorkerSettings(device="cpu", threads=threads, checkpoints=folder), leave)
        seconds = time.perf_counter() - began
        timer.cancel()
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.pt")) / 2**20
        database.close()
    paced = [took for took, leaving in saves if not leaving]
    print(
        f"{study.name}: {seconds:.0f} s of training in {threads} threads, a save at least every {SECONDS:g} s"
    )
    print(f"{len(paced)} saves at their pace: {sum(paced):.2f} s, {sum(paced) / seconds:.2%} of the time")
    print(f"{len(saves) - len(paced)} when leaving: {sum(took for took, _ in saves) - sum(paced):.2f} s")
    print(f"{files[0]} files written; {size:,.0f} MiB there at the end")


if __name__ == "__main__":
    main()
