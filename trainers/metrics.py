"""How well predicted probabilities fit what came of them, counted over a stream, test-then-train.

Every metric takes `Outcomes` in the order in which their labels became known and leaves out those
whose label is not known (NaN) or whose prediction is no probability. All are weighted and take
bounded memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streaming.kernels import EMPTY, slots_for
from trainers.metric_kernels import NEWEST, PAIRS, SIZE, WEIGHT, WON, add_to_groups, index_places
from trainers.tally import Sums, TallyMetric

HALF_LIFE = 5_000  # samples
OUTCOME = np.dtype(
    [
        ("prediction", np.float64),  # the probability of a positive label
        ("label", np.float64),  # 0, 1, or NaN: not known
        ("weight", np.float64),
        ("group", np.int64),  # of GAUC: a user or a request; EMPTY for none
        ("bid", np.float64),  # of csAUC: what a positive earns; NaN = not known
        ("scenario", np.int64),  # a code of `Scenarios`
    ]
)
Outcomes = NDArray[np.void]  # (n,) of OUTCOME
_LOG_SPAN = 16.0  # logits and logarithms beyond ± this share the outermost bucket
_SMALLEST = 1e-7  # a probability that is surer counts as this sure in the log loss


def outcomes(
    predictions: ArrayLike,
    labels: ArrayLike = np.nan,
    *,
    weights: ArrayLike = 1.0,
    groups: ArrayLike = EMPTY,
    bids: ArrayLike = np.nan,
    scenarios: ArrayLike = 0,
) -> Outcomes:
    """n predictions and what is known of them; each argument (n,) or one number for all.

    ValueError if the lengths differ, a label is none of 0, 1 and NaN, or a weight is negative.
    """
    given = np.asarray(predictions)
    if given.ndim != 1:
        raise ValueError(f"predictions must be of shape (n,): {given.shape}")
    rows = np.empty(len(given), OUTCOME)
    columns = (given, labels, weights, groups, bids, scenarios)
    for name, column in zip(OUTCOME.names or (), columns, strict=True):
        rows[name] = column
    label, weight = rows["label"], rows["weight"]
    if not np.all((label == 0) | (label == 1) | np.isnan(label)):
        raise ValueError("labels must be 0, 1 or NaN: set a threshold to graded ones first")
    if not np.all(weight >= 0):
        raise ValueError("weights must not be negative, nor NaN")
    return rows


def _scorable(rows: Outcomes) -> Outcomes:
    prediction = rows["prediction"]
    known: Outcomes = rows[~np.isnan(rows["label"]) & (prediction >= 0) & (prediction <= 1)]
    return known


def _logit(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        logits: NDArray[np.float64] = np.log(probabilities) - np.log1p(-probabilities)
    return logits


def _buckets(x: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Numbers on a logarithmic scale to `count` buckets in their order."""
    clipped = np.clip(x, -_LOG_SPAN, _LOG_SPAN)
    places = ((clipped + _LOG_SPAN) * (count / (2 * _LOG_SPAN))).astype(np.int64)
    return np.minimum(places, count - 1)


class Calibration(TallyMetric):
    """Log loss, normalised entropy, and predicted over observed positives.

    Normalised entropy is the log loss over the entropy of the base rate: below 1 for a model that
    knows more than that rate (He et al., "Practical Lessons from Predicting Clicks on Ads at
    Facebook", ADKDD 2014). `invalid` counts the predictions that are no probability.

    >>> metric = Calibration()
    >>> metric.update(outcomes([0.5, 0.5, 0.5, 0.5], [0, 1, 0, 0]))
    >>> metric.get()["calibration"]
    2.0
    """

    name = "calibration"

    def __init__(self, half_life: int = HALF_LIFE) -> None:
        super().__init__(1, 5, half_life)

    def update(self, rows: Outcomes) -> None:
        known = rows[~np.isnan(rows["label"])]
        valid = (known["prediction"] >= 0) & (known["prediction"] <= 1)
        p = np.where(valid, known["prediction"], 0.5)
        w, y = np.where(valid, known["weight"], 0.0), known["label"]
        of_label = np.where(y == 1, p, 1 - p).clip(_SMALLEST, 1 - _SMALLEST)
        values = np.stack([w, w * p, w * y, -w * np.log(of_label), ~valid], 1)
        self._tally.add(np.zeros((len(known), 1), np.int64), values)

    def figures(self, sums: Sums) -> dict[str, float]:
        """`log_loss`, `invalid`; once both labels were seen `normalised_entropy`, `calibration`."""
        weight, predicted, observed, loss, invalid = sums[0].tolist()
        figures = {"invalid": invalid} if weight or invalid else {}
        if weight > 0:
            figures["log_loss"] = loss / weight
        if observed > 0:
            figures["calibration"] = predicted / observed
        if 0 < observed < weight:
            rate = observed / weight
            entropy = -rate * np.log(rate) - (1 - rate) * np.log1p(-rate)
            figures["normalised_entropy"] = loss / weight / float(entropy)
        return figures


