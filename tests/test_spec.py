"""spec: the grid, the stored form, and what may change between two launches."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from floodsearch.catalog import known
from floodsearch.errors import StudyFileError
from floodsearch.search.tickets import ticket_count, tickets
from floodsearch.study.extend import differences
from floodsearch.study.levels import Levels
from floodsearch.study.reader import parse
from floodsearch.study.spec import Choices, Range, Spec, Training, from_json, with_chosen
from tests.conftest import TINY, merged

KNOWN = known()
repeatable = settings(derandomize=True, deadline=None, database=None)


def spec(**changes: Any) -> Spec:
    return parse(merged(TINY, changes), KNOWN)


RICH = {
    "levels": {"low": 0.1, "high": 0.35, "count": None, "step": 0.05},
    "training": {"weight_decay": {"choices": [0.0, 1e-4]}, "milestones": [3, 6], "seeds": [4, 2]},
    "search": {"sampler": "tpe", "pruner": "hyperband", "trials": 8, "metric": "val_loss"},
    "tpe": {"startup": 4},
    "hyperband": {"first": 2},
    "budget": {"hours": 0.5, "epochs": 1000},
}
"""A study with something in every table."""
SCHEDULED = {
    "levels": {"count": None},
    "training": {"schedule": "backward"},
    "search": {"sampler": "tpe", "trials": 8},
    "backward": {
        "until_accuracy": {"low": 0.5, "high": 1.0, "log": True},
        "until_epoch": {"choices": [2, 4]},
    },
}
"""A study that searches the settings of its schedule, among choices and in a range."""


# --- levels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"count": 51}, {"step": 0.01}])
def test_the_papers_grid_is_decimals_without_drift(how):
    """All 51 levels from 0 to 0.5 are the floats that one would type, 0.29 among them."""
    grid = Levels(high=0.5, **how).grid()
    assert grid == tuple(float(f"0.{hundredths:02d}") for hundredths in range(51))
    assert 0.29 in grid


@pytest.mark.parametrize(
    ("levels", "grid"),
    [
        ({"high": 0.3, "step": 0.1}, (0.0, 0.1, 0.2, 0.3)),
        ({"high": 0.35, "step": 0.1}, (0.0, 0.1, 0.2, 0.3)),
        ({"low": 0.1, "high": 0.3, "step": 0.1}, (0.0, 0.1, 0.2, 0.3)),
        ({"low": 0.05, "high": 0.3, "step": 0.1}, (0.0, 0.05, 0.15, 0.25)),
        ({"low": 0.2, "high": 0.4, "count": 3}, (0.0, 0.2, 0.3, 0.4)),
        ({"high": 1.0, "count": 7}, (0.0, 0.1667, 0.3333, 0.5, 0.6667, 0.8333, 1.0)),
        ({"high": 1.0, "count": 4}, (0.0, 0.3333, 0.6667, 1.0)),
        ({"high": 2, "count": 2}, (0.0, 2.0)),
        ({"high": 300.0, "step": 150}, (0.0, 150.0, 300.0)),
        ({"high": 1e-3, "count": 5}, (0.0, 0.00025, 0.0005, 0.00075, 0.001)),
    ],
)
def test_a_grid_holds_its_levels_and_level_zero(levels, grid):
    """A grid is ascending, keeps to its bounds, and holds level 0 even where it starts above 0."""
    assert Levels(**levels).grid() == grid


@st.composite
def count_levels(draw) -> Levels:
    low = draw(st.decimals(0, 5, places=6))
    width = draw(st.decimals("0.000001", 5, places=6))
    return Levels(low=float(low), high=float(low + width), count=draw(st.integers(2, 60)))


@repeatable
@given(count_levels())
def test_a_count_gives_that_many_evenly_spaced_levels(levels):
    """`count` levels from low to high, evenly spaced to four digits of the step, and level 0 beside them."""
    grid = levels.grid()
    assert grid is not None
    assert grid[0] == 0
    assert list(grid) == sorted(set(grid))
    assert len(grid) == levels.count + (levels.low > 0)
    step = (levels.high - levels.low) / (levels.count - 1)
    for index, level in enumerate(grid[-levels.count :]):
        assert level == pytest.approx(levels.low + index * step, abs=step / 1000)


@repeatable
@given(count_levels())
def test_a_grid_keeps_to_its_range(levels):
    """No level but 0 lies outside [low, high]: Optuna refuses a ticket above its range."""
    assert all(levels.low <= level <= levels.high for level in levels.grid() if level)


@repeatable
@given(low=st.integers(0, 300), steps=st.integers(1, 80), step=st.integers(1, 50), places=st.integers(1, 4))
def test_a_step_gives_multiples_of_it(low, steps, step, places):
    """With a step every level is low plus a multiple of it, in exact decimals."""
    unit = Decimal(1).scaleb(-places)
    low_decimal, step_decimal = low * unit, step * unit
    levels = Levels(
        low=float(low_decimal), high=float(low_decimal + steps * step_decimal), step=float(step_decimal)
    )
    expected = {float(low_decimal + index * step_decimal) for index in range(steps + 1)} | {0.0}
    assert levels.grid() == tuple(sorted(expected))


def test_levels_without_count_and_step_are_continuous():
    """Without count and step there is no grid."""
    assert Levels(high=0.5).grid() is None


@repeatable
@given(
    low=st.decimals(0, 5, places=3).map(float),
    step=st.decimals("0.001", 2, places=3).map(float),
    count=st.none() | st.integers(2, 60),
)
def test_levels_that_the_pilot_ends_can_be_looked_at_before(low, step, count):
    """With "auto" any step or count stands for levels: those of one step, or as many as there will be."""
    levels = Levels(low=low, high="auto", count=count, step=None if count else step)
    assert not list(levels.problems())
    grid = levels.stand_in().grid()
    if count:
        assert levels.size() == len(grid) == count + (low > 0)
        assert len(levels.up_to(low + 0.37).grid()) == levels.size()
    else:
        assert levels.size() is None
        assert grid == tuple(sorted({0.0, low, float(Decimal(str(low)) + Decimal(str(step)))}))


def test_a_step_that_is_no_float_beside_the_lowest_level_is_taken():
    """As floats 0.3 + 0.6 is less than 0.9, and the step seems larger than the range."""
    loaded = spec(levels={"low": 0.3, "high": "auto", "count": None, "step": 0.6})
    assert loaded.levels.stand_in().grid() == (0.0, 0.3, 0.9)


# --- tickets ---------------------------------------------------------------------------------------------

BACKWARD = {"training": {"schedule": "backward"}, "backward": {"until_epoch": {"choices": [2, 4]}}}
DECAY = {"training": {"weight_decay": {"choices": [0.0, 1e-4, 1e-3]}}}


@pytest.mark.parametrize(
    "levels", [{}, {"low": 0.1}, {"high": "auto"}, {"count": None, "step": 0.2}], ids=str
)
@pytest.mark.parametrize("beside", [{}, BACKWARD, DECAY, merged(BACKWARD, DECAY)], ids=str)
def test_tickets_are_as_many_as_their_list_is_long(levels, beside):
    """Where each level and choice is a ticket, a sampler has one for each of them if no number is given."""
    grid = spec(**beside, levels=levels)
    sampled = spec(**beside, levels=levels, search={"sampler": "random"})
    for one in (grid, sampled):
        assert ticket_count(one) == len(tickets(one.stand_in()))
    assert sampled.search.trials == ticket_count(sampled) == ticket_count(grid)


def test_tickets_are_not_counted_before_the_pilot_has_ended_their_levels():
    """A step gives as many levels as there are below the highest one, which the pilot finds."""
    assert ticket_count(spec(levels={"high": "auto", "count": None, "step": 0.1})) is None
    assert ticket_count(spec(levels={"high": "auto", "count": None}, search={"sampler": "random"})) == 51


def test_a_ticket_has_one_value_of_each_setting():
    """What is searched has the ticket's value, or is left out; the rest stays as it is."""
    settings = {"a": 1, "b": Choices(choices=(1, 2)), "c": Range(low=0.0, high=1.0), "d": None}
    assert with_chosen(settings, {"level": 0.1, "b": 2, "c": 0.5, "a": 3}) == {
        "a": 1,
        "d": None,
        "b": 2,
        "c": 0.5,
    }
    assert with_chosen(settings, {}) == {"a": 1, "d": None}


