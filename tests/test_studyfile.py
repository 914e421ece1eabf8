"""studyfile: every bad input is refused with its key, its value and its fix, and nothing else happens."""

from __future__ import annotations

import copy
import importlib
import itertools
import math
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from floodsearch.catalog import known
from floodsearch.errors import StudyFileError
from floodsearch.search.pruners import PRUNERS
from floodsearch.search.samplers import SAMPLERS
from floodsearch.study.reader import parse, read
from floodsearch.study.spec import Choices, Range, Spec
from floodsearch.tasks import TASKS
from tests.conftest import TINY, merged

KNOWN = known()
STUDIES = sorted((Path(__file__).parents[1] / "studies").glob("*.toml"))
MODULE_NUMBERS = itertools.count()
repeatable = settings(derandomize=True, deadline=None, database=None)

SAMPLED = {"levels": {"count": None}, "search": {"sampler": "random", "trials": 8}}
ADAPTIVE = {"levels": None, "training": {"schedule": "adaptive"}}


def spec(**changes: Any) -> Spec:
    return parse(merged(TINY, changes), KNOWN)


def problems(**changes: Any) -> list[tuple[str, str]]:
    """Return the problems of the tiny study with some tables changed."""
    with pytest.raises(StudyFileError) as error:
        spec(**changes)
    assert all(f"{key}: {message}" in str(error.value) for key, message in error.value.problems)
    return [tuple(problem) for problem in error.value.problems]


def assert_refused(changes: dict[str, Any], key: str, *fragments: str) -> None:
    """Assert that exactly one problem is said, of this key and with these words."""
    found = problems(**changes)
    assert [where for where, _ in found] == [key], found
    for fragment in fragments:
        assert fragment in found[0][1]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write an importable module of the user's own and return its name."""

    def write(source: str) -> str:
        name = f"users_module_{next(MODULE_NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        return name

    return write


LOOP = """
def train(run):
    pass

number = 3
"""
OWN = {"task": None, "options": {"label_noise": None, "width": None, "depth": None}}


# --- what is accepted ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_of_the_repository_loads(path):
    """Every file in studies/ is a valid study, named after its file."""
    assert read(path, KNOWN).name == path.stem.replace("_", "-")


def test_defaults_are_filled_in():
    """A file with only the necessary gives a complete spec, every setting with its default."""
    least = parse({"name": "least", "task": "two_gaussians", "levels": {"high": 0.5, "count": 51}}, KNOWN)
    assert least.options == {
        "label_noise": 0.1,
        "dimensions": 10,
        "width": 500,
        "depth": 5,
        "batch_norm": False,
    }
    assert least.training.recipe == {
        "batch_size": 100,
        "optimizer": "adam",
        "learning_rate": 0.001,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "milestones": (),
        "gamma": 0.1,
    }
    assert (least.training.epochs, least.training.seeds, least.training.validate_every) == (
        500,
        (0, 1, 2, 3, 4),
        5,
    )
    assert (least.search.sampler, least.search.metric, least.search.direction) == (
        "grid",
        "val_accuracy",
        "maximize",
    )
    assert (least.search.window, least.search.trials, least.levels.low) == (0.2, None, 0.0)


def test_the_recipe_of_the_task_is_the_default():
    """Recipe fields that the file leaves out are those of the named task."""
    digits = spec(task="digits", options={"dimensions": None})
    assert digits.training.recipe["optimizer"] == "sgd"
    assert digits.training.recipe["momentum"] == 0.9


@pytest.mark.parametrize(
    ("changes", "trials"),
    [
        ({"levels": {"count": None}}, 51),
        ({"levels": {"count": 7}}, 7),
        ({"levels": {"low": 0.1, "count": 7}}, 8),
        ({"levels": {"count": 200}}, 51),
    ],
    ids=str,
)
def test_a_sampled_search_has_a_number_of_trials(changes, trials):
    """Without `trials` a sampled search has 51, or as many as there are levels."""
    assert spec(**{"search": {"sampler": "random"}, **changes}).search.trials == trials


def test_val_loss_is_to_minimize():
    """The direction follows from the metric."""
    assert spec(search={"metric": "val_loss"}).search.direction == "minimize"


def test_settings_of_the_chosen_sampler_and_pruner_are_kept():
    """The tables of the chosen names are stored with their defaults, but for those that are None."""
    chosen = merged(SAMPLED, {"search": {"sampler": "tpe", "pruner": "hyperband"}, "tpe": {"startup": 3}})
    assert spec(**chosen).settings == {"tpe": {"startup": 3}, "hyperband": {"reduction": 3}}


def test_the_settings_of_the_schedule_are_kept():
    """The table of the chosen schedule is stored with its defaults, but for those that are None."""
    changes = {"training": {"schedule": "backward"}, "backward": {"until_epoch": 4}}
    assert spec(**changes).settings == {"backward": {"until_accuracy": 1.0, "until_epoch": 4}}
    assert spec(training={"schedule": "backward"}).settings == {"backward": {"until_accuracy": 1.0}}


@pytest.mark.parametrize(("levels", "high"), [(None, 0.5), ({"high": None, "count": None}, 0.5),
                                              ({"high": 0.3, "count": None}, 0.3)])  # fmt: skip
def test_an_adaptive_study_has_one_level_beside_zero(levels, high):
    """The adaptive schedule finds the level in each run: [levels] is left out, or holds the highest one."""
    adaptive = spec(levels=levels, training={"schedule": "adaptive"})
    assert adaptive.levels.grid() == (0.0, high)
    assert adaptive.settings == {"adaptive": {"until_accuracy": 1.0, "alpha": 0.015}}


