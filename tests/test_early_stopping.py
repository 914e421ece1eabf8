"""Runs that the user's own code ends before their last epoch: where they end, and what they are worth."""

from __future__ import annotations

import contextlib
import random
import sys
import uuid
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from floodsearch import queue
from floodsearch.answer.values import rung_value, seed_result
from floodsearch.artifacts.checkpoint import Checkpoint
from floodsearch.artifacts.weights import KeptWeights
from floodsearch.catalog import known
from floodsearch.errors import LoopError, StudyFileError
from floodsearch.queries import answer, status
from floodsearch.storage import tables
from floodsearch.storage.studies import put_study
from floodsearch.storage.trial_records import read_measured, read_trials
from floodsearch.study.extend import differences
from floodsearch.study.reader import parse
from floodsearch.worker.bracket import Bracket
from floodsearch.worker.heartbeat import Heartbeat
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.loops import Loops
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work
from tests.test_analysis import CRITERION, LOSS_CRITERION, curve
from tests.test_command import STUDY as SCRIPTS
from tests.test_command import TRAIN as SCRIPT
from tests.test_command import WORKER
from tests.test_loops import (
    CPU,
    TRAIN,
    Alone,
    Killed,
    curves,
    ends,
    enter,
    epochs_run,
    files,
    restores,
    sqlite,
)
from tests.test_loops import STUDY as LOOPS

pytestmark = pytest.mark.usefixtures("one_thread")

PATIENCE = 2
STOPS = (
    TRAIN.replace("split(20)", "split(10)")
    .replace(
        "    for epoch in run.epochs():",
        "    run.state.setdefault('best', 9.9)\n    for epoch in run.epochs():",
    )
    .replace(
        "        scheduler.step()",
        f"""        if loss.item() < run.state["best"]:
            run.state.update(best=loss.item(), bad=0)
        else:
            run.state["bad"] = run.state.get("bad", 0) + 1
        if run.state["bad"] == {PATIENCE}:
            break
        scheduler.step()""",
    )
)
"""The loop of the other tests, with a patience of two epochs that do not improve on a noisy loss."""


@pytest.fixture
def alone(tmp_path):
    return lambda **options: Alone(tmp_path / uuid.uuid4().hex, **{"may_end": True, **options})


def loop(source):
    names = {}
    exec(source, names)
    return names["train"]


def lasts(study):
    """Return the last epoch of each run, by ticket and seed."""
    found = {}
    for ticket, records in curves(study).items():
        for record in records:
            found[ticket, record.seed] = max(record.epoch, found.get((ticket, record.seed), 0))
    return found


# One run


def test_a_run_in_parts_ends_where_one_that_was_never_paused_does(alone):
    """To the bit, wherever it pauses, at its end too: what was counted comes back, and an end is no pause."""
    whole, stops = alone(epochs=30, level=0.4), loop(STOPS)
    assert whole.train(stops) is None
    end = whole.run.epoch
    assert whole.run.ended
    assert 5 < end < 30
    for pauses in ((1,), (3,), (2, 3, end - 1), (end,)):
        parts = alone(epochs=30, level=0.4)
        for until in (*pauses, 30):
            random.seed(), np.random.seed(), torch.seed()
            assert parts.train(stops, until=until) is None
            if parts.run.ended:
                break
            assert parts.run.epoch == until
        assert parts.records == whole.records
        assert parts.checkpoint.load()["ended"]


def test_an_early_end_that_the_study_does_not_allow_says_how_to_allow_it(alone):
    error = alone(epochs=30, may_end=False).train(loop(STOPS))
    assert isinstance(error, LoopError)
    assert str(error).endswith(
        "of 30 without being asked to; return when run.epochs() ends, or let runs end early by "
        'early_stopping = "best" (or "last") in [training]'
    )


def test_a_run_that_nobody_asks_for_any_more_has_not_ended(alone):
    """Its worker leaves at the epoch in which it stops: it is trained from its last checkpoint again."""
    whole, stops = alone(epochs=30, level=0.4), loop(STOPS)
    whole.train(stops)
    one = alone(epochs=30, level=0.4)
    one.train(stops, until=3)
    one.train(stops, stop_at=whole.run.epoch)
    assert not one.run.ended
    one.train(stops)
    assert one.run.ended
    assert one.records[-1] == whole.records[-1]


