"""From records to the answer: which level, how much better than none, at what cost.

Notation: a *value* is the study's metric averaged over the last `window` of the epochs; standard errors are
over seeds, and None with fewer than two of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import numpy as np

from floodsearch.answer.gain import Gain, gain_over_zero
from floodsearch.answer.response import Landscape, landscape
from floodsearch.answer.smoothing import CONFIDENCE, ROUNDING, student
from floodsearch.errors import NoAnswerError
from floodsearch.records import (
    BY_HAND,
    Baseline,
    BestLevel,
    Combination,
    EarlyStopping,
    EpochRecord,
    SeedResult,
    TicketCounts,
    TrialRecord,
    Verdict,
    field_of,
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of the records of one study.

    Args:
        study: its name.
        metric: what is measured at validations, such as `val_accuracy`.
        maximize: whether a larger metric is better.
        window: share of the epochs, counted from the end, over which a value averages, in (0, 1].
        scale: the range of levels that matter, in the unit of the loss, over which a curve is smoothed; the
            highest level by default.
        finds_level: whether each run finds its own level, so that a trial's level is only the highest.
    """

    study: str
    metric: str
    maximize: bool
    window: float
    scale: float | None = None
    finds_level: bool = False

    @property
    def field(self) -> str:
        """The field of `EpochRecord` that holds the metric."""
        return field_of(self.metric)


RUNG_VALIDATIONS = 3
"""At a rung the mean is over at least so many validations, where there are as many: one alone is noisy."""


def recent_mean(
    records: Iterable[EpochRecord], question: Question, epoch: int, *, at_least: int = 1
) -> float:
    """Return the mean of the metric over the validations of one run in the last window before `epoch`.

    At the last epoch this is the run's value. A single validation is noisy, and the best one so far hides
    that a run has become worse.

    Args:
        records: of one run, in any order; those after `epoch` or without a validation do not count.
        question: names the metric and the window.
        epoch: counts itself: the window is (epoch * (1 - window), epoch].
        at_least: so many validations count, even where the window holds fewer.

    Raises:
        ValueError: if no validation lies in the window.
    """
    start = window_start(epoch, question.window)
    found = sorted(
        (record.epoch, value)
        for record in records
        if record.epoch <= epoch and (value := getattr(record, question.field)) is not None
    )
    inside = sum(validated > start for validated, _ in found)
    if not inside:
        raise ValueError(f"no {question.metric} between epoch {start:g} and {epoch}")
    values = [value for _, value in found[-max(inside, at_least) :]]
    return math.fsum(values) / len(values)


def window_start(epoch: int, window: float) -> float:
    """Return the epoch after which the window up to `epoch` begins.

    In decimals: in binary floats 10 * (1 - 0.8) is below 2, and the window would begin one epoch early.
    """
    return float(epoch - epoch * Decimal(str(window)))


def seed_result(records: Sequence[EpochRecord], question: Question, epochs: int) -> SeedResult:
    """Return what one finished run came to.

    Args:
        records: at least those of the window and the validation that is best.
        question: names the metric and the window.
        epochs: length of the run.
    """
    by_epoch = {record.epoch: record for record in records if record.epoch <= epochs}
    last = by_epoch[epochs]
    sign = 1.0 if question.maximize else -1.0
    validated = [record for record in by_epoch.values() if getattr(record, question.field) is not None]
    best = max(validated, key=lambda one: (sign * getattr(one, question.field), -one.epoch))
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
        final_level=last.level,
    )


def latest(trials: Iterable[TrialRecord]) -> dict[int, TrialRecord]:
    """Return the newest trial of each ticket: earlier ones were lost, failed, or covered fewer seeds.

    One that somebody ended or changed by hand tells of its ticket only where there is no other.
    """
    newest: dict[int, TrialRecord] = {}
    for trial in sorted(trials, key=lambda one: (one.cause != BY_HAND, one.trial)):
        newest[trial.ticket] = trial
    return newest


