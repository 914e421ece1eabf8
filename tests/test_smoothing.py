"""smoothing: a smooth curve of value over level, and which levels it can tell apart."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from floodsearch.answer.smoothing import kernel, peak, smooth

LEVELS = np.linspace(0, 0.5, 26)
repeatable = settings(derandomize=True, deadline=None, database=None)
tables = st.integers(1, 6).flatmap(
    lambda seeds: arrays(float, (seeds, 26), elements=st.floats(-1, 1, width=32))
)


def noisy(seeds: int) -> np.ndarray:
    hill = 0.8 - 2 * (LEVELS - 0.3) ** 2
    return hill + np.random.default_rng(0).normal(0, 0.01, (seeds, 26))


@repeatable
@given(tables, st.floats(-3, 3), st.floats(0.01, 100))
def test_shift_and_scale(values, shift, scale):
    """Values in another unit, or from another zero, give the same curve in that unit."""
    plain, other = smooth(LEVELS, values), smooth(LEVELS, shift + scale * values)
    assert other.mean == pytest.approx(shift + scale * plain.mean, abs=1e-9 * scale)
    assert other.se == pytest.approx(scale * plain.se, abs=1e-9 * scale)


@repeatable
@given(tables, st.floats(0.01, 100))
def test_the_unit_of_the_loss_does_not_matter(values, unit):
    """The bandwidth is a share of the range: levels in another unit of the loss give the same curve."""
    assert smooth(LEVELS * unit, values).mean == pytest.approx(smooth(LEVELS, values).mean, abs=1e-9)


@repeatable
@given(tables, st.permutations(range(26)))
def test_the_order_of_levels_and_seeds_does_not_matter(values, order):
    """Levels may come in any order, and so may seeds."""
    plain, other = smooth(LEVELS, values), smooth(LEVELS[order], values[::-1][:, order])
    assert other.mean == pytest.approx(plain.mean[order], abs=1e-12)
    assert other.se == pytest.approx(plain.se[order], abs=1e-12)


@repeatable
@given(tables.filter(lambda table: len(table) > 1), st.lists(st.floats(-5, 5), min_size=6, max_size=6))
def test_what_a_seed_adds_to_all_levels_is_no_error(values, offsets):
    """An easy draw of the data lifts a seed's whole curve and changes no difference and no error."""
    shift = np.array(offsets[: len(values)])[:, None]
    plain, other = smooth(LEVELS, values), smooth(LEVELS, values + shift)
    assert other.mean - shift.mean() == pytest.approx(plain.mean, abs=1e-9)
    assert other.se == pytest.approx(plain.se, abs=1e-9)


def test_level_zero_may_jump():
    """Level 0 is a member of the curve with its own value; it neither lends to its neighbours nor borrows."""
    low, high = np.full(26, 0.8), np.full(26, 0.8)
    low[0], high[0] = 0.5, 0.9
    for values in (low, high):
        curve = smooth(LEVELS, values)
        assert curve.mean[0] == pytest.approx(values[0])
        assert curve.mean[1:] == pytest.approx(0.8)


def test_a_single_lucky_level_does_not_win():
    """A spike on a broad hill is noise: the maximum stays on the hill."""
    values = 0.8 - 2 * (LEVELS - 0.3) ** 2
    values[3] += 0.13
    assert LEVELS[values.argmax()] == pytest.approx(0.06)
    assert abs(LEVELS[smooth(LEVELS, values).mean.argmax()] - 0.3) <= 0.04


def test_the_levels_that_are_left_are_smoothed_as_before():
    """With `highest` the bandwidth does not shrink with the levels that are still alive."""
    alive = [0, 3, 4, 5]
    values = np.array([0.5, 0.7, 0.9, 0.8])
    narrow = smooth(LEVELS[alive], values).mean
    wide = smooth(LEVELS[alive], values, highest=0.5).mean
    assert np.ptp(wide[1:]) < np.ptp(narrow[1:])


def test_more_seeds_and_less_noise_tie_fewer_levels():
    """The levels that cannot be told apart from the best surround it, and are fewer with more seeds."""
    few, many = (smooth(LEVELS, noisy(seeds)) for seeds in (3, 30))
    tied = [curve.tied(peak(curve.mean)) for curve in (few, many)]
    assert tied[0] is not None
    assert tied[1] is not None
    assert tied[1].sum() < tied[0].sum() < 26
    assert tied[1][15]


def test_equal_values_are_tied():
    """Levels of the same values on every seed cannot be told apart, whatever rounding makes of them."""
    values = np.tile(np.array([[0.1], [0.7], [0.3]]), (1, 26))
    tied = smooth(LEVELS, values).tied(4)
    assert tied is not None
    assert tied.all()
    assert peak(smooth(LEVELS, values).mean) == 0


def test_one_seed_ties_by_the_noise_about_its_curve():
    """With one seed the error comes from the noise about the curve, and is larger with more of it."""
    smooth_hill = 0.8 - 2 * (LEVELS - 0.3) ** 2
    noise = np.random.default_rng(1).normal(0, 0.03, 26)
    little, much = smooth(LEVELS, smooth_hill + noise / 10), smooth(LEVELS, smooth_hill + noise)
    tied = [curve.tied(15) for curve in (little, much)]
    assert tied[0] is not None
    assert tied[1] is not None
    assert tied[0].sum() < tied[1].sum()


def test_one_seed_of_few_levels_shows_no_error():
    """Levels too far apart to be smoothed have no noise to see: the error is not known, not zero."""
    curve = smooth([0.0, 0.25, 0.5], [0.5, 0.7, 0.6])
    assert curve.tied(1) is None
    assert np.isnan(curve.se).all()
    assert curve.mean == pytest.approx([0.5, 0.7, 0.6], abs=1e-3)


@pytest.mark.parametrize("levels", [[0.0], [0.3], [0.0, 0.2]])
def test_few_levels_are_their_own_curve(levels):
    """One level, or level 0 and one other, are returned as they are."""
    values = np.linspace(0.5, 0.7, len(levels))
    assert smooth(levels, values).mean == pytest.approx(values)


def test_weights_reach_anywhere():
    """However far the next measured level lies, its weight is not lost in rounding."""
    weights = kernel(np.array([0.0, 1e6]), np.array([0.1, 0.2]), 0.01)
    assert weights.sum(axis=1) == pytest.approx(1)


def test_the_first_of_equal_maxima_is_the_peak():
    """Rounding does not choose among equal levels, and only allowed ones are chosen."""
    values = np.array([0.1, 0.3, 0.3 + 1e-16, 0.2])
    assert peak(values) == 1
    assert peak(values, np.array([True, False, False, True])) == 3


def test_a_curve_is_cheap():
    """A rung of 51 levels and 5 seeds is smoothed in far less time than an epoch takes: 20 ms."""
    levels, values = np.linspace(0, 0.5, 51), np.random.default_rng(0).normal(size=(5, 51))
    started = time.perf_counter()
    for _ in range(10):
        smooth(levels, values)
    assert (time.perf_counter() - started) / 10 < 0.02
