"""A new sampler, pruner or schedule is one entry of its table: nothing else has to know its name."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import floodsearch
from floodsearch import queue
from floodsearch.answer.tickets import latest
from floodsearch.catalog import known
from floodsearch.cost.course import Stage
from floodsearch.cost.floods import Floods
from floodsearch.cost.forecast import plan
from floodsearch.errors import StudyFileError
from floodsearch.flooding.schedules import SCHEDULES, Schedule
from floodsearch.records import Decision
from floodsearch.search.judge import Judge, Rung
from floodsearch.search.pruners import PRUNERS
from floodsearch.search.samplers import SAMPLERS, Sampler
from floodsearch.storage import tables
from floodsearch.storage.studies import find_study, put_study
from floodsearch.storage.trial_records import read_trials
from floodsearch.study.reader import parse
from floodsearch.study.spec import Spec
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work
from tests.conftest import TINY, merged

on_sqlite = pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
HERE = WorkerSettings(device="cpu", threads=1)


ENTRIES = {*PRUNERS, *SAMPLERS, *SCHEDULES}


def decisions_by_name(tree: ast.Module) -> Iterator[str]:
    """Yield the conditions of a file that ask for an entry by its name, or for its class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            of = "pruner|sampler|schedule"
            named = not ENTRIES.isdisjoint(
                one.value for one in ast.walk(node) if isinstance(one, ast.Constant)
            )
        else:
            of = "Judge|Halving|Pruner|Sampler|Schedule"
            named = isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
        if named and re.search(of, ast.unparse(node)):
            yield ast.unparse(node)


def test_no_name_of_an_entry_decides():
    """What is asked of a pruner, sampler or schedule is asked of its entry."""
    files = sorted(Path(floodsearch.__file__).parent.rglob("*.py"))
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    assert {path: found for path, tree in trees.items() if (found := list(decisions_by_name(tree)))} == {}


@pytest.mark.parametrize(
    "condition",
    [
        "spec.search.pruner == 'halving'",
        "sampler in ('tpe', 'gp')",
        "schedule != 'constant'",
        "isinstance(judge, (Halving, OptunaJudge))",
    ],
)
def test_a_decision_by_name_is_found(condition):
    """The test above sees the ways in which a name or a class can be asked for."""
    assert list(decisions_by_name(ast.parse(condition))) == [condition]


def read(**changes: Any) -> Spec:
    """Return the spec of a study file of a few short runs."""
    small = {"levels": {"high": 0.8, "count": 5}, "training": {"epochs": 6, "validate_every": 1}}
    return parse(merged(merged(TINY, small), changes), known())


@pytest.fixture
def search(database) -> Callable[[Spec], Mapping[int, Any]]:
    """Give what a search comes to: the newest trial of each ticket."""

    def search(spec: Spec) -> Mapping[int, Any]:
        study = put_study(database, spec)
        queue.fill(study)
        assert work(study, HERE, LeaveRequest()) == "all tickets are finished"
        return latest(read_trials(find_study(database, spec.name)))

    return search


@dataclass(frozen=True, kw_only=True)
class Top(Judge):
    """Stops all but the highest levels."""

    keep: int

    def judge(self, rung: Rung) -> dict[int, Decision]:
        levels = sorted((one.level for one in rung.standings.values()), reverse=True)
        lowest = levels[: self.keep][-1]
        return {
            ticket: Decision(prune=0 < one.level < lowest, reason=f"the highest {self.keep} go on")
            for ticket, one in rung.standings.items()
        }

    def keeps(self, rung, began):
        return min(began, self.keep)

    def plan(self, levels, epoch, epochs):
        yield epoch, self.rungs[0], levels
        yield self.rungs[0], epochs, min(levels, self.keep)


@on_sqlite
def test_a_new_pruner_is_one_entry(monkeypatch, search):
    """A study file names it, with a table of its own settings; it judges a grid together, and is forecast."""

    def top(training, *, keep: int = 1) -> Judge:
        del training
        return Top(rungs=(3,), brackets=1, keep=keep)

    monkeypatch.setitem(PRUNERS, "top", top)
    spec = read(search={"pruner": "top"}, top={"keep": 2})
    seeds = len(spec.training.seeds)
    assert plan(spec, Floods(highest=0.8, late=0)) == [Stage(0, 3, 5 * seeds), Stage(3, 6, 3 * seeds)]
    found = search(spec)
    assert {one.level for one in found.values() if one.state == "complete"} == {0.0, 0.6, 0.8}
    stopped = [one for one in found.values() if one.state == "pruned"]
    assert {(one.level, one.epoch, one.reason) for one in stopped} == {
        (level, 3, "the highest 2 go on") for level in (0.2, 0.4)
    }


@on_sqlite
def test_a_new_sampler_is_one_entry(monkeypatch, search):
    """A study file names it, with a table of its own settings, and its levels are tried."""

    def middle(space, tried, rng, *, share: float = 0.5):
        del tried
        return {"level": space.low + share * (space.high - space.low), **space.draw(rng)}

    monkeypatch.setitem(SAMPLERS, "middle", Sampler(middle))
    found = search(read(search={"sampler": "middle", "trials": 3, "pruner": "none"}, middle={"share": 0.75}))
    # The nearest to it that are new: the range is a grid of five levels.
    assert [one.level for one in found.values()] == [0.0, 0.6, 0.8]
    assert {one.state for one in found.values()} == {"complete"}


def fading(state, record, *, factor: float = 0.5):
    """Flood from the second epoch on, and less with each."""
    return replace(state, level=state.highest * factor**record.epoch)


@on_sqlite
def test_a_new_schedule_is_one_entry(database, monkeypatch, search):
    """A study file names it, with a table of its own settings, and each run floods by it."""

    monkeypatch.setitem(SCHEDULES, "fading", Schedule(fading))
    spec = read(training={"schedule": "fading"}, fading={"factor": 0.25}, search={"pruner": "none"})
    found = search(spec)
    assert {one.state for one in found.values()} == {"complete"}
    study = find_study(database, spec.name)
    curve = tables.read_curves(study.database, study.uuid)[1]
    first = [one.level for one in curve if one.seed == spec.training.seeds[0]]
    assert first == [0.0, *(found[1].level * 0.25**epoch for epoch in range(1, 6))]
    assert found[1].level > 0


def test_a_schedule_that_finds_its_level_says_so_in_its_entry(monkeypatch):
    """A study of it has one level beside level 0, by default the one of the entry, and takes no other."""
    monkeypatch.setitem(SCHEDULES, "fading", Schedule(fading, highest=0.7))
    spec = read(levels=None, training={"schedule": "fading"})
    assert spec.levels.grid() == (0.0, 0.7)
    with pytest.raises(StudyFileError, match=r"levels\.count: has no use: the schedule 'fading' finds"):
        read(training={"schedule": "fading"})