def test_settings_of_the_schedule_can_be_searched():
    """A setting of the schedule is searched among choices, or in a range by samplers that propose."""
    alpha, accuracy = {"low": 0.005, "high": 0.03, "log": True}, {"choices": [0.9, 1.0]}
    searched = {"search": {"sampler": "tpe"}, "adaptive": {"alpha": alpha, "until_accuracy": accuracy}}
    loaded = spec(**merged(ADAPTIVE, searched))
    assert loaded.searched_settings == {
        "alpha": Range(low=0.005, high=0.03, log=True),
        "until_accuracy": Choices(choices=(0.9, 1.0)),
    }
    assert loaded.search.trials == 51


@pytest.mark.parametrize(
    ("changes", "trials"),
    [
        # Level 0 counts once, whatever is searched of the schedule: 1 + 2 x 2, 2 + 2 x 2 x 2, 1 + 1 x 3.
        ({"training": {"schedule": "backward"}, "backward": {"until_epoch": {"choices": [2, 4]}}}, 5),
        ({"training": {"schedule": "backward", "weight_decay": {"choices": [0.0, 0.1]}},
          "backward": {"until_epoch": {"choices": [2, 4]}}}, 10),
        (merged(ADAPTIVE, {"adaptive": {"alpha": {"choices": [0.01, 0.02, 0.03]}}}), 4),
    ],
    ids=str,
)  # fmt: skip
def test_a_search_of_choices_has_as_many_trials_as_there_are_tickets(changes, trials):
    """Where all that is searched are levels of a grid and choices, a sampler has a trial for each of them."""
    assert spec(**{"search": {"sampler": "random"}, **changes}).search.trials == trials


