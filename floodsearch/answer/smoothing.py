"""A smooth curve of value over level, with the error of its differences.

Notation: L levels, S seeds; a *value* is larger where the level is better. Level 0 is a member of the curve
but lends its neighbours nothing and borrows nothing: between not flooding and flooding a little, the value
may jump (at 10 % wrong labels of Two Gaussians by .03 from level 0 to level 0.02).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]

BANDWIDTH = 0.12
"""Of the kernel, as a share of the highest level. Measured on Two Gaussians with 1, 5 and 10 % wrong labels,
26 levels: .06 leaves the noise in (with one seed it chooses a level worse by .005), .15 and more flattens
what ten seeds can see (the interval of the level then holds the best one in .70 to 1.00 of the cases)."""
CONFIDENCE = 0.9
"""At which levels are told apart, one-sided, each against the chosen one."""
SEED_SHARE, SEED_LENGTH = 0.8, 0.2
"""How far the curve of one seed is taken to lie from that of all seeds, which one seed cannot show: a smooth
deviation, this many times the noise about the curve, that changes over this share of the highest level.
An assumption; with it the interval of one seed holds the best level in .83 to .99 of the cases."""
ROUNDING = 1e-9
"""Values closer than this share of their spread are equal: ties are frequent with few validation samples."""


@dataclass(frozen=True)
class Smooth:
    """A smooth curve.

    Args:
        mean: value of the curve at each level, (L,).
        covariance: of the errors of `mean`, up to what all levels share, (L, L); None if nothing tells them.
        freedom: degrees of freedom behind `covariance`.
    """

    mean: Array
    covariance: Array | None
    freedom: float

    @property
    def se(self) -> Array:
        """Standard error of each level, (L,), NaN if nothing tells it.

        What a seed adds to all of its levels is no error: levels are compared within seeds.
        """
        return (
            np.full_like(self.mean, np.nan) if self.covariance is None else np.sqrt(np.diag(self.covariance))
        )

    def tied(self, index: int) -> NDArray[np.bool_] | None:
        """Return a mask, (L,), of the levels that cannot be told apart from that at `index`, and of itself.

        Those that are not worse by more than the one-sided 90 % point of the error of the difference. The
        range that they span holds the best level of the true curve, smoothed likewise, about nine times in
        ten: see the calibration in the tests. Where the true curve falls steeply just above its maximum, that
        lies up to a bandwidth below it, and more seeds show it only more surely (of five seeds, the range
        held the maximum itself in .25 to .56 of the cases, and the answer lost .004 to .010 of accuracy).
        """
        if self.covariance is None:
            return None
        variance = np.diag(self.covariance)
        difference = np.maximum(variance + variance[index] - 2 * self.covariance[index], 0.0)
        margin = student(CONFIDENCE, self.freedom) * np.sqrt(difference)
        tied = self.mean[index] - self.mean <= margin + ROUNDING * np.ptp(self.mean)
        tied[index] = True
        return np.asarray(tied, dtype=np.bool_)


def smooth(levels: ArrayLike, values: ArrayLike, *, highest: float | None = None) -> Smooth:
    """Return the smooth curve of value over level by kernel regression (Nadaraya and Watson).

    Deterministic; shifting or scaling the values, or shifting those of one seed, shifts and scales the curve.

    Args:
        levels: in any order, (L,).
        values: one a level, (L,), or one a seed and level, (S, L); finite.
        highest: of all levels of the study, when `levels` are only those still alive: the bandwidth must not
            shrink with them. By default the highest given.
    """
    x = np.asarray(levels, dtype=float)
    table = np.atleast_2d(np.asarray(values, dtype=float))
    top = float(x.max()) if highest is None else highest
    weights = _weights(x, BANDWIDTH * top)
    # The sums are taken about the mean, so that equal values stay equal.
    center = table.mean()
    mean = center + weights @ (table.mean(axis=0) - center)
    if len(table) > 1:
        within = table - table.mean(axis=1, keepdims=True)
        residuals = (within - within.mean(axis=0)) @ weights.T  # (S, L)
        covariance = residuals.T @ residuals / (len(table) * (len(table) - 1))
        return Smooth(mean, covariance, len(table) - 1)
    return _one_seed(x, table[0], mean, weights, SEED_LENGTH * top)


def student(probability: float, freedom: float) -> float:
    """Return the quantile of Student's t distribution."""
    return float(special.stdtrit(freedom, probability))


def peak(values: Array, among: NDArray[np.bool_] | None = None) -> int:
    """Return the index of the highest value, the first of those that are equal but for rounding.

    Args:
        values: such as the mean of a curve, (L,).
        among: which may be chosen, (L,); by default all.
    """
    allowed = values if among is None else np.where(among, values, -np.inf)
    spread = np.ptp(values)
    return int(np.argmax(allowed >= allowed.max() - ROUNDING * spread))


def kernel(x: Array, knots: Array, bandwidth: float) -> Array:
    """Return the weights, (L, K), of the values at `knots`, (K,), in a mean for each of `x`, (L,).

    The weights of each of `x` add to 1.

    Gaussian. Beyond 30 bandwidths everything is equally far, so that the weights never vanish all together.
    """
    if bandwidth <= 0:
        return np.full((len(x), len(knots)), 1 / len(knots))
    distance = np.minimum(np.abs(x[:, None] - knots[None]) / bandwidth, 30.0)
    weights = np.exp(-0.5 * distance**2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=float)


def _weights(x: Array, bandwidth: float) -> Array:
    """Return the weights of kernel regression, (L, L), with level 0 apart from the flooded levels."""
    flooded = x > 0
    weights = np.zeros((len(x), len(x)))
    for part in (flooded, ~flooded):
        if part.any():
            weights[np.ix_(part, part)] = kernel(x[part], x[part], bandwidth)
    return weights


def _one_seed(x: Array, values: Array, mean: Array, weights: Array, length: float) -> Smooth:
    """Return the curve of one seed, its error from the noise about the curve.

    Freedom by Satterthwaite's two moments. Levels too far apart to be smoothed show no noise; then the error
    is not known.
    """
    left = np.eye(len(x)) - weights
    noise = left.T @ left
    trace = float(np.trace(noise))
    if trace < 0.5:
        return Smooth(mean, None, 0.0)
    variance = float(np.sum((values - mean) ** 2)) / trace
    both = (x[:, None] > 0) == (x[None] > 0)
    seed = np.where(both, np.exp(-0.5 * ((x[:, None] - x[None]) / length) ** 2), 0.0)
    covariance = variance * (weights @ weights.T + SEED_SHARE**2 * seed)
    return Smooth(mean, covariance, trace**2 / float(np.sum(noise**2)))
