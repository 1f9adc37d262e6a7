"""Figures of what was served against a plain account of them, and how often their bounds hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.quality import FIGURES, LabelQuality, impressions_of
from streaming.event_columns import NONE

Floats = NDArray[np.float64]


def quality(slices: int = 1, half_life: int = 1_000_000, *, graded: bool = False) -> LabelQuality:
    return LabelQuality("click", slices, half_life, position_half_life_s=math.inf, graded=graded)


def impressions(
    scores: Any, labels: Any, weights: Any = 1.0, positions: Any = 0
) -> NDArray[np.void]:
    rows = np.zeros(len(scores), impressions_of(1))
    rows["score"], rows["label"], rows["weight"] = scores, labels, weights
    rows["position"] = positions
    return rows


def world(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
    """Scores that are off by some, and labels."""
    chance = rng.beta(1.5, 6, count)
    score = np.clip(chance * np.exp(rng.normal(0.1, 0.5, count)), 0.001, 0.95)
    return score, (rng.random(count) < chance).astype(float)


def of(judged: LabelQuality, slice_: int = 0) -> dict[str, float]:
    """The figures that are known."""
    told = {name: interval.told(slice_) for name, interval in judged.figures().items()}
    return {name: float(one["value"] or 0) for name, one in told.items() if one is not None}


def naive(scores: Floats, labels: Floats, weights: Floats, half_life: float) -> dict[str, float]:
    """The definitions, impression by impression, all of them at one position."""
    n = len(scores)
    w = [weights[i] * 0.5 ** ((n - 1 - i) / half_life) for i in range(n)]
    rate = sum(w[i] * labels[i] for i in range(n)) / sum(w)
    won = pairs = loss = 0.0
    for i in range(n):
        loss -= w[i] * math.log(scores[i] if labels[i] else 1 - scores[i])
        for j in range(n):
            if labels[i] and not labels[j]:
                pairs += w[i] * w[j]
                won += w[i] * w[j] * ((scores[i] > scores[j]) + (scores[i] == scores[j]) / 2)
    entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    # The rate of the position as it was just before: 20 impressions at each of three levels.
    shown = clicked = expected = 0.0
    for i in range(n):
        promised = 0.05
        for _ in range(3):
            promised = (clicked + 20 * promised) / (shown + 20)
        expected += w[i] * promised
        shown, clicked = shown + weights[i], clicked + weights[i] * labels[i]
    return {
        "ctr": rate,
        "auc": won / pairs,
        "normalised_entropy": loss / sum(w) / entropy,
        "calibration": sum(w[i] * scores[i] for i in range(n)) / (sum(w) * rate),
        "coec": sum(w[i] * labels[i] for i in range(n)) / expected,
    }


def test_figures_are_those_of_a_plain_account() -> None:
    rng = np.random.default_rng(5)
    scores, labels = world(rng, 300)
    scores = np.round(scores, 1).clip(0.1, 0.9)  # with ties, and in buckets of their own
    weights = np.where(labels == 1, 1.0, 4.0)
    judged = quality(2, half_life=100)
    for start in range(0, 300, 70):  # no figure depends on the cuts
        part = slice(start, start + 70)
        rows = impressions(scores[part], labels[part], weights[part])
        judged.update(rows, np.full((len(rows), 1), 1))
    assert of(judged, 1) == pytest.approx(naive(scores, labels, weights, 100))
    assert of(judged, 0) == {}
    assert judged.known.tolist() == [0.0, weights.sum()]


DRAWS, EACH, KEPT = 400, 1_000, 0.5


@pytest.fixture(scope="module")
def draws() -> tuple[LabelQuality, dict[str, float]]:
    """Many draws from one world, each in a slice of its own, and the truth of that world.

    Half of the negatives are left out, and what is old has faded.
    """
    rng = np.random.default_rng(11)
    scores, labels = world(rng, DRAWS * EACH)
    kept = (labels == 1) | (rng.random(len(labels)) < KEPT)
    rows = impressions(scores, labels, np.where(labels == 1, 1.0, 1 / KEPT))
    rows["position"] = rng.integers(0, 5, len(rows))
    judged = quality(DRAWS, half_life=DRAWS * EACH // 4)
    judged.update(rows[kept], (np.arange(len(rows)) % DRAWS)[kept, None])
    scores, labels = world(rng, 1_000_000)
    everything = quality()
    everything.update(impressions(scores, labels), np.zeros((len(scores), 1), np.int64))
    return judged, {**of(everything), "coec": 1.0}


@pytest.mark.parametrize("figure", FIGURES)
def test_the_truth_lies_within_the_bounds_19_times_of_20(
    draws: tuple[LabelQuality, dict[str, float]], figure: str
) -> None:
    judged, truth = draws
    interval = judged.figures()[figure]
    held = (interval.low <= truth[figure]) & (truth[figure] <= interval.high)
    assert held.mean() == pytest.approx(0.95, abs=0.03)
    missed_low, missed_high = (interval.low > truth[figure]), (interval.high < truth[figure])
    assert max(missed_low.mean(), missed_high.mean()) < 0.05  # on neither side much more


def test_of_one_class_only_a_rate_is_known() -> None:
    for label, rate in ((0.0, 0.0), (1.0, 1.0)):
        judged = quality()
        judged.update(impressions([0.2, 0.4], label), np.zeros((2, 1), np.int64))
        figures = of(judged)
        assert figures["ctr"] == rate
        assert not {"auc", "normalised_entropy"} & set(figures)
        told = judged.figures()["ctr"].told(0)
        assert told is not None
        assert told["low"] == pytest.approx(0 if rate == 0 else 0.342, abs=1e-3)  # Wilson, n = 2


def test_scores_that_are_no_probabilities_count_in_the_rate_only() -> None:
    judged = quality()
    rows = impressions([0.5, 0.5, 7.0, -1.0, np.inf, np.nan], [0, 1, 1, 1, 1, 1])
    judged.update(rows, np.zeros((6, 1), np.int64))
    assert of(judged)["ctr"] == pytest.approx(5 / 6)
    assert of(judged)["calibration"] == pytest.approx(1.0)
    assert of(judged)["auc"] == pytest.approx(0.5)


def test_where_every_pair_is_in_order_nothing_is_said_of_how_sure_that_is() -> None:
    judged = quality()
    judged.update(impressions([0.1, 0.9], [0, 1]), np.zeros((2, 1), np.int64))
    assert judged.figures()["auc"].told(0) == {"value": 1.0, "low": 0.0, "high": 1.0}


def test_without_a_position_nothing_is_expected() -> None:
    judged = quality()
    judged.update(impressions([0.1, 0.9], [0, 1], positions=NONE), np.zeros((2, 1), np.int64))
    assert "coec" not in of(judged)


def test_of_a_graded_label_the_mean_is_told() -> None:
    judged = quality(graded=True)
    values = np.array([0.0, 0.5, 1.0, 0.25])
    judged.update(impressions(np.full(4, 0.1), values), np.zeros((4, 1), np.int64))
    assert of(judged) == {"ctr": pytest.approx(values.mean())}
    told = judged.figures()["ctr"].told(0)
    assert told is not None
    half = 1.96 * values.std() / 2
    assert told["high"] == pytest.approx(values.mean() + half, rel=1e-3)


def test_a_slice_that_is_forgotten_begins_anew() -> None:
    scores, labels = world(np.random.default_rng(0), 200)
    judged, other = quality(2), quality(2)
    judged.update(impressions(scores, labels), np.full((200, 1), 1))
    judged.update(impressions(scores, labels), np.zeros((200, 1), np.int64))
    before = of(judged, 0)
    judged.forget(1)
    assert of(judged, 1) == {}
    assert of(judged, 0) == before
    judged.update(impressions(scores, labels), np.full((200, 1), 1))
    other.update(impressions(scores, labels), np.full((200, 1), 1))
    of_both = [{k: v for k, v in of(one, 1).items() if k != "coec"} for one in (judged, other)]
    assert of_both[0] == pytest.approx(of_both[1])
