"""Workers: what they train, what they leave behind, and every way in which they stop or die."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping

import numpy as np
import optuna
import pytest
import sqlalchemy
import torch

from floodsearch import queue
from floodsearch.answer.tickets import count, latest
from floodsearch.answer.values import recent_mean
from floodsearch.errors import UsageError
from floodsearch.queries import answer, status
from floodsearch.records import Attribute, EpochRecord
from floodsearch.storage import tables
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import find_study, put_study
from floodsearch.storage.trial_records import read_measured, read_trials
from floodsearch.study.trust import token_of, trust_in
from floodsearch.training.cohort import EpochOutcome, in_lockstep
from floodsearch.training.devices import devices, find_device
from floodsearch.worker.heartbeat import Heartbeat
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

HERE = WorkerSettings(device="cpu", threads=1)
HASTY = WorkerSettings(device="cpu", threads=1, beat_seconds=0.1, grace_seconds=1.0)

sqlite = pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
"""Of tests whose promise no dialect, lock, clock or outage of a database can change."""

WORK = """
import alembic.command, psycopg
from dataclasses import replace
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import find_study
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.study.trust import trust_in
from floodsearch.worker.work import work

def main(index, url, beat, grace):
    database = open_database(url)
    settings = WorkerSettings(device="cpu", threads=1, beat_seconds=float(beat), grace_seconds=float(grace))
    study = find_study(database, "tiny")
    reason = work(replace(study, trusts=trust_in(study.spec)), settings, LeaveRequest())
    database.close()
    return reason
"""

GATED = '''
import os, pathlib, threading, time
import torch
from torch import nn
from floodsearch.tasks.task import Data, Recipe, Split, Task

def task(*, folder: str = "") -> Task:
    """Twenty points in two classes; a training waits at its first batch until there is a file `go`."""

    def data(seed):
        torch.manual_seed(seed)
        inputs = torch.randn(20, 2)
        split = Split(inputs, (inputs.sum(dim=1) > 0).long())
        return Data(train=split, validation=split, test=split)

    def loss(outputs, labels):
        while folder and not pathlib.Path(folder, "go").exists():
            time.sleep(0.005)
        return nn.functional.cross_entropy(outputs, labels)

    return Task(data=data, model=lambda: nn.Linear(2, 2), recipe=Recipe(batch_size=20), loss=loss)
'''


@pytest.fixture
def user_task(write_code):
    """Write a module with a task of the user's own; give its reference."""
    return lambda source=GATED: f"{write_code(source)}:task"


@pytest.fixture
def gate(tmp_path):
    """Give the folder in which the file `go` opens the gate of the gated task."""
    folder = tmp_path / "gate"
    folder.mkdir()
    yield folder
    (folder / "go").touch()  # let nobody wait for ever


@pytest.fixture
def make_gated(database, make_spec, user_task, gate):
    """Put a study of the gated task, filled."""

    def make(**changes):
        options = {"label_noise": None, "width": None, "depth": None, "folder": str(gate)}
        study = put_study(database, make_spec(task=user_task(), options=options, **changes))
        queue.fill(study)
        return study

    return make


class Thread(threading.Thread):
    """A worker as a thread of this process, with the database open for itself."""

    def __init__(self, url, settings=HASTY, name="worker"):
        super().__init__(name=name)
        self.url, self.settings, self.leave, self.reason = url, settings, LeaveRequest(), None
        self.start()

    def run(self):
        database = open_database(self.url)
        try:
            study = find_study(database, "tiny")
            self.reason = work(
                dataclasses.replace(study, trusts=trust_in(study.spec)), self.settings, self.leave
            )
        finally:
            database.close()

    def end(self):
        self.join(120)
        assert not self.is_alive()
        return self.reason


@pytest.fixture
def thread(storage_url, gate):
    started = []

    def start(**options):
        started.append(Thread(storage_url, **options))
        return started[-1]

    yield start
    for one in started:
        one.leave.ask("the test is over")
    (gate / "go").touch()
    for one in started:
        one.join(60)


def put(database, spec):
    study = put_study(database, spec)
    queue.fill(study)
    return study


def run_here(study, settings=HERE):
    return work(study, settings, LeaveRequest())


def states(study):
    return {ticket: trial.state for ticket, trial in sorted(latest(read_trials(study)).items())}


def values(study):
    return {trial.level: trial.value for trial in latest(read_trials(study)).values()}


HIGH = {"high": 4.0}
"""Levels above the first loss: each run floods from its first step, and none shares its start."""


def epochs_run(study):
    return sum(worker.epochs_run for worker in tables.read_workers(study.database, study.uuid))


def after_flooding(curve):
    """Return the records of a curve, of those epochs that come after the first flooded one of their seed."""
    first = {}
    for record in curve:
        if record.flooded > 0:
            first.setdefault(record.seed, record.epoch)
    return [record for record in curve if record.epoch > first.get(record.seed, math.inf)]


def running(study):
    return count(read_trials(study)).running


# What a worker leaves behind


def test_a_worker_trains_every_ticket(database, make_spec):
    """All tickets end complete, with values that follow from the stored curves, and the worker leaves."""
    study = put(database, make_spec())
    assert run_here(study) == "all tickets are finished"
    trials = read_measured(study)
    assert [(trial.ticket, trial.state) for trial in trials] == [(n, "complete") for n in range(3)]
    curves = tables.read_curves(database, study.uuid)
    for trial in trials:
        by_seed = {
            seed: [record for record in curves[trial.ticket] if record.seed == seed] for seed in (0, 1)
        }
        means = [recent_mean(records, study.criterion, 10) for records in by_seed.values()]
        assert trial.value == pytest.approx(math.fsum(means) / 2, abs=1e-12)
        assert [result.value for result in trial.results] == means
    [worker] = tables.read_workers(database, study.uuid)
    assert (worker.pid, worker.device, worker.training) == (os.getpid(), "cpu", ())
    assert worker.left is not None
    assert {"floodsearch", "optuna", "torch", "python", "platform"} <= worker.versions.keys()
    assert status(study).workers == 0
    assert answer(study).finished
    curves_are_complete_and_tested_twice(study)


