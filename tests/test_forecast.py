"""forecast, speed: what a search will cost is the pruner's plan, at a speed that was given or measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from floodsearch.catalog import known
from floodsearch.cost import throughput as speed
from floodsearch.cost.course import Stage
from floodsearch.cost.floods import Floods
from floodsearch.cost.forecast import current_stage, epochs_left, plan, speeds_of, time_stages
from floodsearch.cost.outlook import forecast
from floodsearch.errors import UsageError
from floodsearch.findings import StudyStage
from floodsearch.records import Pilot, TrialRecord
from floodsearch.search.tickets import ticket_count
from floodsearch.study.reader import read
from floodsearch.study.spec import Arithmetic
from floodsearch.tasks import TASKS
from floodsearch.tasks.image_sets import SOURCES

STUDIES = Path(__file__).parents[1] / "studies"
AT_ONCE = Floods(highest=1.0, late=0)
NEVER = Floods(highest=1.0, lowest=((9.0,) * 1000,))


def test_the_plan_of_halving_goes_from_rung_to_rung() -> None:
    """CIFAR-10: nine of eleven levels and level 0; at each rung a third goes on."""
    spec = read(STUDIES / "cifar10_resnet44.toml", known())
    assert plan(spec, AT_ONCE) == [
        Stage(0, 40, 10),
        Stage(40, 80, 4),
        Stage(80, 160, 2),
        Stage(160, 320, 2),
        Stage(320, 500, 2),
    ]


def test_a_search_without_halving_is_one_stage(make_spec) -> None:
    """Nothing is taken to be stopped: all tickets, all seeds, all epochs."""
    spec = make_spec(search={"pruner": "none"})
    tickets = ticket_count(spec)
    assert tickets is not None
    assert plan(spec, AT_ONCE) == [Stage(0, spec.training.epochs, tickets * len(spec.training.seeds))]


def test_a_search_whose_levels_the_pilot_has_to_find_has_no_plan(make_spec) -> None:
    assert plan(make_spec(levels={"high": "auto", "count": None, "step": 0.1})) is None


def test_brackets_are_added_up(make_spec) -> None:
    """Each bracket keeps a winner of its own; level 0 is trained once."""
    whole = {"training": {"epochs": 100}, "levels": {"high": 0.5, "count": 19}}
    one = plan(make_spec(**whole, search={"pruner": "halving"}), AT_ONCE)
    two = plan(make_spec(**whole, search={"pruner": "halving"}, halving={"brackets": 2}), AT_ONCE)
    assert one is not None
    assert two is not None
    assert two[-1].runs == one[-1].runs + 2  # a winner more, with two seeds


HALVED = {
    "training": {"epochs": 30, "seeds": 2, "validate_every": 1},
    "levels": {"high": 0.6, "count": 7},
    "search": {"pruner": "halving"},
}
"""Seven levels, judged after epochs 3, 6, 12 and 24: two go on of six, then one."""


def epochs(spec, floods, way):
    return sum(stage.epochs for stage in plan(spec, floods, way))


@pytest.mark.parametrize(
    ("way", "at_once", "never"),
    [
        ("forks", 2 * (30 + 6 * 3 + 2 * 3 + 24), 2 * 30),  # the trunk alone
        ("goes on", 2 * (30 + 6 * 3 + 2 * 3 + 24), 2 * 7 * 30),  # nothing is judged before it floods
        ("never pauses", 2 * 7 * 30, 2 * 7 * 30),
    ],
)
def test_what_a_search_costs_depends_on_how_runs_pause_and_when_levels_flood(make_spec, way, at_once, never):
    """Level 0 goes to its end; of six levels that flood at once two go on at epoch 3, one at epoch 6."""
    spec = make_spec(**HALVED)
    assert epochs(spec, AT_ONCE, way) == at_once
    assert epochs(spec, NEVER, way) == never


def scripts(make_spec, levels, **script):
    changes = {**HALVED, "levels": {"high": 0.6, "count": levels}, "script": script}
    return make_spec(**changes, task=None, options=None, command="echo {level} {seed}")


@pytest.mark.parametrize(
    ("script", "at_once"),
    [
        ({}, 2 * (30 + 6 * 3 + 2 * 3 + 24)),
        ({"pause": "restart"}, 2 * (30 + 6 * 3 + 2 * 6 + 30)),  # two begin again at epoch 3, one at 6
        ({"stopped": 6}, 2 * (30 + 6 * 3 + 2 * 3 + 24) + 2 * 3),  # six of twelve end at 3: two of four go on
    ],
)
def test_what_a_command_costs_depends_on_what_becomes_of_its_processes(make_spec, script, at_once):
    assert epochs(scripts(make_spec, 7, **script), AT_ONCE, None) == at_once


@pytest.mark.parametrize("script", [{}, {"pause": "restart"}, {"stopped": 7}])
def test_a_search_by_a_command_is_never_dearer_than_its_grid(make_spec, script):
    """Where its levels differ at the first rung: as long as they tie, all go on."""
    for levels in (2, 3, 5, 9):
        spec = scripts(make_spec, levels, **script)
        assert epochs(spec, AT_ONCE, None) <= epochs(spec, AT_ONCE, "never pauses") == levels * 2 * 30


def test_a_level_that_floods_behind_a_rung_is_judged_at_the_next(make_spec):
    """One seed floods first in epoch 2, or 5, or 10; the epoch in which it does is trained once more."""
    spec = make_spec(**HALVED)
    losses = [9.0, 0.55, 0.55, 0.55, 0.35, 0.35, 0.35, 0.35, 0.35, 0.15] + 20 * [0.15]
    floods = Floods(highest=0.6, lowest=(tuple(losses), (9.0,) * 30))
    # One alone at epoch 3; of three that have flooded by 6 the lowest goes on, 0.4, and so does 0.2 at 12.
    assert epochs(spec, floods, "forks") == 2 * 30 + (6 - 1) + (6 - 4) + (12 - 4) + (12 - 9) + (30 - 9)
    assert epochs(spec, floods, "goes on") == 2 * (30 + 6 + 6 + 12 + 12 + 30 + 30)


def test_a_loss_that_was_not_followed_to_the_end_falls_on_as_it_did():
    """By a power of the epoch: halved in twice the epochs; a level that it has passed is known."""
    floods = Floods(highest=1.0, lowest=(tuple(1 / epoch for epoch in range(1, 11)),))
    assert [floods.first(level, 0) for level in (1.0, 0.5, 0.1)] == [1, 2, 10]
    assert floods.first(0.05, 0) == pytest.approx(20)
    assert floods.first(0.05, 7) == pytest.approx(20)  # it stands for seeds that nobody has begun
    assert Floods(highest=1.0, lowest=((0.4,) * 10,)).first(0.1, 0) > 1000


def test_a_forecast_has_the_range_of_what_is_not_known(make_spec):
    """From all levels that flood at once to none that ever does; no range where the losses are known."""
    outlook = forecast(make_spec(**HALVED))
    assert (outlook.epochs_least, outlook.epochs_exhaustive) == (2 * 30, 7 * 2 * 30)
    assert outlook.epochs_least < outlook.epochs_expected < outlook.epochs_most
    known = forecast(make_spec(**HALVED), NEVER)
    assert known.epochs_least == known.epochs_expected == known.epochs_most == 60


def test_a_budget_bounds_a_forecast(make_spec):
    assert forecast(make_spec(**HALVED, budget={"epochs": 50})).epochs_expected == 50


def test_the_pilot_of_a_loop_without_a_state_is_paid_twice(make_spec):
    """A loop that goes on from there pays it once."""
    spec = make_spec(**{**HALVED, "levels": {"high": "auto", "count": 7}})
    assert forecast(spec, way="never pauses").epochs_expected == 2 * 7 * 30 + 2 * 6
    assert forecast(spec, NEVER, "goes on").epochs_expected == 2 * 7 * 30


def test_what_is_left_is_told_from_where_the_tickets_are(make_spec):
    """Of four levels that are alive behind epoch 12 three have not flooded there: they all go on to 24."""
    spec = make_spec(
        **HALVED,
        task=None,
        options=dict.fromkeys(["label_noise", "width", "depth"]),
        objective="tests.conftest:merged",
    )
    begun = running((0.0, 30), (0.1, 12), (0.2, 12), (0.3, 12), (0.4, 12), epochs=30)
    # By epoch 24 all have flooded but 0.1: it goes on, and one of the others.
    assert epochs_left(spec, begun) == 2 * (4 * 12 + 2 * 6)
    assert epochs_left(spec, running((0.0, 0), epochs=30, state="waiting")) == 2 * 30
    found = Pilot(epochs=12, minima=(1.0, 1.0), bound=1.25, high=1.2, seconds_per_epoch=1.0, device="cpu")
    assert epochs_left(spec, running((0.0, 0), epochs=30, state="waiting"), found) == 2 * 30 - 12
    assert epochs_left(spec, running((0.0, 12), epochs=30), found) == 2 * 18


def test_time_is_images_over_the_speed_at_that_many_runs(make_spec) -> None:
    """Between two numbers that were measured the slower one's speed counts, below the first the first's."""
    spec = make_spec(search={"pruner": "halving"})
    stages = [Stage(0, 10, 12), Stage(10, 20, 3), Stage(20, 30, 1)]
    found = time_stages(spec, stages, samples=100, speeds={2: 50.0, 8: 200.0})
    assert [(one.samples, one.seconds) for one in found] == [(12_000, 60.0), (3_000, 60.0), (1_000, 20.0)]


@pytest.mark.parametrize(
    ("text", "speeds"),
    [("21000", {1: 21000.0}), ("1=2e4,4=70000", {1: 2e4, 4: 7e4}), ("8=5", {8: 5.0})],
)
def test_speeds_are_read(text: str, speeds: dict[int, float]) -> None:
    assert speeds_of(text) == speeds


@pytest.mark.parametrize("text", ["", "fast", "0", "-3", "nan", "inf", "0=5", "1=", "=", "1=2=3", "1.5=4"])
def test_a_speed_that_is_none_is_refused_with_its_value(text: str) -> None:
    with pytest.raises(UsageError, match="give training samples a second") as caught:
        speeds_of(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("name", SOURCES)
def test_the_samples_of_an_image_set_are_known_without_its_files(name: str, make_spec) -> None:
    """80 % of the training images, or 85 % with augmentation, so that `check` needs no download."""
    for augment, share in ((False, 80), (True, 85)):
        options = {"width": None, "depth": None, "label_noise": None, "augment": augment}
        options |= {"data_dir": "/nowhere", "download": False}
        spec = make_spec(task=name, options=options)
        train = SOURCES[name].train
        assert speed.samples_of(spec) == train - train * (100 - share) // 100
    assert name in TASKS


def test_the_samples_of_another_task_are_those_it_draws(make_spec) -> None:
    assert speed.samples_of(make_spec()) == 100


@pytest.mark.parametrize("engine", ["loop", "stack"])
def test_a_speed_is_measured_by_training(engine: str, make_spec, monkeypatch) -> None:
    """A short training of each number of runs, by the study's engine."""
    monkeypatch.setattr(speed, "SECONDS", 0.05)
    spec = make_spec(training={"engine": engine, "batch_size": 10}).model_copy(
        update={"arithmetic": Arithmetic()}
    )
    found = speed.measure_speeds(spec, "cpu", [1, 3])
    assert list(found) == [1, 3]
    assert min(found.values()) > 0


