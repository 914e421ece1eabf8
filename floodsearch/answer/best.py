"""From records to the answer: which level, how much better than none, at what cost.

Notation: a *value* is the study's metric averaged over the last `window` of the epochs; standard errors are
over seeds, and None with fewer than two of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Literal

from floodsearch.answer.combinations import best_response, has_curve, responses
from floodsearch.answer.gain import LEVEL, Gain, gain_over_zero
from floodsearch.answer.response import Response
from floodsearch.answer.smoothing import ROUNDING, student
from floodsearch.answer.tickets import count, latest
from floodsearch.answer.values import Criterion, mean_and_se, mean_of
from floodsearch.errors import NoAnswerError
from floodsearch.findings import Baseline, BestLevel, Combination, CurvePoint, EarlyStopping, Verdict
from floodsearch.records import MeasuredTrial


def best_level(
    trials: Sequence[MeasuredTrial],
    criterion: Criterion,
    *,
    epochs_run: int,
    epochs_exhaustive: int | None,
    finished: bool,
    stopped: str | None = None,
) -> BestLevel:
    """Return the complete level at the maximum of the smooth curve, and what is known of it.

    Args:
        trials: all trials of the study.
        criterion: by what trials are compared.
        epochs_run: member-epochs that the workers trained.
        epochs_exhaustive: tickets x seeds x epochs, if that is known.
        finished: whether the search is over; before, the answer is provisional.
        stopped: why no ticket is handed out any more, if that is so.

    Raises:
        NoAnswerError: if no ticket is complete, saying what became of them.
    """
    found = responses(trials, criterion)
    if not found:
        raise NoAnswerError(_nothing(trials, criterion, stopped))
    response = best_response(found)
    best, baseline = response.trials[response.chosen], response.baseline
    level = _level(best, criterion)
    value, value_se = mean_and_se([result.value for result in best.results])
    flooded, gain = _gains(response)
    shown = gain if level and gain is not None else None
    interval, tied = _range(response, found, criterion)
    return BestLevel(
        study=criterion.study,
        level=level,
        highest=max(trial.level or 0.0 for trial in trials) if criterion.finds_level else None,
        parameters=best.beside,
        trial=best.trial,
        interval=interval,
        tied=tied,
        metric=criterion.metric,
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
        points=_points(response, found, criterion),
        tried=tuple(response.levels[response.levels > 0].tolist()),
        never_flooded=response.never_flooded,
        early_stopping=_early_stopping(response, criterion),
        gain=None if gain is None else gain.mean,
        gain_se=None if gain is None else gain.se,
        gain_interval=None if shown is None else shown.interval,
        p_value=None if shown is None else shown.p_value,
        verdict=_verdict(flooded, response),
        more_seeds=None if flooded is None else flooded.more_seeds,
        combinations=tuple(_combination(one, criterion) for one in found)
        if any(one.beside for one in found)
        else (),
        trials=count(trials),
        epochs_run=epochs_run,
        epochs_exhaustive=epochs_exhaustive,
        cost=epochs_run / epochs_exhaustive if epochs_exhaustive else None,
        finished=finished,
        stopped=stopped,
    )


def _nothing(trials: Sequence[MeasuredTrial], criterion: Criterion, stopped: str | None) -> str:
    """Return the message for a study without a complete ticket: its counts, the reason, and what to do."""
    counts = count(trials)
    failed = [one for one in latest(trials).values() if one.state == "failed" or one.cause == "diverged"]
    then = "ask again later" if counts.unfinished else f"floodsearch status {criterion.study} shows why"
    if stopped is not None:
        then = stopped
    elif failed and not counts.unfinished:
        last = max(failed, key=lambda one: one.trial)
        then = f"ticket {last.ticket}: {last.reason or last.cause}"
    return (
        f"study {criterion.study!r} has no complete ticket yet: {counts.running} running, "
        f"{counts.waiting} waiting, {counts.pruned} pruned, {counts.failed} failed; {then}"
    )


def _no_baseline(trials: Iterable[MeasuredTrial], best: MeasuredTrial) -> str:
    """Return the state of level 0 in the answer's combination, where it is not complete, with the reason."""
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


