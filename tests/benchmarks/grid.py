"""What a grid of levels and a whole search cost, against training the levels one after the other.

    python -m tests.benchmarks.grid [--device cpu] [--threads 1] [--levels 51] [--epochs 500] [--width 500]

The opponent is the loop that one would write: eager PyTorch in float32, Adam with `foreach`, a level after
the other, each validated every five epochs, no records and no database. Beside it, on Two Gaussians with 10 %
wrong labels, one seed:

- `grid, loop` and `grid, stack`: the same grid to its end as a cohort, by each engine; levels share what they
  can, and each is validated and recorded.
- `search without halving`: a study of that grid with `pruner = "none"`, by one worker on SQLite.
- `search`: the same with halving.

Each is timed in processor time of the process, and on a GPU in wall time, once, one after the other; sides
that follow each other on a shared machine may differ by 10 to 30 %.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from floodsearch import queue
from floodsearch.catalog import known
from floodsearch.queries import status
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study
from floodsearch.study.reader import parse
from floodsearch.study.spec import PLAIN
from floodsearch.tasks.synthetic import two_gaussians
from floodsearch.tasks.task import Task
from floodsearch.training.arithmetic import choose_kernels
from floodsearch.training.cohort import Cohort
from floodsearch.training.engine import Engine, Loop
from floodsearch.training.progress import Plan
from floodsearch.training.stack import Stack
from floodsearch.training.trunk import Trunks
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

SEED, VALIDATE_EVERY = 0, 5


def opponent(task: Task, levels: Sequence[float], epochs: int, device: torch.device) -> int:
    """Train levels one after the other by hand; return the epochs."""
    data = task.data(SEED)
    train, validation = data.train.to(device), data.validation.to(device)
    for level in levels:
        torch.manual_seed(SEED)
        model = task.model().to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=task.recipe.learning_rate, foreach=True)
        for epoch in range(1, epochs + 1):
            model.train()
            loss = task.loss(model(train.inputs), train.labels)
            optimizer.zero_grad()
            ((loss - level).abs() + level).backward()
            optimizer.step()
            if epoch % VALIDATE_EVERY == 0:
                model.eval()
                with torch.no_grad():
                    outputs = model(validation.inputs)
                    task.loss(outputs, validation.labels).item()
    return len(levels) * epochs


def cohort(
    kind: Callable[..., Engine], task: Task, levels: Sequence[float], epochs: int, device: torch.device
) -> int:
    """Train levels as a cohort; return the member-epochs."""
    plan = Plan(epochs=epochs, validate_every=VALIDATE_EVERY)
    members = dict(enumerate(levels))
    together = Cohort(
        task,
        plan,
        levels=members,
        seeds=dict.fromkeys(members, (SEED,)),
        device=device,
        trunks=Trunks(kind(task, plan, device)),
    )
    return sum(together.advance().trained for _ in range(epochs))


def search(content: dict[str, Any], device: torch.device, threads: int) -> int:
    """Conduct a search; return the member-epochs."""
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(f"sqlite:///{Path(folder)}/floodsearch.db", create=True)
        study = put_study(database, parse(content, known()))
        queue.fill(study)
        work(study, WorkerSettings(device=str(device), threads=threads), LeaveRequest())
        now = status(study)
        assert now.finished
        trained = now.epochs_run
        database.close()
    return trained


def timed(name: str, side: Callable[[], int], device: torch.device, first: tuple[int, float] | None) -> Any:
    """Run one side and print its row; return its epochs and seconds."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    began = clock()
    epochs = side()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = clock() - began
    of_epochs, of_seconds = first or (epochs, seconds)
    ratios = f"{of_epochs / epochs:.2f} | {of_seconds / seconds:.2f}"
    print(f"| {name} | {epochs:,} | {seconds:.1f} | {ratios} |", flush=True)
    return epochs, seconds


def main() -> None:
    """Measure and print a row for each side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--levels", type=int, default=51)
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--depth", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    choose_kernels(PLAIN)
    device, epochs, count = torch.device(arguments.device), arguments.epochs, arguments.levels
    task = two_gaussians(label_noise=0.1, width=arguments.width, depth=arguments.depth)
    levels = [0.5 * index / (count - 1) for index in range(count)]
    content = {
        "name": "grid",
        "task": "two_gaussians",
        "options": {"label_noise": 0.1, "width": arguments.width, "depth": arguments.depth},
        "levels": {"high": 0.5, "count": count},
        "training": {"epochs": epochs, "seeds": 1, "validate_every": VALIDATE_EVERY},
    }
    print("| | epochs | seconds | fewer epochs | faster |\n|---|---|---|---|---|")
    opponent(task, levels[:1], 20, device)  # warm
    first = timed("one after the other", lambda: opponent(task, levels, epochs, device), device, None)
    sides = {
        "grid, loop": lambda: cohort(Loop, task, levels, epochs, device),
        "grid, stack": lambda: cohort(Stack, task, levels, epochs, device),
        "search without halving": lambda: search(
            {**content, "search": {"pruner": "none"}}, device, arguments.threads
        ),
        "search": lambda: search(content, device, arguments.threads),
    }
    for name, side in sides.items():
        timed(name, side, device, first)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
