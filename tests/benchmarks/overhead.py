"""What floodsearch adds to a training, as a ratio to the bare loop.

    python -m tests.benchmarks.overhead [--repeats 5]

A worker trains levels on SQLite, grid, no pruner: a run of 500 epochs of about 5 ms each per ticket. A loop
written by hand trains the same beside it: the same data, model, optimizer, steps and evaluations, the
training loss and accuracy of each epoch among them, no records, no database. Whatever the worker does and the
bare loop does not is overhead: taking the ticket, seeding, batching, snapshots, the epoch that a fork
repeats, records, curves, reports, beats, completion.

On a shared machine two runs after each other differ by 10 to 30 %. So both train in one thread, an epoch of
the one and then an epoch of the other, and a stopwatch deals every moment of the worker to exactly one part.
What disturbs lasts longer than an epoch and meets both alike. The work is real, not spun: after a spin in
Python the code that follows is cold.

Two clocks run. *Processor* time is that of the training thread, and for ours that of the beating thread on
top; it does not see the machine's other work. *Wall* time also holds waiting for the disk, and beats as if
training stood still meanwhile.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import optuna
import torch
from numpy.typing import NDArray

from floodsearch import queue
from floodsearch.catalog import known
from floodsearch.records import EpochRecord
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study
from floodsearch.study.reader import parse
from floodsearch.tasks.synthetic import two_gaussians
from floodsearch.tasks.task import Data, Split, Task
from floodsearch.training.cohort import Step
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.trainers import CohortTrainer, Group, Members
from floodsearch.worker.work import work

EPOCHS, LEVELS, VALIDATE_EVERY = 500, 5, 5
WIDTH = 250  # of five layers: 5 ms an epoch on the processor that the results name
CPU = torch.device("cpu")
CLOCKS = ("processor", "wall")


def gaussians() -> Task:
    """Return Two Gaussians with a test set as small as the other two."""
    whole = two_gaussians(width=WIDTH)

    def data(seed: int) -> Data:
        drawn = whole.data(seed)
        return Data(drawn.train, drawn.validation, Split(drawn.test.inputs[:100], drawn.test.labels[:100]))

    return Task(data=data, model=whole.model, recipe=whole.recipe, loss=whole.loss, correct=whole.correct)


class Bare:
    """The training of one level with one seed, as one would write it without floodsearch."""

    def __init__(self, task: Task, *, seed: int, level: float) -> None:
        self.data, self.loss, self.correct, self.level = task.data(seed), task.loss, task.correct, level
        self.model = task.model()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=task.recipe.learning_rate, fused=True)

    def epoch(self, number: int) -> None:
        """Train one epoch of one batch, measuring its loss and accuracy, and validate where that is due."""
        assert self.correct is not None
        self.model.train()
        outputs = self.model(self.data.train.inputs)
        loss = self.loss(outputs, self.data.train.labels)
        self.optimizer.zero_grad(set_to_none=True)
        ((loss - self.level).abs() + self.level).backward()
        self.optimizer.step()
        self.measured = (
            loss.item(),
            self.correct(outputs.detach(), self.data.train.labels).float().mean().item(),
        )
        if number % VALIDATE_EVERY == 0:
            self.evaluate(self.data.validation)

    @torch.no_grad()
    def evaluate(self, split: Split) -> tuple[float, float]:
        """Return loss and accuracy."""
        assert self.correct is not None
        self.model.eval()
        outputs = self.model(split.inputs)
        loss, correct = self.loss(outputs, split.labels), self.correct(outputs, split.labels)
        return loss.item(), correct.float().mean().item()


class Stopwatch:
    """Deals time out to parts: each moment since the last lap goes to the part that the next lap names."""

    def __init__(self) -> None:
        self.laps: list[tuple[str, float, float]] = []  # summed up later: a lap must cost nothing
        self.lap("")

    def lap(self, part: str) -> None:
        """Give the time since the last lap to a part, of this thread."""
        self.laps.append((part, time.thread_time(), time.perf_counter()))

    def parts(self) -> dict[str, NDArray[np.float64]]:
        """Return seconds by part, by processor and by wall clock, (2,)."""
        sums: dict[str, NDArray[np.float64]] = {}
        for (_, *before), (part, *after) in itertools.pairwise(self.laps):
            sums[part] = sums.get(part, np.zeros(2)) + np.subtract(after, before)
        return sums


class Beside:
    """The members of a cohort of one ticket; whatever they train, the bare loop trains right after them.

    Parts of the stopwatch: `ticket` before the first epoch and after the last, `training` the epochs of ours,
    `between` the epochs, `bare epochs`, and what else is `bare`.
    """

    def __init__(self, ours: Callable[[], Members], group: Group, watch: Stopwatch) -> None:
        watch.lap("ticket")
        self.ours, self.number, self.watch = ours(), 0, watch
        watch.lap("ticket")
        [(ticket, level)] = group.levels.items()
        self.bare = Bare(gaussians(), seed=group.seeds[ticket][0], level=level)
        watch.lap("bare")

    def forked(self, member: int) -> bool:
        return self.ours.forked(member)

    def drop(self, member: int) -> None:
        self.ours.drop(member)

    def advance(self) -> Step:
        self.watch.lap("between" if self.number else "ticket")
        self.number += 1
        step = self.ours.advance()
        self.watch.lap("training")
        if step.trained:  # the start that levels share is trained once, and by the bare loop as often
            self.bare.epoch(self.number)
            self.watch.lap("bare epochs")
        return step

    def lowest(self, member: int, seed: int) -> float | None:
        return self.ours.lowest(member, seed)

    def tested(self, member: int) -> list[EpochRecord]:
        found = self.ours.tested(member)
        self.watch.lap("ticket")
        for _ in found:  # at the best validation and at the end, which may be the same
            self.bare.evaluate(self.bare.data.test)
        self.watch.lap("bare")
        return found


Parts = Mapping[str, NDArray[np.float64]]
"""Seconds of a worker's life by part, by processor and by wall clock, (2,)."""


