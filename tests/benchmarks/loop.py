"""What floodsearch adds to a training loop of the user's own, where it adds it.

    python -m tests.benchmarks.loop [--repeats 5]

A worker trains an objective on SQLite. In its loop each step is taken twice, on the same numbers: by the run,
whose loss passes through `run.flood`, and by a bare twin with a model and an optimizer of its own, which
floods as one would by hand; who goes first alternates. Only these lines are timed, and in their place, as
after a step the processor's caches are cold: the rest of a step is the same for both. What the end of an
epoch adds is the time from `run.report` to the next one: the record, what the worker does with it, and the
database.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from floodsearch import queue
from floodsearch.catalog import known
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study
from floodsearch.study.reader import parse
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

EPOCHS, STEPS, WIDTH, BATCH = 6, 50, 300, 100  # 5 ms a step on the processor that the results name
steps: list[float] = []
"""Seconds of each bare step."""
flooding: dict[str, list[float]] = {}
"""Seconds of the line that floods, by what it is."""
ends: list[float] = []
"""Seconds from the report of an epoch to the next."""


class Twin:
    """A model that is trained on the same batch for ever."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        widths = [10, *5 * [WIDTH]]
        hidden = [part for pair in itertools.pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
        self.model = nn.Sequential(*hidden, nn.Linear(WIDTH, 2))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-6)
        self.inputs, self.labels = torch.randn(BATCH, 10), torch.randint(2, (BATCH,))

    def step(self, flood: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """Take a step; return its seconds, and those of the line that floods."""
        began = time.perf_counter()
        loss = nn.functional.cross_entropy(self.model(self.inputs), self.labels)
        before = time.perf_counter()
        loss = flood(loss)
        after = time.perf_counter()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return time.perf_counter() - began, after - before


def by_hand(level: float) -> Callable[[Tensor], Tensor]:
    """Return what one would write without floodsearch."""
    return (lambda loss: (loss - level).abs() + level) if level > 0 else (lambda loss: loss)


def train(run: Any) -> None:
    """Train a model with the run and a bare twin beside it, and note how long their lines took."""
    own, bare, plain = Twin(), Twin(), by_hand(run.level)
    run.restore(model=own.model, optimizer=own.optimizer)
    reported = None
    for _ in run.epochs():
        if reported is not None:
            ends.append(time.perf_counter() - reported)
        for number in range(STEPS):
            for one in (own, bare) if number % 2 else (bare, own):
                seconds, line = one.step(run.flood if one is own else plain)
                who = "`run.flood`" if one is own else "by hand"
                flooding.setdefault(f"level {run.level:g}, {who}", []).append(line)
                if one is bare:
                    steps.append(seconds)
        reported = time.perf_counter()
        run.report(val_accuracy=0.5)


def search(seed: int) -> None:
    """Let a worker train two levels."""
    content = {
        "name": "overhead",
        "objective": "tests.benchmarks.loop:train",
        "levels": {"high": 0.5, "count": 2},
        "training": {"epochs": EPOCHS, "seeds": [seed]},
        "search": {"pruner": "none"},
    }
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(f"sqlite:///{folder}/floodsearch.db", create=True)
        study = put_study(database, parse(content, known()))
        queue.fill(study)
        work(study, WorkerSettings(device="cpu", threads=1, checkpoints=Path(folder)), LeaveRequest())
        database.close()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    for seed in range(parser.parse_args().repeats):
        search(seed)
    step = median(steps)
    print(f"torch {torch.__version__}, Python {platform.python_version()}; a bare step: {1000 * step:.2f} ms")
    print("| line | steps | µs, quartiles | share of a step |\n|---|---|---|---|")
    for what, found in sorted(flooding.items()):
        told = " / ".join(f"{1e6 * value:.0f}" for value in quantiles(found, n=4))
        print(f"| {what} | {len(found)} | {told} | {100 * median(found) / step:.2f} % |")
    print(f"the end of an epoch: {1e6 * median(ends):.0f} µs, median of {len(ends)}")


if __name__ == "__main__":
    from tests.benchmarks import loop  # the module that the worker imports, which holds what it measured

    loop.main()