def breaks(where, every=1):
    """Return a loop that ends in its third epoch, `where` it is by then."""

    def function(run):
        line = nn.Linear(1, 1)
        run.restore(line=line)
        for epoch in run.epochs():
            if epoch == 3 and where == "top":
                return
            run.flood(line(torch.ones(1, 1)).square().mean()).backward()
            if epoch == 3 and where == "trained":
                return
            run.report(**({"val_accuracy": epoch / 10} if epoch % every == 0 else {}))
            if epoch == 3 and where == "reported":
                return

    return function


@pytest.mark.parametrize(("where", "end"), [("top", 2), ("reported", 3)])
def test_a_run_ends_with_the_last_epoch_that_was_reported(alone, where, end):
    one = alone(keep="last")
    assert one.train(breaks(where)) is None
    assert (one.run.ended, one.run.epoch, len(one.records)) == (True, end, end)


@pytest.mark.parametrize(
    ("where", "every", "message"),
    [
        ("trained", 1, "the loop ended in epoch 3 without run.report(); break behind the report"),
        ("reported", 5, "the loop ended after epoch 3, before it had reported val_accuracy"),
    ],
)
def test_an_end_without_a_report_is_one_clear_line(alone, where, every, message):
    error = alone(validate_every=every).train(breaks(where, every))
    assert isinstance(error, LoopError)
    assert str(error) == message


# Plain values


def test_plain_values_come_back(alone):
    """A dict or a list that `restore` is given is filled in place; `run.state` is the run's own."""
    seen = []

    def function(run):
        best, history, ordered = {"value": 0.0, "old": 1}, [], OrderedDict()
        objects = best, history, ordered
        run.restore(line=nn.Linear(1, 1), best=best, history=history, ordered=ordered)
        seen.append((dict(run.state), *map(repr, objects)))
        for epoch in run.epochs():
            best.pop("old", None)
            best["value"] = epoch / 10
            history.append((epoch, None, "a", [True, {"b": torch.full((2,), epoch)}]))
            ordered[epoch] = {"c": -1}
            run.state["count"] = run.state.get("count", 0) + 1
            run.report(val_accuracy=0.5)

    one = alone()
    for until in (2, 3):
        assert one.train(function, until=until) is None
    assert one.train(function, until=4) is None
    assert seen[0][0] == {}
    state, best, history, ordered = seen[2]
    assert state == {"count": 3}
    assert best == "{'value': 0.3}"
    assert history.startswith("[(1, None, 'a', [True, {'b': tensor([1, 1])}]), (2, None,")
    assert ordered == repr(OrderedDict({1: {"c": -1}, 2: {"c": -1}, 3: {"c": -1}}))


def puts(**values):
    def function(run):
        run.restore(line=nn.Linear(1, 1))
        for _ in run.epochs():
            run.report(val_accuracy=0.5)
            run.state.update(values)

    return function


def replaces(run):
    run.restore(line=nn.Linear(1, 1))
    for _ in run.epochs():
        run.report(val_accuracy=0.5)
        run.state = 3


class Counter:
    """It has no state that can be asked for."""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            restores(best=0.5),
            "run.restore() was given best, of type float, which cannot be filled in place; "
            "write run.state['best'] = best",
        ),
        (
            restores(sizes=(1, 2)),
            "sizes, of type tuple, which cannot be filled in place; write run.state['siz",
        ),
        (
            restores(nothing=None),
            "nothing, of type NoneType, which cannot be filled in place; write run.state",
        ),
        (
            restores(counter=Counter()),
            "counter, a Counter, which has no state_dict and load_state_dict; give it these two, or put what "
            "changes in it into run.state, a dict that is saved with the run",
        ),
        (
            restores(history={"loss": [np.float64(1)]}),
            "something that a checkpoint cannot hold: history['loss'][0], a numpy.float64; a state may",
        ),
        (
            puts(best={1, 2}),
            "run.state has something that a checkpoint cannot hold: run.state['best'], a builtins.set; "
            "a state may be of tensors, numbers, texts and dicts and lists of these",
        ),
        (replaces, "run.state was replaced by something of type int; put values into the dict that it is"),
    ],
)
def test_what_cannot_come_back_is_said_in_the_first_epoch(alone, function, message):
    """In one line, with what to do instead."""
    one = alone()
    error = one.train(function)
    assert isinstance(error, LoopError)
    assert message in str(error)
    assert "\n" not in str(error)
    assert one.run.epoch <= 1


# Values


