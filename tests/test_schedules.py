"""schedules: the level during one run."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from floodsearch.records import EpochRecord
from floodsearch.schedules import SCHEDULES, ScheduleState, constant

anything = st.floats(allow_nan=True, allow_infinity=True)
records = st.builds(
    EpochRecord,
    seed=st.integers(0, 9),
    epoch=st.integers(1, 1000),
    level=st.floats(0, 5),
    train_loss=anything,
    train_accuracy=st.none() | st.floats(0, 1),
    flooded=st.floats(0, 1),
    val_loss=st.none() | anything,
    val_accuracy=st.none() | st.floats(0, 1),
)


@settings(derandomize=True, deadline=None, database=None)
@given(level=st.floats(0, 100), history=st.lists(records, max_size=20))
def test_a_constant_level_stays_whatever_happens(level, history):
    """The constant schedule never changes the level, whatever the epochs came to."""
    state = ScheduleState(level=level)
    for record in history:
        state = constant(state, record)
        assert state == ScheduleState(level=level)


def test_the_constant_schedule_has_its_name():
    """A study file finds the paper's flooding as `constant`."""
    assert SCHEDULES["constant"] is constant