def revisions(trials: Iterable[TrialRecord]) -> tuple[str, ...]:
    """Return the revisions of the user's own code with which trials were trained, the first one first."""
    found = {one.revision: None for one in sorted(trials, key=lambda one: one.trial)}
    return tuple(revision for revision in found if revision is not None)


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

    While a study that grew is trained on, its tickets differ in both; single levels are compared only at the
    same. Taken is the group with the most tickets among those with a complete level 0, or among all, if there
    is none; the longest of equal ones, and of those the one with the most seeds.
    """
    at_length = _largest(trials, lambda trial: trial.epochs)
    group = _largest(at_length, lambda trial: trial.seeds)
    newest = latest(group)
    return [trial for trial in group if trial is newest[trial.ticket]]


def _largest(trials: Iterable[TrialRecord], key: Callable[[TrialRecord], int]) -> list[TrialRecord]:
    """Return the complete trials of one key: those with level 0, with the most tickets, of the largest."""
    groups: dict[int, list[TrialRecord]] = {}
    for trial in trials:
        if trial.state == "complete":
            groups.setdefault(key(trial), []).append(trial)

    def rank(item: tuple[int, list[TrialRecord]]) -> tuple[bool, int, int]:
        found, group = item
        return any(one.stands_for == 0 for one in group), len({one.ticket for one in group}), found

    return max(groups.items(), key=rank, default=(0, []))[1]


def best_of(trials: Iterable[TrialRecord], question: Question) -> TrialRecord | None:
    """Return the trial with the best value; of equal ones the lowest level, then the first ticket.

    Levels are what the trials stand for: one that never flooded counts as level 0.
    """
    sign = 1.0 if question.maximize else -1.0
    return max(
        (trial for trial in trials if trial.results or trial.value is not None),
        key=lambda trial: (sign * _value(trial), -(trial.stands_for or 0.0), -trial.ticket),
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
    epochs_exhaustive: int | None,
    finished: bool,
    stopped: str | None = None,
) -> BestLevel:
    """Return the complete level at the maximum of the smooth curve, and what is known of it.

    Args:
        trials: all trials of the study.
        question: what is compared.
        epochs_run: member-epochs that the workers trained.
        epochs_exhaustive: tickets x seeds x epochs, if that is known.
        finished: whether the search is over; before, the answer is provisional.
        stopped: why no ticket is handed out any more, if that is so.

    Raises:
        NoAnswerError: if no ticket is complete, saying what became of them.
    """
    found = _landscapes(trials, question)
    if not found:
        raise NoAnswerError(_nothing(trials, question, stopped))
    land = _best(found)
    best, baseline = land.trials[land.chosen], land.baseline
    level = _level(best, question)
    value, value_se = mean_and_se([result.value for result in best.results])
    flooded, gain = _gains(land)
    shown = gain if level and gain is not None else None
    interval, tied = _range(land, found, question)
    return BestLevel(
        study=question.study,
        level=level,
        highest=max(trial.level or 0.0 for trial in trials) if question.finds_level else None,
        parameters=best.beside,
        trial=best.trial,
        interval=interval,
        tied=tied,
        metric=question.metric,
        value=value,
        value_se=value_se,
        seeds=len(best.results),
        test_accuracy=mean_of(best.results, "test_accuracy"),
        test_accuracy_clean=mean_of(best.results, "test_accuracy_clean"),
        test_loss=mean_of(best.results, "test_loss"),
        best_epoch_test_accuracy=mean_of(best.results, "best_test_accuracy"),
        best_epoch_test_loss=mean_of(best.results, "best_test_loss"),
        train_accuracy=mean_of(best.results, "train_accuracy"),
        baseline=None if baseline is None else _baseline(baseline),
        no_baseline=_no_baseline(trials, best) if baseline is None else None,
        tried=tuple(land.levels[land.levels > 0].tolist()),
        never_flooded=land.never_flooded,
        early_stopping=_early_stopping(land, question),
        gain=None if gain is None else gain.mean,
        gain_se=None if gain is None else gain.se,
        gain_interval=None if shown is None else shown.interval,
        p_value=None if shown is None else shown.p_value,
        verdict=_verdict(flooded, land),
        more_seeds=None if flooded is None else flooded.more_seeds,
        combinations=tuple(_combination(one, question) for one in found)
        if any(one.beside for one in found)
        else (),
        trials=count(trials),
        epochs_run=epochs_run,
        epochs_exhaustive=epochs_exhaustive,
        cost=epochs_run / epochs_exhaustive if epochs_exhaustive else None,
        finished=finished,
        stopped=stopped,
    )


def _nothing(trials: Sequence[TrialRecord], question: Question, stopped: str | None) -> str:
    """Return why a study has no answer, and what to do about it."""
    counts = count(trials)
    failed = [one for one in latest(trials).values() if one.state == "failed" or one.cause == "diverged"]
    then = "ask again later" if counts.unfinished else f"floodsearch status {question.study} shows why"
    if stopped is not None:
        then = stopped
    elif failed and not counts.unfinished:
        last = max(failed, key=lambda one: one.trial)
        then = f"ticket {last.ticket}: {last.reason or last.cause}"
    return (
        f"study {question.study!r} has no complete ticket yet: {counts.running} running, "
        f"{counts.waiting} waiting, {counts.pruned} pruned, {counts.failed} failed; {then}"
    )


def _no_baseline(trials: Iterable[TrialRecord], best: TrialRecord) -> str:
    """Return what became of level 0 of the answer's combination, which is not complete."""
    plain = [
        one for one in latest(trials).values() if one.level == 0 and one.beside.items() <= best.beside.items()
    ]
    if not plain:
        return "level 0 has no ticket"
    one = plain[0]
    if one.state in ("running", "waiting"):
        return f"level 0 is {one.state}"
    if one.state == "complete":
        return "level 0 has no values of its seeds"
    return f"level 0 {'diverged' if one.cause == 'diverged' else one.state}: {one.reason or one.cause}"


