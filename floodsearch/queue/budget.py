"""Why a study hands out no more tickets: it was stopped, or its budget is spent."""

from __future__ import annotations

import math
from collections.abc import Iterable

from floodsearch.records import WorkerRecord
from floodsearch.storage.studies import StoredStudy

STOPPED_BY_COMMAND = "stopped by floodsearch stop"
SECONDS_PER_HOUR = 3600


def closed(study: StoredStudy, workers: Iterable[WorkerRecord]) -> str | None:
    """Return why the study hands out no more tickets, stopped or its budget spent; None while it does.

    Args:
        study: which study.
        workers: all that it ever had.
    """
    if (reason := study.stopped()) is not None:
        return reason
    budget, workers = study.spec.budget, list(workers)
    if budget.epochs is not None and sum(one.epochs_run for one in workers) >= budget.epochs:
        return f"the budget of {budget.epochs} epochs is spent; {_raise('epochs')}"
    if budget.hours is not None and seconds_worked(workers) >= budget.hours * SECONDS_PER_HOUR:
        return f"the budget of {budget.hours:g} hours is spent; {_raise('hours')}"
    return None


def _raise(key: str) -> str:
    """Return the advice for a budget that is spent."""
    return f"raise budget.{key} in the study file and launch it again to go on"


def seconds_worked(workers: Iterable[WorkerRecord]) -> float:
    """Return the seconds during which at least one worker was alive."""
    total, until = 0.0, -math.inf
    for start, end in sorted((one.started, one.left or one.last_beat) for one in workers):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