class AUC(TallyMetric):
    """The chance that a positive scores above a negative, a tie counted half.

    The Wilcoxon-Mann-Whitney statistic of a histogram of the predictions' logits: pairs in
    different buckets are exact, those in one bucket count half. The true value therefore lies
    within `auc_error`, half the share of such pairs, which is given beside it.
    """

    name = "auc"

    def __init__(self, buckets: int = 1 << 12, half_life: int = HALF_LIFE) -> None:
        super().__init__(buckets, 2, half_life)
        self._buckets = buckets

    def update(self, rows: Outcomes) -> None:
        known = _scorable(rows)
        places = _buckets(_logit(known["prediction"]), self._buckets)
        positive, weight = known["label"] == 1, known["weight"]
        values = np.stack([np.where(positive, 0.0, weight), np.where(positive, weight, 0.0)], 1)
        self._tally.add(places[:, None], values)

    def figures(self, sums: Sums) -> dict[str, float]:
        """`auc` and `auc_error`, once both labels were seen."""
        negatives, positives = sums.T
        pairs = negatives.sum() * positives.sum()
        if pairs <= 0:
            return {}
        tied = float(positives @ negatives) / 2
        won = float(positives @ _before(negatives)) + tied
        return {"auc": won / float(pairs), "auc_error": tied / float(pairs)}


class CsAUC(TallyMetric):
    """The CPM-sensitive AUC: how much of the revenue of all pairs the ranking earns.

    Liu and Yin, "CPM-sensitive AUC for CTR prediction", 2019. Negatives are the lowest level and
    earn nothing, positives earn their bid, which is also their level. Of two samples of different
    levels the one that is ranked first earns, of two in a tie both earn half; csAUC is the sum over
    all such pairs over what the best ranking earns. It can thus be above 0 for the worst ranking,
    and is the AUC if all bids are equal.

    `ranked_by` "prediction", or "revenue": prediction times bid, the order of an auction. Scores
    and bids fall into buckets of `32 / buckets` on a logarithmic scale: scores in one bucket are
    a tie, bids in one bucket a level. Positives whose bid is not known or not above 0 are left
    out; negatives need a bid only to be ranked by revenue.

    Six rankings of four positives A to D and the negative E, by AUC and csAUC: as long as E is last
    the AUC finds them all alike, and the first one, which has the highest bid behind all others,
    is the worst of these by csAUC. (The source has six in a picture; bids and orders are ours.)

    >>> bids = {"A": 8, "B": 4, "C": 2, "D": 1, "E": 5}
    >>> for ranking in ("BCDAE", "BACDE", "ABDCE", "ABCDE", "ABCED", "EABCD"):
    ...     auc, csauc = AUC(), CsAUC()
    ...     for metric in (auc, csauc):
    ...         metric.update(outcomes(
    ...             np.linspace(0.9, 0.1, 5), [one != "E" for one in ranking],
    ...             bids=[bids[one] for one in ranking]))
    ...     print(ranking, auc.get()["auc"], round(csauc.get()["csauc"], 3))
    BCDAE 1.0 0.653
    BACDE 1.0 0.918
    ABDCE 1.0 0.98
    ABCDE 1.0 1.0
    ABCED 0.75 0.98
    EABCD 0.0 0.694
    """

    name = "csauc"

    def __init__(
        self,
        buckets: int = 1 << 12,
        ranked_by: Literal["prediction", "revenue"] = "prediction",
        half_life: int = HALF_LIFE,
    ) -> None:
        # Buckets of scores, the level of the negatives, buckets of bids.
        super().__init__(2 * buckets + 1, 2, half_life)
        self._buckets = buckets
        self._ranked_by = ranked_by

    def update(self, rows: Outcomes) -> None:
        known = _scorable(rows)
        by_revenue = self._ranked_by == "revenue"
        has_bid = (known["bid"] > 0) & np.isfinite(known["bid"])
        known = known[has_bid | ((known["label"] == 0) & (not by_revenue))]
        positive = known["label"] == 1
        bid = np.where(positive | by_revenue, known["bid"], 1.0)
        with np.errstate(divide="ignore"):
            score = np.log(known["prediction"] * bid) if by_revenue else _logit(known["prediction"])
        level = np.where(positive, 1 + _buckets(np.log(bid), self._buckets), 0)
        places = np.stack([_buckets(score, self._buckets), self._buckets + level], 1)
        earns = np.where(positive, bid, 0.0)
        self._tally.add(
            places, known["weight"][:, None] * np.stack([np.ones(len(known)), earns], 1)
        )

    def figures(self, sums: Sums) -> dict[str, float]:
        """`csauc`, once there were samples of two levels."""
        count, earned = sums[: self._buckets].T
        level_count, level_earned = sums[self._buckets :].T
        best = float(level_earned @ _before(level_count))
        if best <= 0:
            return {}
        # Over all pairs; then without those of one level, which earn the same in every ranking. A
        # sample makes half a pair with itself in both terms.
        won = float(earned @ (_before(count) + count / 2)) - float(level_earned @ level_count) / 2
        return {"csauc": won / best}