def _early_stopping(land: Landscape, question: Question) -> EarlyStopping | None:
    """Return how stopping level 0 early compares with the answer, where all seeds were tested for that."""
    if land.baseline is None or land.chosen == 0:
        return None
    measure: Literal["test_accuracy", "test_loss"] = (
        "test_loss" if question.metric == "val_loss" else "test_accuracy"
    )
    plain, best = land.baseline.results, land.trials[land.chosen].results
    every = [(plain, f"best_{measure}"), (best, measure), (best, f"best_{measure}")]
    if any(getattr(one, name) is None for results, name in every for one in results):
        return None
    unflooded, at_end, stopped = (mean_of(results, name) or 0.0 for results, name in every)
    sign = -1.0 if measure == "test_loss" else 1.0
    return EarlyStopping(
        measure=measure,
        unflooded=unflooded,
        at_end=at_end,
        stopped=stopped,
        as_good=sign * unflooded >= max(sign * at_end, sign * stopped) - ROUNDING,
    )


def unconfirmed(trials: Sequence[TrialRecord], question: Question) -> TrialRecord | None:
    """Return the pruned trial at the maximum of the curve: it must be trained to the end to be the answer.

    None if the maximum is complete, or nothing is. Ask again when that trial is complete: the measured values
    may then show another maximum. A combination of one level has no curve whose maximum it could be: where
    that was pruned, it stays so.
    """
    found = _landscapes(trials, question)
    if not found:
        return None
    candidates = [
        one for one in _with_most_seeds(found) if one.complete[one.maximum] or _has_curve(one, found)
    ]
    land = max(candidates, key=lambda one: one.curve.mean[one.maximum], default=None)
    return None if land is None or land.complete[land.maximum] else land.trials[land.maximum]


def worth_more_seeds(trials: Sequence[TrialRecord], question: Question) -> set[int]:
    """Return the tickets for which more seeds could change the answer.

    Those of the answer, of the levels that cannot be told apart from it, and of the two that the gain is
    measured between, level 0 and the best flooded one; the same for each combination whose answer cannot be
    told apart from the best. All tickets while nothing is complete.
    """
    found = _landscapes(trials, question)
    if not found:
        return set(latest(trials))
    best = _best(found)
    worth = set()
    for land in found:
        if not _worse(land, best):
            every = range(len(land.trials))
            tied = land.tied()
            worth |= {land.trials[index].ticket for index in (every if tied is None else [*tied, land.top])}
            worth |= set() if land.baseline is None else {land.baseline.ticket}
    return worth


def _landscapes(trials: Sequence[TrialRecord], question: Question) -> list[Landscape]:
    """Return the landscape of each combination that has a complete trial, by its first ticket."""
    complete = comparable(trials)
    if not complete:
        return []
    highest = question.scale or max(trial.level or 0.0 for trial in trials)
    groups = _combinations(trial for trial in trials if trial.epochs == complete[0].epochs)
    found = (landscape(own, maximize=question.maximize, highest=highest) for own in groups)
    return [one for one in found if one is not None]


def _combinations(trials: Iterable[TrialRecord]) -> list[list[TrialRecord]]:
    """Return what has ended of each combination of the parameters beside the level, by its first tickets.

    The settings of a schedule mean nothing at level 0, so that its trial has none: it is the baseline of all
    combinations that agree with it in the rest, and one of its own only where there is none. Settings from a
    range are hardly ever equal: each of their tickets is then a combination of its own.
    """
    flooded: dict[frozenset[tuple[str, object]], list[TrialRecord]] = {}
    plain: dict[frozenset[tuple[str, object]], list[TrialRecord]] = {}
    for trial in trials:
        if trial.level is not None and trial.state in ("complete", "pruned") and trial.cause != "diverged":
            group = flooded if trial.level else plain
            group.setdefault(frozenset(trial.beside.items()), []).append(trial)
    found = [
        [*own, *(one for of, ones in plain.items() if of <= beside for one in ones)]
        for beside, own in flooded.items()
    ]
    found += [own for of, own in plain.items() if not any(of <= beside for beside in flooded)]
    return sorted(found, key=lambda own: sorted((one.ticket, one.trial) for one in own))


def _best(found: Iterable[Landscape]) -> Landscape:
    """Return the landscape with the best answer."""
    return max(_with_most_seeds(found), key=lambda one: one.curve.mean[one.chosen])


