"""landscape: from trials to a table of values over seeds and levels, and its maximum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from floodsearch.answer.response import Landscape, landscape
from floodsearch.records import SeedResult, TrialRecord

EPOCHS = 100


def trial(ticket: int, level: float, rungs: Mapping[int, Sequence[float]], **fields: Any) -> TrialRecord:
    """Return a trial with these values by rung and seed, complete if it reached the last epoch."""
    complete = EPOCHS in rungs
    results = tuple(
        SeedResult(
            seed=seed,
            value=value,
            train_accuracy=None,
            test_loss=None,
            test_accuracy=None,
            test_accuracy_clean=None,
            best_epoch=1,
            best_test_loss=None,
            best_test_accuracy=None,
        )
        for seed, value in enumerate(rungs.get(EPOCHS, ()))
    )
    defaults = {
        "trial": ticket,
        "state": "complete" if complete else "pruned",
        "parameters": {"level": level},
        "epochs": EPOCHS,
        "epoch": max(rungs),
        "seeds": len(next(iter(rungs.values()))),
        "results": results,
        "rungs": {epoch: tuple(values) for epoch, values in rungs.items()},
    }
    return TrialRecord(ticket=ticket, **defaults | fields)


def land(trials: Sequence[TrialRecord], *, maximize: bool = True) -> Landscape:
    found = landscape(trials, maximize=maximize, highest=0.5)
    assert found is not None
    return found


def test_measured_values_stay_as_they_are():
    """In an exhaustive search the table is what was measured, whatever the rungs showed."""
    values = np.random.default_rng(0).normal(size=(5, 3))
    trials = [trial(i, 0.1 * i, {10: [9.0, 9.0, 9.0], EPOCHS: row.tolist()}) for i, row in enumerate(values)]
    assert land(trials).values == pytest.approx(values.T)
    assert land(trials, maximize=False).values == pytest.approx(-values.T)
    assert land(trials).measured.all()


def test_a_stopped_level_changes_on_as_those_around_it():
    """Where all that went on rose by the same, a stopped level is carried on by that, seed by seed."""
    trials = [
        trial(0, 0.0, {10: [0.5, 0.4], 20: [0.6, 0.6], EPOCHS: [0.7, 0.6]}),
        trial(1, 0.2, {10: [0.6, 0.5], 20: [0.7, 0.7], EPOCHS: [0.8, 0.7]}),
        trial(2, 0.3, {10: [0.55, 0.45], 20: [0.65, 0.65]}),
        trial(3, 0.5, {10: [0.2, 0.1]}),
    ]
    assert land(trials).values == pytest.approx(np.array([[0.7, 0.8, 0.75, 0.4], [0.6, 0.7, 0.65, 0.3]]))


def test_a_stopped_level_near_level_zero_ages_like_it():
    """The change of the nearest levels counts: low levels lose late in a run what level 0 loses."""
    trials = [
        trial(0, 0.0, {10: [0.8], EPOCHS: [0.6]}),
        trial(1, 0.02, {10: [0.8]}),
        trial(2, 0.4, {10: [0.8], EPOCHS: [0.8]}),
        trial(3, 0.38, {10: [0.79]}),
    ]
    assert land(trials).values[0] == pytest.approx([0.6, 0.6, 0.79, 0.8], abs=1e-3)


def test_a_stopped_level_without_curves_is_left_out():
    """Without rungs nobody knows where a stopped level stood, and none is invented."""
    trials = [trial(0, 0.0, {EPOCHS: [0.5]}), trial(1, 0.2, {EPOCHS: [0.6]}), trial(2, 0.4, {10: [0.9]})]
    assert land(trials).levels.tolist() == [0.0, 0.2]
    trials[2] = replace(trials[2], rungs={})
    assert land(trials).levels.tolist() == [0.0, 0.2]


@pytest.mark.parametrize("fields", [{"state": "failed"}, {"state": "running"}, {"cause": "diverged"}])
def test_what_has_no_end_does_not_count(fields):
    """Failed, unfinished and diverged trials are no part of it."""
    trials = [trial(0, 0.0, {10: [0.5], EPOCHS: [0.5]}), trial(1, 0.2, {10: [0.9]}, **fields)]
    assert land(trials).levels.tolist() == [0.0]
    assert landscape(trials[1:], maximize=True, highest=0.5) is None


def test_an_untried_level_is_as_good_as_the_one_beside_it():
    """The nearest flooded level stands for a level that was never trained; level 0 stands for none."""
    aside = [
        replace(trial(10 + i, level, {0: []}, cause="pruned"), rungs={})
        for i, level in enumerate((0.05, 0.12, 0.25, 0.4))
    ]
    tried = [
        trial(0, 0.0, {10: [0.5], EPOCHS: [0.5]}),
        trial(1, 0.1, {10: [0.7]}),
        trial(2, 0.3, {10: [0.8], EPOCHS: [0.8]}),
    ]
    found = land([*aside, *tried])
    assert found.levels.tolist() == [0.0, 0.1, 0.3]
    assert found.untried == (0.05, 0.12, 0.25, 0.4)
    assert found.untried_beside([0]) == []
    assert found.untried_beside([0, 1]) == [0.05, 0.12]
    assert found.untried_beside([2]) == [0.25, 0.4]
    lost = replace(trial(9, 0.4, {10: []}, cause="pruned"), rungs={})
    assert land([*tried, lost]).untried == (), "it was trained, and its curve was deleted"


def test_a_seed_whose_curve_is_lost_leaves_its_trial_out():
    """A complete trial that misses a seed is not compared with those that have it."""
    whole = [trial(0, 0.0, {EPOCHS: [0.5, 0.6]}), trial(1, 0.2, {EPOCHS: [0.7, 0.7]})]
    broken = trial(2, 0.4, {EPOCHS: [0.9]}, seeds=2)
    assert land([*whole, broken]).levels.tolist() == [0.0, 0.2]


def test_added_seeds_are_filled_by_what_they_do_elsewhere():
    """A seed that only some levels have adds to the others what it adds to those; it is not measured."""
    trials = [
        trial(0, 0.0, {EPOCHS: [0.5, 0.7, 0.9]}),
        trial(1, 0.2, {EPOCHS: [0.6, 0.8, 1.0]}),
        trial(2, 0.4, {EPOCHS: [0.4, 0.6]}),
    ]
    found = land(trials)
    assert found.values[2] == pytest.approx([0.9, 1.0, 0.8])
    assert found.measured.tolist() == [[True] * 3, [True] * 3, [True, True, False]]


def test_seeds_that_only_level_zero_has_do_not_count_yet():
    """While a study grows, the seeds are those that level 0 and a flooded level both have."""
    trials = [trial(0, 0.0, {EPOCHS: [0.5, 0.7, 0.9]}), trial(1, 0.2, {EPOCHS: [0.6, 0.8]})]
    assert land(trials).values.shape == (2, 2)


def test_the_maximum_is_measured_where_two_levels_were():
    """The maximum is chosen at the deepest rung of two flooded levels, from measured values only."""
    trials = [
        trial(0, 0.0, {10: [0.5], 20: [0.5], EPOCHS: [0.5]}),
        trial(1, 0.1, {10: [0.9]}),
        trial(2, 0.3, {10: [0.6], 20: [0.7]}),
        trial(3, 0.5, {10: [0.6], 20: [0.6], EPOCHS: [0.65]}),
    ]
    found = land(trials)
    assert found.levels[found.maximum] == 0.3
    assert not found.complete[found.maximum]
    assert found.levels[found.chosen] == 0.5, "the answer is complete"


def test_level_zero_wins_ties():
    """A level that never began to flood has the values of level 0; the answer is then level 0."""
    trials = [trial(i, level, {EPOCHS: [0.61, 0.57]}) for i, level in enumerate((0.0, 0.1, 0.12, 0.14))]
    assert land(trials).chosen == 0