@pytest.mark.parametrize("criterion", [CRITERION, LOSS_CRITERION])
def test_a_run_that_ended_keeps_what_it_came_to_at_all_rungs_after_it(criterion):
    """By the rule of the study, which is the same for those that have not ended."""
    rises = criterion.maximize
    values = {2: 0.2, 4: 0.9, 6: 0.8, 8: 0.7} if rises else {2: 0.8, 4: 0.1, 6: 0.2, 8: 0.3}
    records = curve(values, criterion.field)
    best = replace(criterion, early_stopping="best")
    assert [rung_value(records, best, rung, epochs=20) for rung in (2, 4, 8, 9, 20)] == [
        values[2], *[values[4]] * 4
    ]  # fmt: skip
    last = replace(criterion, early_stopping="last", window=0.5)
    assert rung_value(records, last, 20, epochs=20) == pytest.approx((values[6] + values[8]) / 2)
    at_rungs = [rung_value(records, last, rung, epochs=20) for rung in (8, 9, 19)]
    assert at_rungs == [pytest.approx(sum(values[epoch] for epoch in (4, 6, 8)) / 3)] * 3


def test_a_run_that_did_not_end_early_has_its_usual_value_by_the_last_rule():
    records = curve({epoch: 0.1 * epoch for epoch in range(1, 11)})
    last = replace(CRITERION, early_stopping="last")
    assert rung_value(records, last, 10, epochs=10) == rung_value(records, CRITERION, 10, epochs=10)
    assert seed_result(records, last, 10) == seed_result(records, CRITERION, 10)


def test_all_numbers_of_a_run_are_of_the_epoch_that_its_value_is_of():
    """Its best validation, or its last one; an epoch without a validation tells nothing."""
    records = [
        replace(one, test_accuracy=one.epoch / 100)
        for one in (*curve({2: 0.5, 4: 0.9, 6: 0.4}), *curve({7: None}))
    ]
    best = seed_result(records, replace(CRITERION, early_stopping="best"), 20)
    assert (best.value, best.test_accuracy, best.best_epoch, best.best_test_accuracy) == (0.9, 0.04, 4, 0.04)
    last = seed_result(records, replace(CRITERION, early_stopping="last"), 20)
    assert (last.value, last.test_accuracy, last.best_epoch, last.best_test_accuracy) == (0.4, 0.06, 4, 0.04)


# Whole studies


@pytest.fixture
def here(tmp_path):
    """Give the settings of a worker that keeps its files here."""
    return WorkerSettings(
        device="cpu", threads=1, checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs"
    )


@pytest.fixture
def make_stopping(database, make_spec, write_code):
    """Put a study whose runs end early, each after its own number of epochs."""

    def make(name="tiny", rule="best", source=STOPS, like=LOOPS, command=None, **changes):
        own = {"training": {"epochs": 40, "early_stopping": rule}, "levels": {"count": 3}}
        whole = {
            key: {**like[key], **own.get(key, {}), **changes.pop(key, {})} for key in like if key != "task"
        }
        if whole["search"]["pruner"] != "halving":
            whole.pop("halving")
        trained = {"command": command} if command else {"objective": f"{write_code(source, 'loop')}:train"}
        study = put_study(database, make_spec(name=name, task=None, **trained, **whole, **changes))
        queue.fill(study)
        return study

    return make


@pytest.fixture(scope="module")
def undisturbed():
    """Keep the ends and curves of a study that was trained in peace, for all that are compared with it."""
    return {}


@pytest.fixture
def peace(undisturbed, make_stopping, here):
    if not undisturbed:
        whole = make_stopping("whole")
        work(whole, here, LeaveRequest())
        undisturbed.update(ends=ends(whole), curves=curves(whole))
    return undisturbed


@sqlite
@pytest.mark.parametrize("rule", ["best", "last"])
def test_all_levels_are_judged_and_compared_by_one_rule(make_stopping, here, rule):
    """Nothing is trained behind an end, each value is that of its curves, and the answer takes them."""
    study = make_stopping(rule=rule, training={"keep": "last"}, levels={"count": 5})
    assert work(study, here, LeaveRequest()) == "all tickets are finished"
    measured = {one.ticket: one for one in read_measured(study)}
    assert {one.state for one in measured.values()} == {"complete", "pruned"}
    assert all(end < 40 for end in lasts(study).values())
    assert len(set(lasts(study).values())) > 3
    assert epochs_run(study) == sum(map(len, curves(study).values()))
    for ticket, one in measured.items():
        runs = [[record for record in curves(study)[ticket] if record.seed == seed] for seed in (0, 1)]
        if one.state == "complete":
            assert one.results == tuple(seed_result(run, study.criterion, 40) for run in runs)
            assert one.value == pytest.approx(sum(result.value for result in one.results) / 2)
            if rule == "best":
                assert one.results[0].value == max(record.val_accuracy for record in runs[0])
            assert one.rungs[40] == tuple(result.value for result in one.results)
        else:
            assert one.value == pytest.approx(sum(one.rungs[one.epoch]) / 2)
    found = answer(study)
    assert found.finished
    assert (found.baseline is not None, found.epochs_exhaustive) == (True, 5 * 2 * 40)
    assert found.epochs_run == epochs_run(study)
    assert status(study).epochs_expected == epochs_run(study)
    kept = list(here.checkpoints.rglob("weights/*.pt"))
    assert len(kept) == 2 * sum(one.state == "complete" for one in measured.values())
    assert len(files(here)) == len(kept)