# --- the stored form -------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, RICH, SCHEDULED], ids=["tiny", "rich", "scheduled"])
def test_a_spec_comes_back_from_json_as_it_was(changes):
    """A stored spec equals the one that was written, types included."""
    before = spec(**changes)
    after = from_json(before.model_dump_json(), "stored")
    assert after == before
    assert repr(after) == repr(before)
    assert after.fingerprint() == before.fingerprint()


def test_a_fingerprint_is_stable():
    """Equal specs have equal fingerprints of 16 hex digits, in whatever order the file was written."""
    backwards = dict(reversed(list(merged(TINY, RICH).items())))
    assert parse(backwards, KNOWN).fingerprint() == spec(**RICH).fingerprint()
    assert len(spec().fingerprint()) == 16
    int(spec().fingerprint(), 16)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"task": "sinusoid"},
        {"options": {"label_noise": 0.2}},
        {"levels": {"high": 0.4}},
        {"training": {"epochs": 11}},
        {"training": {"seeds": 3}},
        {"training": {"learning_rate": 0.01}},
        {"search": {"pruner": "median"}},
        {"search": {"seed": 1}},
        {"budget": {"hours": 1.0}},
    ],
    ids=str,
)
def test_a_changed_spec_has_another_fingerprint(changes):
    """Every change of a setting changes the fingerprint."""
    assert spec(**changes).fingerprint() != spec().fingerprint()


