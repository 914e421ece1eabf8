"""Levels that never flooded are level 0, in every place where somebody may ask."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import replace

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from floodsearch import queue
from floodsearch.answer.follow_up import unconfirmed, worth_more_seeds
from floodsearch.answer.response import measure_response
from floodsearch.catalog import judge_of
from floodsearch.errors import DamagedError
from floodsearch.queries import answer as answer_of
from floodsearch.queries import status
from floodsearch.records import MeasuredTrial
from floodsearch.report.export import as_csv, trial_rows
from floodsearch.report.text import best_text, progress_text, status_text
from floodsearch.report.weights import copy_weights
from floodsearch.search.halving import Standing
from floodsearch.storage import tables
from floodsearch.storage.studies import put_study
from floodsearch.storage.trial_records import read_trials
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work
from tests.test_analysis import CRITERION, FINDS_LEVEL, answer, found_levels, halved, repeatable, trial

PLAIN = [0.70, 0.72, 0.71]


def never(
    ticket: int, level: float, values: Sequence[float] = tuple(PLAIN), **fields: object
) -> MeasuredTrial:
    """Return the trial of a level that no batch was ever below, so that its values are those of level 0."""
    return trial(ticket, level, values, flooded=False, **fields)


def flooded(ticket: int, level: float, values: Sequence[float], **fields: object) -> MeasuredTrial:
    return trial(ticket, level, values, flooded=True, **fields)


# --- the answer ------------------------------------------------------------------------------------------

values = st.lists(st.integers(40, 95).map(lambda n: n / 100), min_size=3, max_size=3)


@settings(repeatable, max_examples=100)
@given(values, st.lists(values, min_size=1, max_size=6), st.integers(1, 6))
def test_they_change_nothing_of_an_answer(plain, others, count):
    """With and without them the level, its interval, its ties, its gain and its verdict are the same."""
    known = [trial(0, 0.0, plain)]
    known += [flooded(n, 0.2 + n / 20, row) for n, row in enumerate(others, start=1)]
    more = [never(20 + n, n / 50, plain) for n in range(1, count + 1)]
    before, after = answer(known), answer(known + more)
    assert after.never_flooded == tuple(one.level for one in more)
    same = {"never_flooded": before.never_flooded, "trials": before.trials}
    assert replace(after, **same) == before
    assert worth_more_seeds(known + more, CRITERION) == worth_more_seeds(known, CRITERION)


def test_where_one_of_them_is_the_best_the_answer_is_level_zero():
    """However its neighbours would lift it on a curve; what is copied is the ticket of level 0 itself."""
    best = answer([trial(0, 0.0, PLAIN), never(1, 0.1), flooded(2, 0.2, [0.6, 0.6, 0.62])])
    assert (best.level, best.trial, best.tried, best.never_flooded) == (0.0, 0, (0.2,), (0.1,))
    assert best.interval == (0.0, 0.0)
    text = best_text(best)
    assert "never flooded" in text
    assert "levels up to 0.1: they are level 0" in text
    assert "at the level tried: 0.2" in text
    assert "most of the levels" not in text


def test_where_nothing_flooded_no_level_is_judged():
    """There is no verdict, no interval and no gain to speak of, and the answer says what to do."""
    best = answer([trial(0, 0.0, PLAIN), never(1, 0.1), never(2, 0.2)])
    assert (best.level, best.verdict, best.interval, best.tied, best.tried) == (0.0, None, None, None, ())
    text = best_text(best)
    assert "no level up to 0.2 ever flooded, so each of them is level 0" in text.splitlines()[0]
    assert "search higher ones, or train for more epochs" in text
    assert not any(word in text for word in ("helps", "hurts", "better than"))


def test_what_is_not_known_to_have_flooded_stays_a_level():
    """A script does not tell which of its batches were flooded; its levels are compared as ever."""
    best = answer([trial(0, 0.0, PLAIN), trial(1, 0.1, [0.8, 0.82, 0.81])])
    assert (best.level, best.never_flooded) == (0.1, None)
    assert answer([trial(0, 0.0, PLAIN)]).never_flooded is None


def test_one_of_them_stands_for_a_level_zero_that_failed():
    """It is the very run; the trial that is told is its own, so that its weights are found."""
    lost = trial(0, 0.0, state="failed", cause="error", reason="ValueError: no")
    best = answer([lost, never(1, 0.1), flooded(2, 0.3, [0.8, 0.82, 0.81])])
    assert best.baseline is not None
    assert best.baseline.value == pytest.approx(0.71)
    assert (best.level, best.verdict) == (0.3, "helps")
    worse = answer([lost, never(1, 0.1), flooded(2, 0.3, [0.4, 0.42, 0.41])])
    assert (worse.level, worse.trial) == (0.0, 1)


def test_each_combination_has_its_own():
    """What never flooded with one setting may flood with another; a combination of them alone is level 0."""
    of = [{"until_accuracy": 0.9}, {"until_accuracy": 1.0}]
    best = answer(
        [
            trial(0, 0.0, PLAIN),
            flooded(1, 0.2, [0.8, 0.82, 0.81], beside=of[0]),
            never(2, 0.2, beside=of[1]),
            never(3, 0.4, beside=of[1]),
        ]
    )
    assert (best.level, best.parameters) == (0.2, of[0])
    told = [(one.parameters, one.level, one.gain) for one in best.combinations]
    assert told == [(of[0], 0.2, pytest.approx(0.1)), (of[1], 0.0, 0.0)]


def test_a_run_that_finds_its_level_may_never_flood():
    """Under a schedule that waits for an accuracy which no run reached, level 0 is the answer."""
    waits = replace(found_levels(1, 0.0, 0.0, 0.0), flooded=False)
    best = answer([trial(0, 0.0, [0.8] * 3), waits], FINDS_LEVEL)
    assert (best.level, best.tried, best.never_flooded, best.verdict) == (0.0, (), (0.5,), None)


def test_none_of_them_is_confirmed_or_given_seeds():
    """What was stopped before it flooded is not trained on to be the answer: it shows what level 0 does."""
    stopped = halved(
        {0.0: {10: [0.8], 100: [0.4]}, 0.1: {10: [0.8]}, 0.2: {10: [0.5], 100: [0.5]}, 0.3: {10: [0.4]}}
    )
    stopped[1] = replace(stopped[1], cause="pruned", flooded=False)
    assert unconfirmed(stopped, CRITERION) is None
    assert unconfirmed([replace(one, flooded=None) for one in stopped], CRITERION) is not None
    complete = [trial(0, 0.0, PLAIN), never(1, 0.1), flooded(2, 0.2, PLAIN)]
    assert worth_more_seeds(complete, CRITERION) == {0, 2}


def test_untried_levels_below_them_never_mattered():
    """A batch below a level is below all higher ones: halving's interval holds only what may flood."""
    aside = [
        trial(10 + n, level, state="pruned", cause="pruned") for n, level in enumerate((0.05, 0.15, 0.3))
    ]
    early = never(14, 0.25, (), state="pruned", cause="pruned", epoch=4, rungs={4: (0.7,)})
    known = [trial(0, 0.0, PLAIN), never(1, 0.1), flooded(2, 0.2, PLAIN), *aside, early]
    found = measure_response(known, maximize=True, highest=0.5)
    assert found is not None
    assert found.levels.tolist() == [0.0, 0.2]
    assert (found.never_flooded, found.untried) == ((0.1,), (0.15, 0.25, 0.3))


