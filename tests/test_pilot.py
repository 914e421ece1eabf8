"""The pilot: a range of levels from the data, on any loss's scale, found once and paid once."""

from __future__ import annotations

import itertools
import math
import uuid
from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from floodsearch import queue
from floodsearch.answer.tickets import latest
from floodsearch.errors import StudyChangedError
from floodsearch.queries import answer, status
from floodsearch.records import EpochRecord
from floodsearch.report.text import status_text
from floodsearch.search.pilot import MARGIN, settled
from floodsearch.search.tickets import tickets
from floodsearch.storage import tables
from floodsearch.storage.studies import put_study
from floodsearch.storage.trial_records import read_trials
from floodsearch.study.levels import Levels
from floodsearch.worker.heartbeat import Heartbeat
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.pilot import pilot
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.trainers import CohortTrainer
from floodsearch.worker.work import work

HERE = WorkerSettings(device="cpu", threads=1)
AUTO = {"levels": {"high": "auto", "count": 6}, "training": {"epochs": 40}}

SCALED = '''
import torch
from torch import nn
from floodsearch.tasks.task import Data, Recipe, Split, Task

def task(*, scale: float = 1.0, shift: float = 0.0, fail: bool = False) -> Task:
    """A line through noise, by least squares, in another unit of the loss."""

    def data(seed):
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for _ in range(3):
            x = torch.randn(40, 3, generator=generator)
            parts.append(Split(x, x.sum(dim=1) + torch.randn(40, generator=generator)))
        return Data(*parts)

    def loss(outputs, labels):
        if fail:
            raise RuntimeError("no such thing")
        return scale * ((outputs[:, 0] - labels) ** 2).mean() + shift

    recipe = Recipe(optimizer="adam", learning_rate=0.05, batch_size=20)
    return Task(data=data, model=lambda: nn.Linear(3, 1), recipe=recipe, loss=loss, correct=None)
'''


@pytest.fixture
def make_scaled(tmp_path, monkeypatch, database, make_spec):
    """Put a study of a regression task with these options, its highest level left to the pilot."""
    module = f"scaled_{uuid.uuid4().hex}"
    (tmp_path / f"{module}.py").write_text(SCALED)
    monkeypatch.syspath_prepend(tmp_path)

    def make(name="scaled", training=None, **options):
        none = dict.fromkeys(["label_noise", "width", "depth"])
        return put_study(
            database,
            make_spec(
                name=name,
                task=f"{module}:task",
                options={**none, **options},
                levels={"high": "auto", "count": 6},
                training={"epochs": 40} | (training or {}),
                search={"metric": "val_loss"},
            ),
        )

    return make


def enter(study):
    return tables.enter_worker(study.database, study.uuid, host="here", pid=1, device="cpu", versions={})


def conduct(study, worker=None, leave=None, cohorts=None):
    """Let a worker that exists on paper only do the pilot; return whether it did, and its epochs."""
    heart = Heartbeat(study, worker or enter(study), HERE, leave or LeaveRequest())
    return pilot(study, cohorts or CohortTrainer(torch.device("cpu")), heart), heart.epochs_run


def curve(losses):
    return [
        EpochRecord(
            seed=0, epoch=5 * n, level=0.0, train_loss=1.0, train_accuracy=None, flooded=0.0, val_loss=x
        )
        for n, x in enumerate(losses, start=1)
    ]


# --- when the pilot of a seed ends -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ([], False),
        ([3, 2, 1], False),
        ([3, 1, 2, 2], False),
        ([3, 1, 2, 2, 2], True),
        ([1, 2, 2, 2], True),
        ([6, 5, 4, 3, 2, 1, 2, 2, 2], False),  # a slow run pauses longer
        ([6, 5, 4, 3, 2, 1, 2, 2, 2, 2, 2, 2], True),
        ([2, 1, 1, 1, 1], True),  # equal is not lower
    ],
)
def test_a_loss_has_stopped_falling_when_its_lowest_value_is_old(losses, ends):
    assert settled(curve(losses)) is ends


@given(st.lists(st.floats(0.1, 10), max_size=30), st.floats(1e-3, 1e3))
def test_the_end_of_the_pilot_does_not_depend_on_the_scale_of_the_loss(losses, scale):
    powers = 2.0 ** round(math.log2(scale))  # exact in binary, so that equal losses stay equal
    assert settled(curve(losses)) == settled(curve([loss * powers for loss in losses]))


# --- the levels ------------------------------------------------------------------------------------------