def test_a_spec_cannot_be_changed():
    """A spec is a value: no field can be set on it."""
    with pytest.raises(ValueError, match="frozen"):
        spec().name = "other"


@repeatable
@given(
    st.text(max_size=40)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ).map(json.dumps)
)
def test_damaged_json_is_a_study_file_error(text):
    """Text that is no spec raises StudyFileError with at least one problem, nothing else."""
    with pytest.raises(StudyFileError) as error:
        from_json(text, "study 'x' in the storage")
    assert error.value.problems
    assert str(error.value).startswith("study 'x' in the storage has ")


def paths(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [prefix] * bool(prefix) + [path for key, value in inner for path in paths(value, (*prefix, key))]


WHOLE = json.loads(
    spec(**{**SCHEDULED, **RICH, "training": RICH["training"] | SCHEDULED["training"]}).model_dump_json()
)


@repeatable
@given(
    path=st.sampled_from(paths(WHOLE)),
    value=st.sampled_from(
        [None, True, -1, 0, 10**30, 1.5, float("nan"), float("inf"), "", "x", [], [[]], {}, {"a": 1}]
    ),
)
def test_a_mutated_stored_spec_loads_or_is_a_study_file_error(path, value):
    """A stored spec with any one value replaced either loads or raises StudyFileError."""
    tree = json.loads(json.dumps(WHOLE))
    holder = tree
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    try:
        loaded = from_json(json.dumps(tree), "stored")
    except StudyFileError:
        return
    assert from_json(loaded.model_dump_json(), "again") == loaded


# --- growing ---------------------------------------------------------------------------------------------

SAMPLED = {"levels": {"count": None}, "search": {"sampler": "random", "trials": 8}}


@pytest.mark.parametrize(
    "grown",
    [
        {},
        {"training": {"epochs": 20}},
        {"training": {"seeds": 5}},
        {"training": {"seeds": [0, 1, 77]}},
        {"search": {"trials": 20}},
        {"budget": {"hours": 2.0}},
        {"budget": {"epochs": 10}},
        {"training": {"keep": "last"}},
        {"training": {"epochs": 11, "seeds": 3}, "search": {"trials": 9}, "budget": {"hours": 0.1}},
    ],
    ids=str,
)
def test_a_study_may_grow(grown):
    """More trials, epochs, seeds after those there are, any budget and kept weights are no differences."""
    assert differences(spec(**SAMPLED), spec(**merged(SAMPLED, grown))) == []


def test_any_change_of_the_budget_is_allowed():
    """A budget may also shrink or go away."""
    rich = spec(**RICH)
    assert differences(rich, spec(**merged(RICH, {"budget": {"hours": 0.1, "epochs": None}}))) == []
    assert differences(rich, spec(**merged(RICH, {"budget": None}))) == []


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"training": {"epochs": 6}}, "training.epochs: 10 before, 6 now; it can only grow"),
        ({"search": {"trials": 4}}, "search.trials: 8 before, 4 now; it can only grow"),
        ({"training": {"seeds": 1}}, "training.seeds: [0, 1] before, [0] now"),
        ({"training": {"seeds": [1, 0, 2]}}, "training.seeds: [0, 1] before, [1, 0, 2] now"),
        ({"training": {"validate_every": 1}}, "training.validate_every: 2 before, 1 now"),
        ({"training": {"batch_size": 50}}, "training.recipe.batch_size: 100 before, 50 now"),
        ({"levels": {"high": 0.4}}, "levels.high: 0.5 before, 0.4 now"),
        ({"options": {"label_noise": 0.2}}, "options.label_noise: 0.1 before, 0.2 now"),
        ({"search": {"seed": 7}}, "search.seed: 0 before, 7 now"),
        ({"search": {"pruner": "median"}}, 'search.pruner: "none" before, "median" now'),
    ],
    ids=str,
)
def test_any_other_change_is_a_difference(changed, line):
    """What shrinks or changes is listed with both values."""
    assert line in differences(spec(**SAMPLED), spec(**merged(SAMPLED, changed)))


