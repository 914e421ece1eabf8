"""What floodsearch adds to a training, as a ratio to the bare loop, both in one run.

    python -m tests.benchmarks.overhead [--repeats 5]

A trial of 500 epochs of 5 ms each on SQLite, grid, one worker, against the same 500 epochs in a loop written
by hand: the same model, data, optimizer, steps and evaluations, no records, no database. Everything that is
not training or evaluation is overhead: taking the ticket, counting, seeding, reporting, curves, beats. The
5 ms are spun in the loss, so that both sides train for exactly as long.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import optuna
import torch
from torch import Tensor, nn

from floodsearch import queue
from floodsearch.catalog import known
from floodsearch.heart import Leave, Settings
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study
from floodsearch.studyfile import parse
from floodsearch.tasks.synthetic import two_gaussians
from floodsearch.tasks.task import Data, Recipe, Split, Task, binary_correct, logistic_loss
from floodsearch.training.run import Plan, Run, evaluate
from floodsearch.worker import work

EPOCHS, EPOCH_SECONDS, LEVELS, VALIDATE_EVERY = 500, 0.005, 5, 5


def spinning_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the logistic loss; while training, after 5 ms."""
    if torch.is_grad_enabled():
        until = time.perf_counter() + EPOCH_SECONDS
        while time.perf_counter() < until:
            pass
    return logistic_loss(outputs, labels)


def spinning() -> Task:
    """Return Two Gaussians with a tiny model and a small test set."""

    def data(seed: int) -> Data:
        whole = two_gaussians().data(seed)
        return Data(whole.train, whole.validation, Split(whole.test.inputs[:100], whole.test.labels[:100]))

    return Task(
        data=data,
        model=lambda: nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1)),
        recipe=Recipe(),
        loss=spinning_loss,
        correct=binary_correct,
    )


def bare_seconds() -> float:
    """Return how long the hand-written loop takes for one level."""
    task = spinning()
    plan = Plan(epochs=EPOCHS)
    started = time.perf_counter()
    run = Run(task, plan, seed=0, level=0.1, device=torch.device("cpu"))  # for its data, model and optimizer
    inputs, labels = run.train.inputs, run.train.labels
    for epoch in range(1, EPOCHS + 1):
        run.model.train()
        loss = task.loss(run.model(inputs), labels)
        run.optimizer.zero_grad(set_to_none=True)
        ((loss - 0.1).abs() + 0.1).backward()
        run.optimizer.step()
        if epoch % VALIDATE_EVERY == 0:
            evaluate(run.model, task, run.validation)
    evaluate(run.model, task, run.test)
    evaluate(run.model, task, run.test)
    return time.perf_counter() - started


def our_seconds(folder: Path) -> float:
    """Return how long a worker takes for a level, everything included from its first ticket to the last."""
    content = {
        "name": "overhead",
        "task": "tests.benchmarks.overhead:spinning",
        "levels": {"high": 0.5, "count": LEVELS},
        "training": {"epochs": EPOCHS, "seeds": 1, "validate_every": VALIDATE_EVERY},
    }
    database = open_database(f"sqlite:///{folder}/floodsearch.db", create=True)
    study = put_study(database, parse(content, known()))
    queue.fill(study)
    started = time.perf_counter()
    work(study, Settings(device="cpu", threads=1), Leave())
    seconds = time.perf_counter() - started
    database.close()
    return seconds / LEVELS


def main() -> None:
    """Measure in turn and print each pair and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    bare_seconds()  # warm-up
    ratios = []
    for _ in range(repeats):
        bare = bare_seconds()
        with tempfile.TemporaryDirectory() as folder:
            ours = our_seconds(Path(folder))
        ratios.append(ours / bare)
        print(f"bare {bare:.3f} s  floodsearch {ours:.3f} s  ratio {ratios[-1]:.4f}")
    print(
        f"ratio min {min(ratios):.4f} median {statistics.median(ratios):.4f} max {max(ratios):.4f} "
        f"(torch {torch.__version__}, optuna {optuna.__version__}, Python {platform.python_version()})"
    )


if __name__ == "__main__":
    main()