def curves_are_complete_and_tested_twice(study):
    """Each run has one record an epoch, validated when due and tested at the last and best epochs only."""
    curves = tables.read_curves(study.database, study.uuid)
    assert sorted(curves) == [0, 1, 2]
    for trial in read_measured(study):
        assert [(one.seed, one.epoch) for one in curves[trial.ticket]] == [
            (seed, epoch) for seed in (0, 1) for epoch in range(1, 11)
        ]
        for seed in (0, 1):
            run = [record for record in curves[trial.ticket] if record.seed == seed]
            assert {record.level for record in run} == {trial.level}
            validated = [record for record in run if record.val_accuracy is not None]
            assert [record.epoch for record in validated] == [2, 4, 6, 8, 10]
            best = max(validated, key=lambda record: (record.val_accuracy, -record.epoch))
            tested = {record.epoch for record in run if record.test_loss is not None}
            assert tested == {best.epoch, 10}
            [result] = [one for one in trial.results if one.seed == seed]
            assert result.test_accuracy == run[-1].test_accuracy


@sqlite
def test_every_trained_epoch_is_counted(database, make_spec):
    """The worker counts tickets x seeds x epochs, and trials report at the rungs and nowhere else.

    Another one, on the finished study, leaves at once and trains nothing.
    """
    spec = make_spec(levels=HIGH, training={"validate_every": 3})
    study = put(database, spec)
    run_here(study)
    assert epochs_run(study) == 3 * 2 * 10
    assert answer(study).epochs_run == answer(study).epochs_exhaustive == 60
    for trial in database.optuna.get_all_trials(study.id):
        assert sorted(trial.intermediate_values) == list(spec.training.report_epochs()) == [3, 6, 9, 10]
        assert trial.intermediate_values[10] == trial.value
    assert run_here(study) == "all tickets are finished"
    assert epochs_run(study) == 60
    assert len(read_trials(study)) == 3


@sqlite
def test_a_start_that_levels_share_is_trained_once(database, make_spec):
    """Also by tickets that are trained one after the other: these, which never flood, cost nothing.

    Code of the user's in the same process draws on as if nothing had been trained.
    """
    before = torch.get_rng_state()
    study = put(database, make_spec())
    run_here(study)
    assert torch.equal(torch.get_rng_state(), before)
    curves = tables.read_curves(database, study.uuid)
    assert all(record.flooded == 0 for curve in curves.values() for record in curve)
    assert epochs_run(study) == 2 * 10
    assert len(set(values(study).values())) == 1


def test_the_number_of_workers_changes_no_value(database, storage_url, make_spec, crowd, tmp_path):
    """Two processes find the same value for every level, to the last bit, as one does."""
    spec = make_spec(levels={**HIGH, "count": 6})
    alone = open_database(f"sqlite:///{tmp_path}/alone.db", create=True)
    study = put(alone, spec)
    run_here(study)
    expected = values(study)
    alone.close()

    study = put(database, spec)
    reasons = crowd(WORK, 2, storage_url, "5", "60").answers()
    assert reasons == ["all tickets are finished"] * 2
    assert values(study) == expected
    # Each worker trains a trunk of its own to see where levels leave it, which is at once.
    assert 6 * 2 * 10 <= epochs_run(study) <= 6 * 2 * 10 + 2
    assert len(read_trials(study)) == 6


@sqlite
def test_more_seeds_train_the_new_ones_only(database, make_spec):
    """A study that gets a third seed for all levels has the values of one that had three, at no more cost."""
    floods = {"options": {"width": 256}}  # at each level: more seeds are trained where they may tell more
    training = {"learning_rate": 0.05}
    whole = put(database, make_spec(name="whole", training={"seeds": 3, **training}, **floods))
    run_here(whole)
    run_here(put(database, make_spec(training=training, **floods)))
    grown = put(database, make_spec(training={"seeds": 3, **training}, **floods))
    run_here(grown)
    assert values(grown) == values(whole)
    assert epochs_run(grown) == epochs_run(whole)
    curves = tables.read_curves(database, grown.uuid)
    assert curves == tables.read_curves(database, whole.uuid)


class Hill:
    """Members whose accuracy is a hill over levels, best at 0.3, with a little noise: trained in no time.

    Some levels are worse by so much for seeds from the fourth on, so that added seeds say something else.
    """

    late_loss: Mapping[float, float] = {}

    def __init__(self, group):
        self.levels, self.seeds, self.epoch = dict(group.levels), dict(group.seeds), 0

    def value(self, level, seed):
        noise = np.random.default_rng([seed, round(1000 * level)]).normal(0, 0.002)
        return 0.8 - 2 * (level - 0.3) ** 2 + noise - (seed >= 3) * self.late_loss.get(level, 0.0)

    def record(self, number, seed, **tests):
        level = self.levels[number]
        value = self.value(level, seed)
        return EpochRecord(
            seed=seed,
            epoch=self.epoch,
            level=level,
            train_loss=level,
            train_accuracy=1.0,
            flooded=0.5,
            val_loss=1 - value,
            val_accuracy=value,
            **tests,
        )

    def train(self, until, note):
        return in_lockstep(self, until, note)

    def advance(self):
        self.epoch += 1
        trained = sum(len(seeds) for seeds in self.seeds.values())
        return EpochOutcome(
            {n: [self.record(n, one) for one in self.seeds[n]] for n in self.seeds}, {}, trained
        )

    def forked(self, member):
        return True

    def drop(self, member):
        self.seeds.pop(member, None)

    def lowest(self, member, seed):
        return None

    def tested(self, member):
        return [self.record(member, seed, test_loss=0.5, test_accuracy=0.5) for seed in self.seeds[member]]


