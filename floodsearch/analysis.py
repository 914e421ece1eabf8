"""From records to the answer: which level, how much better than none, at what cost.

Notation: a *value* is the study's metric averaged over the last `window` of the epochs; standard errors are
over seeds, and None with fewer than two of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from floodsearch.errors import NoAnswerError
from floodsearch.records import (
    Baseline,
    BestLevel,
    EpochRecord,
    SeedResult,
    TicketCounts,
    TrialRecord,
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of the records of one study.

    Args:
        study: its name.
        metric: a field of `EpochRecord` that is measured at validations, such as `val_accuracy`.
        maximize: whether a larger metric is better.
        window: share of the epochs, counted from the end, over which a value averages, in (0, 1].
    """

    study: str
    metric: str
    maximize: bool
    window: float


def recent_mean(records: Iterable[EpochRecord], question: Question, epoch: int) -> float:
    """Return the mean of the metric over the validations of one run in the last window before `epoch`.

    At the last epoch this is the run's value. A single validation is noisy, and the best one so far hides
    that a run has become worse.

    Args:
        records: of one run, in any order; those after `epoch` or without a validation do not count.
        question: names the metric and the window.
        epoch: counts itself: the window is (epoch * (1 - window), epoch].

    Raises:
        ValueError: if no validation lies in the window.
    """
    start = window_start(epoch, question.window)
    values = [
        value
        for record in records
        if start < record.epoch <= epoch and (value := getattr(record, question.metric)) is not None
    ]
    if not values:
        raise ValueError(f"no {question.metric} between epoch {start:g} and {epoch}")
    return math.fsum(values) / len(values)


def window_start(epoch: int, window: float) -> float:
    """Return the epoch after which the window up to `epoch` begins.

    In decimals: in binary floats 10 * (1 - 0.8) is below 2, and the window would begin one epoch early.
    """
    return float(epoch - epoch * Decimal(str(window)))


def seed_result(records: Sequence[EpochRecord], question: Question, epochs: int) -> SeedResult:
    """Return what one finished run came to.

    Args:
        records: at least those of the window and the two that were tested.
        question: names the metric and the window.
        epochs: length of the run.
    """
    by_epoch = {record.epoch: record for record in records if record.epoch <= epochs}
    last = by_epoch[epochs]
    # A run that grew was also tested where the shorter one ended: the best of those tested is the best.
    sign = 1.0 if question.maximize else -1.0
    tested = [record for record in by_epoch.values() if record.test_loss is not None]
    best = max(tested, key=lambda one: (sign * getattr(one, question.metric), -one.epoch), default=last)
    return SeedResult(
        seed=last.seed,
        value=recent_mean(records, question, epochs),
        train_accuracy=last.train_accuracy,
        test_loss=last.test_loss,
        test_accuracy=last.test_accuracy,
        test_accuracy_clean=last.test_accuracy_clean,
        best_epoch=best.epoch,
        best_test_loss=best.test_loss,
        best_test_accuracy=best.test_accuracy,
    )


def latest(trials: Iterable[TrialRecord]) -> dict[int, TrialRecord]:
    """Return the newest trial of each ticket: earlier ones were lost, failed, or covered fewer seeds."""
    newest: dict[int, TrialRecord] = {}
    for trial in trials:
        if trial.ticket not in newest or trial.number > newest[trial.ticket].number:
            newest[trial.ticket] = trial
    return newest


def count(trials: Iterable[TrialRecord]) -> TicketCounts:
    """Return how many tickets are in each state."""
    states = [trial.state for trial in latest(trials).values()]
    return TicketCounts(
        complete=states.count("complete"),
        pruned=states.count("pruned"),
        failed=states.count("failed"),
        running=states.count("running"),
        waiting=states.count("waiting"),
    )