@sqlite
@pytest.mark.parametrize("how", ["killed", "handed back"])
def test_a_study_of_early_ends_that_is_cut_short_ends_alike(make_stopping, here, peace, how, monkeypatch):
    """Wherever its worker dies or hands back: an end that was not written down is come to again."""
    steps = []

    def note(self, members, step, rungs, *, plain=Bracket._note):
        steps.append(step)
        if len(steps) == cut:
            if how == "killed":
                raise Killed
            leave.ask("lunch")
        plain(self, members, step, rungs)

    for cut in (20, 31):
        study, leave = make_stopping(f"cut-{cut}"), LeaveRequest()
        worker = enter(study)
        steps.clear()
        with monkeypatch.context() as patched:
            patched.setattr(Bracket, "_note", note)
            heart = Heartbeat(study, worker, here, leave)
            trainer = Loops(study.trusted, CPU, here, LeaveRequest())
            bracket = Bracket(queue.take(study, worker), heart, trainer, KeptWeights(here.files(study)))
            with contextlib.suppress(Killed):
                bracket.end()
        if how == "killed":
            queue.release(study, worker, "dead")
        tables.beat(study.database, worker, epochs_run=heart.epochs_run, training=(), leaving=True)
        work(study, here, LeaveRequest())
        assert ends(study) == peace["ends"], cut
        assert curves(study) == peace["curves"]
        assert files(here) == []


KILLS = """
import os, signal
from pathlib import Path
from floodsearch.artifacts.checkpoint import Checkpoint

def dies(self, content, plain=Checkpoint.save):
    if SAVED:
        plain(self, content)
    if content["ended"] and "seed-1" in self.name and not Path("died").exists():
        Path("died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if not SAVED:
        plain(self, content)

Checkpoint.save = dies
"""