def train_hill(study, late_loss=None):
    """Train a study of the hill to its end; fails if the worker waits for what never comes."""
    leave = LeaveRequest()
    timer = threading.Timer(60, leave.ask, ["it takes too long"])
    timer.start()
    trainer = type("LateHill", (Hill,), {"late_loss": late_loss or {}})
    try:
        assert work(study, HERE, leave, trainer) == "all tickets are finished"
    finally:
        timer.cancel()


def seeds_by_level(study):
    return {trial.level: trial.seeds for trial in latest(read_trials(study)).values()}


@pytest.fixture
def put_hill(database, make_spec):
    """Put a study of eleven levels up to 0.5 with so many seeds, filled."""

    def put_seeds(seeds, pruner="none"):
        training = {"seeds": seeds, "validate_every": 1}
        return put(database, make_spec(levels={"count": 11}, training=training, search={"pruner": pruner}))

    return put_seeds


@sqlite
def test_added_seeds_are_trained_where_they_matter(put_hill):
    """Of a finished study that gets more seeds, the answer, its ties and level 0 get them, and no other."""
    train_hill(put_hill(4))
    before = answer(put_hill(4))
    grown = put_hill(8)
    assert not status(grown).finished
    train_hill(grown)
    after, seeds = answer(grown), seeds_by_level(grown)
    assert before.tied is not None
    worth = {0.0, before.level, *before.tied}
    assert len(worth) < 5
    assert {level for level in seeds if seeds[level] == 8} == worth
    assert {level for level in seeds if seeds[level] == 4} == seeds.keys() - worth
    assert epochs_run(grown) == 11 * 4 * 10 + len(worth) * 4 * 10
    assert (before.seeds, after.seeds, after.level) == (4, 8, 0.3)
    assert after.finished
    assert after.trials.complete == 11
    assert after.epochs_exhaustive == 11 * 8 * 10
    assert queue.fill(grown) == 0
    train_hill(grown)
    assert len(read_trials(grown)) == 11 + len(worth)


@sqlite
def test_added_seeds_come_in_rounds_that_end(put_hill, monkeypatch):
    """What one round of added seeds makes worth more is trained in the next, whatever is worth less now."""
    train_hill(put_hill(3))

    def worth(trials, criterion):
        whole = {trial.ticket for trial in trials if trial.seeds == 8 and trial.state == "complete"}
        return {0, 5} if not whole else {7, 5} if 7 not in whole else set(range(3)) - {0}

    monkeypatch.setattr("floodsearch.queue.filling.worth_more_seeds", worth)
    grown = put_hill(8)
    assert [ticket for ticket, state in states(grown).items() if state == "waiting"] == [0, 5]
    train_hill(grown)
    of = latest(read_trials(grown))
    assert {ticket for ticket in of if of[ticket].seeds == 8} == {0, 5, 7, 1, 2}
    assert status(grown).finished
    assert len(of) + 5 == len(read_trials(grown)), "each was queued once"


@sqlite
def test_added_seeds_wait_for_what_is_in_training(put_hill):
    """While a ticket waits or is in training the answer still moves: no seeds are added to others yet."""
    train_hill(put_hill(3))
    grown = put_hill(8)
    waiting = [ticket for ticket, state in states(grown).items() if state == "waiting"]
    worker = enter(grown)
    [held] = queue.take(grown, worker)
    assert held.number == waiting[0]
    assert queue.fill(grown) == 0
    assert queue.unfinished(grown, read_trials(grown))
    queue.hand_back(held)
    again = put_hill(9)
    assert [t for t, state in states(again).items() if state == "waiting"] == waiting
    train_hill(again)
    assert answer(again).seeds == 9


@sqlite
def test_a_ticket_with_added_seeds_is_not_pruned(put_hill):
    """The winner of halving keeps its place when its new seeds are worse than what lost had been."""
    train_hill(put_hill(3, pruner="halving"))
    level = answer(put_hill(3, pruner="halving")).level
    pruned = count(read_trials(put_hill(3, pruner="halving"))).pruned
    assert pruned > 5
    grown = put_hill(8, pruner="halving")
    train_hill(grown, {level: 0.4})
    assert count(read_trials(grown)).pruned == pruned
    assert seeds_by_level(grown)[level] == seeds_by_level(grown)[0.0] == 8


@sqlite
def test_more_epochs_train_again(database, make_spec):
    """A study that gets more epochs has the curves of one that was as long from the start.

    The tests at the ends of its shorter runs stay beside them.
    """
    long = put(database, make_spec(name="long", training={"epochs": 14}))
    run_here(long)
    run_here(put(database, make_spec()))
    grown = put(database, make_spec(training={"epochs": 14}))
    run_here(grown)
    assert values(grown) == values(long)
    found = tables.read_curves(database, grown.uuid)
    for ticket, expected in tables.read_curves(database, long.uuid).items():
        assert [without_tests(one) for one in found[ticket]] == [without_tests(one) for one in expected]
        tested = {(one.seed, one.epoch): one for one in found[ticket]}
        assert [tested[one.seed, one.epoch] for one in expected if one.test_loss is not None] == [
            one for one in expected if one.test_loss is not None
        ]