def test_a_device_that_does_not_exist_is_refused_with_those_that_do(make_spec) -> None:
    with pytest.raises(UsageError, match=r"'cuda:99' does not exist; this machine has .*cpu"):
        speed.measure_speeds(make_spec(), "cuda:99", [1])


def running(*tickets, epochs=100, state="running"):
    """Return trials of (level, last rung reported)."""
    return [
        TrialRecord(
            trial=n, ticket=n, state=state, parameters={"level": level}, epochs=epochs, seeds=2, epoch=epoch
        )
        for n, (level, epoch) in enumerate(tickets)
    ]


@pytest.mark.parametrize(
    ("tickets", "stage"),
    [
        ([(0.0, 0), (0.1, 0), (0.2, 0)], StudyStage(after=0, until=8, tickets=3)),
        ([(0.0, 8), (0.1, 8), (0.2, 6)], StudyStage(after=0, until=8, tickets=3)),
        ([(0.0, 8), (0.1, 8)], StudyStage(after=8, until=16, tickets=2)),
        ([(0.0, 50), (0.1, 12), (0.2, 12)], StudyStage(after=8, until=16, tickets=3)),  # 0 has gone ahead
        ([(0.0, 70)], StudyStage(after=64, until=100, tickets=1)),
        # Levels with other choices beside them, which wait for those that have begun.
        ([(0.1, 16), (0.2, 16), (0.3, 0)], StudyStage(after=16, until=32, tickets=2)),
    ],
)
def test_the_stage_of_halving_is_that_of_the_levels_that_are_the_least_far(make_spec, tickets, stage):
    """From one rung to the next, with the levels that are alive."""
    whole = {"training": {"epochs": 100}, "levels": {"high": 0.5, "count": 19}}
    assert current_stage(make_spec(**whole, search={"pruner": "halving"}), running(*tickets)) == stage


def test_without_rungs_there_is_one_stage(make_spec):
    """And none while nothing is in training."""
    spec = make_spec(training={"epochs": 100})
    assert current_stage(spec, running((0.0, 50), (0.1, 0))) == StudyStage(after=0, until=100, tickets=2)
    assert current_stage(spec, running((0.0, 0), state="waiting")) is None
