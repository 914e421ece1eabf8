"""The flood level during one run: pure rules from what happened to the next level.

A schedule is a function `(state, record) -> state`, called after each epoch; the level of the next epoch is
in the state. States are plain numbers, so that a run can be stopped and continued.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from floodsearch.records import EpochRecord


@dataclass(frozen=True, slots=True)
class ScheduleState:
    """All that a schedule remembers."""

    level: float
    """Flood level of the next epoch, in the unit of the training loss."""


Schedule = Callable[[ScheduleState, EpochRecord], ScheduleState]


def constant(state: ScheduleState, record: EpochRecord) -> ScheduleState:
    """Keep the level: the flooding of the paper."""
    del record
    return state


SCHEDULES: Mapping[str, Schedule] = {"constant": constant}
