"""A default never makes a file wrong, and its numbers are the decimals that somebody typed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from floodsearch import queue
from floodsearch.answer.best import count
from floodsearch.catalog import known
from floodsearch.cost.forecast import plan
from floodsearch.errors import StudyChangedError, StudyFileError
from floodsearch.queries import answer
from floodsearch.search.tickets import tickets
from floodsearch.storage.studies import put_study, read_trials
from floodsearch.study.reader import parse
from floodsearch.study.spec import Levels, Training, differences
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work
from tests.conftest import merged

KNOWN = known()
repeatable = settings(derandomize=True, deadline=None, database=None)

LEAST: Mapping[str, Any] = {"name": "least", "task": "two_gaussians", "levels": {"high": 0.5, "count": 51}}

EXTREMES: Mapping[str, tuple[Any, ...]] = {
    "levels.low": (0, 1e-300, 0.4999999999, 0.5, 1e50, 1e300),
    "levels.high": (5e-324, 1e-9, 1e6, 1e308, "auto"),
    "levels.count": (1, 2, 3, 10_000, 10_001),
    "training.epochs": (0, 1, 2, 3, 4, 5, 6, 1_000_000),
    "training.seeds": (0, 1, 1_000, 1_001, [0, 2**31 - 1]),
    "training.validate_every": (0, 1, 500, 501, 2**63),
    "training.schedule": ("constant", "backward"),
    "training.engine": ("auto", "loop", "stack"),
    "training.keep": ("none", "last", "best"),
    "training.batch_size": (0, 1, 101, 2**40),
    "training.optimizer": ("adam", "adamw", "sgd"),
    "training.learning_rate": (1e-300, 1e300),
    "training.momentum": (0.0, 0.999999),
    "training.weight_decay": (0.0, 1e300),
    "training.milestones": ([], [1], [10**6]),
    "training.gamma": (1e-300, 1e300),
    "arithmetic.precision": ("float32", "tf32", "bf16"),
    "arithmetic.channels_last": (True, False),
    "arithmetic.compile": ("off", "default", "max-autotune"),
    "arithmetic.deterministic": (True, False),
    "search.sampler": ("grid", "random", "tpe", "gp", "heuristic"),
    "search.pruner": ("halving", "median", "hyperband", "none"),
    "search.metric": ("val_accuracy", "val_loss"),
    "search.window": (1e-300, 1),
    "search.seed": (0, 2**63),
    "budget.epochs": (1, 2**62),
    "budget.hours": (1e-300, 1e300),
    "options.label_noise": (0, 1),
    "options.dimensions": (1, 1_000),
    "options.width": (1,),
    "options.depth": (1,),
    "options.batch_norm": (True,),
    "halving.levels": (1, 10**6),
    "halving.first": (1e-300, 0.9999999),
    "halving.growth": (1.0000001, 1e300),
    "halving.reduction": (1.0000001, 1e300),
    "halving.ties": (0, 1e300),
    "halving.brackets": (1, 10**6),
}
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "auto": {"levels": {"high": "auto"}},
    "continuous": {"levels": {"count": None}, "search": {"sampler": "tpe"}},
    "tpe": {"search": {"sampler": "tpe"}},
    "hyperband": {"search": {"pruner": "hyperband"}},
    "median": {"search": {"pruner": "median"}},
    "backward": {"training": {"schedule": "backward"}},
    "val_loss": {"search": {"metric": "val_loss"}},
}
"""Files beside the least one, each with the default of one choice replaced."""
ONLY_THERE: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "hyperband": {"hyperband.first": (1, 500, 501), "hyperband.reduction": (2, 10**6)},
    "median": {"median.startup": (0, 10**6), "median.warmup": (0, 10**6)},
    "backward": {"backward.until_accuracy": (1e-300, 1), "backward.until_epoch": (1, 500, 10**6)},
    "tpe": {"tpe.startup": (0, 10**6), "search.trials": (1, 2, 51, 52)},
    "continuous": {"search.trials": (1, 2, 10_000), "tpe.startup": (0, 10**6)},
}


def single_keys() -> Iterator[Any]:
    """Yield a file's name, a key of it and an extreme value, for all of them."""
    for name in ("least", *OTHERS):
        for key, values in {**EXTREMES, **ONLY_THERE.get(name, {})}.items():
            table = key.partition(".")[0]
            given_there = OTHERS.get(name, {}).get(table, {})
            if key.partition(".")[2] in given_there or (
                table == "halving" and name in ("hyperband", "median")
            ):
                continue
            if (name, key) == ("continuous", "levels.count"):
                continue
            yield pytest.param(name, key, values, id=f"{name}-{key}")


@pytest.mark.parametrize(("name", "key", "values"), [*single_keys()])
def test_a_key_that_stands_alone_is_right_or_the_one_that_is_wrong(name, key, values):
    """No default is complained about where somebody has set one other thing, to whatever extreme."""
    table, _, field = key.partition(".")
    for value in values:
        content = merged(merged(LEAST, OTHERS.get(name, {})), {table: {field: value}})
        try:
            spec, wrong = parse(content, KNOWN), set()
        except StudyFileError as error:
            spec, wrong = None, {problem.key for problem in error.problems}
        assert wrong <= {key, table}, value
        if spec is None:
            continue
        # What is derived from it holds, too.
        assert len(spec.training.report_epochs()) <= 26
        assert spec.training.report_epochs()[-1] == spec.training.epochs
        assert tickets(spec.stand_in())[0] == {"level": 0.0}
        assert plan(spec)


