"""Which tasks can be trained as stacks, and how exactly here: found out by training a little of each."""

from __future__ import annotations

import math
import warnings

import torch

from floodsearch.errors import named, pass_on_ctrl_c
from floodsearch.records import EpochRecord
from floodsearch.tasks.task import Data, Task, build_optimizer
from floodsearch.training.lanes import WIDTH, Lane, SeedInit
from floodsearch.training.progress import RunPlan
from floodsearch.training.run import Run
from floodsearch.training.stack import CHUNK, Stack

TOLERANCE = 0.05
"""Share by which the losses of a stack may differ from those of the runs alone in its first steps. Rounding
is a ten-thousandth of that, but where a gradient is all rounding, as of a bias before BatchNorm, Adam still
takes steps of full size; a model that is not computed as it is alone is off by more."""


def obstacle(task: Task, device: torch.device, seed: int) -> str | None:
    """Return the reason for which runs of a task cannot be stacked, or None.

    Two runs, flooded and not, are trained for two epochs of at most two batches in turn, by a stack and
    alone. Random modules in training mode, control flow by data, modules without a functional form and
    models that keep something outside of their parameters and buffers raise, or come to something else.
    """
    if task.optimizer is not build_optimizer:
        return "the task has an optimizer of its own"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="There is a performance drop")
            return _compare(task, device, seed)
    except BaseException as error:
        pass_on_ctrl_c(error)
        return named(error)


def depends_on_place(task: Task, device: torch.device, seed: int) -> bool:
    """Return whether equal runs, one on each place of a stack, come to different numbers on this machine.

    Kernels may differ with where in memory the numbers of a run begin. The one library that is known to do so
    is told not to (`defaults.REPRODUCIBLE`), but machines and models differ.
    """
    plan, data = _little(task, device, seed)
    init = SeedInit(task, plan, seed=seed, device=device, data=data)
    stack, lanes = Stack(task, plan, device), [Lane(init, 0.0) for _ in range(WIDTH)]
    for _ in range(plan.epochs):
        first, *others = stack.advance(lanes)
        if isinstance(first, BaseException):
            return False  # whatever is wrong with the task, its own training will say
        if any(other != first for other in others):
            return True
    weights, *elsewhere = (lane.weights() for lane in lanes)
    return any(not torch.equal(one[name], weights[name]) for one in elsewhere for name in weights)


def _little(task: Task, device: torch.device, seed: int) -> tuple[RunPlan, Data]:
    """Return two epochs of at most two batches of a task, of all shapes that it has."""
    drawn, size = task.draw(seed, device), task.recipe.batch_size
    train = drawn.train.first(size + (len(drawn.train.inputs) % size or size))
    validation = drawn.validation.first(CHUNK + len(drawn.validation.inputs) % CHUNK)
    data = Data(train, validation, validation)
    return RunPlan(epochs=2, metric="val_loss", maximize=False), data


def _compare(task: Task, device: torch.device, seed: int) -> str | None:
    plan, data = _little(task, device, seed)
    alone = Run(task, plan, seed=seed, level=0.0, device=device, data=data)
    expected = [list(alone)]
    always = 1 + 2 * abs(expected[0][0].train_loss or 0.0)
    expected.append(list(Run(task, plan, seed=seed, level=always, device=device, data=data)))
    stack = Stack(task, plan, device)
    init = SeedInit(task, plan, seed=seed, device=device, data=data)
    lanes = [Lane(init, 0.0), Lane(init, always)]
    for epoch in range(plan.epochs):
        for records, lane in zip(expected, lanes, strict=True):
            [found] = stack.advance([lane])  # each by itself: what the model keeps beside would mix them up
            if isinstance(found, BaseException):
                raise found
            if not _near(records[epoch], found):
                return "its model is not computed in a stack as it is alone"
    return None


def _near(one: EpochRecord, other: EpochRecord) -> bool:
    pairs = ((one.train_loss, other.train_loss), (one.val_loss, other.val_loss))
    return all(a is not None and b is not None and math.isclose(a, b, rel_tol=TOLERANCE) for a, b in pairs)