def without_tests(record):
    return dataclasses.replace(record, test_loss=None, test_accuracy=None, test_accuracy_clean=None)


@pytest.mark.parametrize("sampler", ["random", "heuristic"])
@sqlite
def test_a_sampled_search_ends(database, make_spec, sampler):
    """A sampler's open tickets are proposed one by one; the levels all differ and none is left out."""
    study = put(database, make_spec(levels={"count": None}, search={"sampler": sampler, "trials": 5}))
    run_here(study)
    levels = sorted(values(study))
    assert len(levels) == 5
    assert levels[0] == 0
    assert set(states(study).values()) == {"complete"}


@sqlite
def test_the_level_that_runs_find_is_in_the_answer(database, make_spec):
    """Under `adaptive` the answer's level lies among the last levels in the curves, not at their bound."""
    spec = make_spec(
        levels={"high": 0.5, "count": None},
        training={"schedule": "adaptive", "learning_rate": 0.05, "validate_every": 1},
        adaptive={"until_accuracy": 0.5, "alpha": 0.015},
    )
    study = put(database, spec)
    run_here(study)
    found, curves = answer(study), tables.read_curves(database, study.uuid, {1})
    last = [record.level for record in curves[1] if record.epoch == 10]
    assert max(last) > 0
    assert len(last) == 2
    flooded = read_measured(study)[1]
    assert [one.final_level for one in flooded.results] == last
    assert found.level in (0.0, pytest.approx(sum(last) / 2))
    assert status(study).best_level in (None, 0.0)
    assert found.highest == 0.5


@sqlite
def test_settings_that_are_searched_have_the_baseline(database, make_spec):
    """Each choice of a setting of the schedule is trained and answered, with one level 0 as the baseline."""
    spec = make_spec(
        options={"width": 256},
        training={"schedule": "backward", "learning_rate": 0.05},
        search={"pruner": "halving"},
        backward={"until_accuracy": {"choices": [0.5, 0.9]}},
    )
    study = put(database, spec)
    run_here(study)
    found = answer(study)
    assert [one.parameters["until_accuracy"] for one in found.combinations] == [0.5, 0.9]
    assert found.baseline is not None
    assert {one.baseline for one in found.combinations} == {found.baseline.value}
    assert found.verdict is not None
    assert found.trials.total == 5
    curves = tables.read_curves(database, study.uuid)
    for trial in read_trials(study):
        until, records = trial.beside.get("until_accuracy", 2), curves[trial.ticket]
        for before, after in itertools.pairwise(one for one in records if one.seed == 0):
            reached = any(one.train_accuracy >= until for one in records[: before.epoch])
            assert after.level == (trial.level if reached else 0)


# Ends of trials


@pytest.mark.parametrize(
    "pruner",
    [{"median": {"startup": 2}}, {"hyperband": {"first": 2, "reduction": 2}}],
    ids=lambda p: next(iter(p)),
)
@sqlite
def test_pruners_prune(database, make_spec, pruner):
    """Poor levels are stopped at a rung, with a reason and the last report as value; level 0 never."""
    [name] = pruner
    study = put(
        database,
        make_spec(
            levels={"high": 4.0, "count": 12},
            training={"epochs": 20, "learning_rate": 0.05},
            search={"pruner": name},
            **pruner,
        ),
    )
    run_here(study)
    trials = read_trials(study)
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned
    assert {trial.state for trial in trials} == {"complete", "pruned"}
    assert trials[0].state == "complete"
    rungs = study.spec.training.report_epochs()
    for trial in pruned:
        assert trial.cause == "pruned"
        assert f"pruned by {name} at epoch {trial.epoch}" in trial.reason
        assert trial.epoch in rungs[:-1]
        curve = tables.read_curves(database, study.uuid, {trial.ticket})[trial.ticket]
        assert max(record.epoch for record in curve) == trial.epoch
        reports = database.optuna.get_all_trials(study.id)[trial.trial].intermediate_values
        assert trial.value == reports[max(reports)]
    saved = sum((20 - trial.epoch) * 2 for trial in pruned)
    curves = tables.read_curves(database, study.uuid).values()
    # The start of a run that has not flooded is that of level 0, which has been trained.
    shared = sum(one.flooded == 0 for curve in curves for one in curve if one.level > 0)
    again = sum(one.flooded == 0 for curve in curves for one in after_flooding(curve))
    assert epochs_run(study) == 12 * 2 * 20 - saved - shared + again


@sqlite
def test_an_error_of_the_users_code_stops_the_study(database, make_spec, user_task):
    """A task that raises is tried, its traceback kept, and after three tickets in a row the study stops."""
    source = GATED.replace(
        "return nn.functional", "raise ArithmeticError('my own bug')\n        return nn.functional"
    )
    options = {"label_noise": None, "width": None, "depth": None}
    study = put(database, make_spec(task=user_task(source), options=options, levels={"count": 5}))
    reason = run_here(study)
    assert "3 tickets in a row failed" in reason
    assert "ArithmeticError: my own bug" in reason
    assert study.stopped() == reason
    trials = database.optuna.get_all_trials(study.id)
    failed = [trial for trial in trials if trial.state == optuna.trial.TrialState.FAIL]
    assert len(failed) == 3
    for trial in failed:
        assert trial.user_attrs["cause"] == "error"
        assert "raise ArithmeticError" in trial.user_attrs["traceback"]
    assert count(read_trials(study)).waiting == 2


FLAKY = GATED.replace(
    "return nn.functional",
    """for attempt in range(3):
            try:
                pathlib.Path(folder, f"failed-{attempt}").open("x").close()
            except FileExistsError:
                continue
            raise RuntimeError("the disk hiccuped")
        return nn.functional""",
)


