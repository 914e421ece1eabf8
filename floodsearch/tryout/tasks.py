"""Trains the runs of a try of a task, by the engine that trains one run after the other."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from floodsearch.catalog import task_of
from floodsearch.errors import DivergedError, FloodsearchError, pass_on_ctrl_c
from floodsearch.process import nesting
from floodsearch.study.trust import TrustedSpec
from floodsearch.training.arithmetic import choose_kernels
from floodsearch.training.independence import RunKey, Shown
from floodsearch.training.randomness import borrowed
from floodsearch.training.run import Run
from floodsearch.tryout.held import snapshot
from floodsearch.tryout.observed import EPOCHS, Tried
from floodsearch.usercode.reference import said
from floodsearch.worker.trainers import first_choices, plan_of


class TaskTrainer:
    """Trains runs of a study's task, with the first of all choices beside the level.

    Args:
        trusted: the study.
        device: where to train.

    Attributes:
        runs: how many were trained.

    Raises:
        TaskError: if the task cannot be built.
    """

    def __init__(self, trusted: TrustedSpec, device: torch.device) -> None:
        self.device, self.runs = device, 0
        spec = trusted.spec
        self.beside = first_choices(spec)
        self.plan = plan_of(spec, self.beside, spec.training.epochs)
        self.task = task_of(trusted, self.beside)
        self._module = str(spec.task).partition(":")[0]
        self._left: dict[str, Any] | None = None  # by the first run, behind its first epoch
        choose_kernels(spec.arithmetic)

    def first(self, seed: int) -> Tried:
        """Train the unflooded run of a seed; it leaves its state behind its first epoch."""
        return self._train(0.0, seed, leaves=True)

    def train(self, level: float, seed: int, *, last: int = EPOCHS, seconds: float = math.inf) -> Tried:
        """Train a run up to an epoch, or to the end of that in which its seconds are over."""
        return self._train(level, seed, last=last, seconds=seconds)

    def paused(self, first: Tried, *, seconds: float = math.inf) -> Tried | None:
        """Train the second epoch of the first run from the state that it has left; None if it left none."""
        if self._left is None:
            return None
        return self._train(first.key.level, first.key.seed, seconds=seconds, saved=self._left)

    def _train(
        self,
        level: float,
        seed: int,
        *,
        last: int = EPOCHS,
        seconds: float = math.inf,
        leaves: bool = False,
        saved: dict[str, Any] | None = None,
    ) -> Tried:
        self.runs += 1
        tried = Tried(RunKey(frozenset(self.beside.items()), self.plan.epochs, level, seed), can_pause=True)
        called, until = time.perf_counter(), time.monotonic() + seconds
        try:
            with nesting.inside("a try"), borrowed(self.device):
                run = Run(self.task, self.plan, seed=seed, level=level, device=self.device)
                if saved is not None:
                    run.restore(saved)
                tried.begun = time.perf_counter() - called
                while run.epoch < min(last, self.plan.epochs) and time.monotonic() < until:
                    self._advance(run, tried)
                    if leaves and run.epoch == 1:
                        self._left = run.state()
        except BaseException as error:  # of the user's own code, which may do anything
            pass_on_ctrl_c(error)
            tried.diverged = isinstance(error, DivergedError)
            tried.error = str(error) if isinstance(error, FloodsearchError) else said(error)
        return tried

    def _advance(self, run: Run, tried: Tried) -> None:
        """Train an epoch, and note what it has shown."""
        epoch = run.epoch + 1
        tried.at_start[epoch] = snapshot(None, self.task, [self._module])
        since = time.perf_counter()
        record = run.advance()
        tried.seconds[epoch] = time.perf_counter() - since
        tried.shown[epoch] = Shown(record)