def test_seeds_are_a_count_or_a_list():
    """A count of seeds means 0, 1, ...; a list is taken as it is."""
    assert spec(training={"seeds": 3}).training.seeds == (0, 1, 2)
    assert spec(training={"seeds": [7, 2]}).training.seeds == (7, 2)


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key", "fragments"),
    [
        ({"lvels": {}}, "lvels", ("unknown key", "did you mean 'levels'?")),
        ({"zzz": 1}, "zzz", ("unknown key", "valid: ", "options", "levels")),
        ({"levels": {"hihg": 1.0}}, "levels.hihg", ("unknown key", "did you mean 'high'?")),
        ({"training": {"epoch": 3}}, "training.epoch", ("unknown key", "did you mean 'epochs'?")),
        ({"training": {"learning_rat": 3}}, "training.learning_rat", ("did you mean 'learning_rate'?",)),
        ({"training": {"recipe": {}}}, "training.recipe", ("unknown key",)),
        ({"search": {"smpler": "grid"}}, "search.smpler", ("unknown key", "did you mean 'sampler'?")),
        ({"budget": {"hour": 1.0}}, "budget.hour", ("unknown key", "did you mean 'hours'?")),
        (
            {"options": {"label_nois": 0.1}},
            "options.label_nois",
            ("unknown key", "did you mean 'label_noise'?"),
        ),
        ({"options": {"qqq": 0.1}}, "options.qqq", ("unknown key", "valid: ", "label_noise", "width")),
        (
            merged(SAMPLED, {"search": {"sampler": "tpe"}, "tpe": {"start": 1}}),
            "tpe.start",
            ("unknown key", "did you mean 'startup'?"),
        ),
        (
            {"training": {"weight_decay": {"choices": [0.0], "choice": 1}}},
            "training.weight_decay.choice",
            ("unknown key", "did you mean 'choices'?"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unknown_key_is_refused_at_each_level(changes, key, fragments):
    """An unknown key is named with its table, the closest valid one, and all valid ones."""
    assert_refused(changes, key, *fragments, "valid: ")


@pytest.mark.parametrize(
    ("changes", "key", "value", "valid"),
    [
        ({"task": "two_gausians"}, "task", "two_gausians", [*TASKS, "package.module:name"]),
        ({"search": {"sampler": "gird"}}, "search.sampler", "gird", SAMPLERS),
        ({"search": {"pruner": "medain"}}, "search.pruner", "medain", PRUNERS),
        ({"training": {"schedule": "constnt"}}, "training.schedule", "constnt", ["constant"]),
        ({"search": {"metric": "val_acuracy"}}, "search.metric", "val_acuracy", ["val_accuracy", "val_loss"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unknown_name_is_refused_with_the_valid_ones(changes, key, value, valid):
    """An unknown name of any table is refused with the closest valid one and all valid ones."""
    assert_refused(changes, key, repr(value), "is not known", "did you mean", *valid)


@pytest.mark.parametrize(
    ("changes", "key", "fragments"),
    [
        # The whole.
        ({"name": None}, "name", ("missing", "my-study")),
        ({"name": 3}, "name", ("3", "string")),
        ({"name": "My Study"}, "name", ("'My Study'", "a-z, 0-9 and -")),
        ({"name": "a/../b"}, "name", ("'a/../b'", "a-z, 0-9 and -")),
        ({"name": "two_gaussians"}, "name", ("'two_gaussians'", "a-z, 0-9 and -")),
        ({"name": ""}, "name", ("''",)),
        ({"name": "line\n"}, "name", ("a-z, 0-9 and -",)),
        ({"name": "x" * 101}, "name", ("100",)),
        ({"task": None, "options": None}, "task", ("missing", "two_gaussians")),
        ({"task": 3, "options": None}, "task", ("3", "string")),
        ({"options": 3}, "options", ("3 is not a table", "[options]")),
        ({"levels": 3}, "levels", ("3 is not a table", "[levels]")),
        ({"training": "x"}, "training", ("'x' is not a table", "[training]")),
        ({"search": [1]}, "search", ("[1] is not a table", "[search]")),
        ({"budget": 1.5}, "budget", ("1.5 is not a table", "[budget]")),
        # Levels.
        ({"levels": None}, "levels.high", ("missing", "0.5")),
        ({"levels": {"high": None}}, "levels.high", ("missing", "0.5")),
        ({"levels": {"high": "0.5"}}, "levels.high", ("'0.5'", "number")),
        ({"levels": {"high": True}}, "levels.high", ("True", "number")),
        ({"levels": {"high": 0.0}}, "levels.high", ("0.0", "greater than 0")),
        ({"levels": {"high": -1.0}}, "levels.high", ("-1.0", "greater than 0")),
        ({"levels": {"high": math.nan}}, "levels.high", ("nan", "finite")),
        ({"levels": {"high": math.inf}}, "levels.high", ("inf", "finite")),
        ({"levels": {"low": -0.1}}, "levels.low", ("-0.1", "greater than or equal to 0")),
        ({"levels": {"low": 0.6}}, "levels.low", ("0.6 is not below levels.high = 0.5",)),
        ({"levels": {"low": 0.5}}, "levels.low", ("0.5 is not below levels.high = 0.5",)),
        ({"levels": {"count": 1}}, "levels.count", ("1", "greater than or equal to 2")),
        ({"levels": {"count": 2.5}}, "levels.count", ("2.5", "integer")),
        ({"levels": {"step": 0.1}}, "levels.step", ("together with levels.count", "keep one")),
        ({"levels": {"count": None, "step": -0.1}}, "levels.step", ("-0.1", "greater than 0")),
        ({"levels": {"count": None, "step": 0.0}}, "levels.step", ("0.0", "greater than 0")),
        ({"levels": {"count": None, "step": 0.6}}, "levels.step", ("0.6 is larger than the range, 0.5",)),
        ({"levels": {"count": None}}, "levels.count", ("missing", "levels.count or levels.step")),
        # Training.
        ({"training": {"epochs": 0}}, "training.epochs", ("0", "greater than or equal to 1")),
        ({"training": {"epochs": 2.0}}, "training.epochs", ("2.0", "integer")),
        ({"training": {"epochs": True}}, "training.epochs", ("True", "integer")),
        ({"training": {"seeds": 0}}, "training.seeds", ("0 is not above 0", "1 or more")),
        ({"training": {"seeds": -3}}, "training.seeds", ("-3 is not above 0", "1 or more")),
        ({"training": {"seeds": []}}, "training.seeds", ("at least 1",)),
        ({"training": {"seeds": [1, 2, 1]}}, "training.seeds", ("[1, 2, 1] holds a seed twice",)),
        ({"training": {"seeds": [0, -1]}}, "training.seeds", ("-1 is negative", "0 or above")),
        ({"training": {"seeds": "3"}}, "training.seeds", ("'3'",)),
        ({"training": {"seeds": True}}, "training.seeds", ("True",)),
        ({"training": {"seeds": [0, 1.5]}}, "training.seeds.1", ("1.5", "integer")),
        ({"training": {"validate_every": 0}}, "training.validate_every", ("0", "greater than or equal to 1")),
        ({"training": {"validate_every": 11}}, "training.validate_every", ("11 is more than the 10 epochs",)),
        # Search.
        ({"search": {"window": 0.0}}, "search.window", ("0.0", "greater than 0")),
        ({"search": {"window": 1.5}}, "search.window", ("1.5", "less than or equal to 1")),
        ({"search": {"seed": -1}}, "search.seed", ("-1", "greater than or equal to 0")),
        ({"search": {"direction": "minimize"}}, "search.direction", ("'minimize'", "maximize", "remove it")),
        ({"search": {"trials": 3}}, "search.trials", ("3", "this grid has 3 tickets", "remove it")),
        ({"search": {"sampler": "tpe", "trials": 4}}, "search.trials", ("4 is more than the 3 levels",)),
        (
            {"search": {"sampler": "tpe", "trials": 1}, "levels": {"count": None}},
            "search.trials",
            ("1", "greater than or equal to 2"),
        ),
        (
            merged(SAMPLED, {"search": {"trials": 2}, "training": {"weight_decay": {"choices": [0.0, 0.1]}}}),
            "search.trials",
            ("2 leaves nothing beside the 2 runs at level 0",),
        ),
        # Budget.
        (
            {"arithmetic": {"precision": "fp8"}},
            "arithmetic.precision",
            ("fp8", "'float32', 'tf32' or 'bf16'"),
        ),
        ({"arithmetic": {"compile": True}}, "arithmetic.compile", ("True", "'off', 'default'")),
        (
            {"arithmetic": {"compile": "default"}, "training": {"engine": "stack"}},
            "arithmetic.compile",
            ("'default' is for training.engine = 'loop'",),
        ),
        (
            {"arithmetic": {"channels_last": True}, "training": {"engine": "stack"}},
            "arithmetic.channels_last",
            ("is for training.engine = 'loop'",),
        ),
        ({"budget": {"epochs": 0}}, "budget.epochs", ("0", "greater than or equal to 1")),
        ({"budget": {"hours": -1.0}}, "budget.hours", ("-1.0", "greater than 0")),
        ({"budget": {"hours": math.nan}}, "budget.hours", ("nan", "finite")),
        # Options of the task.
        ({"options": {"label_noise": 1.5}}, "options", ("label_noise", "[0, 1]", "1.5")),
        ({"options": {"label_noise": "much"}}, "options.label_noise", ("'much'", "number")),
        ({"options": {"label_noise": math.nan}}, "options.label_noise", ("nan", "finite")),
        ({"options": {"width": 0}}, "options", ("width", "at least 1", "0")),
        ({"options": {"width": 8.5}}, "options.width", ("8.5", "integer")),
        ({"options": {"batch_norm": 1}}, "options.batch_norm", ("1", "boolean")),
        ({"options": {"dimensions": 0}}, "options", ("dimensions must be at least 1, but is 0",)),
        ({"options": {"dimensions": {"choices": [8, 16]}}}, "options.dimensions", ("choices", "integer")),
        # Recipe.
        (
            {"training": {"batch_size": 0}},
            "training.batch_size",
            ("batch_size must be at least 1, but is 0",),
        ),
        ({"training": {"batch_size": "all"}}, "training.batch_size", ("'all'", "integer")),
        ({"training": {"optimizer": "rmsprop"}}, "training.optimizer", ("'rmsprop'", "'adam'", "'sgd'")),
        ({"training": {"learning_rate": 0.0}}, "training.learning_rate", ("must be above 0, but is 0.0",)),
        ({"training": {"learning_rate": math.inf}}, "training.learning_rate", ("inf", "finite")),
        ({"training": {"momentum": 1.0}}, "training.momentum", ("in [0, 1), but is 1.0",)),
        ({"training": {"weight_decay": -0.1}}, "training.weight_decay", ("at least 0, but is -0.1",)),
        ({"training": {"milestones": 3}}, "training.milestones", ("3", "tuple")),
        ({"training": {"milestones": [0]}}, "training.milestones", ("epochs from 1",)),
        ({"training": {"milestones": ["one"]}}, "training.milestones", ("one", "integer")),
        ({"training": {"gamma": 0.0}}, "training.gamma", ("above 0, but is 0.0",)),
        ({"training": {"gamma": {"choices": []}}}, "training.gamma.choices", ("at least 1",)),
        ({"training": {"gamma": {"choices": 0.1}}}, "training.gamma.choices", ("0.1",)),
        ({"training": {"gamma": {}}}, "training.gamma.choices", ("missing",)),
        ({"training": {"gamma": {"choices": [0.1, "much"]}}}, "training.gamma", ("'much'", "number")),
        ({"training": {"gamma": {"choices": [0.1, -2.0]}}}, "training.gamma", ("above 0, but is -2.0",)),
        # Settings.
        ({"tpe": {"startup": 3}}, "tpe", ("have no use here: search.sampler is 'grid'", "remove the table")),
        ({"hyperband": {"reduction": 3}}, "hyperband", ("have no use here",)),
        (merged(SAMPLED, {"search": {"sampler": "tpe"}, "tpe": 3}), "tpe", ("3 is not a table", "[tpe]")),
        (
            merged(SAMPLED, {"search": {"sampler": "tpe"}, "tpe": {"startup": "few"}}),
            "tpe.startup",
            ("'few'", "integer"),
        ),
        (
            merged(SAMPLED, {"search": {"sampler": "heuristic"}, "heuristic": {"step": -0.1}}),
            "heuristic",
            ("step must be above 0, but is -0.1",),
        ),
        (
            merged(SAMPLED, {"search": {"sampler": "heuristic"}, "heuristic": {"tolerance": -1.0}}),
            "heuristic",
            ("tolerance must be at least 0, but is -1.0",),
        ),
        (
            {"search": {"pruner": "hyperband"}, "hyperband": {"reduction": 1}},
            "hyperband",
            ("reduction must be at least 2, but is 1",),
        ),
        (
            {"search": {"pruner": "hyperband"}, "hyperband": {"first": 11}},
            "hyperband",
            ("first must be at most the 10 epochs, but is 11",),
        ),
        (
            {"search": {"pruner": "median"}, "median": {"startup": -1}},
            "median",
            ("startup must be at least 0, but is -1",),
        ),
        # The schedule.
        (
            {"backward": {"until_epoch": 3}},
            "backward",
            ("have no use here: training.schedule is 'constant'",),
        ),
        (merged(ADAPTIVE, {"backward": {"until_epoch": 3}}), "backward", ("have no use here",)),
        (merged(ADAPTIVE, {"adaptive": 3}), "adaptive", ("3 is not a table", "[adaptive]")),
        (merged(ADAPTIVE, {"adaptive": {"alfa": 0.1}}), "adaptive.alfa", ("unknown key", "'alpha'?")),
        (merged(ADAPTIVE, {"adaptive": {"alpha": "much"}}), "adaptive.alpha", ("'much'", "number")),
        (merged(ADAPTIVE, {"adaptive": {"alpha": 0.0}}), "adaptive", ("alpha must be above 0, but is 0.0",)),
        (merged(ADAPTIVE, {"adaptive": {"tolerance": -1.0}}), "adaptive", ("at least 0, but is -1.0",)),
        (
            {"training": {"schedule": "backward"}, "backward": {"until_accuracy": 1.5}},
            "backward",
            ("until_accuracy must be in (0, 1], but is 1.5",),
        ),
        (
            {"training": {"schedule": "backward"}, "backward": {"until_epoch": 2.0}},
            "backward.until_epoch",
            ("2.0", "integer"),
        ),
        ({**ADAPTIVE, "levels": {"count": 5, "high": None}}, "levels.count", ("'adaptive' finds the level",)),
        (
            {**ADAPTIVE, "levels": {"low": 0.1, "high": None, "count": None}},
            "levels.low",
            ("no use", "remove"),
        ),
        ({**ADAPTIVE, "levels": {"high": -0.1, "count": None}}, "levels.high", ("-0.1", "greater than 0")),
        # Searched beside the level.
        (
            merged(ADAPTIVE, {"adaptive": {"alpha": {"choices": [0.1, -0.1]}}}),
            "adaptive",
            ("alpha must be above 0, but is -0.1",),
        ),
        (
            merged(ADAPTIVE, {"adaptive": {"alpha": {"choices": [0.1, 0.1]}}}),
            "adaptive.alpha.choices",
            ("holds a choice twice",),
        ),
        (
            merged(ADAPTIVE, {"adaptive": {"alpha": {"low": 0.01, "high": 0.02}}}),
            "adaptive.alpha",
            ("is a range", "{choices = [...]}", "another sampler"),
        ),
        *(
            (
                merged(ADAPTIVE, {"search": {"sampler": "tpe"}, "adaptive": {"alpha": values}}),
                key,
                fragments,
            )
            for values, key, fragments in [
                ({"low": 0.2, "high": 0.1}, "adaptive.alpha", ("0.2 is not below high = 0.1",)),
                ({"low": 0.0, "high": 0.1, "log": True}, "adaptive.alpha", ("low = 0 has no logarithm",)),
                ({"low": -0.1, "high": 0.1}, "adaptive", ("alpha must be above 0, but is -0.1",)),
                ({"low": 0.1}, "adaptive.alpha.high", ("missing",)),
                ({"low": 0.1, "high": "x"}, "adaptive.alpha.high", ("'x'", "number")),
                ({"low": 0.1, "high": 0.2, "logs": True}, "adaptive.alpha.logs", ("did you mean 'log'?",)),
            ]
        ),
        (
            merged(
                SAMPLED,
                {"training": {"schedule": "backward"}, "backward": {"until_epoch": {"low": 2, "high": 5}}},
            ),
            "backward.until_epoch",
            ("takes no fractions", "{choices = [...]}"),
        ),
        (
            merged(
                ADAPTIVE,
                {"search": {"sampler": "heuristic"}, "adaptive": {"alpha": {"low": 0.01, "high": 0.02}}},
            ),
            "heuristic",
            ("the level is all that it climbs", "alpha", "'tpe', 'gp' or 'random'"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_value_is_refused(changes, key, fragments):
    """A bad value is the only problem said, with its key, the value, and what would be right."""
    assert_refused(changes, key, *fragments)


@pytest.mark.parametrize("startup", [-1, 0])
@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_bad_startup_is_refused_or_harmless(sampler, startup):
    """A startup below 0 is refused with its bound; 0 means none."""
    changes = merged(SAMPLED, {"search": {"sampler": sampler}, sampler: {"startup": startup}})
    if startup == 0:
        assert spec(**changes).settings[sampler] == {"startup": 0}
    else:
        assert_refused(changes, sampler, "startup", "-1")


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({"training": {"schedule": "policy"}}, "training.schedule", "policy"),
        ({"search": {"sampler": "policy"}}, "search.sampler", "policy"),
        ({"policy": {"hidden": 3}}, "policy", "policy"),
    ],
    ids=str,
)
def test_what_this_version_has_not_is_refused_by_name(changes, key, value):
    """A feature that is not there yet is called not available, with what to write instead."""
    assert_refused(changes, key, f"{value}", "not available", "; ")


def test_a_table_that_is_not_available_hides_no_other_problem():
    """A refused [policy] table does not hide that the task is missing."""
    found = dict(problems(task=None, options=None, policy={}))
    assert "not available" in found["policy"]
    assert "missing" in found["task"]


def test_all_problems_are_reported_at_once():
    """Problems in all tables come in one error that counts and lists them."""
    found = problems(
        name="Bad Name",
        colour="red",
        options={"label_nois": 0.1, "width": "wide"},
        levels={"low": -1.0, "high": 0.0, "count": "many"},
        training={"epochs": 0, "seeds": 0, "momentum": 2.0, "epoch": 5},
        search={"sampler": "policy", "pruner": "nune", "window": 7.0},
        budget={"hours": 0.0},
        policy={},
    )
    assert {key for key, _ in found} == {
        "name", "colour", "options.label_nois", "options.width", "levels.low", "levels.high", "levels.count",
        "training.epochs", "training.seeds", "training.momentum", "training.epoch", "search.sampler",
        "search.window", "budget.hours", "policy",
    }  # fmt: skip
    assert len(found) == 15
    with pytest.raises(StudyFileError, match=r"^my\.toml has 2 problems\n") as error:
        parse(merged(TINY, {"colour": 1, "levels": {"high": 0.0}}), KNOWN, source="my.toml")
    assert len(str(error.value).splitlines()) == 3


def test_a_choice_given_twice_is_refused():
    """A choice that is listed twice would train the same ticket twice."""
    assert_refused(
        {"training": {"weight_decay": {"choices": [0.1, 0.1]}}}, "training.weight_decay.choices", "0.1"
    )


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"levels": {"count": 1_000_000}}, "levels.count"),
        ({"levels": {"count": None, "step": 1e-6}}, "levels.step"),
        ({"training": {"seeds": 10_000_000}}, "training.seeds"),
        ({"training": {"epochs": 50_000_000}}, "training.epochs"),
    ],
    ids=str,
)
def test_a_number_that_no_study_can_need_is_refused(changes, key):
    """A slip of the finger, such as a million levels, is refused instead of filling memory and database."""
    assert key in [where for where, _ in problems(**changes)]


# --- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"name = ", "is not valid TOML"),
        (b'{"name": 1}', "is not valid TOML"),
        (b"name = 'a'\nname = 'b'", "is not valid TOML"),
        (b"name = '\xff\xfe'", "cannot be read"),
        (b"\x00\x01\x02", "is not valid TOML"),
        (b"name = " + b"[" * 20_000, "is not valid TOML"),
        (b"x = " + b"9" * 5_000, "is not valid TOML"),
    ],
    ids=["half a line", "JSON", "key twice", "not UTF-8", "binary", "nested too deep", "number too long"],
)
def test_a_file_that_is_no_toml_is_refused(tmp_path, content, fragment):
    """A file that cannot be decoded is refused with its path."""
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    with pytest.raises(StudyFileError) as error:
        read(path, KNOWN)
    ((key, message),) = error.value.problems
    assert (key, fragment in message) == ("file", True)
    assert str(path) in str(error.value)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path):
    """A missing file and a directory are refused with their path."""
    for path, fragment in ((tmp_path / "none.toml", "does not exist"), (tmp_path, "cannot be read")):
        with pytest.raises(StudyFileError, match=fragment) as error:
            read(path, KNOWN)
        assert str(path) in str(error.value)


def test_a_file_is_read_as_it_was_written(tmp_path):
    """A whole file gives the same spec as its content."""
    path = tmp_path / "study.toml"
    path.write_text(
        'name = "tiny"\ntask = "two_gaussians"\n[options]\nlabel_noise = 0.1\nwidth = 8\ndepth = 1\n'
        "[levels]\nhigh = 0.5\ncount = 3\n[training]\nepochs = 10\nseeds = 2\nvalidate_every = 2\n"
        '[search]\npruner = "none"\n'
    )
    assert read(path, KNOWN) == spec()


# --- the user's own task ---------------------------------------------------------------------------------

OWN_TASK = """
from torch import nn
from floodsearch.tasks.synthetic import two_gaussians
from floodsearch.tasks.task import Task

def task(*, label_noise: float = 0.2, {parameters}) -> Task:
    return two_gaussians(label_noise=label_noise, width=4, depth=1)
"""


def own(reference: str, **options: Any) -> dict[str, Any]:
    """Return the tiny study with a task of the user's own, as a whole table of options."""
    return {**TINY, "task": reference, "options": options}


def assert_task_refused(reference: str, *fragments: str) -> None:
    with pytest.raises(StudyFileError) as error:
        parse(own(reference), KNOWN)
    ((key, message),) = error.value.problems
    assert key == "task"
    for fragment in (repr(reference), *fragments):
        assert fragment in message


def test_a_task_of_the_users_own_is_described_by_its_signature(write_module):
    """Options of a user's task are its keyword parameters: defaults filled in, types and names checked."""
    reference = write_module(OWN_TASK.format(parameters="classes: int = 2")) + ":task"
    assert parse(own(reference, classes=3), KNOWN).options == {"label_noise": 0.2, "classes": 3}
    with pytest.raises(StudyFileError) as error:
        parse(own(reference, classes="two", clases=1, label_noise=3.0), KNOWN)
    assert {problem.key for problem in error.value.problems} == {
        "options.classes",
        "options.clases",
        "options",
    }


WITH_A_RECIPE_OF_AN_OPTION = """
import dataclasses
from floodsearch.tasks.synthetic import two_gaussians

def task(*, augment: bool = False):
    one = two_gaussians(width=4, depth=1)
    if not augment:
        return one
    return dataclasses.replace(one.with_recipe({"batch_size": 50, "milestones": (3, 4)}), correct=None)
"""


def test_the_default_recipe_is_that_of_the_chosen_options(write_module):
    """Recipe and metrics are those of the task with the file's options; what the file says is stronger."""
    reference = write_module(WITH_A_RECIPE_OF_AN_OPTION) + ":task"
    assert parse(own(reference), KNOWN).training.recipe["batch_size"] == 100
    augmented = {**own(reference, augment=True), "search": {"metric": "val_loss"}}
    recipe = parse(augmented, KNOWN).training.recipe
    assert (recipe["batch_size"], recipe["milestones"]) == (50, (3, 4))
    recipe = parse(merged(augmented, {"training": {"batch_size": 20}}), KNOWN).training.recipe
    assert (recipe["batch_size"], recipe["milestones"]) == (20, (3, 4))
    without = parse(own(reference, augment=True), KNOWN).search
    assert (without.metric, without.direction) == ("val_loss", "minimize"), "it has no accuracy"
    with pytest.raises(StudyFileError, match="this task has no 'val_accuracy'; use val_loss"):
        parse({**own(reference, augment=True), "search": {"metric": "val_accuracy"}}, KNOWN)


@pytest.mark.parametrize(
    "parameters", ["path: str | None = None", "untyped=3", "sizes: tuple[int, ...] = (1, 2)"]
)
def test_a_task_of_the_users_own_may_have_usual_defaults(write_module, parameters):
    """An option whose default is None, that has no type, or that is a tuple, is no obstacle."""
    reference = write_module(OWN_TASK.format(parameters=parameters)) + ":task"
    loaded = parse(own(reference), KNOWN)
    assert loaded.options["label_noise"] == 0.2


WITHOUT_ACCURACY = """
import dataclasses
from floodsearch.tasks.synthetic import two_gaussians

def task():
    return dataclasses.replace(two_gaussians(width=4, depth=1), correct=None)
"""


def test_a_schedule_that_waits_for_an_accuracy_needs_one(write_module):
    """Where a task has no accuracy, a schedule that waits for one is refused with what to use instead."""
    least = {**own(write_module(WITHOUT_ACCURACY) + ":task"), "search": {"metric": "val_loss"}}
    backward = merged(least, {"training": {"schedule": "backward"}, "backward": {"until_epoch": 3}})
    assert parse(backward, KNOWN).settings["backward"]["until_epoch"] == 3
    for refused in (merged(backward, {"backward": None}), merged(least, ADAPTIVE)):
        with pytest.raises(StudyFileError) as error:
            parse(refused, KNOWN)
        ((key, message),) = error.value.problems
        assert key == refused["training"]["schedule"]
        assert "no accuracy to wait for; take the schedule backward with until_epoch" in message


def test_a_module_that_is_missing_is_told_from_one_that_it_imports(write_module):
    """The message says which import failed: the named module, or one inside it."""
    assert_task_refused("no_such_package.tasks:task", "'no_such_package'", "is not installed")
    with pytest.raises(StudyFileError) as error:
        parse(own("no_such_package.tasks:task"), KNOWN)
    assert "which it imports" not in str(error.value)
    reference = write_module("import no_such_library") + ":task"
    assert_task_refused(reference, "'no_such_library', which it imports", "is not installed")


@pytest.mark.parametrize(
    ("source", "fragments"),
    [
        ("", ("has no 'task'",)),
        ("task = 3", ("is a int, not a function",)),
        ("raise RuntimeError('no GPU here')", ("RuntimeError: no GPU here", "run it in Python")),
        ("def task(:", ("SyntaxError",)),
        ("import math\nmath.no_such_function()", ("AttributeError", "no_such_function")),
        ("from math import no_such_function", ("ImportError", "no_such_function")),
        ("def task(): return 3", ("returned a int instead of a Task",)),
        ("def task(*, classes): return 3", ("classes",)),
        ("def task(): raise ValueError('odd moon')", ("cannot be built", "odd moon")),
        ("def task(): raise FileNotFoundError('data/images.npz')", ("cannot be built", "data/images.npz")),
        ("def task(): raise KeyError('DATA_DIR')", ("cannot be built", "DATA_DIR")),
        ("def task(*, x: 'NoSuchType' = 1): return 3", ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_task_that_cannot_be_used_is_refused_with_its_own_words(write_module, source, fragments):
    """Whatever a user's module does while it is imported and called, the message holds its own words."""
    assert_task_refused(write_module(source) + ":task", *fragments)


@pytest.mark.parametrize(
    "reference",
    [
        ":",
        ":task",
        "math:",
        "math:pi",
        "math:sqrt",
        "builtins:dict",
        "builtins:print",
        ".x:y",
        "a..b:c",
        "\0:x",
        "a b:c",
    ],
)
def test_a_reference_that_names_no_task_is_refused(reference):
    """A reference to nothing, or to something that is no task, is a problem of `task`."""
    assert_task_refused(reference)


# --- the user's own training loop ------------------------------------------------------------------------


@pytest.fixture
def loop(write_module):
    """Write a module with a training loop, and return its reference."""
    return f"{write_module(LOOP)}:train"


def of_loop(**changes: Any) -> dict[str, Any]:
    return merged(OWN, changes)


def test_choices_among_the_options_of_a_loop_count_as_tickets(loop):
    """Three levels with two choices each are six trials by default, and as many may be asked for."""
    for asked in (None, 4, 6):
        changes = of_loop(
            options={"kind": {"choices": ["a", "b"]}}, search={"sampler": "random", "trials": asked}
        )
        assert spec(objective=loop, **changes).search.trials == (asked or 6)


def test_a_loop_is_a_study_of_settings_that_have_any_name(loop):
    """Those of [options] and [training] are kept as they are, and choices are searched beside the level."""
    asked = of_loop(
        objective=loop,
        options={"units": 8, "sizes": [1, 2], "kind": {"choices": ["a", "b"]}},
        training={"rate": {"choices": [0.1, 0.2]}, "nesterov": True},
    )
    found = parse(merged(merged(TINY, asked), {"training": {"validate_every": None}}), KNOWN)
    assert (found.task, found.objective, found.code) == (None, loop, loop)
    assert found.options == {"units": 8, "sizes": (1, 2), "kind": Choices(choices=("a", "b"))}
    assert found.training.recipe == {"rate": Choices(choices=(0.1, 0.2)), "nesterov": True}
    assert found.searched == {"kind": ("a", "b"), "rate": (0.1, 0.2)}
    assert found.training.validate_every == 1
    assert Spec.model_validate_json(found.model_dump_json()) == found


def test_a_task_of_the_tables_names_no_code():
    assert spec().code is None
    assert spec().objective is None


def test_a_metric_of_any_name_has_a_direction(loop):
    """A name that floodsearch knows has its own."""
    found = spec(objective=loop, **of_loop(search={"metric": "f1", "direction": "maximize"}))
    assert (found.search.metric, found.maximize) == ("f1", True)
    assert not spec(objective=loop, **of_loop(search={"metric": "val_loss"})).maximize


LOOP_PROBLEMS = {
    "with a task": ({"task": "two_gaussians"}, "objective", ["given together with task", "keep one"]),
    "own metric without direction": ({"search": {"metric": "f1"}}, "search.direction", ["missing", "f1"]),
    "no name": ({"search": {"metric": "f 1", "direction": "minimize"}}, "search.metric", ["'f 1'"]),
    "direction": ({"search": {"metric": "f1", "direction": "up"}}, "search.direction", ["'up'"]),
    "schedule": ({"training": {"schedule": "backward"}}, "training.schedule", ["'backward'", "constant"]),
    "slip": ({"training": {"epoch": 5}}, "training.epoch", ["did you mean 'epochs'?", "[options]"]),
    "twice": ({"options": {"x": 1}, "training": {"x": 2}}, "options.x", ["training.x", "keep one"]),
    "level": ({"options": {"level": 1}}, "options.level", ["told by each run"]),
    "nan": ({"options": {"x": math.nan}}, "options.x", ["nan", "finite number"]),
    "nested": ({"options": {"x": [[1]]}}, "options.x", ["[[1]]", "choices"]),
    "range": ({"options": {"x": {"low": 0.0, "high": 1.0}}}, "options.x.choices", ["missing"]),
    "adaptive": ({"adaptive": {"alpha": 0.1}}, "adaptive", ["remove the table"]),
}


@pytest.mark.parametrize("case", LOOP_PROBLEMS)
def test_what_does_not_fit_a_loop_is_refused(loop, case):
    changes, key, fragments = LOOP_PROBLEMS[case]
    found = dict(problems(objective=loop, **of_loop(**changes)))
    assert key in found, found
    for fragment in fragments:
        assert fragment in found[key]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("train", "'train' is not a 'package.module:function'"),
        ("nowhere_at_all:train", "module 'nowhere_at_all' is not installed nor in the current folder"),
        ("MODULE:test", "has no 'test'"),
        ("MODULE:number", "is a int, not a training loop, a function of one argument"),
        (7, "7 should be a valid string"),
    ],
)
def test_a_loop_that_cannot_be_imported_is_one_problem(loop, reference, message):
    if isinstance(reference, str):
        reference = reference.replace("MODULE", loop.partition(":")[0])
    assert_refused(of_loop(objective=reference), "objective", message)


def test_neither_task_nor_objective_is_one_problem():
    assert_refused(OWN, "task", "missing", "two_gaussians", "objective")


# --- anything --------------------------------------------------------------------------------------------

WHOLE = merged(
    TINY,
    {
        "levels": {"low": 0.1},
        "search": {
            "sampler": "tpe",
            "pruner": "hyperband",
            "trials": 3,
            "window": 0.5,
            "seed": 1,
            "metric": "val_loss",
        },
        "training": {
            "weight_decay": {"choices": [0.0, 0.1]},
            "milestones": [3, 6],
            "optimizer": "sgd",
            "schedule": "backward",
        },
        "tpe": {"startup": 2},
        "hyperband": {"first": 2, "reduction": 2},
        "budget": {"hours": 1.0, "epochs": 100},
        "backward": {"until_accuracy": {"low": 0.9, "high": 1.0}, "until_epoch": {"choices": [2, 4]}},
    },
)
WORDS = st.sampled_from(
    sorted({*WHOLE, *WHOLE["training"], *WHOLE["search"], "choices", "auto", "halving", "policy", "objective",
            "adaptive", "backward", "low", "log", "two_gaussians", "a:b", "heuristic", "gp", "adam",
            "val_loss", "minimize"})
)  # fmt: skip
scalars = (
    st.booleans()
    | st.integers(-3, 60)
    | st.floats(-1, 60)
    | st.sampled_from([math.nan, math.inf, -math.inf, 1e-300, date(2020, 1, 1)])
    | st.text(max_size=6)
    | WORDS
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)


def loads_or_is_refused(raw: dict[str, Any]) -> None:
    before = copy.deepcopy(raw)
    try:
        assert isinstance(parse(raw, KNOWN), Spec)
    except StudyFileError as error:
        said = error.problems
    else:
        said = None
    assert said is None or (said and all(problem.message for problem in said))
    assert repr(raw) == repr(before)


@settings(repeatable, max_examples=150)
@given(st.dictionaries(st.sampled_from([*WHOLE, "halving", "zzz"]) | st.text(max_size=4), values, max_size=7))
def test_anything_that_toml_can_say_loads_or_is_a_study_file_error(raw):
    """Any table of anything raises nothing but StudyFileError, and is left as it was."""
    loads_or_is_refused(raw)


def places(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [prefix] * bool(prefix) + [path for key, value in inner for path in places(value, (*prefix, key))]


@settings(repeatable, max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(places(WHOLE)), values), min_size=1, max_size=3))
def test_a_mutated_study_loads_or_is_a_study_file_error(mutations):
    """A valid study with some values replaced by anything raises nothing but StudyFileError."""
    raw = copy.deepcopy(WHOLE)
    for path, value in mutations:
        if path in places(raw):  # an earlier mutation may have removed it
            holder: Any = raw
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = value
    loads_or_is_refused(raw)


@pytest.mark.parametrize("number", [2**63, 10**400, -(2**70)])
@pytest.mark.parametrize(
    "path",
    [
        "levels.high",
        "levels.low",
        "search.seed",
        "search.window",
        "budget.epochs",
        "budget.hours",
        "options.width",
        "training.learning_rate",
        "training.batch_size",
        "tpe.startup",
    ],
)
def test_a_huge_integer_loads_or_is_a_study_file_error(path, number):
    """Integers have no bound in TOML: one that no float or database holds raises nothing else either."""
    raw = copy.deepcopy(WHOLE)
    table, key = path.split(".")
    raw[table][key] = number
    loads_or_is_refused(raw)


def of_command(command="echo {level} {seed}", **changes):
    return of_loop(command=command, **changes)


def test_a_command_is_a_study_of_settings_that_it_has_a_place_for():
    found = spec(**of_command("echo {level} {seed} {rate}", options={"rate": {"choices": [1, 2]}}))
    assert (found.task, found.objective) == (None, None)
    assert found.code == found.command == "echo {level} {seed} {rate}"
    assert found.searched == {"rate": (1, 2)}
    assert spec(**of_command("echo {level}", training={"seeds": 1})).command


@pytest.mark.parametrize(
    ("changes", "key", "fragment"),
    [
        ({"command": ""}, "command", "is empty"),
        ({"command": "sh '{level} {seed}"}, "command", "No closing quotation"),
        ({"command": "no-such-program {level} {seed}"}, "command", "is no program that can be found"),
        ({"command": "sh {seed}"}, "command", "does not say where {level} goes; add it"),
        ({"command": "sh {level}"}, "command", "does not say where {seed} goes; add it"),
        ({"command": "sh {level} {seed} {sed}"}, "command", "'sed' is not known, did you mean 'seed'?"),
        ({"options": {"rate": 1}}, "command", "does not say where {rate} goes; add it"),
        ({"options": {"level": 1}}, "options.level", "'level' is told by each run; choose another name"),
        (
            {"search": {"pruner": "median"}},
            "search.pruner",
            "looks at each level by itself, and a command pauses to be compared; use 'halving'",
        ),
        ({"training": {"engine": "stack"}}, "training.engine", "is for tasks: your own code computes as it"),
        ({"arithmetic": {"precision": "tf32"}}, "arithmetic", "is for tasks: your own code computes as it"),
        ({"training": {"keep": "best"}}, "training.keep", "'best', but only the command has its weights"),
        ({"objective": "a:b"}, "command", "given together with objective; keep one of them"),
    ],
)
def test_a_command_that_cannot_be_searched_is_refused(changes, key, fragment):
    found = problems(**of_command(**changes))
    assert any(where == key and fragment in message for where, message in found), found