def test_a_level_that_flooded_on_an_added_seed_did_flood():
    """The trial with more seeds speaks for the level."""
    grown = [
        trial(0, 0.0, [*PLAIN, 0.7]),
        never(1, 0.1),
        flooded(1, 0.1, [*PLAIN, 0.6], trial=5),
        flooded(2, 0.2, [*PLAIN, 0.5]),
    ]
    best = answer(grown)
    assert (best.tried, best.never_flooded) == ((0.1, 0.2), ())


# --- a study ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_a_search_tells_them_in_all_places(database, make_spec, tmp_path):
    """`best`, `status`, progress, the export, the copied weights and Optuna's attributes agree."""
    # Ten epochs bring the loss from 0.7 to above 0.6: 0.3 and 0.6 never flood, 0.9 does from the first step.
    spec = make_spec(levels={"high": 0.9, "count": 4}, training={"keep": "last", "epochs": 10})
    study = put_study(database, spec)
    queue.fill(study)
    work(study, WorkerSettings(device="cpu", threads=1, checkpoints=tmp_path / "kept"), LeaveRequest())
    by_level = {one.level: one for one in read_trials(study)}
    assert {level: one.flooded for level, one in by_level.items()} == {
        0.0: False,
        0.3: False,
        0.6: False,
        0.9: True,
    }
    plain = by_level[0.0]
    assert by_level[0.3].value == plain.value, "the run is the unflooded one"
    best, stands = answer_of(study), status(study, with_answer=True)
    assert (best.tried, best.never_flooded) == ((0.9,), (0.3, 0.6))
    assert best.level == stands.answer
    assert {best.level, stands.best_level} <= {0.0, 0.9}
    assert stands.best_level == max(plain, by_level[0.9], key=lambda one: one.value or 0).level
    for text in (status_text(stands), progress_text(stands), best_text(best).splitlines()[0]):
        assert not re.search(r"(level|ticket|is) 0\.[36]\b", text)
    exported = csv.DictReader(io.StringIO(as_csv(*trial_rows(study)).decode()))
    assert {float(row["level"]): row["flooded"] for row in exported}[0.6] == "False"
    copied = copy_weights(study, best, tmp_path / "kept", tmp_path / "models")
    kept = f"ticket-{by_level[best.level].ticket}"
    assert len(copied) == best.seeds
    assert all(any(kept in str(path) for path in (tmp_path / "kept").rglob("*.pt")) for _ in copied)
    shown = study.optuna().best_trial
    assert shown.value == max(plain.value or 0, by_level[0.9].value or 0)
    assert "flooded" in shown.user_attrs


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("has_flooded", "goes_on"), [(True, False), (False, True)])
def test_none_of_them_takes_the_place_of_another_at_a_rung(database, make_spec, has_flooded, goes_on):
    """A level that ended earlier without having flooded is no rival, however good level 0 is."""
    search = {"sampler": "random", "pruner": "halving", "trials": 4}
    study = put_study(database, make_spec(levels={"high": 0.5, "count": None}, search=search))
    queue.fill(study)
    worker = tables.enter_worker(database, study.uuid, host="here", pid=1, device="cpu", versions={})
    first, other = [one for one in queue.take(study, worker) if one.level > 0][:2]
    rung = judge_of(study.spec).rungs[0]
    queue.record([queue.Entry(first, [], {rung: 0.9})])
    queue.complete(first, 0.9, {}, flooded=has_flooded)
    (decision,) = queue.judge({other.number: (other, Standing(other.level, 0.5))}, rung).values()
    assert decision.prune is not goes_on, decision.reason


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_an_attribute_that_is_no_truth_is_damage(database, make_spec):
    """Whoever changes it by hand is told which one it is."""
    study = put_study(database, make_spec())
    queue.fill(study)
    study.optuna().add_trial(
        optuna.create_trial(user_attrs={"ticket": 0, "epochs": 10, "seeds": 2, "flooded": "no"}, value=0.5)
    )
    with pytest.raises(DamagedError, match=r"flooded of trial 3 of study 'tiny' is 'no', not true or false"):
        read_trials(study)
