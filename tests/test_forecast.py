"""forecast, speed: what a search will cost is the pruner's plan, at a speed that was given or measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from floodsearch.catalog import known
from floodsearch.cost import throughput as speed
from floodsearch.cost.forecast import Stage, current_stage, plan, speeds_of, time_stages
from floodsearch.errors import UsageError
from floodsearch.findings import StudyStage
from floodsearch.records import TrialRecord
from floodsearch.search.tickets import ticket_count
from floodsearch.study.reader import read
from floodsearch.study.spec import Arithmetic
from floodsearch.tasks import TASKS
from floodsearch.tasks.image_sets import SOURCES

STUDIES = Path(__file__).parents[1] / "studies"


def test_the_plan_of_halving_goes_from_rung_to_rung() -> None:
    """CIFAR-10: nine of eleven levels and level 0; at each rung a third goes on."""
    spec = read(STUDIES / "cifar10_resnet44.toml", known())
    assert plan(spec) == [
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
    assert plan(spec) == [Stage(0, spec.training.epochs, tickets * len(spec.training.seeds))]


def test_a_search_whose_levels_the_pilot_has_to_find_has_no_plan(make_spec) -> None:
    assert plan(make_spec(levels={"high": "auto", "count": None, "step": 0.1})) is None


def test_brackets_are_added_up(make_spec) -> None:
    """Each bracket keeps a winner of its own; level 0 is trained once."""
    whole = {"training": {"epochs": 100}, "levels": {"high": 0.5, "count": 19}}
    one = plan(make_spec(**whole, search={"pruner": "halving"}))
    two = plan(make_spec(**whole, search={"pruner": "halving"}, halving={"brackets": 2}))
    assert one is not None
    assert two is not None
    assert two[-1].runs == one[-1].runs + 2  # a winner more, with two seeds


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