def comparable(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the complete trials of one length and number of seeds, one a ticket.

    While a study that grew is trained on, its tickets differ in both; levels are compared only at the same.
    Taken is the group with the most tickets among those with a complete level 0, or among all, if there is
    none; the longest of equal ones.
    """
    groups: dict[tuple[int, int], dict[int, TrialRecord]] = {}
    for trial in trials:
        if trial.state == "complete":
            group = groups.setdefault((trial.epochs, trial.seeds), {})
            if trial.ticket not in group or trial.number > group[trial.ticket].number:
                group[trial.ticket] = trial
    if not groups:
        return []
    has_baseline = {key: any(trial.level == 0 for trial in group.values()) for key, group in groups.items()}
    return list(groups[max(groups, key=lambda key: (has_baseline[key], len(groups[key]), key))].values())


def best_of(trials: Iterable[TrialRecord], question: Question) -> TrialRecord | None:
    """Return the trial with the best value; of equal ones the lowest level, then the first ticket."""
    sign = 1.0 if question.maximize else -1.0
    return max(
        (trial for trial in trials if trial.results or trial.value is not None),
        key=lambda trial: (sign * _value(trial), -(trial.level or 0.0), -trial.ticket),
        default=None,
    )


def _value(trial: TrialRecord) -> float:
    """Return the mean over seeds, or what was stored of it where the results were not read."""
    if not trial.results:
        return trial.value or 0.0
    return math.fsum(result.value for result in trial.results) / len(trial.results)


def mean_and_se(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error, which needs two values."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2:
        return float(array.mean()), None
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array)))


def best_level(
    trials: Sequence[TrialRecord],
    question: Question,
    *,
    epochs_run: int,
    epochs_exhaustive: int,
    finished: bool,
) -> BestLevel:
    """Return the complete level with the best mean value; the lowest of equal ones.

    Args:
        trials: all trials of the study.
        question: what is compared.
        epochs_run: member-epochs that the workers trained.
        epochs_exhaustive: tickets x seeds x epochs.
        finished: whether the search is over; before, the answer is provisional.

    Raises:
        NoAnswerError: if no ticket is complete, saying what is running.
    """
    counts = count(trials)
    complete = comparable(trials)
    best = best_of((trial for trial in complete if trial.results), question)
    if best is None:
        then = "ask again later" if counts.unfinished else f"floodsearch status {question.study} shows why"
        raise NoAnswerError(
            f"study {question.study!r} has no complete ticket yet: {counts.running} running, "
            f"{counts.waiting} waiting, {counts.pruned} pruned, {counts.failed} failed; {then}"
        )
    sign = 1.0 if question.maximize else -1.0
    baseline = next((one for one in complete if one.level == 0 and one.beside == best.beside), None)
    value, value_se = mean_and_se([result.value for result in best.results])
    gain: float | None = None
    gain_se: float | None = None
    if baseline is not None:
        gain, gain_se = mean_and_se(paired_gains(best, baseline, sign))
    return BestLevel(
        study=question.study,
        level=best.level or 0.0,
        parameters=best.beside,
        interval=None,
        tied=None,
        metric=question.metric,
        value=value,
        value_se=value_se,
        seeds=len(best.results),
        test_accuracy=mean_of(best.results, "test_accuracy"),
        test_accuracy_clean=mean_of(best.results, "test_accuracy_clean"),
        test_loss=mean_of(best.results, "test_loss"),
        best_epoch_test_accuracy=mean_of(best.results, "best_test_accuracy"),
        train_accuracy=mean_of(best.results, "train_accuracy"),
        baseline=None if baseline is None else _baseline(baseline),
        gain=gain,
        gain_se=gain_se,
        verdict=None,
        trials=counts,
        epochs_run=epochs_run,
        epochs_exhaustive=epochs_exhaustive,
        cost=epochs_run / epochs_exhaustive if epochs_exhaustive else None,
        finished=finished,
    )


def paired_gains(trial: TrialRecord, baseline: TrialRecord, sign: float) -> list[float]:
    """Return by how much a trial beats the baseline, a number for each seed that both have."""
    plain: Mapping[int, float] = {result.seed: result.value for result in baseline.results}
    return [sign * (result.value - plain[result.seed]) for result in trial.results if result.seed in plain]


def _baseline(trial: TrialRecord) -> Baseline:
    value, value_se = mean_and_se([result.value for result in trial.results])
    return Baseline(
        value=value,
        value_se=value_se,
        test_accuracy=mean_of(trial.results, "test_accuracy"),
        test_accuracy_clean=mean_of(trial.results, "test_accuracy_clean"),
        test_loss=mean_of(trial.results, "test_loss"),
    )


def mean_of(results: Iterable[SeedResult], name: str) -> float | None:
    """Return the mean over seeds of one field of the results, None where none of them knows it."""
    values = [value for result in results if (value := getattr(result, name)) is not None]
    return math.fsum(values) / len(values) if values else None