@given(st.floats(1e-6, 1e6), st.integers(2, 200), st.floats(0, 0.9))
def test_as_many_levels_as_asked_lie_below_the_bound(bound, count, share):
    """The step has two digits, the next larger one would go beyond the bound, and no level is lost."""
    low = round(share * bound, 8)
    levels = Levels(low=low, high="auto", count=count).up_to(bound)
    assert levels.highest <= bound
    assert levels.grid()[-1] == levels.highest
    assert len(levels.grid()) == count + (low > 0)
    exact = (Decimal(str(bound)) - Decimal(str(low))) / (count - 1)
    step = (Decimal(str(levels.highest)) - Decimal(str(low))) / (count - 1)
    assert step == pytest.approx(Decimal(f"{step:.1e}"), rel=Decimal("1e-6")), "two digits, but for the float"
    assert step <= exact < step + Decimal(1).scaleb(step.adjusted() - 1) * Decimal("1.000001")


@pytest.mark.parametrize(
    ("given", "bound", "highest"),
    [
        ({"count": 51}, 10.125, 10.0),
        ({"count": 51}, 0.53, 0.5),
        ({"count": 51}, 0.5, 0.5),
        ({"count": 26}, 0.48, 0.475),
        ({"step": 0.02}, 0.53, 0.52),
        ({"step": 0.1}, 0.3, 0.3),
        ({"low": 0.1, "step": 0.25}, 0.53, 0.35),
        ({"low": 0.1, "step": 0.2}, 0.3, 0.3),
        ({}, 0.5321, 0.53),
        ({}, 5321.0, 5300.0),
        ({"low": 0.5}, 0.5321, 0.532),
    ],
)
def test_the_highest_level_keeps_to_the_bound(given, bound, highest):
    """It is the bound, or as little below as makes the levels short numbers; a given step stays."""
    assert Levels(high="auto", **given).up_to(bound).highest == highest


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"low": 0.3, "count": 5}, r"would end at 0\.2, but levels\.low is 0\.3"),
        ({"step": 0.5}, r"would end at 0\.2, but levels\.step = 0\.5 is larger than the range, 0\.2 wide"),
        ({"step": 1e-9}, r"would end at 0\.2, but levels\.step = 1e-09 gives more than 10,000 levels"),
    ],
)
def test_levels_that_do_not_fit_below_the_bound_are_refused(given, said):
    """With what the pilot found and what the file says."""
    with pytest.raises(ValueError, match=said):
        Levels(high="auto", **given).up_to(0.2)


# --- found once, paid once -------------------------------------------------------------------------------


@pytest.mark.parametrize("pruner", ["halving", "none"])
@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_the_pilot_costs_nothing_beside_the_search(database, make_spec, pruner):
    """A study whose range the pilot found trains the epochs that one does that was given the range."""
    found = put_study(database, make_spec(**AUTO, search={"pruner": pruner}))
    assert work(found, HERE, LeaveRequest()) == "all tickets are finished"
    found = found.reread()
    assert found.pilot is not None
    assert found.pilot.bound == pytest.approx(MARGIN * max(found.pilot.minima))
    assert found.pilot.epochs >= 2 * 3 * 2  # three validations, two epochs apart, of two seeds
    levels = {"high": found.pilot.high, "count": 6}
    told = put_study(
        database, make_spec(name="told", levels=levels, training={"epochs": 40}, search={"pruner": pruner})
    )
    assert tickets(told.spec) == tickets(found.spec)
    queue.fill(told)
    work(told, HERE, LeaveRequest())
    assert tables.read_curves(database, told.uuid) == tables.read_curves(database, found.uuid)
    assert answer(told).epochs_run == answer(found).epochs_run
    ends = [{n: (one.state, one.value) for n, one in latest(read_trials(x)).items()} for x in (told, found)]
    assert pruner == "halving" or ends[0] == ends[1]  # halving smooths over the bound, not the last level


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_the_range_is_on_the_scale_of_the_loss(make_scaled):
    """In a unit a thousand times smaller the levels are a thousand times larger; so for regression."""
    bounds = {}
    for scale in (1.0, 1000.0):
        study = make_scaled(f"scaled-{scale:g}", scale=scale)
        assert conduct(study)[0]
        bounds[scale] = study.reread().pilot.bound
    assert bounds[1000.0] == pytest.approx(1000 * bounds[1.0], rel=1e-3)


def test_one_worker_at_a_time_finds_the_range(database, make_spec):
    """While one holds the lease others wait; when it is gone another takes over; then nobody does."""
    study = put_study(database, make_spec(**AUTO))
    first, second = enter(study), enter(study)
    holder = queue.pilot_holder(first)
    assert tables.acquire_lease(database, study.uuid, queue.PILOT, holder, 60)
    assert conduct(study, second) == (False, 0)
    assert queue.fill(study) == 0
    assert queue.unfinished(study, [])
    queue.release(study, first, "it died")
    done, epochs = conduct(study, second)
    found = study.reread().pilot
    assert done
    assert epochs == found.epochs > 0
    assert len(read_trials(study)) == 6
    assert conduct(study, first) == (True, 0)
    assert study.reread().pilot == found


