"""Halving: what a rung keeps and stops, and that nothing but the tickets' own values decides it."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from floodsearch import queue
from floodsearch.answer.best import latest
from floodsearch.artifacts.weights import KeptWeights
from floodsearch.queries import answer
from floodsearch.search.halving import Standing, halve, rungs, spread
from floodsearch.search.judge import Halving
from floodsearch.storage import tables
from floodsearch.storage.studies import put_study, read_trials
from floodsearch.worker.bracket import Bracket
from floodsearch.worker.heartbeat import Heartbeat
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.trainers import CohortTrainer
from floodsearch.worker.work import work

HERE = WorkerSettings(device="cpu", threads=1)


pytestmark = pytest.mark.usefixtures("one_thread")


# The rule


def cut(standings, *, reduction=3.0, ties=0.0, highest=1.0):
    keep = math.ceil(sum(one.level > 0 for one in standings.values()) / reduction)
    return halve(standings, epoch=10, highest=highest, keep=max(1, keep), ties=ties)


def drawn(seed, *, count=None, forked=0.8):
    """Draw level 0 and some levels above it, each with a value and perhaps not flooded yet."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 12)) if count is None else count
    levels = rng.permutation(np.linspace(0, 1, count + 1))
    return {
        int(ticket): Standing(float(level), float(rng.normal()), bool(level > 0 and rng.random() < forked))
        for ticket, level in zip(rng.permutation(100), levels, strict=False)
    }


def pruned(decisions):
    return {ticket for ticket, one in decisions.items() if one.prune}


@pytest.mark.parametrize("seed", range(40))
def test_what_every_rung_promises(seed):
    """A verdict with a reason on each; never level 0, one not flooded yet, or more than the reduction."""
    standings = drawn(seed)
    for reduction, ties in itertools.product((1.5, 2, 4, 100), (0, 1)):
        decisions = cut(standings, reduction=reduction, ties=ties)
        assert decisions.keys() == standings.keys()
        assert all(one.reason for one in decisions.values())
        stopped = pruned(decisions)
        above = {ticket for ticket, one in standings.items() if one.level > 0}
        assert stopped <= {ticket for ticket in above if standings[ticket].forked}
        assert len(above - stopped) >= math.ceil(len(above) / reduction) >= 1
        if ties == 0:
            judged = {ticket for ticket in above if standings[ticket].forked}
            assert len(judged - stopped) == min(len(judged), math.ceil(len(above) / reduction))
        for ticket in stopped:
            assert "pruned" in decisions[ticket].reason
            assert "epoch 10" in decisions[ticket].reason


@pytest.mark.parametrize("seed", range(20))
def test_order_and_names_decide_nothing(seed):
    """The same levels in another order, or under other ticket numbers, have the same verdicts and reasons."""
    standings = drawn(seed)
    expected = cut(standings)
    turned = dict(reversed(standings.items()))
    assert cut(turned) == expected
    renamed = cut({-1 - ticket: one for ticket, one in standings.items()})
    assert {-1 - ticket: one for ticket, one in renamed.items()} == expected


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("scale", "shift"), [(1, 100), (1, -3), (1000, 0), (0.01, 0.5)])
@pytest.mark.parametrize("ties", [0, 1])
def test_the_unit_of_the_metric_decides_nothing(seed, scale, shift, ties):
    """Shifting all values or scaling them by a positive number stops the same tickets."""
    standings = drawn(seed)
    other = {
        ticket: dataclasses.replace(one, value=scale * one.value + shift) for ticket, one in standings.items()
    }
    assert pruned(cut(other, ties=ties)) == pruned(cut(standings, ties=ties))


def test_a_better_value_is_never_worse_for_a_level():
    """Raising the value of a level that goes on keeps it; lowering that of one that is stopped stops it."""
    for seed in range(20):
        standings = drawn(seed, count=9, forked=1.0)
        stopped = pruned(cut(standings))
        for ticket, one in standings.items():
            change = -1.0 if ticket in stopped else 1.0
            moved = standings | {ticket: dataclasses.replace(one, value=one.value + change)}
            assert (ticket in pruned(cut(moved))) == (ticket in stopped)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, -12.3])
def test_equal_levels_all_go_on(value):
    """Where nothing tells levels apart, none is stopped."""
    levels = np.linspace(0, 1, 12)
    assert not pruned(cut({ticket: Standing(float(level), value) for ticket, level in enumerate(levels)}))


def test_a_plateau_at_the_cut_goes_on():
    """Of levels that are too far apart to be smoothed, those equal to the last one kept are kept too."""
    values = [0.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0]
    standings = {ticket: Standing(1000.0 * ticket, value) for ticket, value in enumerate(values)}
    assert pruned(cut(standings, reduction=3)) == {4, 5, 6}


@pytest.mark.parametrize("worst", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_the_worst(worst):
    """A level without a finite value is stopped before all others, whatever they are."""
    for values in ([0.9] * 6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]):
        standings = {n: Standing(1000.0 * (n + 1), value) for n, value in enumerate(values)}
        standings[9] = Standing(7000.0, worst)
        decisions = cut(standings, reduction=2)
        assert decisions[9].prune
        assert not decisions[5].prune