@sqlite
@pytest.mark.parametrize("saved", [False, True])
def test_a_worker_that_is_killed_where_a_run_ends_loses_nothing(
    make_stopping,
    here,
    peace,
    crowd,
    storage_url,
    tmp_path,
    monkeypatch,
    saved,
):
    """With SIGKILL, before its end was written to the disk or just after: the answer is that of peace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Checkpoint, "save", Checkpoint.save)  # this process imports the module, too
    study = make_stopping(source=STOPS + KILLS.replace("SAVED", str(saved)))
    assert crowd(WORKER, 1, storage_url, str(tmp_path)).answers() == [None]
    assert (tmp_path / "died").exists()
    [worker] = tables.read_workers(study.database, study.uuid)
    queue.release(study, worker.id, "dead")
    work(study, here, LeaveRequest())
    assert ends(study) == peace["ends"]
    assert curves(study) == peace["curves"]


@sqlite
def test_a_run_that_has_ended_is_trained_no_further(make_stopping, here):
    """Seeds that are added are trained alone; more epochs are refused."""
    study = make_stopping(search={"pruner": "none"}, levels={"count": 3})
    work(study, here, LeaveRequest())
    before, trained = curves(study), epochs_run(study)
    training = study.spec.training.model_copy(update={"seeds": (0, 1, 2)})
    study = put_study(study.database, study.spec.model_copy(update={"training": training}))
    queue.fill(study)
    work(study, here, LeaveRequest())
    assert answer(study).seeds == 3
    after = curves(study)
    assert {ticket: [one for one in after[ticket] if one.seed < 2] for ticket in after} == before
    assert epochs_run(study) == trained + sum(one.seed == 2 for every in after.values() for one in every)
    longer = study.spec.model_copy(update={"training": training.model_copy(update={"epochs": 50})})
    assert differences(study.spec, longer) == [
        "training.epochs: 40 before, 50 now; where runs may end early it cannot grow"
    ]


@sqlite
def test_what_a_lost_attempt_trained_behind_an_end_is_removed(make_stopping, here):
    """As where a GPU rounds as it likes: the curve of a complete run ends where it has ended."""
    study = make_stopping(search={"pruner": "none"}, levels={"count": 2})
    with study.database.write() as connection:
        tables.write_curves(connection, study.uuid, 0, curve_of_a_lost_attempt())
    work(study, here, LeaveRequest())
    assert all(end < 40 for end in lasts(study).values())


def curve_of_a_lost_attempt():
    return [replace(one, seed=0) for one in curve(dict.fromkeys(range(1, 39), 0.99))]


@sqlite
def test_the_pilot_of_a_run_that_ends_early_ends_with_it(make_stopping, here):
    """It bounds the levels by what the run has shown, and its run is trained no second time."""
    study = make_stopping(levels={"high": "auto", "count": 4}, training={"epochs": 100})
    assert work(study, here, LeaveRequest()) == "all tickets are finished"
    assert answer(study).finished
    assert epochs_run(study) == sum(map(len, curves(study).values()))


@sqlite
def test_a_command_may_end_before_its_last_epoch(make_stopping, here, tmp_path):
    """Where the study says so; it has to end well, and may print its tests last, as if it had not ended."""
    script = tmp_path / "train.py"
    source = SCRIPT.replace("range(1, epochs + 1)", "range(1, 4 + round(10 * level) % 5)")
    script.write_text(f"{source}print(json.dumps({{'test_accuracy': level}}))")
    command = f"{sys.executable} {script} --flood {{level}} --seed {{seed}} --epochs {{epochs}}"
    study = make_stopping(rule="last", like=SCRIPTS, command=command)
    work(study, here, LeaveRequest())
    assert answer(study).finished
    found = {one.ticket: one.level for one in read_trials(study)}
    assert lasts(study) == {
        (ticket, seed): 3 + round(10 * level) % 5 for ticket, level in found.items() for seed in (0, 1)
    }
    complete = [one.ticket for one in read_trials(study) if one.state == "complete"]
    for ticket in complete:
        last = [one for one in curves(study)[ticket] if one.epoch == lasts(study)[ticket, one.seed]]
        assert {one.test_accuracy for one in last} == {found[ticket]}
    assert len(complete) == 2


@pytest.mark.parametrize(("given", "rule"), [(True, "best"), (False, "none"), ("last", "last")])
def test_a_study_file_says_what_a_run_is_worth(given, rule, write_code):
    whole = {
        "name": "x",
        "objective": f"{write_code(TRAIN, 'loop')}:train",
        "levels": {"high": 1.0, "count": 3},
    }
    assert parse({**whole, "training": {"early_stopping": given}}, known()).training.early_stopping == rule


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        (True, "best", "'best' is for a loop or a command of your own: a task is trained to its last epoch"),
        (True, True, "True is for a loop or a command of your own"),
        (False, "median", "'median' should be 'none', 'last' or 'best'"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(task, given, message, write_code):
    """In one line; a task has no early ends."""
    own = {"task": "digits"} if task else {"objective": f"{write_code(TRAIN, 'loop')}:train"}
    whole = {"name": "x", **own, "levels": {"high": 1.0, "count": 3}, "training": {"early_stopping": given}}
    with pytest.raises(StudyFileError) as refused:
        parse(whole, known())
    [problem] = refused.value.problems
    assert problem.key == "training.early_stopping"
    assert message in str(problem), problem


@sqlite
def test_a_command_that_ends_early_and_ignores_its_level_is_found_out(make_stopping, here, tmp_path):
    """At its end, though that is not its last epoch."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.replace("range(1, epochs + 1)", "range(1, 9)").replace("level - 0.4", "0.4"))
    command = f"{sys.executable} {script} --flood {{level}} --seed {{seed}} --epochs {{epochs}}"
    reason = work(make_stopping(rule="best", like=SCRIPTS, command=command), here, LeaveRequest())
    assert reason.startswith("level 0.8 gave the runs of level 0, to the last digit: let the command flood")


@sqlite
def test_a_loop_that_ends_early_and_never_floods_is_found_out(make_stopping, here):
    """It has not had the epochs after which that is told of others."""
    source = STOPS.replace("run.flood(", "(").replace("        if run.state", "        if epoch == 2:  # ")
    reason = work(make_stopping(source=source), here, LeaveRequest())
    assert reason.startswith("nothing is flooded: the loop has not called run.flood() in 2 epochs at level")
