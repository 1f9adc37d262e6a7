"""Smoothed rates: the prior is the likeliest, and no rate is ever not a number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.decayed import US, Floats
from features.rates import Beta, RateConfig, SmoothedRates, fit_beta
from streaming.artefact import Artefact

COUNTS = st.lists(st.tuples(st.integers(0, 200), st.floats(0, 1)), min_size=1, max_size=20)
EVENTS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 100), st.sampled_from([(1, 0), (1, 1), (0, 1)])),
    max_size=80,
)


def likelihood(trials: Floats, successes: Floats, a: float, b: float) -> float:
    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    pairs = zip(trials.tolist(), successes.tolist(), strict=True)
    before = (math.log(a) + math.log(b)) / 2 - math.log(a + b)  # half a success, half a failure
    return before + sum(log_beta(s + a, n - s + b) - log_beta(a, b) for n, s in pairs)


def update(rates: SmoothedRates, events: list[tuple[int, int, tuple[int, int]]]) -> SmoothedRates:
    keys, times = np.array([e[:2] for e in events], np.int64).reshape(-1, 2).T
    trials, successes = np.array([e[2] for e in events], float).reshape(-1, 2).T
    rates.update(keys, times * US, trials, successes)
    return rates


@pytest.mark.parametrize("truth", [Beta(2, 40), Beta(0.3, 1), Beta(50, 50)])
def test_a_planted_prior_is_found_from_keys_with_very_different_numbers_of_trials(
    truth: Beta,
) -> None:
    random = np.random.default_rng(0)
    trials = np.ceil(random.pareto(1, 4_000) * 5 + 1).clip(max=5_000)
    successes = random.binomial(trials.astype(int), random.beta(*truth, 4_000)).astype(float)
    found = fit_beta(trials, successes)
    assert found is not None
    assert found.mean == pytest.approx(truth.mean, rel=0.06)
    assert found.a + found.b == pytest.approx(truth.a + truth.b, rel=0.2)


@given(COUNTS)
def test_no_prior_nearby_is_likelier_and_all_numbers_are_finite(
    counts: list[tuple[int, float]],
) -> None:
    trials = np.array([n for n, _ in counts], float)
    successes = np.array([round(n * share) for n, share in counts], float)
    found = fit_beta(trials, successes)
    if not trials.any():
        assert found is None
        return
    assert found is not None
    assert 0 < found.mean < 1
    strength, most = found.a + found.b, max(1.0, trials.sum())
    assert 0.1 - 1e-9 <= strength <= most + 1e-9
    if not 0.11 < strength < 0.9 * most:
        return  # a bound is what it was drawn to
    best = likelihood(trials, successes, *found)
    for a, b in ((1.02, 1.0), (0.98, 1.0), (1.0, 1.02), (1.0, 0.98)):
        assert likelihood(trials, successes, found.a * a, found.b * b) <= best + 1e-6


def test_the_truth_is_nearer_to_a_smoothed_rate_than_to_a_raw_one() -> None:
    random = np.random.default_rng(1)
    truth = random.beta(2, 40, 3_000)
    keys = random.integers(3_000, size=30_000)
    clicks = (random.random(30_000) < truth[keys]).astype(float)
    ctr = SmoothedRates("ctr", RateConfig(fit_every=10_000))
    ctr.update(keys, np.zeros(30_000, np.int64), np.ones(30_000), clicks)
    smoothed = ctr.get(np.arange(3_000), 0)
    trials, successes = (np.bincount(keys, w, 3_000) for w in (np.ones(30_000), clicks))
    raw = successes / np.maximum(trials, 1)
    assert np.mean((smoothed - truth) ** 2) < 0.3 * np.mean((raw - truth) ** 2)
    assert ctr.prior.mean == pytest.approx(2 / 42, rel=0.1)


@given(EVENTS, st.integers(0, 80))
def test_rates_are_between_0_and_1_and_do_not_depend_on_batches_or_restarts(
    events: list[tuple[int, int, tuple[int, int]]], cut: int
) -> None:
    config = RateConfig(half_life_s=10, most=6, fit_every=7)
    whole = update(SmoothedRates("cvr", config), events)
    parts = update(SmoothedRates("cvr", config), events[:cut])
    parts = update(SmoothedRates("cvr", config, Artefact({}, parts.tables())), events[cut:])
    assert parts.tables()["rate_cvr"].equals(whole.tables()["rate_cvr"], check_metadata=True)
    assert len(whole) <= 6
    for at_us in (100 * US, 10_000_000 * US):
        rates = whole.get(np.arange(-1, 12), at_us)
        assert ((rates > 0) & (rates < 1)).all()


def test_clicks_without_their_impressions_give_a_rate_all_the_same() -> None:
    rates = SmoothedRates("ctr", RateConfig(rate=0.1, strength=10))
    rates.update(np.array([1]), np.array([0]), np.zeros(1), np.full(1, 5.0))
    assert rates.get(np.array([1]), 0) == pytest.approx([6 / 15])


def test_the_prior_is_fitted_on_the_way_and_new_keys_begin_with_it() -> None:
    rates = SmoothedRates("ctr", RateConfig(rate=0.5, strength=2))
    clicks = (np.arange(999) // 50 % 10 == 0).astype(float)
    keys, times = np.arange(999) % 50, np.zeros(999, np.int64)
    rates.update(keys, times, np.ones(999), clicks)
    assert rates.get(np.array([77]), 0) == pytest.approx([0.5])
    rates.update(keys[:1], times[:1], np.ones(1), np.zeros(1))
    assert rates.get(np.array([77]), 0) == pytest.approx([0.1], rel=0.05)


def test_merged_rates_are_those_of_both_streams() -> None:
    config = RateConfig(fit_every=1_000_000)
    mine = update(SmoothedRates("ctr", config), [(1, 0, (1, 1)), (2, 0, (1, 0))])
    theirs = update(SmoothedRates("ctr", config), [(1, 0, (1, 0)), (3, 0, (1, 0))])
    mine.merge(theirs)
    prior = fit_beta(np.array([2.0, 1, 1]), np.array([1.0, 0, 0]))
    assert prior is not None
    assert mine.prior == pytest.approx(prior)
    assert mine.get(np.array([1]), 0) == pytest.approx([(1 + prior.a) / (2 + prior.a + prior.b)])