def test_a_pilot_that_is_cut_short_is_begun_again(database, make_spec):
    """A worker that has to leave stores nothing, and keeps nobody from beginning again."""
    study = put_study(database, make_spec(**AUTO))
    leave = LeaveRequest()
    leave.ask("lunch")
    assert conduct(study, leave=leave) == (True, 0)
    assert study.reread().pilot is None
    assert conduct(study)[0]
    assert study.reread().pilot is not None


def test_a_lease_that_a_worker_holds_lasts_while_it_beats(database, make_spec):
    """However long an epoch takes, the thread that beats keeps the lease."""
    study = put_study(database, make_spec(**AUTO))
    holder = queue.pilot_holder(enter(study))
    assert tables.acquire_lease(database, study.uuid, queue.PILOT, holder, -1)
    heart = Heartbeat(study, 1, HERE, LeaveRequest(), lease=(queue.PILOT, holder))
    heart.beat()
    assert not tables.acquire_lease(database, study.uuid, queue.PILOT, "another", 1)


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"fail": True}, "RuntimeError: no such thing"),
        ({"shift": -1e3}, "needs a validation loss that stays above 0, but it fell to -9"),
        (
            {"training": {"optimizer": "sgd", "learning_rate": 1e20}},
            "lower the learning rate, or give levels.high",
        ),
    ],
    ids=["error", "no bound", "diverged"],
)
def test_a_pilot_that_fails_stops_the_study_and_says_why(make_scaled, options, why):
    """Nothing can be trained without a range: workers leave, and launching again tries again."""
    study = make_scaled(**options)
    reason = work(study, HERE, LeaveRequest())
    assert reason.startswith("the pilot failed: ")
    assert why in reason
    assert status(study).stopped == reason
    assert study.reread().pilot is None
    assert put_study(study.database, study.spec).stopped() is None


def test_the_same_file_continues_and_another_range_is_refused(database, make_spec):
    """The file still says "auto" when the range is known; a number in its place would be another search."""
    study = put_study(database, make_spec(**AUTO))
    conduct(study)
    again = put_study(database, make_spec(**AUTO))
    assert again.spec == study.reread().spec
    assert again.spec.levels.high == again.pilot.high
    grown = put_study(database, make_spec(levels=AUTO["levels"], training={"epochs": 60}))
    assert (grown.pilot, grown.spec.training.epochs) == (again.pilot, 60)
    with pytest.raises(StudyChangedError, match=r"levels\.high: \"auto\" before, 0\.7 now"):
        put_study(database, make_spec(levels={"high": 0.7, "count": 6}, training={"epochs": 60}))


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("sampler", ["tpe", "heuristic"])
def test_a_sampled_search_stays_below_what_the_pilot_found(database, make_spec, sampler):
    study = put_study(
        database,
        make_spec(levels={"high": "auto", "count": None}, search={"sampler": sampler, "trials": 6}),
    )
    work(study, HERE, LeaveRequest())
    study = study.reread()
    levels = [trial.level for trial in latest(read_trials(study)).values()]
    assert len(levels) == 6
    assert max(levels) <= study.pilot.high


# --- what is shown ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_status_shows_the_pilot_and_forecasts_from_its_speed(database, make_spec):
    """Before: that it is on; after: what it found, and how long the search will take."""
    study = put_study(database, make_spec(**AUTO))
    before = status(study)
    assert before.piloting
    assert (before.pilot, before.seconds_left, before.finished) == (None, None, False)
    assert before.epochs_exhaustive == 6 * 2 * 40
    conduct(study)
    after = status(study)
    assert not after.piloting
    found = after.pilot
    assert after.epochs_expected < 6 * 2 * 40  # levels share their first epochs
    left = after.epochs_expected - after.epochs_run
    assert after.seconds_left == pytest.approx(left * found.seconds_per_epoch)
    assert f"levels up to {found.high:g}" in status_text(after)


def test_pilots_of_all_lengths_end(make_spec, database):
    """Also where a run is too short for the pilot to see its validation loss stop."""
    for number, (epochs, every) in enumerate(itertools.product((1, 3, 7), (1, 3))):
        if every <= epochs:
            training = {"epochs": epochs, "validate_every": every}
            study = put_study(
                database, make_spec(name=f"short-{number}", levels=AUTO["levels"], training=training)
            )
            assert conduct(study)[0]
            assert study.reread().pilot.epochs <= 2 * epochs
