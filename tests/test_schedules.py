"""schedules: the level during one run."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from floodsearch.flooding.schedules import (
    SCHEDULES,
    ScheduleState,
    adaptive,
    backward,
    constant,
)
from floodsearch.records import EpochRecord

anything = st.floats(allow_nan=True, allow_infinity=True)
accuracies = st.integers(0, 20).map(lambda correct: correct / 20)
records = st.builds(
    EpochRecord,
    seed=st.integers(0, 9),
    epoch=st.integers(1, 1000),
    level=st.floats(0, 5),
    train_loss=anything,
    train_accuracy=accuracies,
    flooded=st.floats(0, 1),
    val_loss=st.none() | anything,
    val_accuracy=st.none() | accuracies,
)
histories = st.lists(records, max_size=30)
repeatable = settings(derandomize=True, deadline=None, database=None)
every_schedule = pytest.mark.parametrize("name", SCHEDULES)
waiting_schedule = pytest.mark.parametrize("name", [name for name in SCHEDULES if not SCHEDULES[name].forks])


def record(epoch: int, train: float | None, validation: float | None = None) -> EpochRecord:
    return EpochRecord(
        seed=0,
        epoch=epoch,
        level=0.0,
        train_loss=1.0,
        train_accuracy=train,
        flooded=0.0,
        val_accuracy=validation,
    )


def levels(
    schedule: Callable[..., ScheduleState], state: ScheduleState, history: Sequence[EpochRecord]
) -> list[float]:
    """Return the level of each epoch of a history, and of the one after it."""
    found = [state.level]
    for one in history:
        state = schedule(state, one)
        found.append(state.level)
    return found


# --- every schedule --------------------------------------------------------------------------------------


@every_schedule
@repeatable
@given(level=st.floats(0, 5), history=histories)
def test_no_run_floods_above_the_level_of_its_ticket(name, level, history):
    """Whatever the epochs come to, the level stays between 0 and that of the ticket."""
    found = levels(SCHEDULES[name].step, SCHEDULES[name].start(level, samples=20), history)
    assert all(0 <= one <= level for one in found)


@every_schedule
@repeatable
@given(history=histories)
def test_level_zero_is_the_unflooded_run(name, history):
    """The baseline is the same under every schedule: a ticket of level 0 is never flooded."""
    assert set(levels(SCHEDULES[name].step, SCHEDULES[name].start(0.0, samples=20), history)) == {0.0}


@every_schedule
@repeatable
@given(history=histories, at=st.integers(0, 30))
def test_a_state_that_was_stored_goes_on_as_it_was(name, history, at):
    """A state is numbers: written as JSON and read again, the rest of the run has the same levels."""
    state = SCHEDULES[name].start(0.3, samples=20)
    for one in history[:at]:
        state = SCHEDULES[name].step(state, one)
    read = ScheduleState(**json.loads(json.dumps(dataclasses.asdict(state))))
    assert levels(SCHEDULES[name].step, read, history[at:]) == levels(
        SCHEDULES[name].step, state, history[at:]
    )


@waiting_schedule
@repeatable
@given(history=histories)
def test_nothing_is_flooded_before_zero_training_error(name, history):
    """Up to the first epoch without a training error, runs of all levels are the unflooded run."""
    for level in (0.1, 0.5):
        found = levels(SCHEDULES[name].step, SCHEDULES[name].start(level, samples=20), history)
        for before, one in zip(found, history, strict=False):
            assert before == 0
            if one.train_accuracy == 1:
                break


@waiting_schedule
def test_a_task_without_accuracy_is_told_what_to_do(name):
    """Where nothing can end the descent, the error names the schedules that can be used."""
    with pytest.raises(ValueError, match=r"has no accuracy to wait for; take .* backward with until_epoch"):
        SCHEDULES[name].step(SCHEDULES[name].start(0.3, samples=20), record(1, None))


@pytest.mark.parametrize(
    ("schedule", "chosen", "bound"),
    [
        (backward, {"until_accuracy": 0.0}, r"until_accuracy must be in \(0, 1\], but is 0.0"),
        (backward, {"until_accuracy": 1.1}, r"until_accuracy must be in \(0, 1\], but is 1.1"),
        (backward, {"until_epoch": 0}, "until_epoch must be at least 1, but is 0"),
        (adaptive, {"until_accuracy": 1.1}, r"until_accuracy must be in \(0, 1\], but is 1.1"),
        (adaptive, {"alpha": 0.0}, "alpha must be above 0, but is 0.0"),
        (adaptive, {"tolerance": -0.01}, "tolerance must be at least 0, but is -0.01"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_bad_setting_is_refused(schedule, chosen, bound):
    """A setting out of its bounds is refused at the first epoch, with its name, bound and value."""
    with pytest.raises(ValueError, match=bound):
        schedule(ScheduleState(level=0.0, highest=0.3), record(1, 0.5), **chosen)


# --- constant --------------------------------------------------------------------------------------------


@repeatable
@given(level=st.floats(0, 100), history=histories)
def test_a_constant_level_stays_whatever_happens(level, history):
    """The constant schedule floods at the level from the first epoch to the last."""
    assert set(levels(constant, SCHEDULES["constant"].start(level, samples=20), history)) == {level}


def test_only_a_constant_level_is_in_force_from_the_start():
    """Only under the constant schedule does the level alone say where a run leaves the unflooded one."""
    assert [name for name in SCHEDULES if SCHEDULES[name].forks] == ["constant"]
    assert SCHEDULES["constant"].start(0.3, samples=20).level == 0.3


# --- backward --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "accuracies", "flooded_from"),
    [
        ({}, [0.5, 0.9, 1.0, 1.0, 0.8], 4),  # the epoch after zero training error
        ({}, [0.5, 1.0, 0.2, 0.2, 0.2], 3),  # for good, also when the error comes back
        ({}, [1.0, 1.0, 1.0, 1.0, 1.0], 2),
        ({}, [0.5, 0.9, 0.99, 0.999, 0.9999], None),  # never, if it is never reached
        ({"until_accuracy": 0.9}, [0.5, 0.9, 0.2, 1.0, 1.0], 3),
        ({"until_epoch": 3}, [0.5, 0.5, 0.5, 0.5, 0.5], 4),
        ({"until_epoch": 3}, [0.5, 1.0, 1.0, 1.0, 1.0], 3),  # whichever comes first
        ({"until_epoch": 3}, [None, None, None, None, None], 4),  # without an accuracy, too
        ({"until_epoch": 9}, [0.5, 0.5, 0.5, 0.5, 0.5], None),
    ],
    ids=str,
)
def test_backward_floods_from_the_epoch_after_the_descent(chosen, accuracies, flooded_from):
    """The run is unflooded up to the epoch that ends the descent, and floods at its level after it."""
    history = [record(epoch, train) for epoch, train in enumerate(accuracies, start=1)]
    found = levels(
        functools.partial(backward, **chosen), SCHEDULES["backward"].start(0.3, samples=20), history
    )
    expected = [0.3 if flooded_from and epoch >= flooded_from else 0.0 for epoch in range(1, 7)]
    assert found == expected


# --- adaptive --------------------------------------------------------------------------------------------

FLOODING = ScheduleState(level=0.0, highest=0.5, samples=100, descended=True)


def adapted(
    validations: Sequence[float | None], state: ScheduleState = FLOODING, **chosen: float
) -> list[float]:
    """Return the levels after these validation accuracies, in steps of 0.1 unless chosen otherwise."""
    history = [record(epoch, 1.0, one) for epoch, one in enumerate(validations, start=1)]
    return levels(functools.partial(adaptive, **{"alpha": 0.1, **chosen}), state, history)[1:]


@pytest.mark.parametrize(
    ("validations", "chosen", "expected"),
    [
        # A gain is a step up, a loss a step down; the first x' is 0, so any accuracy is a gain.
        ([0.70, 0.72, 0.75], {}, [0.1, 0.2, 0.3]),
        ([0.70, 0.72, 0.68, 0.60], {}, [0.1, 0.2, 0.1, 0.0]),
        # One sample of 100 more is a gain (also where 0.29 - 0.28 is below 0.01 in binary floats), one less
        # is no loss yet, two are.
        ([0.28, 0.29], {}, [0.1, 0.2]),
        ([0.57, 0.56], {}, [0.1, 0.1]),
        ([0.57, 0.55], {}, [0.1, 0.0]),
        # In between the reference stays: two losses of one sample are one of two.
        ([0.70, 0.69, 0.68], {}, [0.1, 0.1, 0.0]),
        ([0.70, 0.70, 0.70], {}, [0.1, 0.1, 0.1]),
        # The tolerance and the step are those that are set; without a tolerance equal is a gain.
        ([0.70, 0.74], {"tolerance": 0.05}, [0.1, 0.1]),
        ([0.70, 0.75], {"tolerance": 0.05}, [0.1, 0.2]),
        ([0.70, 0.70, 0.70], {"tolerance": 0.0}, [0.1, 0.2, 0.3]),
        ([0.70, 0.72], {"alpha": 0.2}, [0.2, 0.4]),
        # An epoch that is not validated changes nothing.
        ([0.70, None, 0.72, None, 0.60], {}, [0.1, 0.1, 0.2, 0.2, 0.1]),
        # Never above the highest level, never below 0.
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], {}, [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5]),
        ([0.9, 0.7, 0.5, 0.3], {}, [0.1, 0.0, 0.0, 0.0]),
    ],
    ids=str,
)
def test_the_adaptive_level_follows_the_validation_accuracy(validations, chosen, expected):
    """Up by alpha after a gain of the tolerance, down after more than such a loss, else as it is."""
    assert adapted(validations, **chosen) == pytest.approx(expected)


def test_the_adaptive_level_stays_below_that_of_its_ticket():
    """The highest level is the ticket's."""
    state = dataclasses.replace(FLOODING, highest=0.25)
    assert adapted([0.1, 0.2, 0.3, 0.4], state) == pytest.approx([0.1, 0.2, 0.25, 0.25])


