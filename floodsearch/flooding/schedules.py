"""The flood level during one run: pure rules from what happened to the next level.

A schedule's step is a function `(state, record, **settings) -> state`, called after each epoch; the level of
the next epoch is in the state. States are plain numbers, so that a run can be stopped and continued. A new
schedule is one entry of `SCHEDULES`: all that the rest of the program asks about one is said there.

Whatever the schedule, the level of a run's ticket is the highest at which the run floods, and at level 0 it
is the unflooded run. `backward` and `adaptive` are not in the paper (Ishida et al., ICML 2020): they come
from a third party's reproduction of it, and what that leaves open is marked below as assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from floodsearch.records import EpochRecord

ROUNDING = 1e-9
"""A change by exactly the tolerance must not be lost to binary floats; accuracies differ by more."""


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """All that a schedule remembers; `Schedule.start` makes the first one."""

    level: float
    """Flood level of the next epoch, in the unit of the training loss."""
    highest: float = 0.0
    """The level of the run's ticket."""
    samples: int = 1
    """Size of the validation split."""
    descended: bool = False
    """Whether the unflooded start of the run is over."""
    reference: float = 0.0
    """The validation accuracy at which `adaptive` last changed the level, x'."""


def constant(state: ScheduleState, record: EpochRecord) -> ScheduleState:
    """Keep the level: the flooding of the paper."""
    del record
    return state


def backward(
    state: ScheduleState,
    record: EpochRecord,
    *,
    until_accuracy: float = 1.0,
    until_epoch: int | None = None,
) -> ScheduleState:
    """Descend without flooding first, then flood at the level for good.

    Args:
        state: before the epoch.
        record: of the epoch.
        until_accuracy: training accuracy at which the descent ends, in (0, 1]; 1 is zero training error. It
            is measured while the epoch trains, in train mode: assumed, as the source does not say.
        until_epoch: the epoch after which the descent ends in any case. The source has no such bound; by
            default there is none, and a run that never reaches the accuracy is never flooded.

    Raises:
        ValueError: for a setting out of its bounds, or if neither accuracy nor epoch can end the descent.
    """
    _check_until(until_accuracy, until_epoch)
    if state.descended or not _reached(record, until_accuracy, until_epoch):
        return state
    return replace(state, descended=True, level=state.highest)


def adaptive(
    state: ScheduleState,
    record: EpochRecord,
    *,
    until_accuracy: float = 1.0,
    alpha: float = 0.015,
    tolerance: float | None = None,
) -> ScheduleState:
    """Let the level follow the validation accuracy: up after a gain, down after a loss.

    The run descends without flooding first. After each later epoch that is validated, its accuracy x is
    compared with a reference x', 0 at the start: from a gain of the tolerance on, the level rises by alpha;
    after a loss of more than the tolerance it falls by alpha; both move the reference to x. In between
    nothing changes. The level stays in [0, highest]; in the source highest is 0.5.

    Assumed: the level starts at 0, and the epoch that ends the descent is not compared yet. A run that never
    reaches `until_accuracy` is never flooded.

    Args:
        state: before the epoch.
        record: of the epoch.
        until_accuracy: training accuracy at which the descent ends, as in `backward`.
        alpha: step of the level, above 0, in the unit of the loss.
        tolerance: smallest change of the validation accuracy that counts, at least 0; one validation sample
            by default, which is assumed: the source gives none, and the final level depends on it.

    Raises:
        ValueError: for a setting out of its bounds, or if the task has no accuracy.
    """
    _check_until(until_accuracy, None)
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, but is {alpha}")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, but is {tolerance}")
    if not state.descended:
        return replace(state, descended=_reached(record, until_accuracy, None))
    if record.val_accuracy is None:
        return state
    smallest = 1 / state.samples if tolerance is None else tolerance
    gain = record.val_accuracy - state.reference
    if gain >= smallest - ROUNDING:
        level = min(state.level + alpha, state.highest)
    elif gain < -smallest - ROUNDING:
        level = max(state.level - alpha, 0.0)
    else:
        return state
    return replace(state, level=level, reference=record.val_accuracy)


@dataclass(frozen=True)
class Schedule:
    """The flood level of each epoch of a run.

    Args:
        step: the function `(state, record, **settings) -> state` that is called after each epoch.
        forks: whether a run's level is in force from its first epoch on, and stays. Then the level alone says
            where the run leaves the unflooded one: at the first batch loss below it.
        highest: of a schedule that finds the level in each run: up to which one by default, in the unit of
            the loss. A study has this one level beside level 0, `levels.high`, and searches no other. None of
            a schedule whose level is searched.
    """

    step: Callable[..., ScheduleState]
    forks: bool = False
    highest: float | None = None

    @property
    def finds_level(self) -> bool:
        """Whether each run finds a level of its own, so that none is searched."""
        return self.highest is not None

    def start(self, level: float, *, samples: int) -> ScheduleState:
        """Return the state before the first epoch.

        Args:
            level: of the run's ticket, at least 0, in the unit of the loss.
            samples: size of the validation split.
        """
        return ScheduleState(
            level=level if self.forks else 0.0,
            highest=level,
            samples=samples,
            descended=self.forks or level == 0,  # at level 0 there is nothing to wait for
        )


SCHEDULES: Mapping[str, Schedule] = {
    "constant": Schedule(constant, forks=True),
    "backward": Schedule(backward),
    "adaptive": Schedule(adaptive, highest=0.5),  # the bound of its source
}


def _check_until(accuracy: float, epoch: int | None) -> None:
    if not 0 < accuracy <= 1:
        raise ValueError(f"until_accuracy must be in (0, 1], but is {accuracy}")
    if epoch is not None and epoch < 1:
        raise ValueError(f"until_epoch must be at least 1, but is {epoch}")


def _reached(record: EpochRecord, accuracy: float, epoch: int | None) -> bool:
    """Return whether the unflooded start of a run is over after an epoch."""
    if record.train_accuracy is None and epoch is None:
        raise ValueError(
            "the task has no accuracy to wait for; take the schedule backward with until_epoch, or constant"
        )
    if epoch is not None and record.epoch >= epoch:
        return True
    return record.train_accuracy is not None and record.train_accuracy >= accuracy - ROUNDING