def test_without_any_finite_value_nothing_is_told():
    """When no level has a finite value, all go on: there is nothing to choose by."""
    standings = {ticket: Standing(ticket / 10, math.nan) for ticket in range(6)}
    assert not pruned(cut(standings))


def test_a_level_by_itself_goes_on():
    """One level is never stopped, with or without level 0 beside it; nor is an empty rung an error."""
    for others in ({}, {0: Standing(0.0, 5.0)}):
        assert not pruned(cut({7: Standing(0.5, -1.0), **others}, reduction=100))
    assert cut({0: Standing(0.0, 1.0)})[0].prune is False
    assert not pruned(cut({ticket: Standing(0.0, 1.0 * ticket) for ticket in range(4)}))


def test_neighbours_count():
    """A lucky level among poor ones is stopped before a level among good ones."""
    values = [0.2, 0.2, 0.55, 0.2, 0.2, 0.2, 0.5, 0.5, 0.5, 0.5]
    standings = {ticket: Standing((ticket + 1) / 10, value) for ticket, value in enumerate(values)}
    assert not {6, 7, 8, 9} & pruned(cut(standings, reduction=2.5))
    assert 2 in pruned(cut(standings, reduction=2.5))


@pytest.mark.parametrize("seed", range(10))
def test_larger_ties_keep_more(seed):
    """What goes on with a margin for ties includes what goes on with a smaller one."""
    standings = drawn(seed, count=11)
    kept = [pruned(cut(standings, ties=ties)) for ties in (0, 0.5, 1, 2, 1000)]
    assert all(more <= less for less, more in itertools.pairwise(kept))
    assert not kept[-1]


# What is tried


@pytest.mark.parametrize("count", [1, 2, 3, 9, 10, 50])
@pytest.mark.parametrize("total", [1, 2, 9, 10, 25, 50, 101])
def test_the_levels_that_are_tried_are_spread_evenly(total, count):
    """So many of the grid as asked or all, the highest among them, with gaps that differ by one step."""
    levels = [0.0, *(round(0.02 * index, 2) for index in range(1, total + 1))]
    found = spread(list(reversed(levels)), count)
    assert found == sorted(set(found))
    assert set(found) <= set(levels[1:])
    assert len(found) == min(total, count)
    assert found[-1] == levels[-1]
    gaps = np.diff([0, *(levels.index(level) for level in found)])
    assert gaps.max() - gaps.min() <= 1


def test_a_share_of_those_that_began_is_kept():
    """What a rung keeps does not grow with the levels that flood only then, and cost nothing before."""
    judge = Halving(rungs=(10, 20, 40), brackets=1, tried=9, reduction=3, ties=0.0)
    standings = {n: Standing(1000.0 * n, float(n), n > 6) for n in range(1, 10)}
    assert pruned(judge.compare(standings, epoch=10, highest=1.0, began=9)) == set()
    late = {n: dataclasses.replace(one, forked=True) for n, one in standings.items()}
    assert pruned(judge.compare(late, epoch=20, highest=1.0, began=9)) == set(range(1, 9))
    assert pruned(judge.compare(late, epoch=40, highest=1.0, began=9)) == set(range(1, 9))
    assert pruned(judge.compare(late, epoch=40, highest=1.0, began=28)) == set(range(1, 8))


# The rungs


@pytest.mark.parametrize("epochs", [1, 2, 7, 40, 100, 500])
@pytest.mark.parametrize("every", [1, 2, 5, 7])
@pytest.mark.parametrize(("first", "growth"), [(0.03, 2.0), (0.2, 1.5), (0.5, 4.0), (0.001, 1.01)])
def test_rungs_are_validated_epochs_before_the_end(epochs, every, first, growth):
    """Ascending, each a validated epoch before the last, from the first share on, and apart by the growth."""
    found = rungs(epochs, every, first=first, growth=growth)
    assert list(found) == sorted(set(found))
    assert all(rung % every == 0 and 0 < rung < epochs for rung in found)
    if found:
        assert first * epochs <= found[0] + 1e-6 < max(first * epochs, 0) + every + 1e-3
        assert found[-1] * growth > epochs - every - 1e-6
    for before, after in itertools.pairwise(found):
        assert before * growth - 1e-6 <= after < before * growth + every


def test_the_usual_rungs():
    """The default of 500 epochs, validated every 5."""
    assert rungs(500, 5, first=0.08, growth=2.0) == (40, 80, 160, 320)


# Whole brackets


@pytest.fixture
def make_study(database, make_spec):
    """Put a study of nine levels under halving, filled; it learns fast enough to flood."""

    def make(name="tiny", **changes):
        spec = make_spec(
            name=name,
            options={"width": 8},
            levels={"high": 0.8, "count": 9},
            training={"epochs": 24, "validate_every": 2, "learning_rate": 0.05},
            search={"pruner": "halving"},
            **changes,
        )
        study = put_study(database, spec)
        queue.fill(study)
        return study

    return make


