"""analysis: from records to the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from floodsearch.analysis import (
    Question,
    best_level,
    comparable,
    count,
    latest,
    mean_and_se,
    mean_of,
    paired_gains,
    recent_mean,
    seed_result,
)
from floodsearch.errors import NoAnswerError
from floodsearch.records import BestLevel, EpochRecord, SeedResult, TicketCounts, TrialRecord

QUESTION = Question(study="tiny", metric="val_accuracy", maximize=True, window=0.2)
LOSS_QUESTION = Question(study="tiny", metric="val_loss", maximize=False, window=0.2)
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


def trial(ticket: int, level: float | None, values: Sequence[float] = (), **fields: Any) -> TrialRecord:
    """Return a trial: complete if it has values, one for each seed."""
    parameters = {} if level is None else {"level": level}
    defaults = {
        "number": ticket,
        "state": "complete" if values else "waiting",
        "epochs": 10,
        "seeds": max(1, len(values)),
        "results": tuple(result(seed, value) for seed, value in enumerate(values)),
        "parameters": parameters | fields.pop("beside", {}),
    }
    return TrialRecord(ticket=ticket, **defaults | fields)


def answer(trials: Sequence[TrialRecord], question: Question = QUESTION, **fields: Any) -> BestLevel:
    return best_level(
        trials, question, **{"epochs_run": 30, "epochs_exhaustive": 60, "finished": True} | fields
    )


# --- values ----------------------------------------------------------------------------------------------


def test_a_value_is_the_mean_over_the_last_window():
    """Epochs in (e * (1 - window), e] count, whatever their order; later and unvalidated ones do not."""
    records = curve({8: 100.0, 9: 0.5, 10: 0.7, 11: 100.0})
    assert recent_mean(records, QUESTION, 10) == pytest.approx(0.6, abs=1e-15)
    assert recent_mean([*reversed(records), epoch_record(9)], QUESTION, 10) == pytest.approx(0.6, abs=1e-15)
    assert recent_mean(records, QUESTION, 9) == pytest.approx((100 + 0.5) / 2)  # above 7.2
    assert recent_mean(curve({10: 0.3}, "val_loss"), LOSS_QUESTION, 10) == 0.3


@pytest.mark.parametrize("epoch", [1, 10, 25, 100])
def test_the_window_is_exact(epoch):
    """No rounding moves an epoch over the edge of the window, for any window of whole percents."""
    records = curve({one: float(one) for one in range(1, epoch + 1)})
    wrong = []
    for percent in range(1, 101):
        first = math.floor(epoch * (1 - Fraction(percent, 100))) + 1
        value = recent_mean(records, replace(QUESTION, window=percent / 100), epoch)
        if value != (first + epoch) / 2:
            wrong.append(percent)
    assert wrong == []


def test_an_empty_window_is_refused():
    """Without a validation in the window there is no value, and the error says where."""
    with pytest.raises(ValueError, match="no val_accuracy between epoch 8 and 10"):
        recent_mean(curve({8: 0.5}), QUESTION, 10)


def test_the_result_of_a_run_takes_its_two_tested_epochs():
    """The last epoch gives the test metrics, the tested epoch before it those with early stopping."""
    records = [
        *curve({1: 0.1, 2: 0.9, 9: 0.5}),
        epoch_record(3, val_accuracy=0.9, test_loss=0.3, test_accuracy=0.8),
        epoch_record(10, val_accuracy=0.7, test_loss=0.6, test_accuracy=0.6, test_accuracy_clean=0.65),
    ]
    found = seed_result(records, QUESTION, 10)
    assert found.value == pytest.approx(0.6)
    assert (found.test_loss, found.test_accuracy, found.test_accuracy_clean) == (0.6, 0.6, 0.65)
    assert (found.best_epoch, found.best_test_loss, found.best_test_accuracy) == (3, 0.3, 0.8)
    only_last = seed_result(records[-1:], QUESTION, 10)
    assert (only_last.best_epoch, only_last.best_test_accuracy) == (10, 0.6)


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
    lost = trial(4, 0.1, number=4, state="failed")
    again = trial(4, 0.1, [0.5], number=9)
    other = trial(5, 0.2, number=5, state="running")
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
    short = [trial(0, 0.0, [0.5, 0.5], number=0), trial(1, 0.1, [0.9, 0.9], number=1)]
    longer = [trial(0, 0.0, [0.4, 0.4], number=2, epochs=20), trial(2, 0.2, [0.6, 0.6], number=3, epochs=20)]
    more_seeds = [trial(0, 0.0, [0.3] * 3, number=4, epochs=20)]
    without_baseline = [trial(1, 0.1, [1.0] * 4, number=5, epochs=40)]
    pending = [trial(3, 0.3, number=6, epochs=40, seeds=4, state="running")]
    assert comparable(short + without_baseline + pending) == short
    assert comparable(short + longer) == longer
    assert comparable(short + longer + more_seeds) == longer, "one level alone answers nothing"
    assert comparable(short[:1] + more_seeds) == more_seeds
    assert comparable(without_baseline + pending) == without_baseline
    assert comparable(pending) == []
    assert answer(short + longer).level == 0.2


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
    assert best.gain == pytest.approx(0.07)
    assert best.gain_se == pytest.approx(0.01)
    assert best.baseline is not None
    assert best.baseline.value == pytest.approx(0.72)
    assert best.seeds == 2
    assert best.trials == TicketCounts(complete=3, pruned=1, running=1)
    assert (best.epochs_run, best.epochs_exhaustive, best.cost) == (30, 60, 0.5)


def test_a_loss_is_to_minimize():
    """With val_loss the lowest mean wins, and the gain is positive where the loss is lower."""
    best = answer(
        [trial(0, 0.0, [0.6, 0.8]), trial(1, 0.1, [0.4, 0.5]), trial(2, 0.2, [0.9, 0.9])], LOSS_QUESTION
    )
    assert best.level == 0.1
    assert best.gain == pytest.approx(0.25)


@pytest.mark.parametrize("question", [QUESTION, LOSS_QUESTION], ids=lambda question: question.metric)
def test_of_equal_levels_the_lowest_is_taken(question):
    """Ties are frequent with 100 validation samples: the lowest of the tied levels is the answer."""
    values = (
        {0.0: 0.5, 0.3: 0.75, 0.1: 0.75, 0.2: 0.75} if question.maximize else {0.3: 0.2, 0.1: 0.2, 0.0: 0.5}
    )
    trials = [trial(ticket, level, [value]) for ticket, (level, value) in enumerate(values.items())]
    assert answer(trials, question).level == 0.1
    assert answer(trials[::-1], question).level == 0.1


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


def test_gains_are_paired_by_seed():
    """Seeds are matched by their number, not their place; a seed that only one has does not count."""
    one = trial(1, 0.1, number=1, state="complete", results=(result(5, 0.9), result(2, 0.7), result(8, 0.1)))
    base = trial(0, 0.0, number=0, state="complete", results=(result(2, 0.6), result(5, 0.5)))
    assert paired_gains(one, base, 1.0) == pytest.approx([0.4, 0.1])
    assert paired_gains(one, base, -1.0) == pytest.approx([-0.4, -0.1])


accuracies = st.floats(0, 1)


@repeatable
@given(
    pairs=st.lists(st.tuples(accuracies, accuracies, st.floats(-1, 1)), min_size=2, max_size=8),
)
def test_what_a_seed_adds_to_both_changes_no_gain(pairs):
    """Luck that a seed has with and without flooding cancels out of gain and gain_se."""
    plain, flooded, offsets = zip(*pairs, strict=True)

    def gain(*shift: float) -> tuple[float, float | None]:
        one, base = (
            trial(ticket, level, [value + more for value, more in zip(values, shift, strict=True)])
            for ticket, level, values in ((1, 0.1, flooded), (0, 0.0, plain))
        )
        return mean_and_se(paired_gains(one, base, 1.0))

    assert gain(*offsets) == pytest.approx(gain(*[0.0] * len(pairs)), abs=1e-12)


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


def test_what_is_not_known_is_none():
    """Interval, ties and verdict are not worked out yet, and no cost is invented for an empty study."""
    best = answer([trial(0, 0.0, [0.5])], epochs_exhaustive=0, finished=False)
    assert (best.interval, best.tied, best.verdict, best.cost, best.finished) == (
        None,
        None,
        None,
        None,
        False,
    )


@pytest.mark.parametrize("states", [[], ["running", "running", "waiting", "pruned", "failed"]])
def test_without_a_complete_ticket_there_is_no_answer(states):
    """The error names the study and says what is running and waiting."""
    trials = [trial(ticket, 0.1 * ticket, state=state) for ticket, state in enumerate(states)]
    with pytest.raises(NoAnswerError) as error:
        answer(trials)
    for state in ("running", "waiting", "pruned", "failed"):
        assert f"{states.count(state)} {state}" in str(error.value)
    assert "'tiny'" in str(error.value)


@st.composite
def histories(draw) -> list[TrialRecord]:
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
                number=number,
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
