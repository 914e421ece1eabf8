"""What one run has come to beside its weights: its epoch, its level, its best validation.

Whoever trains the run says what the batches gave, and keeps the weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from floodsearch.answer.values import best_validation
from floodsearch.artifacts.checkpoint import read_rows, rows
from floodsearch.errors import DivergedError, TaskError
from floodsearch.flooding.loss import check_level
from floodsearch.flooding.schedules import SCHEDULES, ScheduleState
from floodsearch.records import LARGEST, EpochRecord, Keep
from floodsearch.study.spec import PLAIN, Arithmetic


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The plan that all runs of a study follow: epochs, validations, schedule, arithmetic.

    Args:
        epochs: length of a run.
        validate_every: epochs between validations; the last epoch is always validated.
        schedule: a name of `SCHEDULES`.
        settings: of the schedule.
        metric: `val_accuracy` or `val_loss`, which decides the best validation epoch.
        maximize: whether a larger metric is better.
        arithmetic: how numbers are computed.
        keep: which weights are kept of a run that is complete.
        may_end: whether a run of the user's own code may end before its last epoch.
    """

    epochs: int
    validate_every: int = 1
    schedule: str = "constant"
    settings: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "val_accuracy"
    maximize: bool = True
    arithmetic: Arithmetic = PLAIN
    keep: Keep = "none"
    may_end: bool = False

    def due(self, epoch: int) -> bool:
        """Return whether a run is validated after an epoch."""
        return epoch % self.validate_every == 0 or epoch == self.epochs


@dataclass(frozen=True)
class Evaluation:
    """Plain loss and accuracies of a model on a split, in eval mode."""

    loss: float
    accuracy: float | None
    accuracy_clean: float | None = None


def check_counts(correct: float, samples: int) -> None:
    """Check how many of some samples are correct: booleans cannot be wrong, but other numbers can.

    Raises:
        TaskError: if no number of samples can be that.
    """
    if not (0 <= correct <= samples and float(correct).is_integer()):
        raise TaskError(f"correct must give booleans, but their sum over {samples} samples is {correct:g}")


class Progress:
    """A run's epochs so far.

    Call `end_training` for each, then `add_validation` where that is `due`, then `end_epoch`.

    Args:
        plan: how long the run is, and how it is validated.
        seed: of the run.
        level: flood level b >= 0, in the unit of the task's loss.
        samples: size of the validation split.

    Attributes:
        epoch: epochs trained so far.
        lowest: the lowest batch loss of the last epoch, in the unit of the task's loss.
        last: the record of the last epoch.
        best: the record of the best validation so far, the first where several are equal.
    """

    def __init__(self, plan: RunPlan, *, seed: int, level: float, samples: int) -> None:
        self.plan, self.seed = plan, seed
        schedule = SCHEDULES[plan.schedule]
        self._schedule = functools.partial(schedule.step, **plan.settings)
        self._schedule_state = schedule.start(check_level(level), samples=samples)
        self.epoch = 0
        self.lowest = math.inf
        self.last: EpochRecord | None = None
        self.best: EpochRecord | None = None

    @property
    def level(self) -> float:
        """The level of the next epoch, in the unit of the task's loss."""
        return self._schedule_state.level

    @property
    def due(self) -> bool:
        """Whether the epoch that was trained last is validated."""
        return self.plan.due(self.epoch)

    def end_training(
        self, losses: Sequence[float], sizes: Sequence[int], correct: Sequence[float]
    ) -> EpochRecord:
        """Take in the batches of an epoch and return its record.

        Args:
            losses: plain loss of each batch.
            sizes: samples of each batch.
            correct: how many of each batch; empty where the task has no accuracy.

        Raises:
            DivergedError: when a loss is NaN or infinite.
            TaskError: when that is not how many can be correct.
        """
        level = self.level
        for step, loss in enumerate(losses, start=1):
            if not abs(loss) <= LARGEST:
                raise DivergedError(level=level, epoch=self.epoch + 1, step=step, seed=self.seed)
        self.epoch += 1
        self.lowest = min(losses)
        samples = sum(sizes)
        check_counts(sum(correct), samples)
        return EpochRecord(
            seed=self.seed,
            epoch=self.epoch,
            level=level,
            train_loss=sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / samples,
            train_accuracy=sum(correct) / samples if correct else None,
            # Level 0 floods nothing, also where a loss can be negative.
            flooded=sum(loss < level for loss in losses if level > 0) / len(losses),
        )

    def add_validation(self, record: EpochRecord, validation: Evaluation, *, step: int) -> EpochRecord:
        """Return a record with its validation; if it is the `best` now, its weights are to be kept.

        Raises:
            DivergedError: when the loss is NaN or infinite: the last `step` broke the weights.
        """
        if not abs(validation.loss) <= LARGEST:
            raise DivergedError(
                level=record.level,
                epoch=record.epoch,
                step=step,
                seed=self.seed,
                what="the validation loss",
            )
        record = replace(record, val_loss=validation.loss, val_accuracy=validation.accuracy)
        so_far = [record] if self.best is None else [self.best, record]
        best = best_validation(so_far, self.plan.metric, maximize=self.plan.maximize)
        self.best = record if best is None else best  # without the metric, as for a task without accuracy
        return record

    def end_epoch(self, record: EpochRecord) -> EpochRecord:
        """Let the schedule choose the level of the next epoch; return the record of this one."""
        self._schedule_state = self._schedule(self._schedule_state, record)
        self.last = record
        return record

    def state(self) -> dict[str, Any]:
        """Return all that a new `Progress` of the same plan and seed needs to go on from here."""
        return {"epoch": self.epoch, "schedule": self._schedule_state, "last": self.last, "best": self.best}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.epoch, self._schedule_state = state["epoch"], state["schedule"]
        self.last, self.best = state["last"], state["best"]

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Go on from the `state` of a run at another level, as if it had been trained at this one."""
        schedule = self._schedule_state
        self.restore(state)
        self._schedule_state = schedule
        self.last = None if self.last is None else replace(self.last, level=schedule.level)
        self.best = None if self.best is None else replace(self.best, level=schedule.level)


def pack(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a run with plain values in the place of our records, as a checkpoint holds it."""
    last, best = (None if state[name] is None else rows([state[name]]) for name in ("last", "best"))
    return {**state, "schedule": asdict(state["schedule"]), "last": last, "best": best}


def unpack(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a run from what `pack` made of it.

    Raises:
        Exception: if it is none.
    """
    last, best = (None if state[name] is None else read_rows(state[name])[0] for name in ("last", "best"))
    numbers = (state["epoch"], *state["schedule"].values())
    if any(type(one) not in (int, float, bool) for one in numbers):
        raise ValueError("its epoch or its schedule holds what is no number")
    return {**state, "schedule": ScheduleState(**state["schedule"]), "last": last, "best": best}