@sqlite
def test_a_ticket_that_failed_is_tried_again(database, make_spec, user_task, gate):
    """A task that fails twice and then works is complete in the end, and the study goes on."""
    (gate / "go").touch()
    (gate / "failed-2").touch()
    options = {"label_noise": None, "width": None, "depth": None, "folder": str(gate)}
    spec = make_spec(task=user_task(FLAKY), options=options, training={"seeds": 1})  # else both fail at once
    study = put(database, spec)
    assert run_here(study) == "all tickets are finished"
    assert set(states(study).values()) == {"complete"}
    assert Counter(trial.cause for trial in read_trials(study)) == {None: 3, "error": 2}
    assert max(trial.attempt for trial in read_trials(study)) == 2


@sqlite
def test_a_task_that_always_fails_is_given_up(database, make_spec, user_task):
    """With too few tickets for a row, each is tried three times and then failed; the worker leaves."""
    source = GATED.replace("return nn.functional", "raise ArithmeticError\n        return nn.functional")
    options = {"label_noise": None, "width": None, "depth": None}
    study = put(database, make_spec(task=user_task(source), options=options, levels={"count": 2}))
    assert run_here(study) == "all tickets are finished"
    assert states(study) == {0: "failed", 1: "failed"}
    assert len(read_trials(study)) == 6


CRAMPED = (
    GATED.replace(
        "def task(*, folder",
        """alive = weakref.WeakSet()

class Model(nn.Linear):
    room = 0

    def __init__(self):
        super().__init__(2, 2)
        alive.add(self)

    def forward(self, inputs):
        if len(alive) > Model.room:
            gc.collect()  # what nobody holds any more
        if len(alive) > Model.room:
            raise torch.OutOfMemoryError("injected")
        return super().forward(inputs)

def task(*, room: int = 0, folder""",
    )
    .replace("import os,", "import gc, weakref, os,")
    .replace("model=lambda: nn.Linear(2, 2)", "model=(setattr(Model, 'room', room), Model)[1]")
)
"""Models for which there is room for so many at once."""


@pytest.fixture
def put_cramped(database, make_spec, user_task):
    """Put a study of four levels in one bracket, with room for so many models."""

    def make(room):
        options = {"label_noise": None, "width": None, "depth": None, "room": room}
        spec = make_spec(
            task=user_task(CRAMPED),
            options=options,
            levels={**HIGH, "count": 4},
            training={"seeds": 1},
            search={"pruner": "halving"},
            halving={"levels": 4, "first": 0.5},
        )
        return put(database, spec)

    return make


@sqlite
def test_what_has_no_memory_waits_for_a_smaller_cohort(put_cramped, caplog):
    """Too many models at once: some wait, which is no attempt, and all are trained in the end."""
    study = put_cramped(room=3)  # the trunk and two levels above 0, of three
    assert run_here(study) == "all tickets are finished"
    trials = read_trials(study)
    assert len(trials) == 4
    assert {trial.state for trial in trials} <= {"complete", "pruned"}
    assert {trial.attempt for trial in trials} == {1}
    assert sum(trial.out_of_memory for trial in trials) > 0
    assert set(status(study).interruptions) == {"out of memory"}
    assert "waits to be trained with fewer others" in caplog.text


@sqlite
def test_what_has_no_memory_by_itself_failed(put_cramped):
    """A single ticket that does not fit is an error like any other, with the line of the user's code."""
    study = put_cramped(room=1)  # the trunk, from which no level can fork
    run_here(study)
    failed = [trial for trial in read_trials(study) if trial.state == "failed"]
    assert failed
    [reason] = {trial.reason for trial in failed}
    assert re.fullmatch(r"OutOfMemoryError: injected \(users_\w+\.py:20\)", reason)
    assert latest(read_trials(study))[0].state == "complete"


@sqlite
def test_a_loss_that_becomes_nan_is_a_divergence(database, make_spec, user_task):
    """A training whose loss is not finite is pruned as diverged, with level, epoch and step, for good."""
    nan = """if outputs.requires_grad:
            task.steps += 1
            if task.steps >= 6:  # two steps an epoch, two seeds in turn: epoch 2, step 2 of the first seed
                return outputs.sum() * float("nan")
        """
    source = GATED.replace("return nn.functional", nan + "return nn.functional")
    source = (
        source.replace("recipe=Recipe(batch_size=20)", "recipe=Recipe(batch_size=10)") + "\ntask.steps = 0\n"
    )
    options = {"label_noise": None, "width": None, "depth": None}
    study = put(database, make_spec(task=user_task(source), options=options))
    assert run_here(study) == "all tickets are finished"
    trials = read_trials(study)
    assert [(trial.state, trial.cause) for trial in trials] == [("pruned", "diverged")] * 3
    assert "at level 0, epoch 2, step 2, seed 0" in trials[0].reason
    assert "at level 0.5, epoch 1, step 1, seed 0" in trials[2].reason
    assert [note.cause for note in status(study).notes] == ["diverged"] * 3


def test_a_metric_that_is_not_finite_completes_nothing(database, make_spec, user_task, thread, storage_url):
    """A validation that gives NaN is no value: no ticket completes with it, and none is trained for ever."""
    nan = "if not outputs.requires_grad:\n            return outputs.sum() * float('nan')\n        "
    source = GATED.replace("return nn.functional", nan + "return nn.functional")
    options = {"label_noise": None, "width": None, "depth": None}
    study = put(database, make_spec(task=user_task(source), options=options, search={"metric": "val_loss"}))
    worker = thread()
    deadline = time.monotonic() + 60
    while worker.is_alive() and len(read_trials(study)) <= 9 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(read_trials(study)) <= 9
    assert worker.end() is not None
    assert "complete" not in states(study).values()


