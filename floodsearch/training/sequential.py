"""The engine that trains runs one after the other: `loop` in a study file."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from floodsearch.errors import pass_on_ctrl_c
from floodsearch.tasks.task import Task
from floodsearch.training.engine import RunOutcome
from floodsearch.training.progress import RunPlan
from floodsearch.training.run import Run


class Sequential:
    """Trains runs one after the other.

    Args:
        task: what is trained.
        plan: how long, and how it is validated.
        device: where it trains.
    """

    kind = "Loop"

    def __init__(self, task: Task, plan: RunPlan, device: torch.device) -> None:
        self.task, self.plan, self.device = task, plan, device

    def new_run(self, seed: int, level: float) -> Run:
        """Return a run before its first epoch."""
        return Run(self.task, self.plan, seed=seed, level=level, device=self.device)

    def advance(self, runs: Sequence[Run]) -> list[RunOutcome]:
        """Train each run one epoch further; return an outcome for each."""
        return [_outcome(run) for run in runs]


def _outcome(run: Run) -> RunOutcome:
    try:
        return run.advance()
    except BaseException as error:  # whatever a user's code does ends this run only
        pass_on_ctrl_c(error)
        return error