class Killed(KeyboardInterrupt):
    """The end of a process: of all that code may raise, a worker lets a Ctrl-C through."""


def enter(study):
    return tables.enter_worker(study.database, study.uuid, host="here", pid=1, device="cpu", versions={})


def train(study, tickets, worker, trainer=None, leave=None):
    heart = Heartbeat(study, worker, HERE, leave or LeaveRequest())
    weights = KeptWeights(HERE.files(study))
    Bracket(tickets, heart, trainer or CohortTrainer(torch.device("cpu")), weights).end()


def ends(study):
    """Return how each ticket ended, why, and its value, to the bit."""
    found = latest(read_trials(study))
    return {ticket: (one.state, one.cause, one.reason, one.value) for ticket, one in sorted(found.items())}


def curves(study):
    return tables.read_curves(study.database, study.uuid)


def test_a_worker_halves_a_bracket(make_study):
    """A study under halving ends with complete and pruned tickets, level 0 complete, for less than all."""
    study = make_study()
    assert work(study, HERE, LeaveRequest()) == "all tickets are finished"
    found = ends(study)
    assert {state for state, *_ in found.values()} == {"complete", "pruned"}
    assert found[0][0] == "complete"
    for trial in read_trials(study):
        assert trial.state == "complete" or f"at epoch {trial.epoch}" in trial.reason
        assert max(one.epoch for one in curves(study)[trial.ticket]) == (trial.epoch or 24)
    [worker] = tables.read_workers(study.database, study.uuid)
    assert worker.epochs_run < sum(map(len, curves(study).values())) < 9 * 2 * 24


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_levels_that_are_not_tried_are_not_trained(make_study):
    """They end as pruned, with the reason; an interval that ends beside them holds them."""
    study = make_study(halving={"levels": 4})
    assert work(study, HERE, LeaveRequest()) == "all tickets are finished"
    newest = latest(read_trials(study))
    aside = {one.level for one in newest.values() if one.epoch == 0}
    assert aside == {0.1, 0.3, 0.5, 0.7}
    assert {one.reason for one in newest.values() if one.level in aside} == {
        "pruned before the first epoch: 4 levels, evenly spread, are tried"
    }
    assert not {one.ticket for one in newest.values() if one.epoch == 0} & curves(study).keys()
    found = answer(study)
    assert found.level not in aside
    assert (found.trials.complete + found.trials.pruned, found.finished) == (9, True)
    in_parts = make_study("parts", halving={"levels": 4, "brackets": 2})
    work(in_parts, HERE, LeaveRequest())
    assert sum(one.epoch == 0 for one in latest(read_trials(in_parts)).values()) == 4


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_the_order_of_brackets_changes_no_verdict(make_study):
    """Whoever trains which bracket, and whichever is first: the same tickets end alike."""
    whole = make_study("whole", halving={"brackets": 2})
    work(whole, HERE, LeaveRequest())
    study = make_study(halving={"brackets": 2})
    workers = [enter(study), enter(study)]
    taken = [queue.take(study, worker) for worker in workers]
    assert [len(tickets) for tickets in taken] == [5, 4]
    for worker, tickets in reversed(list(zip(workers, taken, strict=True))):
        train(study, list(reversed(tickets)), worker)
    assert ends(study) == ends(whole)
    assert curves(study) == curves(whole)


def interrupted(what, when, then):
    """Return a trainer that does something before the given call of a method of its cohort."""

    def trainer(*arguments):
        cohort = CohortTrainer(torch.device("cpu"))(*arguments)
        plain, calls = getattr(cohort, what), itertools.count(1)

        def call(*given):
            if next(calls) == when:
                then()
            return plain(*given)

        setattr(cohort, what, call)
        return cohort

    return trainer


WHEN = [("advance", 3), ("drop", 3), ("advance", 9), ("tested", 2)]


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("how", ["killed", "handed back"])
def test_a_bracket_that_is_cut_short_ends_alike(make_study, how):
    """Wherever a worker dies in a bracket or hands it back, the next one comes to the same end.

    Also in the middle of a verdict, when some of its tickets are stopped and others are not yet, and when
    some are complete already.
    """
    whole = make_study("whole")
    work(whole, HERE, LeaveRequest())
    assert {state for state, *_ in ends(whole).values()} == {"complete", "pruned"}
    for number, (what, when) in enumerate(WHEN):
        study = make_study(f"cut-{number}")
        worker, leave = enter(study), LeaveRequest()

        def then(leave=leave):
            if how == "killed":
                raise Killed
            leave.ask("lunch")

        tickets = queue.take(study, worker)
        trainer = interrupted(what, when, then)
        if how == "killed":
            with pytest.raises(Killed):
                train(study, tickets, worker, trainer)
            assert queue.release(study, worker, "dead")
        else:
            train(study, tickets, worker, trainer, leave)
        assert work(study, HERE, LeaveRequest()) == "all tickets are finished"
        assert ends(study) == ends(whole), (what, when)
        for ticket, records in curves(whole).items():
            assert curves(study)[ticket][: len(records)] == records