def measure(folder: Path) -> Parts:
    """Let a worker train all levels, from its first ticket to its last."""
    content = {
        "name": "overhead",
        "task": "tests.benchmarks.overhead:gaussians",
        "levels": {"high": 0.5, "count": LEVELS},
        "training": {"epochs": EPOCHS, "seeds": 1, "validate_every": VALIDATE_EVERY},
        "search": {"pruner": "none"},  # else the levels share a trunk, and train less than the bare loop
    }
    database = open_database(f"sqlite:///{folder}/floodsearch.db", create=True)
    study = put_study(database, parse(content, known()))
    queue.fill(study)
    gc.collect()
    watch = Stopwatch()

    cohorts = CohortTrainer(CPU)

    def trainer(group: Group) -> Members:
        return Beside(lambda: cohorts(group), group, watch)

    # Beside the bare loop a run lasts twice as long; it is to have as many beats as alone.
    settings = WorkerSettings(device="cpu", threads=1, beat_seconds=2 * WorkerSettings.beat_seconds)
    process = time.process_time()
    work(study, settings, LeaveRequest(), trainer)
    watch.lap("ticket")
    process = time.process_time() - process
    database.close()
    parts = watch.parts()
    return {**parts, "beats": np.full(2, process - sum(part[0] for part in parts.values()))}


def ratio(parts: Parts) -> NDArray[np.float64]:
    """Return what all of ours takes, as a multiple of the bare loop, by clock, (2,)."""
    bare = parts["bare"] + parts["bare epochs"]
    ours = parts["ticket"] + parts["training"] + parts["between"] + parts["beats"]
    return np.asarray(ours / bare)


def report(parts: Parts) -> None:
    """Print one line a clock: the ratio, and where the difference comes from."""
    epochs = EPOCHS * LEVELS
    bare = parts["bare epochs"] / epochs
    inside = parts["training"] / epochs - bare
    after = parts["between"] / epochs
    ticket = (parts["ticket"] - parts["bare"]) / LEVELS
    beats = parts["beats"] / LEVELS
    for index, clock in enumerate(CLOCKS):
        print(
            f"{clock:<9}  ratio {ratio(parts)[index]:.4f}   bare epoch {bare[index] * 1e3:.2f} ms;"
            f" added an epoch: {inside[index] * 1e6:.0f} µs in it, {after[index] * 1e6:.0f} µs after it;"
            f" added a ticket: {ticket[index] * 1e3:.0f} ms, {beats[index] * 1e3:.0f} ms of beats",
            flush=True,
        )


def main() -> None:
    """Measure and print each repetition and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    ratios = []
    for repeat in range(repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            parts = measure(Path(folder))
        if repeat:  # the first one warms up
            report(parts)
            ratios.append(ratio(parts))
    for clock, column in zip(CLOCKS, np.transpose(ratios).tolist(), strict=True):
        print(f"{clock}: min {min(column):.4f} median {statistics.median(column):.4f} max {max(column):.4f}")
    print(f"torch {torch.__version__}, optuna {optuna.__version__}, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