def _before(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much lies in the buckets before each."""
    before: NDArray[np.float64] = np.cumsum(counts) - counts
    return before


class GAUC(TallyMetric):
    """The mean over groups of the AUC within each, weighted by the group's impressions.

    Zhu et al., "Optimized Cost per Click in Taobao Display Advertising", KDD 2017; groups without
    both labels do not count. A group here is at most `most_samples` successive samples of one user
    (or request), seen before `most_groups` other groups began; within it the AUC is exact, ties
    counted half. Samples that belong to no group are left out. In the recent mean a group is as
    old as its newest sample.
    """

    name = "gauc"

    def __init__(
        self, most_groups: int = 1024, most_samples: int = 32, half_life: int = HALF_LIFE
    ) -> None:
        super().__init__(1, 2, half_life)
        self._ids = np.full(most_groups, EMPTY, np.int64)
        self._marks = np.zeros((most_groups, 2), np.int64)
        self._pairs = np.zeros((most_groups, 3))
        self._members = np.zeros((most_groups, most_samples, 2))  # score; weight, signed by label
        self._opened = np.zeros(1, np.int64)
        self._slots = slots_for(most_groups)

    def update(self, rows: Outcomes) -> None:
        known = _scorable(rows)
        known = known[(known["group"] >= 0) & (known["weight"] > 0)]
        tally = self._tally
        add_to_groups(
            (tally.total, tally.recent, tally.clock),
            tally.half_life,
            self._slots,
            (self._ids, self._marks, self._pairs, self._members, self._opened),
            known["group"].copy(),
            known["prediction"].copy(),
            np.where(known["label"] == 1, known["weight"], -known["weight"]),
        )

    def sums(self) -> Sums:
        """(2, 1, 2): the weighted AUCs and the weights, open groups as far as they have come."""
        pairs = self._pairs[self._pairs[:, PAIRS] > 0]
        newest = self._marks[self._pairs[:, PAIRS] > 0, NEWEST]
        weight, auc = pairs[:, WEIGHT], pairs[:, WON] / pairs[:, PAIRS]
        open_ = np.stack([weight * auc, weight], 1)  # (groups, 2)
        fade = 0.5 ** ((self._tally.clock[0] - newest) / self._tally.half_life)
        of_open: Sums = np.stack([open_.sum(0), fade @ open_])[:, None]
        return super().sums() + of_open

    def figures(self, sums: Sums) -> dict[str, float]:
        """`gauc`, once a group has both labels."""
        weighted, weight = sums[0].tolist()
        return {"gauc": weighted / weight} if weight > 0 else {}

    def state(self) -> dict[str, NDArray[Any]]:
        groups = {"ids": self._ids.copy(), "marks": self._marks.copy(), "pairs": self._pairs.copy()}
        members = {"members": self._members[self._filled(self._marks)]}
        shape = {"shape": np.array(self._members.shape), "opened": self._opened.copy()}
        return {**super().state(), **groups, **members, **shape}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        if not np.array_equal(state["shape"], self._members.shape) or not self._tally.load(state):
            return
        self._ids[:], self._marks[:] = state["ids"], state["marks"]
        self._pairs[:], self._opened[:] = state["pairs"], state["opened"]
        self._members[self._filled(self._marks)] = state["members"]
        self._slots = slots_for(len(self._ids))
        index_places(self._slots, self._ids)

    def _filled(self, marks: NDArray[np.int64]) -> NDArray[np.bool_]:
        filled: NDArray[np.bool_] = np.arange(self._members.shape[1]) < marks[:, SIZE, None]
        return filled