def _early_stopping(response: Response, criterion: Criterion) -> EarlyStopping | None:
    """Return the comparison of level 0, stopped early, with the answer; None unless all seeds were tested.

    Where all runs are worth their best validation, that is the comparison of the answer itself.
    """
    if response.baseline is None or response.chosen == 0 or criterion.early_stopping == "best":
        return None
    measure: Literal["test_accuracy", "test_loss"] = (
        "test_loss" if criterion.metric == "val_loss" else "test_accuracy"
    )
    plain, best = response.baseline.results, response.trials[response.chosen].results
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


def _gains(response: Response) -> tuple[Gain | None, Gain | None]:
    """Return the gain of the best flooded level, and that of the answer, which is none at level 0."""
    if response.baseline is None:
        return None, None
    flooded = None
    if response.top != 0:
        flooded = gain_over_zero(
            response.levels, response.values, response.measured, response.top, highest=response.highest
        )
    seeds = len(response.values)
    nothing = Gain(0.0, 0.0 if seeds > 1 else None, seeds)
    return flooded, flooded if response.chosen != 0 else nothing


def _verdict(flooded: Gain | None, response: Response) -> Verdict | None:
    """Return the verdict; a gain that the curve does not confirm is not shown."""
    if flooded is None:
        return None
    return "not shown" if flooded.verdict == "helps" and response.chosen == 0 else flooded.verdict


def _level(trial: MeasuredTrial, criterion: Criterion) -> float:
    """Return the level that a complete trial stands for."""
    found = _final_levels(trial)
    if not criterion.finds_level or not trial.stands_for or not found:
        return trial.stands_for or 0.0
    return _decimal(statistics.median(found))


def _range_reached(trial: MeasuredTrial) -> tuple[float, float] | None:
    """Return the lowest and the highest level that the runs of a trial came to."""
    found = _final_levels(trial)
    return (min(found), max(found)) if trial.stands_for and len(found) > 1 else None


def _final_levels(trial: MeasuredTrial) -> list[float]:
    return [_decimal(one.final_level) for one in trial.results if one.final_level is not None]


def _decimal(level: float) -> float:
    """Return a level without the noise of the sums that made it: 0.135, not 0.13500000000000001."""
    return float(f"{level:.9g}")


def _range(
    response: Response, found: Sequence[Response], criterion: Criterion
) -> tuple[tuple[float, float] | None, tuple[float, ...] | None]:
    """Return the interval of the answer, and what is tied with it; None where no levels were compared."""
    if criterion.finds_level:
        return _range_reached(response.trials[response.chosen]), None
    return _tied(response) if has_curve(response, found) else (None, None)


def _tied(response: Response) -> tuple[tuple[float, float] | None, tuple[float, ...] | None]:
    """Return the interval of the answer, and the levels that cannot be told apart from it."""
    indices, levels = response.tied(), response.levels.tolist()
    if indices is None:
        return None, None
    others = sorted(
        [*(levels[index] for index in indices if index != response.chosen), *response.untried_beside(indices)]
    )
    both = [*others, levels[response.chosen]]
    return (min(both), max(both)), tuple(others)


def _points(response: Response, found: Sequence[Response], criterion: Criterion) -> tuple[CurvePoint, ...]:
    """Return the curve of the answer in the unit of the metric; empty where no levels were compared."""
    if criterion.finds_level or not has_curve(response, found):
        return ()
    sign, curve = 1.0 if criterion.maximize else -1.0, response.curve
    spread = student((1 + LEVEL) / 2, curve.freedom) * curve.se
    points = []
    for place, level in enumerate(response.levels.tolist()):
        mean, known = sign * float(curve.mean[place]), math.isfinite(spread[place])
        half = float(spread[place])
        points.append(
            CurvePoint(
                level=level,
                value=sign * float(response.values[:, place].mean()),
                mean=mean,
                se=float(curve.se[place]) if known else None,
                low=mean - half if known else None,
                high=mean + half if known else None,
                seeds=int(response.measured[:, place].sum()),
                complete=bool(response.complete[place]),
            )
        )
    return tuple(points)


def _combination(response: Response, criterion: Criterion) -> Combination:
    best, gain = response.trials[response.chosen], _gains(response)[1]
    return Combination(
        parameters=response.beside,
        level=_level(best, criterion),
        value=mean_of(best.results, "value") or 0.0,
        baseline=None if response.baseline is None else mean_of(response.baseline.results, "value"),
        gain=None if gain is None else gain.mean,
        gain_se=None if gain is None else gain.se,
    )


def _baseline(trial: MeasuredTrial) -> Baseline:
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