def _has_curve(land: Landscape, found: Sequence[Landscape]) -> bool:
    """Return whether a landscape compares levels: where there are several, some hold one level each."""
    return int(np.count_nonzero(land.levels)) > (0 if len(found) == 1 else 1)


def _with_most_seeds(found: Iterable[Landscape]) -> list[Landscape]:
    """Return the landscapes that have seeds which the others lack.

    Those got more seeds because they were not worse. What a seed adds to all levels differs by more than
    levels do, so that means over different seeds say nothing.
    """
    found = list(found)
    most = max(len(one.values) for one in found)
    return [one for one in found if len(one.values) == most]


def _gains(land: Landscape) -> tuple[Gain | None, Gain | None]:
    """Return the gain of the best flooded level, and that of the answer, which is none at level 0."""
    if land.baseline is None:
        return None, None
    flooded = None
    if land.top != 0:
        flooded = gain_over_zero(land.levels, land.values, land.measured, land.top, highest=land.highest)
    seeds = len(land.values)
    nothing = Gain(0.0, 0.0 if seeds > 1 else None, seeds)
    return flooded, flooded if land.chosen != 0 else nothing


def _verdict(flooded: Gain | None, land: Landscape) -> Verdict | None:
    """Return the verdict; a gain that the curve does not confirm is not shown."""
    if flooded is None:
        return None
    return "not shown" if flooded.verdict == "helps" and land.chosen == 0 else flooded.verdict


def _level(trial: TrialRecord, question: Question) -> float:
    """Return the level that a complete trial stands for."""
    found = _final_levels(trial)
    if not question.finds_level or not trial.stands_for or not found:
        return trial.stands_for or 0.0
    return _decimal(statistics.median(found))


def _reached(trial: TrialRecord) -> tuple[float, float] | None:
    """Return the lowest and the highest level that the runs of a trial came to."""
    found = _final_levels(trial)
    return (min(found), max(found)) if trial.stands_for and len(found) > 1 else None


def _final_levels(trial: TrialRecord) -> list[float]:
    return [_decimal(one.final_level) for one in trial.results if one.final_level is not None]


def _decimal(level: float) -> float:
    """Return a level without the noise of the sums that made it: 0.135, not 0.13500000000000001."""
    return float(f"{level:.9g}")


def _range(
    land: Landscape, found: Sequence[Landscape], question: Question
) -> tuple[tuple[float, float] | None, tuple[float, ...] | None]:
    """Return the interval of the answer, and what is tied with it; None where no levels were compared."""
    if question.finds_level:
        return _reached(land.trials[land.chosen]), None
    return _tied(land) if _has_curve(land, found) else (None, None)


def _tied(land: Landscape) -> tuple[tuple[float, float] | None, tuple[float, ...] | None]:
    """Return the interval of the answer, and the levels that cannot be told apart from it."""
    indices, levels = land.tied(), land.levels.tolist()
    if indices is None:
        return None, None
    others = sorted(
        [*(levels[index] for index in indices if index != land.chosen), *land.untried_beside(indices)]
    )
    both = [*others, levels[land.chosen]]
    return (min(both), max(both)), tuple(others)


def _combination(land: Landscape, question: Question) -> Combination:
    best, gain = land.trials[land.chosen], _gains(land)[1]
    return Combination(
        parameters=land.beside,
        level=_level(best, question),
        value=mean_of(best.results, "value") or 0.0,
        baseline=None if land.baseline is None else mean_of(land.baseline.results, "value"),
        gain=None if gain is None else gain.mean,
        gain_se=None if gain is None else gain.se,
    )


def _worse(land: Landscape, best: Landscape) -> bool:
    """Return whether the answer of one combination is told apart from the best one, seed by seed."""
    seeds = min(len(land.values), len(best.values))
    difference = best.values[:seeds, best.chosen] - land.values[:seeds, land.chosen]
    mean, se = mean_and_se(difference.tolist())
    return se is not None and mean > student(CONFIDENCE, seeds - 1) * se


def _baseline(trial: TrialRecord) -> Baseline:
    value, value_se = mean_and_se([result.value for result in trial.results])
    return Baseline(
        value=value,
        value_se=value_se,
        test_accuracy=mean_of(trial.results, "test_accuracy"),
        test_accuracy_clean=mean_of(trial.results, "test_accuracy_clean"),
        test_loss=mean_of(trial.results, "test_loss"),
        best_epoch_test_accuracy=mean_of(trial.results, "best_test_accuracy"),
        best_epoch_test_loss=mean_of(trial.results, "best_test_loss"),
    )


def mean_of(results: Iterable[SeedResult], name: str) -> float | None:
    """Return the mean over seeds of one field of the results, None where none of them knows it."""
    values = [value for result in results if (value := getattr(result, name)) is not None]
    return math.fsum(values) / len(values) if values else None
