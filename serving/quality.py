"""How well what was served did: click rate, AUC, normalised entropy, calibration and COEC of one
label, in many slices of the impressions at once, of the recent ones, with confidence bounds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.coec import CountedBaseline, CountedConfig, Shown
from serving import bounds
from serving.bounds import Floats, Interval
from streaming.event_columns import NONE
from trainers.tally import Tally

FIGURES = ("ctr", "auc", "normalised_entropy", "calibration", "coec")
_BUCKETS = 512  # of scores, by their logit: those within a sixteenth of each other are a tie
_SPAN = 16.0
_SMALLEST = 1e-7  # a probability that is surer counts as this sure in the log loss

# Sums over impressions of weight w and label y. Those of `v` are over the ones whose score is a
# probability p (v is w, or 0), l being its log loss; those of `c` over the ones that had a position
# (c is w, or 0), e being the rate that it promises.
_SUMS = ("w", "wy", "v", "vy", "vp", "vl", "cy", "ce")
# Sums of products of these, each weight squared.
_SQUARES = (
    "ww", "wwy", "wwyy", "vv", "vvy", "vvyy", "vvpp", "vvpy", "vvl", "vvll", "vvly",
    "ccyy", "ccee", "ccye",
)  # fmt: skip


def impressions_of(slices: int) -> np.dtype[np.void]:
    """The fields of impressions, each of which falls into so many slices."""
    return np.dtype(
        [
            ("key", np.int64),  # its request and item
            ("at_us", np.int64),  # when it was shown
            ("position", np.int64),  # NONE if it is not known
            ("scenario", np.int64),  # a code
            ("generation", np.int64),  # of the version that was served, NONE if it is not known
            ("score", np.float64),  # the one that it was served with, NaN if it is not known
            ("weight", np.float64),  # how many it stands for
            ("label", np.float64),
            ("places", np.int64, (slices,)),  # the slices that it falls into
        ]
    )


class LabelQuality:
    """The figures of one label in `slices` slices, fading by half every `half_life` impressions.

    All slices fade together, so that they tell of the same stretch of time. A score that is no
    probability (not between 0 and 1) counts in neither AUC, normalised entropy nor calibration. Of
    a `graded` label, `ctr` is the mean value, and nothing else is told.

    * `calibration`: sum of scores over sum of labels. He et al., "Practical Lessons from Predicting
      Clicks on Ads at Facebook", ADKDD 2014, as is
    * `normalised_entropy`: the mean log loss over the entropy of the rate of the same impressions.
    * `coec`: clicks over those that the positions promise (`features.coec`); the positions' own
      rates are taken as known.
    * their bounds: of the logarithm of a ratio X / Y of sums, sum w^2 (x / X - y / Y)^2; of the
      entropy H of a rate r, that changes by ln((1 - r) / r) with it.
    """

    def __init__(
        self, label: str, slices: int, half_life: int, *, position_half_life_s: float, graded: bool
    ) -> None:
        squared = max(1, half_life // 2)  # a squared weight fades twice as fast
        self._graded = graded
        self._slices = slices
        self._sums = Tally(slices, len(_SUMS), half_life)
        self._squares = Tally(slices, len(_SQUARES), squared)
        self._scores = Tally(slices * _BUCKETS, 2, half_life)  # negatives and positives
        self._score_squares = Tally(slices * _BUCKETS, 2, squared)
        self._positions = CountedBaseline(label, CountedConfig(half_life_s=position_half_life_s))

    @property
    def known(self) -> Floats:
        """Of how many impressions the label is known, in each slice, since the beginning."""
        return self._sums.total[:, 0].copy()

    @property
    def recent(self) -> Floats:
        """Of how many impressions, older ones counted less, the figures of each slice are."""
        return self._sums.recent[:, 0] / self._sums.newest

    def update(self, rows: NDArray[np.void], places: NDArray[np.int64]) -> None:
        """Takes impressions whose label became known, and the slices (n, m) that each is in."""
        y, p, w = rows["label"], rows["score"], rows["weight"]
        probable = (p >= 0) & (p <= 1) & (not self._graded)
        v = np.where(probable, w, 0.0)
        c = np.where((rows["position"] == NONE) | self._graded, 0.0, w)
        p = np.where(probable, p, 0.5)
        e = self._expected(rows)
        loss = -np.log(np.where(y == 1, p, 1 - p).clip(_SMALLEST, 1 - _SMALLEST))
        sums = [w, w * y, v, v * y, v * p, v * loss, c * y, c * e]
        ww, vv, cc = w * w, v * v, c * c
        squares = [
            ww, ww * y, ww * y * y,
            vv, vv * y, vv * y * y, vv * p * p, vv * p * y,
            vv * loss, vv * loss * loss, vv * loss * y,
            cc * y * y, cc * e * e, cc * y * e,
        ]  # fmt: skip
        self._sums.add(places, np.stack(sums, 1))
        self._squares.add(places, np.stack(squares, 1))
        if probable.any():
            buckets = places * _BUCKETS + _bucket(p)[:, None]
            both = np.stack([np.where(y == 1, 0.0, v), np.where(y == 1, v, 0.0)], 1)
            self._scores.add(buckets, both)
            self._score_squares.add(buckets, both * both)

    def forget(self, slice_: int) -> None:
        """Begins a slice anew."""
        for tally in (self._sums, self._squares):
            tally.total[slice_] = tally.recent[slice_] = 0.0
        places = slice(slice_ * _BUCKETS, (slice_ + 1) * _BUCKETS)
        for tally in (self._scores, self._score_squares):
            tally.total[places] = tally.recent[places] = 0.0

    def figures(self) -> dict[str, Interval]:
        """Each figure in all slices, NaN where it is not defined: ratios before the first positive,
        AUC and entropy before both labels were seen.
        """
        s = dict(zip(_SUMS, (self._sums.recent / self._sums.newest).T, strict=True))
        q = dict(zip(_SQUARES, (self._squares.recent / self._squares.newest).T, strict=True))
        with np.errstate(divide="ignore", invalid="ignore"):
            if self._graded:
                return {"ctr": bounds.mean(*_mean(s, q))}
            size = s["w"] ** 2 / q["ww"]
            return {
                "ctr": bounds.rate(*_mean(s, q), size),
                "auc": self._auc(),
                "normalised_entropy": _normalised_entropy(s, q),
                "calibration": _ratio(
                    (s["vp"], s["vy"]), (q["vvpp"], q["vvpy"], q["vvyy"])
                ),
                "coec": _ratio((s["cy"], s["ce"]), (q["ccyy"], q["ccye"], q["ccee"])),
            }  # fmt: skip

    def _expected(self, rows: NDArray[np.void]) -> Floats:
        """The rate that the position of each impression promises, (n,)."""
        nobody = np.zeros(len(rows), np.int64)
        return self._positions.expected(
            Shown(
                nobody,
                rows["position"],
                rows["label"] * rows["weight"],
                rows["at_us"],
                rows["scenario"],
                nobody > 0,
                rows["weight"],
            )
        )

    def _auc(self) -> Interval:
        shape = (self._slices, _BUCKETS, 2)
        negatives, positives = np.moveaxis(
            (self._scores.recent / self._scores.newest).reshape(shape), 2, 0
        )
        squares = (self._score_squares.recent / self._score_squares.newest).reshape(shape)
        return bounds.auc(negatives, positives, (squares[..., 0], squares[..., 1]))


def _mean(s: dict[str, Floats], q: dict[str, Floats]) -> tuple[Floats, Floats]:
    """The mean label and its variance."""
    mean = s["wy"] / s["w"]
    return mean, (q["wwyy"] - 2 * mean * q["wwy"] + mean**2 * q["ww"]) / s["w"] ** 2


def _ratio(sums: tuple[Floats, Floats], squares: tuple[Floats, Floats, Floats]) -> Interval:
    """X / Y, by the sums of the squared weights times x^2, xy and y^2."""
    (x, y), (xx, xy, yy) = sums, squares
    some = (x > 0) & (y > 0)
    variance = xx / x**2 - 2 * xy / (x * y) + yy / y**2
    return bounds.ratio(np.where(some, x / y, np.nan), np.where(some, variance, np.nan))


def _normalised_entropy(s: dict[str, Floats], q: dict[str, Floats]) -> Interval:
    r, loss = s["vy"] / s["v"], s["vl"] / s["v"]
    mixed = (r > 0) & (r < 1)
    r = np.where(mixed, r, np.nan)
    entropy = -r * np.log(r) - (1 - r) * np.log1p(-r)
    # ln(loss / entropy) changes by a (l - loss) - b (y - r) with an impression.
    a, b = 1 / (s["v"] * loss), np.log((1 - r) / r) / (s["v"] * entropy)
    of_loss = q["vvll"] - 2 * loss * q["vvl"] + loss**2 * q["vv"]
    of_both = q["vvly"] - r * q["vvl"] - loss * q["vvy"] + loss * r * q["vv"]
    of_rate = q["vvyy"] - 2 * r * q["vvy"] + r**2 * q["vv"]
    variance = a**2 * of_loss - 2 * a * b * of_both + b**2 * of_rate
    return bounds.ratio(loss / entropy, variance)


def _bucket(p: Floats) -> NDArray[np.int64]:
    """Probabilities to buckets in their order."""
    with np.errstate(divide="ignore"):
        logit = np.clip(np.log(p) - np.log1p(-p), -_SPAN, _SPAN)
    places: NDArray[np.int64] = ((logit + _SPAN) * (_BUCKETS / (2 * _SPAN))).astype(np.int64)
    return np.minimum(places, _BUCKETS - 1)