def test_all_differences_are_listed():
    """Several changes give one line each; what was not set before is called so."""
    found = differences(
        spec(),
        spec(levels={"high": 0.4, "count": None, "step": 0.1}, task="sinusoid", options={"label_noise": 0.1}),
    )
    assert "levels.high: 0.5 before, 0.4 now" in found
    assert "levels.count: 3 before, not set now" in found
    assert "levels.step: not set before, 0.1 now" in found
    assert 'task: "two_gaussians" before, "sinusoid" now' in found


def test_a_choice_beside_the_level_that_changed_is_a_difference():
    """Another list of choices is another search."""
    choices = lambda *values: spec(training={"weight_decay": {"choices": list(values)}})  # noqa: E731
    (line,) = differences(choices(0.0, 1e-4), choices(0.0, 1e-3))
    assert line == "training.recipe.weight_decay.choices: [0.0, 0.0001] before, [0.0, 0.001] now"


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"backward": {"until_accuracy": {"high": 0.9}}},
         "settings.backward.until_accuracy.high: 1.0 before, 0.9 now"),
        ({"backward": {"until_accuracy": 0.9}}, "settings.backward.until_accuracy: not set before, 0.9 now"),
        ({"training": {"schedule": "constant"}, "backward": None},
         'training.schedule: "backward" before, "constant" now'),
    ],
    ids=str,
)  # fmt: skip
def test_another_schedule_or_search_of_it_is_a_difference(changed, line):
    """Another schedule, and another value or range of its settings, is another search."""
    assert line in differences(spec(**SCHEDULED), spec(**merged(SCHEDULED, changed)))


# --- report epochs ---------------------------------------------------------------------------------------


@repeatable
@given(epochs=st.integers(1, 2000), validate_every=st.integers(1, 60))
def test_a_trial_reports_at_about_25_validated_epochs(epochs, validate_every):
    """They ascend, are validated epochs, end with the last epoch, and are 26 at the most."""
    assume(validate_every <= epochs)
    reported = Training(epochs=epochs, validate_every=validate_every).report_epochs()
    validated = {*range(validate_every, epochs + 1, validate_every), epochs}
    assert list(reported) == sorted(set(reported))
    assert reported[-1] == epochs
    assert set(reported) <= validated
    assert min(len(validated), 13) <= len(reported) <= 26  # the largest stride skips every second of 26


@pytest.mark.parametrize(
    ("epochs", "validate_every", "expected"), [(500, 5, 25), (500, 1, 25), (100, 5, 20), (500, 20, 25)]
)
def test_the_usual_lengths_give_25_reports(epochs, validate_every, expected):
    """The paper's 500 epochs report 25 times, however often they are validated; shorter runs every time."""
    assert len(Training(epochs=epochs, validate_every=validate_every).report_epochs()) == expected


def test_every_validation_is_reported_in_a_short_run():
    """A run with few validations reports them all."""
    assert Training(epochs=11, validate_every=2).report_epochs() == (2, 4, 6, 8, 10, 11)
