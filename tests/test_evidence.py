"""evidence: the gain over level 0 on seeds that did not choose the level."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from floodsearch.answer.gain import Gain, gain_over_zero

LEVELS = np.array([0.0, 0.1, 0.3, 0.5])


def gain(values: np.ndarray, top: int = 2) -> Gain:
    return gain_over_zero(LEVELS, values, np.ones(values.shape, dtype=bool), top, highest=0.5)


def clear(seeds: int) -> np.ndarray:
    """Return values where every seed agrees that level 0.3 is best, with gains from 0.1 on."""
    values = np.tile([0.5, 0.4, 0.6, 0.4], (seeds, 1))
    values[:, 2] += np.linspace(0, 0.02, seeds)
    return values


def test_where_all_agree_the_gain_is_the_paired_difference():
    """If all choose the same level, mean, interval and p are those of a paired t test."""
    values = clear(6)
    found = gain(values)
    test = stats.ttest_rel(values[:, 2], values[:, 0])
    interval = test.confidence_interval(0.9)
    assert found.mean == pytest.approx(0.11)
    assert found.interval == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(test.pvalue)
    assert found.verdict == "helps"


def test_luck_does_not_choose_where_it_is_measured():
    """With one lucky level in each seed, no gain is left on the seeds that did not choose."""
    values = np.full((3, 4), 0.5)
    values[0, 1] = values[1, 2] = values[2, 3] = 0.8
    found = gain(values, top=1)
    assert found.mean == pytest.approx(0.0, abs=1e-12)
    assert found.verdict == "not shown"


def test_a_seed_is_measured_where_it_was_trained():
    """A seed that lacks the level that the others choose is measured at the best that it has."""
    values = clear(3)
    values[:, 1] = 0.7
    measured = np.ones(values.shape, dtype=bool)
    measured[2, 1] = False
    found = gain_over_zero(LEVELS, values, measured, 2, highest=0.5)
    assert found.mean == pytest.approx((0.2 + 0.2 + 0.12) / 3)


@pytest.mark.parametrize("draw", range(10))
def test_offsets_of_seeds_and_units(draw):
    """What a seed adds to all of its levels changes nothing, and the gain is in the metric's unit."""
    generator = np.random.default_rng(draw)
    values, offsets = generator.normal(size=(5, 4)), generator.normal(size=(5, 1))
    plain, other = gain(values), gain(7 * (values + offsets))
    assert other.mean == pytest.approx(7 * plain.mean)
    assert other.interval == pytest.approx(tuple(7 * end for end in plain.interval))
    assert other.verdict == plain.verdict


def test_one_seed_has_a_gain_and_no_error():
    """One seed's gain is what it is; error, interval, p and verdict are not known."""
    found = gain(clear(1))
    assert found.mean == pytest.approx(0.1)
    assert (found.se, found.interval, found.p_value, found.verdict, found.more_seeds) == (None,) * 5


@pytest.mark.parametrize(("seeds", "known"), [(2, False), (5, False), (6, True), (12, True)])
def test_a_p_value_takes_six_seeds(seeds, known):
    """From six seeds on there is a p-value."""
    assert (gain(clear(seeds)).p_value is not None) is known


def test_the_verdict_follows_the_interval():
    """Helps above 0, hurts below, else not shown; and p agrees with the interval."""
    for mean, verdict in ((0.05, "helps"), (-0.05, "hurts"), (0.01, "not shown"), (0.0, "not shown")):
        found = Gain(mean, 0.01, 8)
        assert found.verdict == verdict
        assert found.p_value is not None
        assert (found.p_value < 0.1) is (verdict != "not shown")
    assert Gain(0.0, 0.0, 8).p_value == 1
    assert Gain(0.1, 0.0, 8).p_value == 0


def test_more_seeds_would_decide():
    """The number of seeds that is named decides if gain and spread stay as they are; one less does not."""
    found = Gain(0.01, 0.008, 5)
    assert found.more_seeds is not None
    for more, verdict in ((found.more_seeds, "helps"), (found.more_seeds - 1, "not shown")):
        seeds = 5 + more
        assert Gain(0.01, 0.008 * (5 / seeds) ** 0.5, seeds).verdict == verdict
    assert Gain(0.05, 0.008, 5).more_seeds is None, "it is decided"
    assert Gain(1e-5, 0.008, 5).more_seeds is None, "no reasonable number would do"