# The budget


def test_several_workers_keep_the_budget(database, storage_url, make_spec, crowd):
    """The epochs of all workers stop within a rung of the budget; what is unfinished waits again."""
    study = put(database, make_spec(levels={**HIGH, "count": 6}, budget={"epochs": 60}))
    reasons = crowd(WORK, 2, storage_url, "5", "60").answers()
    spent = (
        "the budget of 60 epochs is spent; raise budget.epochs in the study file and launch it again to go on"
    )
    assert set(reasons) == {spent}
    workers, rung, seeds = 2, 2, 2
    assert 60 <= epochs_run(study) <= 60 + workers * rung * seeds
    counts = count(read_trials(study))
    assert (counts.running, counts.failed) == (0, 0)
    assert counts.waiting > 0
    assert counts.total == 6
    assert status(study).finished
    assert status(study).stopped == spent


@sqlite
def test_a_larger_budget_goes_on(database, make_spec):
    """A study that was out of budget trains what waits when it is given more."""
    study = put(database, make_spec(levels=HIGH, budget={"epochs": 30}))
    assert "budget" in run_here(study)
    assert "waiting" in states(study).values()
    study = put(database, make_spec(levels=HIGH, budget={"epochs": 1000}))
    assert run_here(study) == "all tickets are finished"
    assert set(states(study).values()) == {"complete"}


# Leaving


def test_asked_to_leave_in_mid_training(make_gated, thread, gate, eventually):
    """A worker that is asked to leave hands back after the epoch, and another one goes on from there."""
    study = make_gated(levels={**HIGH, "count": 2})
    worker = thread()
    eventually(lambda: running(study) == 1)
    worker.leave.ask("lunch")
    (gate / "go").touch()
    assert worker.end() == "lunch"
    assert states(study) == {0: "waiting", 1: "waiting"}
    assert status(study).interruptions == {"handed back": 1}
    [row] = tables.read_workers(study.database, study.uuid)
    assert row.left is not None
    assert row.epochs_run == 2
    assert run_here(study) == "all tickets are finished"
    assert states(study) == {0: "complete", 1: "complete"}
    assert len(read_trials(study)) == 2
    assert epochs_run(study) == 40


@sqlite
def test_a_stopped_study_is_left(make_gated, thread, gate, eventually):
    """Workers see within a beat that the study was stopped, and hand back what they train."""
    study = make_gated(training={"epochs": 4000, "validate_every": 500})
    worker = thread()
    (gate / "go").touch()
    eventually(lambda: running(study) == 1)
    study.stop("stopped by hand")
    assert worker.end() == "stopped by hand"
    assert set(states(study).values()) <= {"waiting", "complete"}
    assert "waiting" in states(study).values()
    assert run_here(study) == "stopped by hand"


@sqlite
def test_a_worker_waits_while_others_train(make_gated, thread, gate, eventually):
    """A worker without a ticket stays, in case one comes back, and leaves when all are finished."""
    study = make_gated(levels={"count": 2})
    workers = [thread(), thread(), thread()]
    eventually(lambda: running(study) == 2 and len(tables.read_workers(study.database, study.uuid)) == 3)
    assert all(worker.is_alive() for worker in workers)
    (gate / "go").touch()
    assert [worker.end() for worker in workers] == ["all tickets are finished"] * 3
    assert states(study) == {0: "complete", 1: "complete"}


