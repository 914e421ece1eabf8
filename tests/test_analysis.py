"""analysis: from records to the answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from floodsearch.answer.best import best_level
from floodsearch.answer.follow_up import unconfirmed, worth_more_seeds
from floodsearch.answer.smoothing import smooth
from floodsearch.answer.tickets import comparable, count, latest
from floodsearch.answer.values import Criterion, mean_and_se, mean_of, recent_mean, rung_value, seed_result
from floodsearch.errors import NoAnswerError
from floodsearch.findings import BestLevel, TicketCounts
from floodsearch.records import EpochRecord, MeasuredTrial, SeedResult

CRITERION = Criterion(study="tiny", metric="val_accuracy", maximize=True, window=0.2)
LOSS_CRITERION = Criterion(study="tiny", metric="val_loss", maximize=False, window=0.2)
repeatable = settings(derandomize=True, deadline=None, database=None)


def epoch_record(epoch: int, **fields: Any) -> EpochRecord:
    return EpochRecord(
        **{"seed": 0, "epoch": epoch, "level": 0.1, "train_loss": 0.2, "train_accuracy": 0.9, "flooded": 0.5}
        | fields
    )


def curve(values: Mapping[int, float], metric: str = "val_accuracy") -> list[EpochRecord]:
    return [epoch_record(epoch, **{metric: value}) for epoch, value in values.items()]


def result(seed: int, value: float, **fields: Any) -> SeedResult:
    unknown = dict.fromkeys(
        [
            "train_accuracy",
            "test_loss",
            "test_accuracy",
            "test_accuracy_clean",
            "best_test_loss",
            "best_test_accuracy",
        ]
    )
    return SeedResult(**{"seed": seed, "value": value, "best_epoch": 1, **unknown, **fields})


def trial(ticket: int, level: float | None, values: Sequence[float] = (), **fields: Any) -> MeasuredTrial:
    """Return a trial: complete if it has values, one for each seed."""
    parameters = {} if level is None else {"level": level}
    defaults = {
        "trial": ticket,
        "state": "complete" if values else "waiting",
        "epochs": 10,
        "seeds": max(1, len(values)),
        "results": tuple(result(seed, value) for seed, value in enumerate(values)),
        "rungs": {},
        "parameters": parameters | fields.pop("beside", {}),
    }
    return MeasuredTrial(ticket=ticket, **defaults | fields)


def answer(trials: Sequence[MeasuredTrial], criterion: Criterion = CRITERION, **fields: Any) -> BestLevel:
    return best_level(
        trials, criterion, **{"epochs_run": 30, "epochs_exhaustive": 60, "finished": True} | fields
    )


# --- values ----------------------------------------------------------------------------------------------


def test_a_value_is_the_mean_over_the_last_window():
    """Epochs in (e * (1 - window), e] count, whatever their order; later and unvalidated ones do not."""
    records = curve({8: 100.0, 9: 0.5, 10: 0.7, 11: 100.0})
    assert recent_mean(records, CRITERION, 10) == pytest.approx(0.6, abs=1e-15)
    assert recent_mean([*reversed(records), epoch_record(9)], CRITERION, 10) == pytest.approx(0.6, abs=1e-15)
    assert recent_mean(records, CRITERION, 9) == pytest.approx((100 + 0.5) / 2)  # above 7.2
    assert recent_mean(curve({10: 0.3}, "val_loss"), LOSS_CRITERION, 10) == 0.3


@pytest.mark.parametrize("epoch", [1, 10, 25, 100])
def test_the_window_is_exact(epoch):
    """No rounding moves an epoch over the edge of the window, for any window of whole percents."""
    records = curve({one: float(one) for one in range(1, epoch + 1)})
    wrong = []
    for percent in range(1, 101):
        first = math.floor(epoch * (1 - Fraction(percent, 100))) + 1
        value = recent_mean(records, replace(CRITERION, window=percent / 100), epoch)
        if value != (first + epoch) / 2:
            wrong.append(percent)
    assert wrong == []


def test_an_empty_window_is_refused():
    """Without a validation in the window there is no value, and the error says where."""
    with pytest.raises(ValueError, match="no val_accuracy between epoch 8 and 10"):
        recent_mean(curve({8: 0.5}), CRITERION, 10)


def test_a_rung_is_judged_by_three_validations_and_the_end_by_the_window():
    """Before the last epoch a window with fewer is widened, where there are as many; the end is the value."""
    records = curve({2: 0.2, 4: 0.4, 6: 0.6, 8: 0.8, 10: 1.0})
    assert rung_value(records, CRITERION, 10, epochs=10) == recent_mean(records, CRITERION, 10) == 1.0
    assert rung_value(records, CRITERION, 10, epochs=20) == pytest.approx((0.6 + 0.8 + 1.0) / 3)
    assert rung_value(records, CRITERION, 4, epochs=20) == pytest.approx((0.2 + 0.4) / 2)


def test_the_result_of_a_run_takes_its_last_and_its_best_epoch():
    """The last epoch gives the test metrics, the first of the best ones those with early stopping."""
    records = [
        *curve({1: 0.1, 2: 0.8, 4: 0.9, 9: 0.5}),
        epoch_record(3, val_accuracy=0.9, test_loss=0.3, test_accuracy=0.8),
        epoch_record(10, val_accuracy=0.7, test_loss=0.6, test_accuracy=0.6, test_accuracy_clean=0.65),
    ]
    found = seed_result(records, CRITERION, 10)
    assert found.value == pytest.approx(0.6)
    assert (found.test_loss, found.test_accuracy, found.test_accuracy_clean) == (0.6, 0.6, 0.65)
    assert (found.best_epoch, found.best_test_loss, found.best_test_accuracy) == (3, 0.3, 0.8)
    only_last = seed_result(records[-1:], CRITERION, 10)
    assert (only_last.best_epoch, only_last.best_test_accuracy) == (10, 0.6)


def test_what_a_loop_did_not_test_is_not_known():
    """Test numbers of another epoch are not those of the best one; a test accuracy needs no test loss."""
    untested = [*curve({1: 0.1, 3: 0.9}), epoch_record(10, val_accuracy=0.7, test_accuracy=0.6)]
    found = seed_result(untested, CRITERION, 10)
    assert (found.best_epoch, found.best_test_accuracy) == (3, None)
    assert (found.test_accuracy, found.test_loss) == (0.6, None)
    every = [epoch_record(n, val_accuracy=1 - abs(n - 4) / 10, test_accuracy=n / 100) for n in range(1, 11)]
    found = seed_result([*every, epoch_record(11)], CRITERION, 10)
    assert (found.best_epoch, found.best_test_accuracy, found.test_accuracy) == (4, 0.04, 0.1)


def test_a_metric_of_another_name_is_read_from_its_own_field():
    """A name that the records know is that field; any other is in `metric`."""
    assert CRITERION.field == "val_accuracy"
    records = [epoch_record(n, val_accuracy=0.5, metric=n / 10) for n in (8, 9, 10)]
    criterion = replace(CRITERION, metric="f1", maximize=False)
    assert recent_mean(records, criterion, 10) == pytest.approx(0.95)
    assert seed_result(records, criterion, 10).best_epoch == 8


def test_the_result_of_a_run_tells_the_level_it_came_to():
    """The level of the last epoch, whatever it was before."""
    records = [epoch_record(9, level=0.4, val_accuracy=0.5), epoch_record(10, level=0.3, val_accuracy=0.7)]
    assert seed_result(records, CRITERION, 10).final_level == 0.3


def test_the_standard_error_is_that_of_a_mean():
    """Sample deviation over the root of n: for 1, 2, 3, 4 the root of 5/12; None for one value."""
    mean, se = mean_and_se([1.0, 2.0, 3.0, 4.0])
    assert (mean, se) == (2.5, pytest.approx(math.sqrt(5 / 3) / 2))
    assert mean_and_se([0.7]) == (0.7, None)


def test_a_mean_of_what_nobody_knows_is_not_known():
    """Fields that are None do not count; if all are, so is the mean."""
    results = [result(0, 1.0, test_loss=0.2), result(1, 1.0), result(2, 1.0, test_loss=0.4)]
    assert mean_of(results, "test_loss") == pytest.approx(0.3)
    assert mean_of(results, "test_accuracy") is None
    assert mean_of([], "test_loss") is None


# --- which trials count ----------------------------------------------------------------------------------


def test_a_ticket_is_its_newest_trial():
    """Of the trials of one ticket the one with the highest number speaks for it, in any order."""
    lost = trial(4, 0.1, trial=4, state="failed")
    again = trial(4, 0.1, [0.5], trial=9)
    other = trial(5, 0.2, trial=5, state="running")
    for order in ([lost, again, other], [other, again, lost]):
        assert latest(order) == {4: again, 5: other}
        assert count(order) == TicketCounts(complete=1, running=1)


def test_tickets_are_counted_by_state():
    """Every state is counted, each ticket once."""
    states = ["complete", "pruned", "pruned", "failed", "running", "running", "running", "waiting"]
    counts = count([trial(ticket, 0.1, state=state) for ticket, state in enumerate(states)])
    assert counts == TicketCounts(complete=1, pruned=2, failed=1, running=3, waiting=1)
    assert (counts.total, counts.unfinished) == (8, 4)


def test_trials_of_different_length_are_not_mixed():
    """Trials of other epochs or seeds are not compared: the most with a level 0 are, or the longest."""
    short = [trial(0, 0.0, [0.5, 0.5], trial=0), trial(1, 0.1, [0.9, 0.9], trial=1)]
    longer = [trial(0, 0.0, [0.4, 0.4], trial=2, epochs=20), trial(2, 0.2, [0.6, 0.6], trial=3, epochs=20)]
    more_seeds = [trial(0, 0.0, [0.3] * 3, trial=4, epochs=20)]
    without_baseline = [trial(1, 0.1, [1.0] * 4, trial=5, epochs=40)]
    pending = [trial(3, 0.3, trial=6, epochs=40, seeds=4, state="running")]
    assert comparable(short + without_baseline + pending) == short
    assert comparable(short + longer) == longer
    assert comparable(short + longer + more_seeds) == longer, "one level alone answers nothing"
    assert comparable(short[:1] + more_seeds) == more_seeds
    assert comparable(without_baseline + pending) == without_baseline
    assert comparable(pending) == []
    assert answer(short + longer).level == 0.2


def test_added_seeds_do_not_hide_the_longest_trials():
    """A study that grew in epochs and then in seeds is answered at its last length, whatever the seeds."""
    short = [trial(ticket, 0.1 * ticket, [0.5, 0.5], trial=ticket) for ticket in range(3)]
    long = [
        trial(ticket, 0.1 * ticket, [0.6 + 0.1 * (ticket == 1)] * seeds, trial=3 + ticket, epochs=20)
        for ticket, seeds in enumerate([4, 4, 2])
    ]
    assert comparable(short + long) == long[:2]
    assert (answer(short + long).level, answer(short + long).value) == (0.1, pytest.approx(0.7))


# --- the answer ------------------------------------------------------------------------------------------


def test_the_best_level_has_the_highest_mean_over_seeds():
    """Not the luckiest seed wins, but the best mean; pruned and running trials cannot."""
    trials = [
        trial(0, 0.0, [0.70, 0.74]),
        trial(1, 0.1, [0.99, 0.51]),
        trial(2, 0.2, [0.78, 0.80]),
        trial(3, 0.3, state="pruned", value=0.95),
        trial(4, 0.4, state="running", value=0.99),
    ]
    best = answer(trials)
    assert best.level == 0.2
    assert best.value == pytest.approx(0.79)
    assert best.value_se == pytest.approx(0.01)
    assert best.baseline is not None
    assert best.baseline.value == pytest.approx(0.72)
    assert best.seeds == 2
    assert best.trials == TicketCounts(complete=3, pruned=1, running=1)
    assert (best.epochs_run, best.epochs_exhaustive, best.cost) == (30, 60, 0.5)


def test_a_loss_is_to_minimize():
    """With val_loss the lowest mean wins, and the gain is positive where the loss is lower."""
    best = answer(
        [trial(0, 0.0, [0.6, 0.8]), trial(1, 0.1, [0.4, 0.5]), trial(2, 0.2, [0.9, 0.9])], LOSS_CRITERION
    )
    assert best.level == 0.1
    assert best.gain == pytest.approx(0.25)
    assert best.gain_interval is not None
    assert best.gain_interval[0] < 0.25 < best.gain_interval[1]


@pytest.mark.parametrize("criterion", [CRITERION, LOSS_CRITERION], ids=lambda criterion: criterion.metric)
def test_of_equal_levels_the_lowest_is_taken(criterion):
    """Ties are frequent with 100 validation samples: the lowest of the tied levels is the answer."""
    values = (
        {0.0: 0.5, 0.3: 0.75, 0.1: 0.75, 0.2: 0.75} if criterion.maximize else {0.3: 0.2, 0.1: 0.2, 0.0: 0.5}
    )
    trials = [trial(ticket, level, [value]) for ticket, (level, value) in enumerate(values.items())]
    assert answer(trials, criterion).level == 0.1
    assert answer(trials[::-1], criterion).level == 0.1


def test_of_equal_choices_at_one_level_it_is_always_the_same():
    """Two combinations that tie at one level give the same answer in whatever order they are listed."""
    tied = [trial(ticket, 0.1, [0.75], beside={"weight_decay": ticket / 10}) for ticket in range(3)]
    assert answer(tied[::-1]) == answer(tied) == answer(tied[1:] + tied[:1])


def test_level_zero_can_win():
    """Where flooding does not help the answer is 0, with a gain of exactly 0."""
    best = answer([trial(0, 0.0, [0.8, 0.9]), trial(1, 0.1, [0.7, 0.9]), trial(2, 0.2, [0.8, 0.9])])
    assert (best.level, best.gain, best.gain_se) == (0.0, 0.0, 0.0)
    assert best.baseline is not None
    assert best.baseline.value == best.value


def test_one_seed_has_no_standard_error():
    """With one seed there is a value and a gain, but no standard error is invented."""
    best = answer([trial(0, 0.0, [0.7]), trial(1, 0.1, [0.8])])
    assert best.gain == pytest.approx(0.1)
    assert (best.value_se, best.gain_se) == (None, None)
    assert best.baseline is not None
    assert best.baseline.value_se is None


def test_without_a_baseline_there_is_no_gain():
    """Until level 0 is complete, baseline and gain are not known."""
    best = answer([trial(0, 0.0, state="running"), trial(1, 0.1, [0.8, 0.9])])
    assert (best.level, best.baseline, best.gain, best.gain_se) == (0.1, None, None, None)


def test_the_baseline_has_the_same_other_parameters():
    """With parameters beside the level, the gain is over level 0 of the same combination."""
    trials = [
        trial(0, 0.0, [0.5], beside={"weight_decay": 0.0}),
        trial(1, 0.0, [0.7], beside={"weight_decay": 0.1}),
        trial(2, 0.2, [0.6], beside={"weight_decay": 0.0}),
        trial(3, 0.2, [0.8], beside={"weight_decay": 0.1}),
    ]
    best = answer(trials)
    assert best.parameters == {"weight_decay": 0.1}
    assert best.baseline is not None
    assert best.baseline.value == 0.7
    assert best.gain == pytest.approx(0.1)


def test_the_test_metrics_are_means_over_seeds():
    """Test metrics of the answer and of the baseline are means over their seeds."""
    measured = [
        result(0, 0.8, test_accuracy=0.6, test_loss=0.5, best_test_accuracy=0.7, train_accuracy=1.0),
        result(1, 0.9, test_accuracy=0.8, test_loss=0.7, best_test_accuracy=0.9, train_accuracy=0.9),
    ]
    best = answer([trial(0, 0.0, state="complete", seeds=2, results=tuple(measured))])
    assert best.test_accuracy == pytest.approx(0.7)
    assert best.test_loss == pytest.approx(0.6)
    assert best.best_epoch_test_accuracy == pytest.approx(0.8)
    assert best.train_accuracy == pytest.approx(0.95)
    assert best.test_accuracy_clean is None
    assert best.baseline is not None
    assert (best.baseline.test_accuracy, best.baseline.test_loss) == (best.test_accuracy, best.test_loss)


def found_levels(ticket: int, *levels: float, value: float = 0.8, **fields: Any) -> MeasuredTrial:
    """Return a trial up to level 0.5 whose runs came to these levels."""
    results = tuple(result(seed, value, final_level=level) for seed, level in enumerate(levels))
    return trial(ticket, 0.5, [value] * len(levels), results=results, **fields)


FINDS_LEVEL = replace(CRITERION, finds_level=True)


def test_the_level_that_the_runs_found_is_the_answer():
    """The median over seeds, in the range of them; the highest that they could take is told beside it."""
    plain = trial(0, 0.0, [0.7] * 3)
    best = answer([plain, found_levels(1, 0.135, 9 * 0.015 + 0.03, 0.3)], FINDS_LEVEL)
    assert (best.level, best.interval, best.tied, best.highest) == (0.165, (0.135, 0.3), None, 0.5)
    assert best.gain == pytest.approx(0.1)
    assert best.baseline is not None
    even = answer([trial(0, 0.0, [0.7] * 2), found_levels(1, 0.1, 0.3)], FINDS_LEVEL)
    assert even.level == 0.2
    alone = answer([trial(0, 0.0, [0.7]), found_levels(1, 0.1)], FINDS_LEVEL)
    assert (alone.level, alone.interval) == (0.1, None)


def test_level_zero_can_win_over_levels_found():
    """Then it is the answer, and no range of it is told."""
    best = answer([trial(0, 0.0, [0.9] * 3), found_levels(1, 0.1, 0.2, 0.3)], FINDS_LEVEL)
    assert (best.level, best.gain, best.interval, best.tied, best.highest) == (0.0, 0.0, None, None, 0.5)


def test_each_combination_has_the_level_that_its_runs_found():
    """Not the highest that they could take, which is the same for all."""
    of = [{"alpha": 0.01}, {"alpha": 0.02}]
    trials = [found_levels(1, 0.1, 0.1, beside=of[0]), found_levels(2, 0.3, 0.3, beside=of[1], value=0.9)]
    best = answer([*trials, trial(0, 0.0, [0.7] * 2)], FINDS_LEVEL)
    assert (best.level, best.parameters) == (0.3, of[1])
    assert {0.1, 0.3} <= {one.level for one in best.combinations}


def test_where_levels_are_searched_the_runs_do_not_choose():
    """Runs that descend before they flood may end unflooded; their ticket is still of its level."""
    best = answer([trial(0, 0.0, [0.7] * 3), found_levels(1, 0.0, 0.5, 0.5)])
    assert (best.level, best.highest) == (0.5, None)


def test_what_is_not_known_is_none():
    """One level of one seed shows no error, and no cost is invented for an empty study."""
    best = answer([trial(0, 0.0, [0.5])], epochs_exhaustive=0, finished=False)
    unknown = (best.interval, best.tied, best.verdict, best.gain_interval, best.p_value, best.more_seeds)
    assert unknown == (None,) * 6
    assert (best.cost, best.finished, best.combinations) == (None, False, ())


@pytest.mark.parametrize("states", [[], ["running", "running", "waiting", "pruned", "failed"]])
def test_without_a_complete_ticket_there_is_no_answer(states):
    """The error names the study and says what is running and waiting."""
    trials = [trial(ticket, 0.1 * ticket, state=state) for ticket, state in enumerate(states)]
    with pytest.raises(NoAnswerError) as error:
        answer(trials)
    for state in ("running", "waiting", "pruned", "failed"):
        assert f"{states.count(state)} {state}" in str(error.value)
    assert "'tiny'" in str(error.value)


# --- levels that were stopped, seeds that were added, parameters beside the level -------------------------


def halved(values: Mapping[float, Mapping[int, Sequence[float]]], epochs: int = 100) -> list[MeasuredTrial]:
    """Return trials from the values of each seed by level and rung; complete if they reach the last epoch."""
    return [
        trial(
            ticket,
            level,
            rungs.get(epochs, ()),
            state="complete" if epochs in rungs else "pruned",
            epochs=epochs,
            epoch=max(rungs),
            seeds=len(next(iter(rungs.values()))),
            rungs={epoch: tuple(row) for epoch, row in rungs.items()},
        )
        for ticket, (level, rungs) in enumerate(values.items())
    ]


def test_an_incomplete_maximum_is_to_be_confirmed():
    """The best at the deepest rung of two flooded levels must be trained on, unless it is complete."""
    values = {
        0.0: {10: [0.5], 100: [0.4]},
        0.1: {10: [0.6], 100: [0.61]},
        0.3: {10: [0.8]},
        0.5: {10: [0.7]},
    }
    stopped = halved(values)
    found = unconfirmed(stopped, CRITERION)
    assert found is not None
    assert (found.ticket, found.state) == (2, "pruned")
    assert answer(stopped).level == 0.1, "until then the answer is what is complete"
    confirmed = halved({**values, 0.3: {10: [0.8], 100: [0.81]}})
    assert unconfirmed(confirmed, CRITERION) is None
    assert answer(confirmed).level == 0.3


def test_the_winner_of_halving_needs_no_confirmation():
    """Where the best of the last judged rung was trained to its end, no ticket is added."""
    trials = halved(
        {
            0.0: {10: [0.5], 20: [0.5], 100: [0.4]},
            0.1: {10: [0.6], 20: [0.65]},
            0.3: {10: [0.61], 20: [0.7], 100: [0.61]},
            0.5: {10: [0.55]},
        }
    )
    assert unconfirmed(trials, CRITERION) is None
    assert answer(trials).level == 0.3


def test_nothing_is_confirmed_where_level_zero_wins():
    """A stopped level is not trained on to be second to level 0."""
    trials = halved({0.0: {10: [0.8], 100: [0.8]}, 0.2: {10: [0.6]}, 0.4: {10: [0.5]}})
    assert unconfirmed(trials, CRITERION) is None
    assert answer(trials).level == 0


def test_nothing_is_confirmed_before_anything_is_complete():
    """Without a complete ticket there is no maximum to confirm, and every ticket is worth more seeds."""
    trials = [trial(0, 0.0, state="running"), trial(1, 0.2)]
    assert unconfirmed(trials, CRITERION) is None
    assert worth_more_seeds(trials, CRITERION) == {0, 1}


def test_a_diverged_level_is_never_the_maximum():
    """However good it was before it diverged: it has no end."""
    trials = halved({0.0: {10: [0.5], 100: [0.4]}, 0.2: {10: [0.6], 100: [0.6]}, 0.4: {10: [0.9]}})
    trials[2] = replace(trials[2], cause="diverged")
    assert unconfirmed(trials, CRITERION) is None
    assert answer(trials).level == 0.2


def hill(levels: Sequence[float], seeds: int, *, best: float = 0.3) -> dict[float, list[float]]:
    """Return values that fall by far more than their noise on both sides of the best level."""
    noise = np.random.default_rng(0).normal(0, 0.002, (len(levels), seeds))
    return {
        level: [0.8 - 2 * (level - best) ** 2 + float(one) for one in row]
        for level, row in zip(levels, noise, strict=True)
    }


LEVELS = [round(0.02 * index, 2) for index in range(26)]


def test_more_seeds_are_worth_it_where_levels_are_tied():
    """Worth it are level 0, the answer and its ties, and not the levels that are clearly worse."""
    trials = [trial(ticket, level, row) for ticket, (level, row) in enumerate(hill(LEVELS, 5).items())]
    best = answer(trials)
    worth = {LEVELS[ticket] for ticket in worth_more_seeds(trials, CRITERION)}
    assert best.tied is not None
    assert worth == {0.0, best.level, *best.tied}
    assert len(worth) < len(LEVELS) / 2


def test_seeds_added_to_some_levels_count():
    """When the tied levels and level 0 grow to more seeds, the gain is measured on all of them."""
    rows = hill(LEVELS, 8)
    few = [trial(ticket, level, row[:4]) for ticket, (level, row) in enumerate(rows.items())]
    worth = worth_more_seeds(few, CRITERION)
    grown = [
        trial(ticket, LEVELS[ticket], rows[LEVELS[ticket]], trial=100 + ticket) for ticket in sorted(worth)
    ]
    before, after = answer(few), answer(few + grown)
    assert (before.seeds, after.seeds) == (4, 8)
    assert before.p_value is None
    assert after.p_value is not None
    assert after.interval is not None
    assert before.interval is not None
    assert before.interval[0] <= after.interval[0] <= 0.3 <= after.interval[1] <= before.interval[1]
    half_way = answer(few + grown[1:])
    assert half_way.seeds >= 4, "level 0 is not trained yet, and there is an answer"


def test_a_combination_without_the_added_seeds_is_not_the_answer():
    """A combination that was worse got no more seeds; that these are harder does not make it better."""
    few, many = {"weight_decay": 0.0}, {"weight_decay": 0.1}
    hard = [0.2] * 4
    grown = [
        trial(0, 0.0, [0.60, 0.61, 0.60, 0.61], beside=few),
        trial(1, 0.2, [0.65, 0.66, 0.65, 0.66], beside=few),
        trial(2, 0.0, [0.70, 0.71, 0.70, 0.71, *hard], beside=many),
        trial(3, 0.2, [0.75, 0.76, 0.75, 0.76, *hard], beside=many),
    ]
    best = answer(grown)
    assert (best.parameters, best.level, best.seeds) == (many, 0.2, 8)
    assert {2, 3} == worth_more_seeds(grown, CRITERION)


def test_the_best_flooded_level_is_worth_more_seeds_where_level_zero_wins():
    """The gain is measured between the two, so that level 0 alone would decide nothing."""
    rows = {0.0: [0.90, 0.91, 0.9], 0.1: [0.80, 0.81, 0.80], 0.5: [0.70, 0.71, 0.7]}
    trials = [trial(ticket, level, row) for ticket, (level, row) in enumerate(rows.items())]
    assert answer(trials).tied == ()
    assert worth_more_seeds(trials, CRITERION) == {0, 1}


def test_each_combination_is_answered():
    """Beside the answer stands one entry for each combination, with its own baseline and gain."""
    trials = [
        trial(ticket, level, [value, value + 0.01], beside={"weight_decay": decay})
        for ticket, (level, decay, value) in enumerate(
            [(0.0, 0.0, 0.5), (0.0, 0.1, 0.7), (0.2, 0.0, 0.6), (0.2, 0.1, 0.65)]
        )
    ]
    best = answer(trials)
    assert (best.level, best.parameters) == (0.0, {"weight_decay": 0.1})
    told = [(one.parameters["weight_decay"], one.level, one.value, one.gain) for one in best.combinations]
    assert told == [
        (0.0, 0.2, pytest.approx(0.605), pytest.approx(0.1)),
        (0.1, 0.0, pytest.approx(0.705), 0.0),
    ]
    assert best.combinations[0].baseline == pytest.approx(0.505)
    assert answer(trials[::2]).combinations[0].parameters == {"weight_decay": 0.0}


def with_settings(
    *values: tuple[float, float, float], plain: Sequence[float] = (0.7, 0.71)
) -> list[MeasuredTrial]:
    """Return trials of (level, accuracy at which flooding begins, value), and a level 0 without it."""
    return [trial(0, 0.0, plain)] + [
        trial(ticket, level, [value, value + 0.01], beside={"until_accuracy": until})
        for ticket, (level, until, value) in enumerate(values, start=1)
    ]


def test_settings_of_the_schedule_share_the_baseline():
    """Level 0 has none of them: it is the baseline of each of their combinations, and none of its own."""
    trials = with_settings((0.1, 0.9, 0.75), (0.3, 0.9, 0.74), (0.1, 1.0, 0.72), (0.3, 1.0, 0.8))
    best = answer(trials)
    assert (best.level, best.parameters) == (0.3, {"until_accuracy": 1.0})
    assert best.baseline is not None
    assert best.baseline.value == pytest.approx(0.705)
    assert best.gain == pytest.approx(0.1)
    assert best.verdict is not None
    told = [(one.parameters, one.level, one.baseline) for one in best.combinations]
    assert told == [
        ({"until_accuracy": 0.9}, 0.1, pytest.approx(0.705)),
        ({"until_accuracy": 1.0}, 0.3, pytest.approx(0.705)),
    ]
    assert 0 in worth_more_seeds(trials, CRITERION)


def test_where_level_zero_wins_its_settings_mean_nothing():
    """The answer has no settings then; each combination still says whose it is, and that it gains nothing."""
    best = answer(with_settings((0.1, 0.9, 0.75), (0.1, 1.0, 0.72), plain=(0.8, 0.9)))
    assert (best.level, best.parameters, best.gain) == (0.0, {}, 0.0)
    assert [(one.parameters["until_accuracy"], one.gain) for one in best.combinations] == [(0.9, 0), (1.0, 0)]


def test_a_baseline_belongs_to_the_combinations_that_agree_with_it():
    """With recipe choices and settings there is one level 0 a choice, and it goes with no other choice."""
    decays = (0.0, 0.1)
    trials = [trial(n, 0.0, [0.5 + decay], beside={"decay": decay}) for n, decay in enumerate(decays)]
    trials += [
        trial(2 + n, 0.2, [0.6], beside={"decay": decay, "until_accuracy": until})
        for n, (decay, until) in enumerate([(0.0, 0.9), (0.0, 1.0), (0.1, 0.9), (0.1, 1.0)])
    ]
    assert [one.baseline for one in answer(trials).combinations] == [0.5, 0.5, 0.6, 0.6]
    assert len(answer(trials[:4]).combinations) == 3, "level 0 of the other choice stands for it alone"


def test_tickets_with_settings_from_a_range_stand_alone():
    """The best one answers, with its gain; no interval is told where no levels were compared."""
    trials = with_settings((0.1, 0.91, 0.75), (0.3, 0.93, 0.8), (0.3, 0.97, 0.72))
    best = answer(trials)
    assert (best.level, best.parameters) == (0.3, {"until_accuracy": 0.93})
    assert best.gain == pytest.approx(0.1)
    assert (best.interval, best.tied) == (None, None)


def test_a_ticket_that_stands_alone_is_not_confirmed():
    """It lost to its rivals at a rung; beside level 0 alone nothing says that it is a maximum."""
    trials = halved({0.0: {10: [0.5], 100: [0.6]}, 0.2: {10: [0.6], 100: [0.65]}, 0.4: {10: [0.9]}})
    alone = [
        replace(
            one,
            parameters={
                **one.parameters,
                **({"until_accuracy": 0.9 + one.ticket / 100} if one.level else {}),
            },
        )
        for one in trials
    ]
    assert unconfirmed(trials, CRITERION) is not None
    assert unconfirmed(alone, CRITERION) is None
    assert answer(alone).level == 0.2


def test_what_is_in_training_is_no_combination_yet():
    """Until a ticket has ended nothing is known of its settings; level 0 answers alone."""
    trials = with_settings((0.1, 0.9, 0.75), (0.2, 1.0, 0.75))
    running = [replace(one, state="running", results=()) for one in trials[1:]]
    best = answer([trials[0], *running])
    assert (best.level, best.parameters, best.combinations) == (0.0, {}, ())


# --- how often the answer is right -----------------------------------------------------------------------


SHAPES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "hill": lambda level: -1.5 * (level - 0.3) ** 2,
    "skewed": lambda level: np.where(level <= 0.3, -0.5, -6.0) * (level - 0.3) ** 2,
    "cliff": lambda level: np.where(level <= 0.3, 0.1, -0.8) * (level - 0.3),
    "rising": lambda level: 0.2 * (level - 0.5),
}
"""The true value over levels above 0, less that of the best."""


def bent(generator: np.random.Generator, seeds: int, length: float) -> np.ndarray:
    """Return smooth curves of spread 1, (S, 26), that change over a length in the unit of the level."""
    levels = np.array(LEVELS)
    distance = (levels[:, None] - levels[None]) / length
    root = np.linalg.cholesky(np.exp(-0.5 * distance**2) + 1e-9 * np.eye(26))
    return generator.normal(size=(seeds, 26)) @ root.T


NOISES: Mapping[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "as assumed": lambda generator, seeds: (
        0.025 * bent(generator, seeds, 0.1) + 0.018 * generator.normal(size=(seeds, 26))
    ),
    "long bends": lambda generator, seeds: (
        0.025 * bent(generator, seeds, 0.25) + 0.018 * generator.normal(size=(seeds, 26))
    ),
    "walks": lambda generator, seeds: (
        np.cumsum(0.007 * generator.normal(size=(seeds, 26)), axis=1)
        + 0.018 * generator.normal(size=(seeds, 26))
    ),
    "heavy tails": lambda generator, seeds: (
        0.025 * bent(generator, seeds, 0.1) + 0.018 * generator.standard_t(3, size=(seeds, 26)) / math.sqrt(3)
    ),
    "growing with the level": lambda generator, seeds: (
        0.025 * bent(generator, seeds, 0.1) + 0.072 * np.array(LEVELS) * generator.normal(size=(seeds, 26))
    ),
}
"""What a seed and chance add to its values, (S, 26)."""


def simulated(
    generator: np.random.Generator,
    seeds: int,
    gain: float,
    *,
    halve: bool = False,
    shape: str = "hill",
    noise: str = "as assumed",
) -> tuple[list[MeasuredTrial], np.ndarray]:
    """Return a study whose truth is known, (26,): the best level is worth `gain` more than level 0.

    With what was seen on Two Gaussians: seeds shift the curve by .03, bend it by .025 over a fifth of the
    range, and add .018 of noise; at rungs there is fresh noise of .012. A tenth of the levels is kept at
    epoch 10, by a curve as in successive halving.
    """
    levels = np.array(LEVELS)
    truth = 0.8 + gain + SHAPES[shape](levels)
    truth[0] = 0.8
    values = truth + 0.03 * generator.normal(size=(seeds, 1)) + NOISES[noise](generator, seeds)
    early = values + 0.012 * generator.normal(size=values.shape)
    flooded = smooth(levels, early).mean[1:]
    kept = {0, *(1 + np.argsort(flooded)[-3:]).tolist()} if halve else set(range(26))
    return halved(
        {
            level: {10: early[:, index].tolist()}
            | ({100: values[:, index].tolist()} if index in kept else {})
            for index, level in enumerate(LEVELS)
        }
    ), truth


def coverage(studies: Iterable[tuple[list[MeasuredTrial], np.ndarray]]) -> tuple[int, int, float]:
    """Return in how many studies the intervals hold the best level and the true gain, and the mean width.

    The best level is that of the true curve as it is smoothed: a kernel rounds off where a curve falls
    steeply beside its maximum, so that what can be found lies a little beside it.
    """
    level_held = gain_held = 0
    widths = []
    for trials, truth in studies:
        best = answer(trials)
        assert best.interval is not None
        top = LEVELS[1 + int(smooth(LEVELS, truth).mean[1:].argmax())]
        level_held += best.interval[0] <= top <= best.interval[1]
        widths.append(best.interval[1] - best.interval[0])
        if best.gain_interval is not None:
            true_gain = truth[LEVELS.index(best.level)] - truth[0]
            gain_held += best.gain_interval[0] <= true_gain <= best.gain_interval[1]
        else:
            gain_held += best.seeds > 1  # level 0: no gain is claimed, and there is none
    return level_held, gain_held, float(np.mean(widths))


REPEATS = 150


def lower_and_upper(low: float, high: float, repeats: int = REPEATS) -> tuple[float, float]:
    """Return the counts out of `repeats` that a share between `low` and `high` leaves once in a hundred."""
    return float(binom.ppf(0.005, repeats, low)), float(binom.ppf(0.995, repeats, high))


@pytest.mark.parametrize("seeds", [1, 5])
@pytest.mark.parametrize("halve", [False, True], ids=["exhaustive", "halved"])
def test_the_intervals_hold_the_truth(seeds, halve):
    """Intervals of 90 % hold the best level and the true gain in 85 to 97 % of simulated studies."""
    generator = np.random.default_rng(7)
    studies = 300
    level_held, gain_held, _ = coverage(
        simulated(generator, seeds, 0.04, halve=halve) for _ in range(studies)
    )
    low, high = lower_and_upper(0.85, 0.97, studies)
    assert high < studies, "intervals that always hold the truth are too wide, and are found out"
    assert low <= level_held <= high
    assert (gain_held == 0) if seeds == 1 else (low <= gain_held <= high)


@pytest.mark.parametrize(
    ("shape", "noise", "halve"),
    [
        ("hill", "long bends", False),
        ("hill", "walks", False),
        ("hill", "walks", True),
        ("hill", "heavy tails", True),
        ("hill", "growing with the level", False),
        ("skewed", "as assumed", False),
        ("cliff", "heavy tails", False),
        ("cliff", "walks", True),
        ("rising", "growing with the level", True),
    ],
)
def test_the_intervals_hold_the_truth_where_nothing_is_as_assumed(shape, noise, halve):
    """In other curves and noise they do so in 85 % at least, and are no wider than half of the range."""
    generator = np.random.default_rng(9)
    level_held, gain_held, width = coverage(
        simulated(generator, 5, 0.04, halve=halve, shape=shape, noise=noise) for _ in range(REPEATS)
    )
    low, _ = lower_and_upper(0.85, 1.0)
    assert level_held >= low
    assert gain_held >= low
    assert width < (LEVELS[-1] - LEVELS[1]) / 2


@pytest.mark.parametrize("seeds", [2, 5])
def test_flooding_that_hurts_is_not_said_to_help(seeds):
    """Where every level is worse than level 0, in at most one study in twenty flooding "helps"."""
    generator = np.random.default_rng(8)
    verdicts = [answer(simulated(generator, seeds, -0.02)[0]).verdict for _ in range(REPEATS)]
    assert verdicts.count("helps") <= lower_and_upper(0, 0.05)[1]


@pytest.mark.parametrize("seeds", [2, 5])
def test_flooding_that_does_nothing_is_judged_at_most_one_time_in_twenty(seeds):
    """The best level is worth what level 0 is: each end of the interval errs in at most 5 % of them."""
    generator = np.random.default_rng(8)
    studies = 300
    verdicts = [answer(simulated(generator, seeds, 0.0)[0]).verdict for _ in range(studies)]
    most = binom.ppf(0.995, studies, 0.05)
    assert verdicts.count("helps") <= most
    assert verdicts.count("hurts") <= most


@st.composite
def histories(draw) -> list[MeasuredTrial]:
    """Trials of a study that grew and lost some: ties, retries, two lengths, and choices beside the level."""
    trials = []
    for number in range(draw(st.integers(1, 12))):
        ticket = draw(st.integers(0, 6))
        seeds = draw(st.integers(1, 2))
        values = [draw(st.sampled_from([0.5, 0.75, 0.8])) for _ in range(seeds)]
        trials.append(
            trial(
                ticket,
                ticket // 2 / 10,
                values,
                trial=number,
                state=draw(
                    st.sampled_from(["complete", "complete", "complete", "pruned", "failed", "running"])
                ),
                epochs=draw(st.sampled_from([10, 20])),
                beside={"weight_decay": (0.0, 0.1)[ticket % 2]},
            )
        )
    return trials


@settings(repeatable, max_examples=200)
@given(histories(), st.randoms(use_true_random=False))
def test_the_order_of_the_trials_does_not_matter(trials, random):
    """The answer is a function of the trials, not of the order in which a database lists them."""
    shuffled = list(trials)
    random.shuffle(shuffled)
    if any(one.state == "complete" for one in trials):
        assert answer(shuffled) == answer(trials)
    assert count(shuffled) == count(trials)


# --- the curve -------------------------------------------------------------------------------------------


def test_the_curve_of_an_answer_is_in_the_unit_of_the_metric():
    """Each level has its mean over seeds, and a band about the smooth curve without what seeds differ by.

    A loss is the mirror image of an accuracy: its values are as they are, and low is below high.
    """
    values = {0.0: (0.6, 0.8), 0.2: (0.7, 0.91), 0.4: (0.65, 0.83)}
    trials = [trial(place, level, both) for place, (level, both) in enumerate(values.items())]
    points = answer(trials).points
    assert [point.level for point in points] == [*values]
    assert [point.value for point in points] == pytest.approx([0.7, 0.805, 0.74])
    assert points[0].mean == pytest.approx(0.7)  # level 0 borrows nothing of its neighbours
    assert all((point.seeds, point.complete) == (2, True) for point in points)
    assert all(point.low < point.mean < point.high for point in points)
    assert all(point.se < 0.02 for point in points)  # the seeds themselves are apart by .2
    losses = [
        trial(place, level, [-one for one in both]) for place, (level, both) in enumerate(values.items())
    ]
    mirrored = answer(losses, LOSS_CRITERION).points
    assert [point.mean for point in mirrored] == pytest.approx([-point.mean for point in points])
    assert [point.low for point in mirrored] == pytest.approx([-point.high for point in points])


def test_where_no_levels_were_compared_there_is_no_curve():
    """Level 0 alone, and runs that each find their own level, have no points; one seed and few no band."""
    assert answer([trial(0, 0.0, [0.5])]).points == ()
    two = [trial(0, 0.0, [0.5]), trial(1, 0.3, [0.6])]
    assert answer(two, replace(CRITERION, finds_level=True)).points == ()
    assert [(point.se, point.low, point.high) for point in answer(two).points] == [(None, None, None)] * 2