def test_the_epoch_that_ends_the_descent_is_not_compared():
    """The level first rises after the first validated epoch that follows zero training error."""
    history = [record(1, 0.9, 0.8), record(2, 1.0, 0.8), record(3, 1.0, None), record(4, 0.9, 0.7)]
    found = levels(adaptive, SCHEDULES["adaptive"].start(0.5, samples=100), history)
    assert found == [0.0, 0.0, 0.0, 0.0, 0.015]


@repeatable
@given(history=st.lists(st.integers(0, 40), max_size=30), shrink=st.integers(1, 4))
def test_the_tolerance_is_one_validation_sample(history, shrink):
    """By default the level depends on how many samples are right, not on how many there are."""
    samples = 40 * shrink
    state = dataclasses.replace(FLOODING, samples=samples)
    found = adapted([correct / samples for correct in history], state)
    assert found == adapted([correct / 40 for correct in history], dataclasses.replace(FLOODING, samples=40))


@repeatable
@given(history=st.lists(st.none() | st.integers(0, 40), max_size=30), scale=st.integers(-3, 3))
def test_the_adaptive_level_does_not_know_the_unit_of_the_loss(history, scale):
    """A step and a highest level in another unit give the same levels in that unit."""
    validations = [None if correct is None else correct / 40 for correct in history]
    unit = 2.0**scale  # exact in binary floats
    scaled = adapted(validations, dataclasses.replace(FLOODING, highest=0.5 * unit), alpha=0.125 * unit)
    assert scaled == [unit * level for level in adapted(validations, alpha=0.125)]