@pytest.mark.parametrize("epochs", range(1, 12))
def test_a_short_run_is_validated_at_least_once(epochs):
    """Every five epochs, or after all of fewer, in a file as in Python; a loop of one's own each epoch."""
    content = merged(LEAST, {"training": {"epochs": epochs}})
    assert parse(content, KNOWN).training.validate_every == min(5, epochs)
    assert Training(epochs=epochs).validate_every == min(5, epochs)
    assert not list(Training(epochs=epochs).problems())


@pytest.mark.parametrize("given_values", [{}, {"validate_every": 2}], ids=["default", "given"])
def test_a_study_of_few_epochs_grows(given_values):
    """The default follows the epochs, and is no change; a number that somebody gave stays."""

    def spec(epochs: int, **training: int) -> Any:
        return parse(merged(LEAST, {"training": {"epochs": epochs, **training}}), KNOWN)

    assert differences(spec(2, **given_values), spec(20, **given_values)) == []
    assert differences(spec(2), spec(2, validate_every=1)) == [
        "training.validate_every: 2 before, 1 now",
    ]
    assert differences(spec(20), spec(20, validate_every=2)) == ["training.validate_every: 5 before, 2 now"]


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("pruner", ["halving", "median", "hyperband", "none"])
def test_a_search_of_the_least_is_trained(database, make_spec, pruner):
    """One epoch, one seed, one level above 0 and batches of one; then two epochs, under the same name."""
    least = {"levels": {"high": 0.9, "count": 2}, "search": {"pruner": pruner}}
    for epochs in (1, 2):
        training = {"epochs": epochs, "seeds": 1, "validate_every": None, "batch_size": 10}
        study = put_study(database, make_spec(**least, training=training))
        queue.fill(study)
        assert (
            work(study, WorkerSettings(device="cpu", threads=1), LeaveRequest()) == "all tickets are finished"
        )
        assert count(read_trials(study)).complete == 2
        assert answer(study).tried == (0.9,)
    with pytest.raises(StudyChangedError):
        put_study(database, make_spec(**least, training={"epochs": 2, "seeds": 1, "validate_every": 1}))


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_a_shorter_end_is_read_while_a_study_grows(database, make_spec):
    """The validation of epoch 3 stays that of the shorter runs, where the longer ones have one at 5."""

    def spec(epochs: int, budget: int) -> Any:
        training = {"epochs": epochs, "seeds": 2, "validate_every": None}
        return make_spec(levels={"high": 0.9, "count": 2}, training=training, budget={"epochs": budget})

    lengths = []
    for epochs, budget in ((3, 100), (7, 13), (7, 26), (7, 100)):
        study = put_study(database, spec(epochs, budget))
        queue.fill(study)
        work(study, WorkerSettings(device="cpu", threads=1), LeaveRequest())
        best = answer(study)
        lengths.append((best.trials.complete, best.tried, best.seeds))
    assert lengths == [(n, (0.9,), 2) for n in (2, 0, 1, 2)]


# --- decimals --------------------------------------------------------------------------------------------

decimals = st.decimals("0.0001", 5, places=4)


@repeatable
@given(st.decimals(0, 5, places=4), decimals, st.integers(1, 60))
def test_a_step_that_divides_the_range_ends_at_its_high(low, step, steps):
    """Whatever binary makes of the difference: low, low + step, ..., high, and level 0."""
    high = low + steps * step
    content = merged(
        LEAST,
        {"levels": {"low": float(low), "high": float(high), "step": float(step), "count": None}},
    )
    grid = parse(content, KNOWN).levels.grid()
    assert grid is not None
    assert set(grid) == {0.0, *(float(low + index * step) for index in range(steps + 1))}
    assert grid[-1] == float(high)


@repeatable
@given(st.decimals(0, 5, places=4), decimals, decimals)
def test_a_step_is_refused_only_where_it_is_wider_than_the_range(low, width, step):
    """A step as wide as the range is a grid of two; which is wider is decided in decimals."""
    levels = Levels(low=float(low), high=float(low + width), step=float(step))
    problems = [problem.key for problem in levels.problems()]
    if width / step >= 10_000:
        return
    assert problems == (["levels.step"] if step > width else [])
    if step <= width:
        last = low + (width // step) * step
        assert levels.grid()[-1] == float(last)


@repeatable
@given(st.decimals(0, 5, places=6), st.decimals("0.000001", 5, places=6), st.integers(2, 60))
def test_a_count_ends_at_its_high(low, width, number):
    """Both ends are the numbers of the file, whatever the levels between them are rounded to."""
    grid = Levels(low=float(low), high=float(low + width), count=number).grid()
    assert grid is not None
    assert (grid[-number], grid[-1]) == (float(low), float(low + width))
    assert len(set(grid)) == number + (low > 0)


@pytest.mark.parametrize(
    ("levels", "grid"),
    [
        ({"low": 0.1, "high": 0.3, "step": 0.2}, (0.0, 0.1, 0.3)),
        ({"low": 0.1, "high": 0.7, "step": 0.2}, (0.0, 0.1, 0.3, 0.5, 0.7)),
        ({"high": 0.3, "step": 0.3}, (0.0, 0.3)),
        ({"low": 0.123456, "high": 0.37, "step": 0.123456}, (0.0, 0.123456, 0.246912)),
        ({"low": 0.123456, "high": 0.370368, "step": 0.123456}, (0.0, 0.123456, 0.246912, 0.370368)),
    ],
)
def test_decimals_are_those_of_the_file(levels, grid):
    content = copy.deepcopy({**LEAST, "levels": levels})
    assert parse(content, KNOWN).levels.grid() == grid
