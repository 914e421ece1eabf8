"""What a training step of a run costs: in a stack, in the loop, and in a loop written by hand.

    python -m tests.benchmarks.engine [--threads 1] [--repeats 40]

Stack against loop: the same runs, flooded from the first step on, by the one engine and by the other, an
epoch of one batch each in turn, so that what disturbs on a shared machine meets both alike. A ratio is that
of the process's processor time per run and step, the median over the repeats. A stack costs the same however
few runs are in it, so the ratio is given for several numbers of runs. With several threads processor time
holds waiting for each other too, which on a busy machine is most of it. It computes as workers do; with
`MKL_CBWR=OFF` in its environment as they would if MKL were told nothing.

Loop against bare: one run in the loop, and the step as one would write it, with its loss and accuracy, an
epoch of the one after an epoch of the other. Epochs have ten batches here, as the overhead of an epoch is
measured by `tests.benchmarks.overhead`.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from floodsearch.defaults import REPRODUCIBLE
from floodsearch.tasks.synthetic import two_gaussians
from floodsearch.tasks.task import Data, Split, Task
from floodsearch.training.engine import Engine
from floodsearch.training.progress import RunPlan
from floodsearch.training.run import Run
from floodsearch.training.sequential import Sequential
from floodsearch.training.stack import Stack

CPU = torch.device("cpu")
NEVER = RunPlan(epochs=10**6, validate_every=10**6)
LEVEL = 0.5
SHAPES = {"3 x 64": (64, 3), "5 x 500": (500, 5)}


def task_of(width: int, depth: int, batches: int = 1) -> Task:
    """Return Two Gaussians with as many batches of 100 an epoch, and small other splits."""
    whole = two_gaussians(width=width, depth=depth)

    def data(seed: int) -> Data:
        drawn = whole.data(seed)
        train = Split(*(torch.cat([part] * batches) for part in (drawn.train.inputs, drawn.train.labels)))
        return Data(train, drawn.validation, drawn.validation)

    return replace(whole, data=data)


def in_turn(sides: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Return milliseconds of processor time of each side, measured in turn."""
    taken: list[list[float]] = [[] for _ in sides]
    for repeat in range(repeats + 3):
        for side, times in zip(sides, taken, strict=True):
            started = time.process_time()
            side()
            if repeat >= 3:  # the first ones warm up
                times.append((time.process_time() - started) * 1e3)
    return taken


def epochs(engine: Engine, runs: int) -> Callable[[], object]:
    """Return what trains so many runs of one seed an epoch further."""
    some = [engine.new_run(0, LEVEL) for _ in range(runs)]

    def advance() -> None:
        for outcome in engine.advance(some):
            if isinstance(outcome, BaseException):
                raise outcome

    return advance


def bare(task: Task) -> Callable[[], object]:
    """Return a loop over the batches of an epoch, written by hand."""
    assert task.correct is not None
    correct = task.correct
    train, size = task.data(0).train, task.recipe.batch_size
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=task.recipe.learning_rate, fused=True)

    def epoch() -> tuple[float, float]:
        losses, right = [], []
        model.train()
        order = torch.randperm(len(train.inputs))
        for chosen in order.split(size):
            inputs, labels = train.inputs[chosen], train.labels[chosen]
            outputs = model(inputs)
            loss = task.loss(outputs, labels)
            optimizer.zero_grad(set_to_none=True)
            ((loss - LEVEL).abs() + LEVEL).backward()
            optimizer.step()
            losses.append(loss.item())
            right.append(correct(outputs.detach(), labels).float().mean().item())
        return math.fsum(losses), math.fsum(right)

    return epoch


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the median over repeats of one side as a multiple of the other."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    os.environ.setdefault(*REPRODUCIBLE)
    arguments = parser.parse_args()
    measure(arguments.threads, arguments.repeats)
    told = os.environ[REPRODUCIBLE[0]]
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, MKL {told}"
    )


def measure(threads: int, repeats: int) -> None:
    """Print the ratios of all shapes, with so many threads."""
    torch.set_num_threads(threads)
    for shape, (width, depth) in SHAPES.items():
        task = task_of(width, depth)
        for runs in (1, 4, 8, 16, 32, 64):
            sides = [epochs(kind(task, NEVER, CPU), runs) for kind in (Stack, Sequential)]
            often = max(8, repeats // (runs if width > 100 else 1))
            stack, loop = in_turn(sides, often)
            in_stack, alone = (statistics.median(side) / runs for side in (stack, loop))
            print(
                f"{threads} threads, {shape}, {runs:>2} runs: stack / loop {ratio(stack, loop):.2f}"
                f"   a run's step in the stack {in_stack:.3f} ms, in the loop {alone:.3f} ms",
                flush=True,
            )
        many = task_of(width, depth, batches=10)
        run = Run(many, NEVER, seed=0, level=LEVEL, device=CPU)
        ours, by_hand = in_turn([run.advance, bare(many)], repeats)
        print(f"{threads} threads, {shape}: loop / bare {ratio(ours, by_hand):.3f}", flush=True)


if __name__ == "__main__":
    main()