COMMAND = [sys.executable, "-m", "floodsearch", "work", "tiny"]


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)  # what is stored is tested on both above
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGUSR1, 75)]
)
def test_a_signal_hands_back(make_gated, storage_url, tmp_path, gate, eventually, number, code):
    """SIGTERM, SIGINT and SIGUSR1 (Slurm) let the command hand its ticket back; its exit status tells it."""
    study = make_gated(training={"epochs": 4000, "validate_every": 500})
    token = token_of(study.spec)
    process = subprocess.Popen(
        [*COMMAND, "--storage", storage_url, "--device", "cpu", "--threads", "1", "--trust", token],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually(lambda: running(study) == 1 or process.poll() is not None)
        process.send_signal(number)
        (gate / "go").touch()
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert number.name in errors
    assert set(states(study).values()) == {"waiting"}
    assert tables.read_workers(study.database, study.uuid)[0].left is not None


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_an_epoch_that_takes_too_long_is_left_out(make_gated, storage_url, tmp_path, eventually):
    """A worker that cannot end its epoch within the grace hands its ticket back without it."""
    study = make_gated(training={"epochs": 4000, "validate_every": 500})
    token = token_of(study.spec)
    arguments = ["--storage", storage_url, "--device", "cpu", "--trust", token, "--grace", "1"]
    process = subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        eventually(lambda: running(study) == 1 or process.poll() is not None)
        process.send_signal(signal.SIGTERM)  # while it waits at the gate, which nobody opens
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 75, errors
    assert "the epoch takes too long" in errors
    assert set(states(study).values()) == {"waiting"}
    assert tables.read_workers(study.database, study.uuid)[0].left is not None


# Dying


def test_a_killed_worker_loses_nothing(make_gated, storage_url, gate, crowd, eventually):
    """When a worker is killed in mid-trial another one finds that out and trains its ticket; each is once."""
    study = make_gated(levels={"count": 4})
    workers = crowd(WORK, 2, storage_url, "0.1", "1")
    eventually(lambda: running(study) == 2)
    held = {trial.worker: trial.ticket for trial in read_trials(study) if trial.state == "running"}
    rows = {row.pid: row.id for row in tables.read_workers(study.database, study.uuid)}
    victim = workers.pids[0]
    os.kill(victim, signal.SIGKILL)
    (gate / "go").touch()
    assert sorted(map(str, workers.answers())) == ["None", "all tickets are finished"]
    trials = read_trials(study)
    assert set(states(study).values()) == {"complete"}
    assert Counter(trial.ticket for trial in trials if trial.state == "complete") == dict.fromkeys(
        range(4), 1
    )
    [lost] = [trial for trial in trials if trial.state == "failed"]
    assert (lost.cause, lost.ticket, lost.worker) == ("lost", held[rows[victim]], rows[victim])
    curves = tables.read_curves(study.database, study.uuid)
    assert {ticket: len(records) for ticket, records in curves.items()} == dict.fromkeys(range(4), 20)
    dead = next(row for row in tables.read_workers(study.database, study.uuid) if row.pid == victim)
    assert dead.left == dead.last_beat


HELD = (
    GATED.replace(
        "return nn.functional",
        """if threading.current_thread().name == "held" and outputs.requires_grad:
            task.steps += 1
            if task.steps == 2 * 4 + 1:  # two seeds, after four epochs
                pathlib.Path(folder, "held").touch()
                while not pathlib.Path(folder, "free").exists():
                    time.sleep(0.005)
        return nn.functional""",
    )
    + "\ntask.steps = 0\n"
)


def test_a_worker_that_was_thought_dead_changes_nothing(
    database, make_spec, user_task, gate, thread, eventually
):
    """A worker that wakes up after its ticket was trained by another drops it: values and curves stay."""
    (gate / "go").touch()
    options = {"label_noise": None, "width": None, "depth": None, "folder": str(gate)}
    # It hardly learns, so that the best validation is the first one, whose test metrics are to be kept.
    training = {"learning_rate": 1e-12}
    spec = make_spec(task=user_task(HELD), options=options, levels={"count": 2}, training=training)
    study = put(database, spec)
    sleeper = thread(name="held", settings=WorkerSettings(device="cpu", threads=1, beat_seconds=3600))
    eventually((gate / "held").exists)
    [row] = tables.read_workers(database, study.uuid)
    assert queue.release(study, row.id, "thought dead") == [0]
    assert run_here(study) == "all tickets are finished"
    trials, curves = read_measured(study), tables.read_curves(database, study.uuid)
    assert set(states(study).values()) == {"complete"}
    sleeper.leave.ask("time to go")
    (gate / "free").touch()
    sleeper.end()
    assert read_measured(study) == trials
    assert tables.read_curves(database, study.uuid) == curves


# The heart


@pytest.fixture
def heart(database, make_spec):
    """Give the heart of a worker that has just entered a study, with a beat of a twentieth of a second."""
    study = put(database, make_spec())
    settings = WorkerSettings(device="cpu", beat_seconds=0.05, grace_seconds=0.2)
    return Heartbeat(study, enter(study), settings, LeaveRequest())


def enter(study):
    return tables.enter_worker(study.database, study.uuid, host="here", pid=1, device="cpu", versions={})


def test_the_dead_are_found_between_the_shortest_tickets(heart, eventually):
    """A worker whose tickets all are shorter than a beat still finds that another one died."""
    study = heart.study
    dead = enter(study)
    [ticket] = queue.take(study, dead)

    def lost():
        heart.train(1)  # the next ticket, many times a beat
        return latest(read_trials(study))[ticket.number].attempt == 2

    with heart:
        eventually(lost)
    assert states(study)[ticket.number] == "waiting"
    [row] = [row for row in tables.read_workers(study.database, study.uuid) if row.id == heart.worker]
    assert row.training == (1,)


@sqlite
def test_a_stop_is_seen_between_the_shortest_tickets(heart, eventually):
    """A worker whose tickets all are shorter than a beat still sees that its study was stopped."""
    heart.study.stop("enough")
    with heart:
        eventually(lambda: heart.train(1) or heart.leave.wanted.is_set())
    assert heart.leave.reason == "enough"


# A failing storage


COUNTED = GATED.replace(
    "return nn.functional",
    """with pathlib.Path(folder, "steps").open("a") as steps:
            steps.write(".")
        return nn.functional""",
)


def test_a_locked_database_ends_no_training(tmp_path, make_spec, user_task, gate, eventually):
    """While another process holds SQLite's lock, workers wait for it, and lose nothing."""
    url = f"sqlite:///{tmp_path}/studies.db"
    database = open_database(url, create=True)
    options = {"label_noise": None, "width": None, "depth": None, "folder": str(gate)}
    search = {"pruner": "median"}  # writes at every rung
    study = put(database, make_spec(task=user_task(COUNTED), options=options, search=search))
    worker = Thread(url)
    eventually(lambda: any(one.training for one in tables.read_workers(database, study.uuid)))
    with database.write():
        (gate / "go").touch()
        eventually(lambda: (gate / "steps").exists() and (gate / "steps").stat().st_size >= 4)
    assert worker.end() == "all tickets are finished"
    assert set(states(study).values()) == {"complete"}
    assert len(read_trials(study)) == 3
    database.close()


@pytest.mark.postgres
def test_cut_connections_end_no_training(postgres_url, make_spec, user_task, gate, eventually):
    """When the server cuts a worker's connections, again and again, it connects anew and loses nothing."""
    database = open_database(postgres_url, create=True)
    options = {"label_noise": None, "width": None, "depth": None, "folder": str(gate)}
    spec = make_spec(
        task=user_task(COUNTED),
        options=options,
        search={"pruner": "median"},
        training={"epochs": 50, "validate_every": 4},
    )
    study = put(database, spec)
    worker = Thread(postgres_url)
    eventually(lambda: running(study) == 1)
    (gate / "go").touch()
    engine = sqlalchemy.create_engine(
        postgres_url.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT"
    )
    cut = 0
    with engine.connect() as connection:
        while worker.is_alive() and cut < 40:
            cut += connection.exec_driver_sql(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ).scalar_one()
            before = (gate / "steps").stat().st_size if (gate / "steps").exists() else 0
            eventually(
                lambda before=before: (
                    not worker.is_alive()
                    or ((gate / "steps").exists() and (gate / "steps").stat().st_size > before + 20)
                )
            )
    engine.dispose()
    assert cut > 3
    assert worker.end() == "all tickets are finished"
    assert set(states(study).values()) == {"complete"}
    curves = tables.read_curves(database, study.uuid)
    assert {ticket: len(records) for ticket, records in curves.items()} == dict.fromkeys(range(3), 100)
    database.close()


@pytest.mark.parametrize(
    ("storage_url", "every"),
    [("sqlite", 11), pytest.param("postgresql", 13, marks=pytest.mark.postgres)],
    indirect=["storage_url"],
)
def test_failing_transactions_end_no_training(database, make_spec, every):
    """When every so many transactions fail, all tickets are trained, and to the same values."""
    plain = put(database, make_spec(name="plain", levels={"count": 4}))
    run_here(plain)
    study = put(database, make_spec(levels={"count": 4}, search={"pruner": "median"}, median={"startup": 5}))
    calls = iter(range(1, 10**9))

    def fail(connection):
        if next(calls) % every == 0:
            raise sqlalchemy.exc.OperationalError("COMMIT", {}, Exception("the server went away"))

    leave = LeaveRequest()
    timer = threading.Timer(100, leave.ask, ["it takes too long"])
    timer.start()
    sqlalchemy.event.listen(database.engine, "begin", fail)
    try:
        reason = work(
            study, WorkerSettings(device="cpu", threads=1, beat_seconds=0.05, grace_seconds=0.5), leave
        )
    finally:
        sqlalchemy.event.remove(database.engine, "begin", fail)
        timer.cancel()
    assert reason == "all tickets are finished"
    assert values(study) == values(plain)
    complete = Counter(trial.ticket for trial in read_trials(study) if trial.state == "complete")
    assert complete == dict.fromkeys(range(4), 1)


def test_tables_that_are_away_for_a_while_end_no_training(
    make_gated, database, thread, gate, eventually, tmp_path
):
    """Reports and curves that cannot be written for a while are written later, when it works again."""
    study = make_gated(
        levels={"count": 2}, search={"pruner": "median"}, training={"epochs": 40, "validate_every": 2}
    )
    worker = thread()
    eventually(lambda: any(row.training for row in tables.read_workers(database, study.uuid)), "a training")
    names = ("floodsearch_curves", "trial_intermediate_values")
    with database.write() as connection:
        for name in names:
            connection.exec_driver_sql(f"ALTER TABLE {name} RENAME TO {name}_away")
    (gate / "go").touch()
    counted = lambda: sum(row.epochs_run for row in tables.read_workers(database, study.uuid))  # noqa: E731
    eventually(lambda: counted() >= 4 or not worker.is_alive(), "training without the tables")
    with database.write() as connection:
        for name in names:
            connection.exec_driver_sql(f"ALTER TABLE {name}_away RENAME TO {name}")
    assert worker.end() == "all tickets are finished"
    assert set(states(study).values()) == {"complete"}
    curves = tables.read_curves(database, study.uuid)
    assert {ticket: len(records) for ticket, records in curves.items()} == dict.fromkeys(range(2), 80)
    for trial in database.optuna.get_all_trials(study.id):
        assert sorted(trial.intermediate_values) == list(study.spec.training.report_epochs())


@sqlite
def test_a_ticket_that_a_worker_never_learnt_it_had_is_trained(make_gated, thread, gate, eventually):
    """A ticket signed by a worker that does not know so is found, and the worker does not wait for itself."""
    study = make_gated(levels={"count": 2})
    worker = thread(settings=WorkerSettings(device="cpu", threads=1, beat_seconds=0.05, grace_seconds=0.3))
    eventually(lambda: running(study) == 1)
    [row] = tables.read_workers(study.database, study.uuid)
    assert queue.take(study, row.id)
    (gate / "go").touch()
    assert worker.end() == "all tickets are finished"
    assert set(states(study).values()) == {"complete"}


# Devices


@pytest.mark.parametrize("name", ["cuda:99", "nonsense", "meta", "cpu:1:2", ""])
def test_a_device_that_does_not_exist_lists_those_that_do(name):
    """A wrong device is refused with its name and the devices of this machine."""
    with pytest.raises(UsageError) as caught:
        find_device(name)
    assert repr(name) in str(caught.value)
    assert ", ".join(devices()) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_cpu_is_always_there():
    """`cpu` is a device of every machine, and `auto` is one of those that are listed."""
    assert find_device("cpu") == torch.device("cpu")
    assert devices()[-1] == "cpu"
    assert str(find_device("auto")) in devices()


@sqlite
def test_a_wrong_device_enters_no_worker(database, make_spec):
    """A worker with a wrong device takes no ticket and leaves no row."""
    study = put(database, make_spec())
    with pytest.raises(UsageError, match="cuda:99"):
        run_here(study, WorkerSettings(device="cuda:99"))
    assert tables.read_workers(database, study.uuid) == []
    assert set(states(study).values()) == {"waiting"}
    assert Attribute.WORKER not in database.optuna.get_all_trials(study.id)[0].user_attrs
