"""The streaming metrics against sums over all pairs, by hand, and across cuts of the stream."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations
from math import log, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.evaluation import RankingQuality
from trainers.metric_kernels import RENEWAL
from trainers.metrics import AUC, GAUC, Calibration, CsAUC, Outcomes, outcomes
from trainers.sliced_metrics import Metric
from trainers.tally import Tally

few = settings(max_examples=60, deadline=None, derandomize=True)
METRICS: list[Callable[[], Metric]] = [
    lambda: AUC(64, half_life=7),
    lambda: CsAUC(64, half_life=7),
    lambda: CsAUC(64, "revenue", half_life=7),
    lambda: GAUC(3, 4, half_life=7),
    lambda: Calibration(half_life=7),
]
every_metric = pytest.mark.parametrize("make", METRICS)

# prediction, label, weight, group, bid: few values, so that ties are common
SAMPLES = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.1, 0.3, 0.31, 0.9, 1.0]),
        st.sampled_from([0.0, 1.0]),
        st.sampled_from([1.0, 2.0, 0.5]),
        st.integers(0, 4),
        st.sampled_from([1.0, 2.0, 10.0]),
    ),
    min_size=1,
    max_size=40,
)
Sample = tuple[float, float, float, int, float]


def rows(samples: list[Sample]) -> Outcomes:
    p, y, w, group, bid = map(np.array, zip(*samples, strict=True))
    return outcomes(p, y, weights=w, groups=group, bids=bid)


def stream(count: int, seed: int = 0) -> Outcomes:
    """Outcomes of a model that knows something, in the order of time."""
    rng = np.random.default_rng(seed)
    p = rng.beta(1, 4, count)
    unknown = rng.random(count) < 0.1
    labels = np.where(unknown, np.nan, rng.random(count) < p)
    return outcomes(
        p,
        labels,
        weights=rng.choice([1.0, 3.0], count),
        groups=rng.integers(-1, 6, count),
        bids=rng.lognormal(size=count),
    )


def pair_auc(samples: list[Sample]) -> float | None:
    """The chance that a positive stands above a negative, over all pairs."""
    won = pairs = 0.0
    for p, y, w, *_others in samples:
        for q, z, v, *_rest in samples:
            if y > z:
                won += w * v * ((p > q) + (p == q) / 2)
                pairs += w * v
    return won / pairs if pairs else None


def same_state(one: Metric, other: Metric) -> bool:
    mine, theirs = one.state(), other.state()
    return mine.keys() == theirs.keys() and all(
        np.array_equal(mine[name], theirs[name]) for name in mine
    )


# Sums


def test_a_sample_fades_by_half_over_the_half_life() -> None:
    tally = Tally(2, 1, half_life=3)
    tally.add(np.array([[0], [1], [1], [1]]), np.ones((4, 1)))
    total, recent = tally.sums()
    assert total.ravel().tolist() == [1, 3]
    np.testing.assert_allclose(recent.ravel(), [0.5, 1 + 2 ** (-1 / 3) + 2 ** (-2 / 3)])


def test_fading_goes_on_over_the_renewal_of_the_weights() -> None:
    tally = Tally(1, 1, half_life=2)
    count = 5 * RENEWAL  # two and a half renewals
    tally.add(np.zeros((count, 1), np.int64), np.arange(count, dtype=float)[:, None])
    expected = sum(i * 0.5 ** ((count - 1 - i) / 2) for i in range(count))
    assert tally.sums()[1, 0, 0] == pytest.approx(expected, rel=1e-12)


def test_what_has_faded_to_nothing_still_counts_in_the_whole() -> None:
    tally, loaded = Tally(2, 1, half_life=1), Tally(2, 1, half_life=1)
    tally.add(np.array([[0]] + [[1]] * 2000), np.ones((2001, 1)))
    assert tally.sums()[:, 0, 0].tolist() == [1, 0]
    loaded.load(tally.state())
    np.testing.assert_array_equal(loaded.sums(), tally.sums())


def test_a_half_life_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="half_life"):
        Tally(1, 1, half_life=0)


# AUC


@given(samples=SAMPLES)
@few
def test_auc_is_that_of_all_pairs_where_no_two_scores_share_a_bucket(
    samples: list[Sample],
) -> None:
    metric = AUC(1 << 10)  # 0.3 and 0.31 lie in different buckets
    metric.update(rows(samples))
    exact = pair_auc(samples)
    if exact is None:
        assert metric.get() == {}
    else:
        assert metric.get()["auc"] == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("buckets", [16, 64, 1 << 12])
def test_auc_is_within_the_error_it_states(buckets: int) -> None:
    rng = np.random.default_rng(1)
    p = 1 / (1 + np.exp(-rng.normal(-2, 1.5, 1500)))
    y = (rng.random(1500) < p).astype(float)
    metric = AUC(buckets)
    metric.update(outcomes(p, y))
    figures = metric.get()
    above = (p[y == 1][:, None] > p[y == 0][None, :]).mean()
    assert abs(figures["auc"] - above) <= figures["auc_error"] + 1e-12
    assert figures["auc_error"] < {16: 0.5, 64: 0.05, 1 << 12: 0.001}[buckets]


def test_a_constant_prediction_has_auc_one_half_and_all_of_the_error() -> None:
    metric = AUC()
    metric.update(outcomes(np.full(10, 0.2), [0, 1] * 5))
    assert (metric.get()["auc"], metric.get()["auc_error"]) == (0.5, 0.5)


def test_predictions_of_zero_and_one_stand_at_the_ends() -> None:
    metric = AUC()
    metric.update(outcomes([0.0, 1e-30, 0.5, 1.0], [0, 0, 1, 1]))
    assert metric.get()["auc"] == 1.0


def test_recent_auc_follows_a_change() -> None:
    metric = AUC(half_life=20)
    y = np.arange(200) % 2
    metric.update(outcomes(np.where(y == 1, 0.2, 0.8), y))
    metric.update(outcomes(np.where(y == 1, 0.8, 0.2), y))
    assert metric.get()["auc"] == pytest.approx(0.5)
    assert metric.get()["recent_auc"] > 0.99


# csAUC


def pair_csauc(scores: list[float], bids: list[float], w: list[float] | None = None) -> float:
    """Revenue over the best revenue of all pairs of different bids; a negative bids 0."""
    earned = best = 0.0
    weights = w or [1.0] * len(scores)
    for i, j in combinations(range(len(scores)), 2):
        if bids[i] == bids[j]:
            continue
        first = bids[i] if scores[i] > scores[j] else bids[j]
        if scores[i] == scores[j]:
            first = (bids[i] + bids[j]) / 2
        earned += weights[i] * weights[j] * first
        best += weights[i] * weights[j] * max(bids[i], bids[j])
    return earned / best


def csauc(scores: list[float], labels: list[int], bids: list[float]) -> float:
    metric = CsAUC()
    metric.update(outcomes(scores, labels, bids=bids))
    return metric.get()["csauc"]


@given(samples=SAMPLES)
@few
def test_csauc_is_that_of_all_pairs(samples: list[Sample]) -> None:
    metric = CsAUC(1 << 10)
    metric.update(rows(samples))
    bids = [y * bid for _, y, _, _, bid in samples]
    if len(set(bids)) == 1:
        assert metric.get() == {}
    else:
        exact = pair_csauc([s[0] for s in samples], bids, [s[2] for s in samples])
        assert metric.get()["csauc"] == pytest.approx(exact, abs=1e-9)


def test_csauc_tells_rankings_apart_that_have_the_same_auc() -> None:
    # Four positives that bid, one negative: 10 pairs. Every ranking keeps the negative last.
    bids, labels = [8.0, 4.0, 2.0, 1.0, 5.0], [1, 1, 1, 1, 0]
    best = 8 * 4 + 4 * 3 + 2 * 2 + 1
    found = {}
    for order in permutations([0.9, 0.8, 0.7, 0.6]):
        found[order] = csauc([*order, 0.1], labels, bids)
        assert found[order] == pytest.approx(pair_csauc([*order, 0.1], [8, 4, 2, 1, 0]))
    assert found[0.9, 0.8, 0.7, 0.6] == 1.0
    # The highest bid behind the other three loses 4 + 6 + 7, more than any other single move.
    assert found[0.6, 0.9, 0.8, 0.7] == pytest.approx((best - 17) / best)
    assert found[0.8, 0.9, 0.7, 0.6] == pytest.approx((best - 4) / best)
    assert min(found, key=lambda order: found[order]) == (0.6, 0.7, 0.8, 0.9)


def test_csauc_loses_more_the_higher_the_bid_that_a_negative_passes() -> None:
    bids = [9.0, 3.0, 1.0]
    cheap = csauc([0.9, 0.2, 0.5], [1, 1, 0], bids)
    dear = csauc([0.5, 0.6, 0.7], [1, 1, 0], bids)
    assert dear < cheap < 1.0


@given(samples=SAMPLES)
@few
def test_csauc_of_equal_bids_is_the_auc(samples: list[Sample]) -> None:
    auc, metric = AUC(64), CsAUC(64)
    together = rows([(p, y, w, group, 3.0) for p, y, w, group, _ in samples])
    auc.update(together)
    metric.update(together)
    assert metric.get().get("csauc") == pytest.approx(auc.get().get("auc"), abs=1e-9)


def test_csauc_may_rank_by_expected_revenue() -> None:
    sample = outcomes([0.2, 0.3], [1, 1], bids=[9.0, 1.0])
    by_prediction, by_revenue = CsAUC(), CsAUC(ranked_by="revenue")
    by_prediction.update(sample)
    by_revenue.update(sample)
    assert by_revenue.get()["csauc"] == 1.0
    assert by_prediction.get()["csauc"] == pytest.approx(1 / 9)


def test_the_smallest_bid_still_stands_above_a_negative() -> None:
    assert csauc([0.9, 0.1], [1, 0], [1e-12, 5.0]) == pytest.approx(1.0)
    assert csauc([0.1, 0.9], [1, 0], [1e-12, 5.0]) == pytest.approx(0.0)


def test_csauc_leaves_out_what_has_no_bid() -> None:
    metric = CsAUC()
    metric.update(outcomes([0.5, 0.6, 0.7], [1, 1, 1], bids=[2.0, np.nan, 0.0]))
    assert metric.get() == {}
    metric.update(outcomes([0.4], [0]))  # a negative earns nothing, whatever it bids
    assert metric.get()["csauc"] == 1.0
    by_revenue = CsAUC(ranked_by="revenue")
    by_revenue.update(outcomes([0.5, 0.9], [1, 0], bids=[2.0, np.nan]))
    assert by_revenue.get() == {}
    by_revenue.update(outcomes([0.4], [0], bids=[7.0]))
    assert by_revenue.get()["csauc"] == 0.0


# GAUC


def group_auc(samples: list[Sample], most_groups: int, most_samples: int) -> float | None:
    """Groups closed when full or when their place is needed, and those left open, one by one."""
    open_: dict[int, list[Sample]] = {}
    closed: list[list[Sample]] = []
    for sample in samples:
        group = sample[3]
        if group not in open_ and len(open_) == most_groups:
            closed.append(open_.pop(next(iter(open_))))
        members = open_.setdefault(group, [])
        if len(members) == most_samples:
            closed.append(members.copy())
            members.clear()
        members.append(sample)
    weighted = weight = 0.0
    for members in [*closed, *open_.values()]:
        auc = pair_auc(members)
        if auc is not None:
            size = sum(s[2] for s in members)
            weighted, weight = weighted + size * auc, weight + size
    return weighted / weight if weight else None


@given(samples=SAMPLES, most_groups=st.integers(1, 6), most_samples=st.integers(2, 8))
@few
def test_gauc_is_the_weighted_mean_of_the_groups(
    samples: list[Sample], most_groups: int, most_samples: int
) -> None:
    metric = GAUC(most_groups, most_samples)
    metric.update(rows(samples))
    exact = group_auc(samples, most_groups, most_samples)
    assert metric.get().get("gauc") == (exact if exact is None else pytest.approx(exact))


def test_gauc_does_not_see_differences_between_users() -> None:
    # User 1 likes nearly everything, user 2 next to nothing; within each the model is wrong.
    p = [0.9, 0.8, 0.7, 0.3, 0.2, 0.1]
    y = [0, 1, 1, 0, 0, 1]
    users = [1, 1, 1, 2, 2, 2]
    gauc, auc = GAUC(), AUC()
    for metric in (gauc, auc):
        metric.update(outcomes(p, y, groups=users))
    assert gauc.get()["gauc"] == 0.0
    assert auc.get()["auc"] > 0.4


def test_gauc_weighs_a_group_by_its_impressions_and_skips_those_of_one_label() -> None:
    metric = GAUC()
    p, y = [0.9, 0.1, 0.1, 0.2, 0.9, 0.5], [1, 0, 1, 0, 0, 1]
    metric.update(outcomes(p, y, groups=[1, 1, 2, 2, 2, 3]))
    assert metric.get()["gauc"] == pytest.approx((2 * 1 + 3 * 0) / 5)


def test_samples_of_no_group_do_not_count() -> None:
    metric = GAUC()
    metric.update(outcomes([0.9, 0.1], [1, 0]))
    assert metric.get() == {}


@pytest.mark.parametrize("most_groups", [1, 2])  # the first group is closed, or still open
def test_a_group_fades_with_its_newest_sample(most_groups: int) -> None:
    metric = GAUC(most_groups, half_life=2)
    metric.update(outcomes([0.9, 0.1], [1, 0], groups=[1, 1]))
    metric.update(outcomes([0.1, 0.9], [1, 0], groups=[2, 2]))
    assert metric.get()["gauc"] == 0.5
    assert metric.get()["recent_gauc"] == pytest.approx(0.5 / 1.5)


# Normalised entropy and calibration


def test_the_base_rate_has_a_normalised_entropy_and_a_calibration_of_one() -> None:
    metric = Calibration()
    metric.update(outcomes(np.full(8, 0.25), [1, 0, 0, 0] * 2))
    assert metric.get()["normalised_entropy"] == pytest.approx(1)
    assert metric.get()["calibration"] == pytest.approx(1)
    entropy = -(0.25 * log(0.25) + 0.75 * log(0.75))
    assert metric.get()["log_loss"] == pytest.approx(entropy)


@given(samples=SAMPLES)
@few
def test_entropy_and_calibration_agree_with_their_formulas(samples: list[Sample]) -> None:
    metric = Calibration()
    metric.update(rows(samples))
    total = sum(w for _, _, w, *_ in samples)
    rate = sum(w * y for _, y, w, *_ in samples) / total
    sure = [(min(max(p, 1e-7), 1 - 1e-7), y, w) for p, y, w, *_ in samples]
    loss = -sum(w * (y * log(p) + (1 - y) * log(1 - p)) for p, y, w in sure) / total
    figures = metric.get()
    assert figures["log_loss"] == pytest.approx(loss)
    if 0 < rate < 1:
        entropy = -(rate * log(rate) + (1 - rate) * log(1 - rate))
        assert figures["normalised_entropy"] == pytest.approx(loss / entropy)
    if rate > 0:
        predicted = sum(w * p for p, _, w, *_ in samples) / total
        assert figures["calibration"] == pytest.approx(predicted / rate)


def test_figures_that_are_not_defined_are_not_there() -> None:
    metric = Calibration()
    assert metric.get() == {}
    metric.update(outcomes([0.5], [0]))
    assert "calibration" not in metric.get()
    assert "normalised_entropy" not in metric.get()


def test_predictions_that_are_no_probabilities_are_counted_and_nothing_else() -> None:
    broken = outcomes([np.nan, np.inf, -0.1, 1.5], [0, 1, 0, 1], groups=[1, 1, 1, 1], bids=1.0)
    metric = Calibration()
    metric.update(broken)
    assert metric.get() == {"invalid": 4.0, "recent_invalid": pytest.approx(4.0, rel=1e-3)}
    metric.update(outcomes([0.3, 0.3], [0, 1]))
    assert metric.get()["calibration"] == pytest.approx(0.6)
    others: list[Metric] = [AUC(), GAUC(), CsAUC()]
    for other in others:
        other.update(broken)
        assert not other.sums().any()


# Ranks


def test_ndcg_of_one_relevant_item_is_its_discounted_gain() -> None:
    quality = RankingQuality([1, 3])
    quality.update(np.array([0, 1, 2, 3, np.iinfo(np.int64).max]))
    assert quality.get()["ndcg@1"] == pytest.approx(1 / 5)
    assert quality.get()["ndcg@3"] == pytest.approx((1 + 1 / log2(3) + 1 / log2(4)) / 5)
    assert quality.get()["recall@3"] == pytest.approx(3 / 5)


def test_recent_figures_of_ranks_fade_sample_by_sample() -> None:
    quality = RankingQuality([1], prefix="popularity_", half_life=2)
    quality.update(np.array([0, 5]))
    quality.update(np.array([5]))
    weights = [0.5, 2**-0.5, 1.0]
    assert quality.get()["recent_popularity_recall@1"] == pytest.approx(0.5 / sum(weights))


@given(ranks=st.lists(st.integers(0, 20), min_size=1, max_size=30), at=st.integers(0, 30))
@few
def test_ranks_may_be_cut_and_saved_anywhere(ranks: list[int], at: int) -> None:
    whole, cut, loaded = (RankingQuality([1, 10], half_life=3) for _ in range(3))
    whole.update(np.array(ranks))
    cut.update(np.array(ranks[:at], np.int64))
    loaded.load(cut.state())
    loaded.update(np.array(ranks[at:], np.int64))
    assert loaded.get() == whole.get()


# What all metrics share


@every_metric
def test_unknown_labels_change_nothing(make: Callable[[], Metric]) -> None:
    known, mixed = make(), make()
    all_rows = stream(300)
    known.update(all_rows[~np.isnan(all_rows["label"])])
    mixed.update(all_rows)
    assert same_state(known, mixed)


@every_metric
@pytest.mark.parametrize("cuts", [[1, 2, 3], [150], list(range(0, 1000, 7)), [999]])
def test_the_bits_do_not_depend_on_how_the_stream_was_cut(
    make: Callable[[], Metric], cuts: list[int]
) -> None:
    whole, pieces = make(), make()
    rows_ = stream(1000)  # more than RENEWAL half-lives
    whole.update(rows_)
    for piece in np.split(rows_, cuts):
        pieces.update(piece)
    assert same_state(whole, pieces)
    assert not np.array_equal(whole.sums()[0], whole.sums()[1])


@every_metric
@pytest.mark.parametrize("at", [0, 1, 137, 448, 900])
def test_a_loaded_state_goes_on_bit_for_bit(make: Callable[[], Metric], at: int) -> None:
    unbroken, loaded = make(), make()
    rows_ = stream(1000)
    unbroken.update(rows_[:at])
    loaded.load(unbroken.state())
    assert same_state(loaded, unbroken)
    for metric in (unbroken, loaded):
        metric.update(rows_[at:])
    assert same_state(loaded, unbroken)


@every_metric
def test_what_was_there_before_loading_is_forgotten(make: Callable[[], Metric]) -> None:
    metric, saved = make(), make()
    metric.update(stream(300, seed=1))
    saved.update(stream(20))
    metric.load(saved.state())
    for each in (metric, saved):
        each.update(stream(100, seed=2))
    assert same_state(metric, saved)


@every_metric
def test_a_state_is_a_copy(make: Callable[[], Metric]) -> None:
    metric = make()
    metric.update(stream(50))
    state = metric.state()
    before = {name: array.copy() for name, array in state.items()}
    metric.update(stream(50, seed=1))
    assert all(np.array_equal(state[name], before[name]) for name in state)


def test_a_state_of_other_sizes_begins_anew() -> None:
    pairs: list[tuple[Metric, Metric]] = [
        (AUC(64), AUC(128)),
        (AUC(64), AUC(64, half_life=9)),
        (GAUC(3, 4), GAUC(3, 5)),
    ]
    for saved, metric in pairs:
        saved.update(stream(50))
        metric.load(saved.state())
        assert not metric.sums().any()


@pytest.mark.parametrize("make", [METRICS[0], METRICS[1], METRICS[4]])
def test_sums_of_ranks_make_the_figures_of_the_whole(make: Callable[[], Metric]) -> None:
    rows_ = stream(600)
    whole, one, other = make(), make(), make()
    whole.update(rows_)
    one.update(rows_[::2])
    other.update(rows_[1::2])
    figures = whole.both_figures(one.sums() + other.sums())
    for name, value in whole.get().items():
        if not name.startswith("recent_"):
            assert figures[name] == pytest.approx(value, rel=1e-9)


def test_ranks_that_share_users_make_the_gauc_of_the_whole() -> None:
    rows_ = stream(80)
    whole, one, other = (GAUC(8, 100) for _ in range(3))
    whole.update(rows_)
    one.update(rows_[rows_["group"] % 2 == 0])
    other.update(rows_[rows_["group"] % 2 == 1])
    figures = whole.both_figures(one.sums() + other.sums())
    assert figures["gauc"] == pytest.approx(whole.get()["gauc"])


@every_metric
def test_recent_sums_of_ranks_each_fade_by_their_own_samples(make: Callable[[], Metric]) -> None:
    one, other = make(), make()
    one.update(stream(500))
    other.update(stream(30, seed=1))
    apart = one.sums() + other.sums()
    one.absorb(other.sums())
    np.testing.assert_allclose(one.sums(), apart, rtol=1e-12)


def test_an_absorbed_past_fades_like_ones_own() -> None:
    metric, past = Calibration(half_life=4), Calibration()
    past.update(outcomes([0.5], [1]))
    metric.update(outcomes([0.5], [0]))
    metric.absorb(past.sums())
    metric.update(outcomes([0.5] * 4, [0] * 4))
    # Of weights: 4 new ones, and one half each of what was there before.
    fresh = sum(0.5 ** (i / 4) for i in range(4))
    assert metric.sums()[1, 0, 0] == pytest.approx(fresh + 0.5 + 0.5)


@pytest.mark.parametrize(
    ("predictions", "labels", "weights", "named"),
    [
        ([0.5], [2.0], 1.0, "labels"),
        ([0.5], [0.5], 1.0, "labels"),
        ([0.5], [1.0], -1.0, "weights"),
        ([0.5], [1.0], np.nan, "weights"),
        ([[0.5]], [1.0], 1.0, "shape"),
        ([0.5, 0.5, 0.5], [1.0, 0.0], 1.0, "broadcast"),
    ],
)
def test_outcomes_that_cannot_be_are_refused(
    predictions: list[float], labels: list[float], weights: float, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        outcomes(predictions, labels, weights=weights)


def test_updating_leaves_its_input_as_it_was() -> None:
    rows_ = stream(100)
    before = rows_.copy()
    for make in METRICS:
        make().update(rows_)
    for name in rows_.dtype.names or ():
        np.testing.assert_array_equal(rows_[name], before[name])
