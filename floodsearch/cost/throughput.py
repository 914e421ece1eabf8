"""How fast a device trains a study: measured for a few seconds, before a search is begun."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from floodsearch.catalog import task_of
from floodsearch.study.section import AUTO
from floodsearch.study.spec import Spec
from floodsearch.study.trust import given
from floodsearch.tasks.task import Data
from floodsearch.training.arithmetic import choose_kernels
from floodsearch.training.devices import find_device
from floodsearch.training.engine import AnyRun, Engine
from floodsearch.training.randomness import borrowed
from floodsearch.worker.trainers import default_engine, engine_of, first_choices, plan_of

SECONDS = 3.0
"""How long each number of runs is measured, after as much time to warm up."""
LEVEL = 0.1
BATCHES = 10
"""Of an epoch while measuring: enough that what an epoch costs beside its steps does not count."""


def samples_of(spec: Spec) -> int:
    """Return the training samples of one epoch of a run of a study file's spec.

    Raises:
        TaskError: if the task's data cannot be drawn.
    """
    task = task_of(given(spec), first_choices(spec))
    if task.samples is not None:
        return task.samples
    return len(task.draw(spec.training.seeds[0], find_device("cpu")).train.inputs)


def measure_speeds(spec: Spec, device: str, at_once: Sequence[int]) -> dict[int, float]:
    """Return training samples a second of all runs together, by how many train at once.

    Args:
        spec: of a study file.
        device: as torch names it, or `auto`.
        at_once: numbers of runs.

    Raises:
        UsageError: if the device does not exist.
        TaskError: if the task's data cannot be drawn.
    """
    where = find_device(device)
    choose_kernels(spec.arithmetic)
    choices, seed = first_choices(spec), spec.training.seeds[0]
    task = task_of(given(spec), choices)
    few = _first_batches(task.draw(seed, where), task.recipe.batch_size)
    task, samples = replace(task, data=lambda _: few), len(few.train.inputs)
    kind = default_engine(given(spec), where) if spec.training.engine == AUTO else spec.training.engine
    engine = engine_of(kind, task, plan_of(spec, choices, spec.training.epochs), where, seed)
    with borrowed(where):
        return {
            number: _speed(engine, [engine.new_run(seed, LEVEL) for _ in range(number)], samples)
            for number in at_once
        }


def _first_batches(data: Data, batch_size: int) -> Data:
    """Return the first few batches of each split."""
    return Data(*(part.first(BATCHES * batch_size) for _, part in data.named()))


def _speed(engine: Engine, runs: Sequence[AnyRun], samples: int) -> float:
    """Return the training samples a second of runs that are trained together."""
    for _ in ("to warm up", "to be measured"):
        epochs, begun = 0, time.perf_counter()
        while (seconds := time.perf_counter() - begun) < SECONDS:
            for outcome in engine.advance(runs):  # it reads the losses of an epoch, so the device has ended
                if isinstance(outcome, BaseException):
                    raise outcome
            epochs += len(runs)
    return epochs * samples / seconds
