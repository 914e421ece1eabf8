"""What a run comes to: its recent mean at an epoch, its best validation, its result at the end.

Notation: a *value* is the study's metric averaged over the last `window` of the epochs; standard errors are
over seeds, and None with fewer than two of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from floodsearch.records import EpochRecord, SeedResult, StopRule, field_of

RUNG_VALIDATIONS = 3
"""At a rung the mean is over at least so many validations, where there are as many: one alone is noisy."""


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """By what the runs of one study are compared.

    Args:
        study: its name.
        metric: what is measured at validations, such as `val_accuracy`.
        maximize: whether a larger metric is better.
        window: share of the epochs, counted from the end, over which a value averages, in (0, 1].
        scale: the range of levels that matter, in the unit of the loss, over which a curve is smoothed; the
            highest level by default.
        finds_level: whether each run finds its own level, so that a trial's level is only the highest.
        early_stopping: what a run's value is where runs may end before their last epoch; all have the same
            rule, also those that do not.
    """

    study: str
    metric: str
    maximize: bool
    window: float
    scale: float | None = None
    finds_level: bool = False
    early_stopping: StopRule = "none"

    @property
    def field(self) -> str:
        """The field of `EpochRecord` that holds the metric."""
        return field_of(self.metric)


def recent_mean(
    records: Iterable[EpochRecord], criterion: Criterion, epoch: int, *, at_least: int = 1
) -> float:
    """Return the mean of the metric over the validations of one run in the last window before `epoch`.

    At the last epoch this is the run's value. A single validation is noisy, and the best one so far hides
    that a run has become worse.

    Args:
        records: of one run, in any order; those after `epoch` or without a validation do not count.
        criterion: names the metric and the window.
        epoch: counts itself: the window is (epoch * (1 - window), epoch].
        at_least: so many validations count, even where the window holds fewer.

    Raises:
        ValueError: if no validation lies in the window.
    """
    start = window_start(epoch, criterion.window)
    found = sorted(
        (record.epoch, value)
        for record in records
        if record.epoch <= epoch and (value := getattr(record, criterion.field)) is not None
    )
    inside = sum(validated > start for validated, _ in found)
    if not inside:
        raise ValueError(f"no {criterion.metric} between epoch {start:g} and {epoch}")
    values = [value for _, value in found[-max(inside, at_least) :]]
    return math.fsum(values) / len(values)


def rung_value(records: Iterable[EpochRecord], criterion: Criterion, rung: int, *, epochs: int) -> float:
    """Return by what a run is judged at a rung: its recent mean, at the last epoch its value.

    Before the last epoch the mean is over at least `RUNG_VALIDATIONS`, where there are as many. Where runs
    may end early it is as of the last validation, or instead the best validation so far: one that has ended
    keeps what it has come to.

    Args:
        records: of one run, in any order, at least those up to the rung that it has trained.
        criterion: names the metric and the window.
        rung: the epoch at which it is judged.
        epochs: length of the run.

    Raises:
        ValueError: if no validation lies in the window.
    """
    if criterion.early_stopping == "none":
        last = rung
    else:
        records = [one for one in records if one.epoch <= rung and getattr(one, criterion.field) is not None]
        best = best_validation(records, criterion.field, maximize=criterion.maximize)
        if best is not None and criterion.early_stopping == "best":
            return float(getattr(best, criterion.field))
        last = max((one.epoch for one in records), default=rung)
    return recent_mean(records, criterion, last, at_least=1 if rung == epochs else RUNG_VALIDATIONS)


def window_start(epoch: int, window: float) -> float:
    """Return the epoch after which the window up to `epoch` begins.

    In decimals: in binary floats 10 * (1 - 0.8) is below 2, and the window would begin one epoch early.
    """
    return float(epoch - epoch * Decimal(str(window)))


def best_validation(records: Iterable[EpochRecord], field: str, *, maximize: bool) -> EpochRecord | None:
    """Return the record of the best validation of a run, the first epoch of equal ones; None without any.

    Args:
        records: of one run, in any order; those without a validation do not count.
        field: of the records, which holds the metric.
        maximize: whether a larger metric is better.
    """
    validated = [
        ((value if maximize else -value, -record.epoch), record)
        for record in records
        if (value := getattr(record, field)) is not None
    ]
    return max(validated, key=lambda one: one[0])[1] if validated else None


def seed_result(records: Sequence[EpochRecord], criterion: Criterion, epochs: int) -> SeedResult:
    """Return the result of one finished run: its value, and test metrics at its end and at its best.

    Where a run is worth its best validation, what else it comes to is as of that epoch, too.

    Args:
        records: at least those of the window and the validation that is best.
        criterion: names the metric and the window.
        epochs: length of the run.
    """
    by_epoch = {record.epoch: record for record in records if record.epoch <= epochs}
    best = best_validation(by_epoch.values(), criterion.field, maximize=criterion.maximize)
    if best is None:
        raise ValueError(f"no {criterion.metric} up to epoch {epochs}")
    last = best
    if criterion.early_stopping != "best":
        validated = (one.epoch for one in by_epoch.values() if getattr(one, criterion.field) is not None)
        last = by_epoch[epochs if criterion.early_stopping == "none" else max(validated)]
    return SeedResult(
        seed=last.seed,
        value=rung_value(records, criterion, epochs, epochs=epochs),
        train_accuracy=last.train_accuracy,
        test_loss=last.test_loss,
        test_accuracy=last.test_accuracy,
        test_accuracy_clean=last.test_accuracy_clean,
        best_epoch=best.epoch,
        best_test_loss=best.test_loss,
        best_test_accuracy=best.test_accuracy,
        final_level=last.level,
    )


def mean_and_se(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error, which needs two values."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return float(array.mean()), None
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array)))


def mean_of(results: Iterable[SeedResult], name: str) -> float | None:
    """Return the mean over seeds of one field of the results, None where none of them knows it."""
    values = [value for result in results if (value := getattr(result, name)) is not None]
    return math.fsum(values) / len(values) if values else None
