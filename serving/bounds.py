"""How sure figures are: 95 % confidence bounds from sums over weighted impressions.

Everything is an array with one entry for each slice, (s,). What is not known is NaN.

Impressions count with weights (one that stands for several, older ones less), so bounds follow from
the *linearised* variance: where a figure changes by g_i with impression i, of weight w_i, its
variance is sum w_i^2 g_i^2 (the delta method; Deng, Knoblich and Lu, "Applying the Delta Method in
Metric Analytics", KDD 2018). For equal weights these are the textbook formulas. Impressions are
taken as independent; those of one user are a little less surprising than that.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Z = 1.959963984540054  # of 95 %


class Interval(NamedTuple):
    """Figures and their bounds, each (s,)."""

    value: Floats
    low: Floats
    high: Floats

    def told(self, slice_: int) -> dict[str, float | None] | None:
        """The figure of one slice in plain values; None if it is not known."""
        found = [float(bound[slice_]) for bound in self]
        if not np.isfinite(found[0]):
            return None
        names = ("value", "low", "high")
        return {n: f if np.isfinite(f) else None for n, f in zip(names, found, strict=True)}


def rate(value: Floats, variance: Floats, size: Floats) -> Interval:
    """Of a share: Wilson's interval (1927) for as many impressions as would have this variance
    (Korn and Graubard, 1998); where all went the same way, for `size` of them.

    >>> low = rate(np.array([0.0]), np.array([0.0]), np.array([10.0])).high
    >>> print(low.round(3))
    [0.278]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        like = np.where(variance > 0, value * (1 - value) / variance, size)
        centre = (value + Z**2 / (2 * like)) / (1 + Z**2 / like)
        spread = value * (1 - value) / like + Z**2 / (4 * like**2)
        half = Z / (1 + Z**2 / like) * np.sqrt(spread)
    return Interval(value, centre - half, centre + half)


def mean(value: Floats, variance: Floats) -> Interval:
    """Of a mean: normal."""
    half = Z * np.sqrt(np.maximum(variance, 0))
    return Interval(value, value - half, value + half)


def ratio(value: Floats, log_variance: Floats) -> Interval:
    """Of a positive ratio: log-normal, of the variance of its logarithm. For clicks over what was
    expected that is about 1 / clicks, as of a Poisson count.
    """
    factor = np.exp(Z * np.sqrt(np.maximum(log_variance, 0)))
    return Interval(value, value / factor, value * factor)


def auc(negatives: Floats, positives: Floats, squares: tuple[Floats, Floats]) -> Interval:
    """Of the AUC of histograms (s, buckets) of scores, a tie counted half.

    The variance is DeLong's (DeLong, DeLong and Clarke-Pearson, Biometrics 1988): that of the share
    of negatives below each positive, and of positives above each negative. `squares` has the sums
    of squared weights of either histogram. Bounds are normal on the logit scale; where every pair
    is in the same order nothing is said but that it lies between 0 and 1.
    """
    of_negatives, of_positives = squares
    with np.errstate(divide="ignore", invalid="ignore"):
        n, p = negatives.sum(1, keepdims=True), positives.sum(1, keepdims=True)
        below = (np.cumsum(negatives, 1) - negatives / 2) / n
        above = (p - np.cumsum(positives, 1) + positives / 2) / p
        value = (positives * below).sum(1) / p[:, 0]
        variance = _variance_of_mean(below, value, of_positives, p[:, 0])
        variance += _variance_of_mean(above, value, of_negatives, n[:, 0])
        logit = np.log(value) - np.log1p(-value)
        half = Z * np.sqrt(variance) / (value * (1 - value))
        ordered = (value <= 0) | (value >= 1)
        low, high = (1 / (1 + np.exp(-(logit + sign * half))) for sign in (-1, 1))
    return Interval(value, np.where(ordered, 0.0, low), np.where(ordered, 1.0, high))


def _variance_of_mean(shares: Floats, average: Floats, squares: Floats, total: Floats) -> Floats:
    """Of the weighted mean of shares (s, buckets), by the squared weights in each bucket."""
    spread: Floats = (squares * (shares - average[:, None]) ** 2).sum(1) / total**2
    size = total**2 / squares.sum(1)  # so many of equal weight would tell as much
    return spread * np.where(size > 1, size / (size - 1), np.inf)
