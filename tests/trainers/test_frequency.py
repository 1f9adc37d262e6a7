"""The frequency estimator against the paper's oracles and a plain dictionary."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainers.frequency import FrequencyConfig, FrequencyEstimator

WHOLE = FrequencyConfig(buckets=1 << 12)
PAPER = replace(WHOLE, first_hit="paper", count_aware=False)
CONFIGS = [
    PAPER,
    WHOLE,
    replace(PAPER, hashes=3, count_aware=True),
    replace(WHOLE, hashes=3, count_aware=False),
]
every_config = pytest.mark.parametrize("config", CONFIGS)

# A step: which ids came by, repeats included, and how far the clock went on.
STEPS = st.lists(
    st.tuples(st.lists(st.integers(0, 9), max_size=12), st.floats(0.5, 50)), max_size=30
)


def ids(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def gap(estimator: FrequencyEstimator, item: int) -> float:
    return float(1 / estimator.probability(ids(item))[0])


def learn(estimator: FrequencyEstimator, steps: Sequence[tuple[list[int], float]]) -> None:
    for items, elapsed in steps:
        estimator.update(ids(*items), elapsed)


def assert_same_state(one: FrequencyEstimator, other: FrequencyEstimator) -> None:
    for name, array in one.state().items():
        np.testing.assert_array_equal(array, other.state()[name], err_msg=name)


# The algorithm


@every_config
@given(steps=STEPS, alpha=st.floats(0.01, 1))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_agrees_with_a_dictionary_without_collisions(
    config: FrequencyConfig, steps: list[tuple[list[int], float]], alpha: float
) -> None:
    config = replace(config, alpha=alpha)
    estimator = FrequencyEstimator(config)
    learn(estimator, steps)

    clock = 0.0
    last: dict[int, float] = {}
    mean: dict[int, float] = {}
    hits: Counter[int] = Counter()
    for items, elapsed in steps:
        clock += elapsed
        for item, times in Counter(items).items():
            c = times if config.count_aware else 1
            hits[item] += c
            w = min(1.0, alpha * c)
            if config.first_hit == "whole":
                w = max(w, c / hits[item])
            old = mean.get(item, config.initial_gap)
            mean[item] = (1 - w) * old + w * (clock - last.get(item, 0.0)) / c
            last[item] = clock
    unseen = config.initial_gap if config.first_hit == "paper" else max(clock, 1.0)
    expected = np.array([1 / mean.get(item, unseen) for item in range(10)])
    if not config.count_aware:
        expected = np.minimum(expected, 1)

    np.testing.assert_allclose(estimator.probability(np.arange(10)), expected, rtol=1e-9)


@given(
    alpha=st.floats(0.001, 0.9),
    true_gap=st.integers(1, 50),
    start=st.floats(1, 1000),
    hits=st.integers(1, 60),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_the_start_fades_by_one_minus_alpha_at_each_hit(
    alpha: float, true_gap: int, start: float, hits: int
) -> None:
    estimator = FrequencyEstimator(replace(PAPER, alpha=alpha, initial_gap=start))
    for _ in range(hits):
        estimator.update(ids(), true_gap - 0.5)
        estimator.update(ids(7), 0.5)
    expected = true_gap + (1 - alpha) ** hits * (start - true_gap)
    assert gap(estimator, 7) == pytest.approx(expected)


def test_the_variance_of_the_gap_shrinks_to_alpha_over_two_minus_alpha() -> None:
    alpha, p, items = 0.1, 0.2, np.arange(4000)
    rng = np.random.default_rng(0)
    config = replace(PAPER, buckets=1 << 20, alpha=alpha, initial_gap=1 / p)
    estimator = FrequencyEstimator(config)
    for _ in range(400):
        estimator.update(items[rng.random(len(items)) < p])
    gaps = 1 / estimator.probability(items)
    variance_of_a_gap = (1 - p) / p**2
    assert gaps.mean() == pytest.approx(1 / p, rel=0.02)
    assert gaps.var() == pytest.approx(alpha / (2 - alpha) * variance_of_a_gap, rel=0.1)


def test_more_hashes_in_the_same_memory_lower_the_error_of_collisions() -> None:
    rng = np.random.default_rng(0)
    items = np.arange(1000)
    p = 0.4 * (items / len(items)) ** 2
    steps = [items[rng.random(len(items)) < p] for _ in range(2000)]
    errors = []
    for hashes in (1, 2, 4):
        config = replace(PAPER, hashes=hashes, buckets=5000 // hashes)
        estimator = FrequencyEstimator(config)
        for step in steps:
            estimator.update(step)
        errors.append(np.abs(estimator.probability(items) - p).sum() / p.sum())
    assert errors[0] > 1.3 * errors[1] > 1.3 * errors[2]


# Counting repeats


@pytest.mark.parametrize("hashes", [1, 3])
def test_repeats_in_a_step_count_once_in_the_paper(hashes: int) -> None:
    once, often = (FrequencyEstimator(replace(PAPER, hashes=hashes)) for _ in range(2))
    for step in range(20):
        once.update(ids(7, step))
        often.update(ids(7, 7, step, 7))
    assert_same_state(once, often)


@pytest.mark.parametrize("first_hit", ["paper", "whole"])
@pytest.mark.parametrize("hashes", [1, 3])
def test_counting_repeats_does_not_saturate(first_hit: Any, hashes: int) -> None:
    config = replace(WHOLE, first_hit=first_hit, hashes=hashes, initial_gap=1.0)
    counting = FrequencyEstimator(config)
    plain = FrequencyEstimator(replace(config, count_aware=False))
    for _ in range(300):
        for estimator in (counting, plain):
            estimator.update(ids(7, 7, 8, 7, 7))
    assert counting.probability(ids(7, 8)) == pytest.approx([4, 1], rel=1e-3)
    assert plain.probability(ids(7, 8)) == pytest.approx([1, 1])


@pytest.mark.parametrize("rate", [0.2, 1.0, 4.0, 30.0])
def test_counting_repeats_is_unbiased_when_the_counts_vary(rate: float) -> None:
    rng = np.random.default_rng(0)
    items = np.arange(200)
    estimator = FrequencyEstimator(replace(WHOLE, buckets=1 << 18, alpha=0.02))
    for _ in range(int(200 / rate) + 100):
        estimator.update(np.repeat(items, rng.poisson(rate, len(items))))
    gaps = 1 / estimator.probability(items)
    assert gaps.mean() == pytest.approx(1 / rate, rel=0.03)


# The clock


def test_a_clock_of_samples_gives_the_share_of_samples_when_steps_are_uneven() -> None:
    rng = np.random.default_rng(0)
    share = np.array([0.4, 0.3, 0.2, 0.07, 0.03])
    estimator = FrequencyEstimator(replace(WHOLE, alpha=0.001))
    for size in rng.integers(1, 600, size=600):
        estimator.update(rng.choice(5, size=size, p=share), elapsed=float(size))
    assert estimator.probability(np.arange(5)) == pytest.approx(share, rel=0.1)


def test_a_step_without_ids_advances_the_clock() -> None:
    estimator = FrequencyEstimator(WHOLE)
    estimator.update(ids(), elapsed=30)
    estimator.update(ids(7), elapsed=10)
    assert gap(estimator, 7) == 40


@pytest.mark.parametrize("elapsed", [0.0, -1.0, math.nan, math.inf])
def test_a_clock_that_does_not_advance_is_refused(elapsed: float) -> None:
    estimator = FrequencyEstimator(WHOLE)
    with pytest.raises(ValueError, match=f"elapsed .*{elapsed}"):
        estimator.update(ids(7), elapsed)
    assert_same_state(estimator, FrequencyEstimator(WHOLE))


# Cold start


def test_the_first_hit_in_the_paper_is_averaged_with_the_initial_gap() -> None:
    estimator = FrequencyEstimator(PAPER)
    assert gap(estimator, 7) == pytest.approx(100)
    estimator.update(ids(7), elapsed=10_000)
    assert gap(estimator, 7) == pytest.approx(199)  # .99 * 100 + .01 * 10,000


@pytest.mark.parametrize("hashes", [1, 3])
def test_the_first_hit_taken_whole_is_the_whole_clock(hashes: int) -> None:
    estimator = FrequencyEstimator(replace(WHOLE, hashes=hashes))
    estimator.update(ids(8), elapsed=10_000)
    assert estimator.probability(ids(8, 9)) == pytest.approx([1e-4, 1e-4])
    estimator.update(ids(9, 9), elapsed=10_000)
    assert estimator.probability(ids(8, 9)) == pytest.approx([1e-4, 1e-4])


def test_a_first_hit_taken_whole_warms_up_as_a_plain_mean_and_then_moves_by_alpha() -> None:
    estimator = FrequencyEstimator(replace(WHOLE, alpha=0.1))
    gaps = [3.0, 50.0, 1.0, 7.0, 2.0, 2.0, 30.0, 4.0, 5.0, 6.0]
    for n, elapsed in enumerate(gaps, start=1):
        estimator.update(ids(7), elapsed)
        assert gap(estimator, 7) == pytest.approx(sum(gaps[:n]) / n)
    for _ in range(3):
        before = gap(estimator, 7)
        estimator.update(ids(7), elapsed=100)
        assert gap(estimator, 7) == pytest.approx(0.9 * before + 0.1 * 100)


@pytest.mark.parametrize("hashes", [1, 3])
def test_an_id_never_seen_is_as_rare_as_the_clock_is_long(hashes: int) -> None:
    estimator = FrequencyEstimator(replace(WHOLE, hashes=hashes))
    assert estimator.probability(ids(9)) == [1.0]
    estimator.update(ids(8), elapsed=0.25)
    assert estimator.probability(ids(9)) == [1.0]
    estimator.update(ids(8), elapsed=499.75)
    assert estimator.probability(ids(9)) == [1 / 500]


# Predicting


@every_config
@given(steps=STEPS)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_predicting_changes_nothing_and_is_above_zero(
    config: FrequencyConfig, steps: list[tuple[list[int], float]]
) -> None:
    estimator, witness = FrequencyEstimator(config), FrequencyEstimator(config)
    learn(estimator, steps)
    learn(witness, steps)
    asked = np.arange(100)
    p = estimator.probability(asked)
    assert np.all(p > 0)
    assert np.all(np.isfinite(p))
    assert config.count_aware or np.all(p <= 1)
    np.testing.assert_array_equal(asked, np.arange(100))
    np.testing.assert_array_equal(p, [estimator.probability(ids(i))[0] for i in range(100)])
    assert_same_state(estimator, witness)


def test_predicting_no_ids_gives_no_probabilities() -> None:
    assert FrequencyEstimator(WHOLE).probability(ids()).shape == (0,)


@pytest.mark.parametrize("stride", [1, 1 << 10, 1 << 40, 999_983])
@pytest.mark.parametrize("seed", [0, 1, 1 << 62])
def test_ids_in_a_pattern_fill_the_buckets_as_random_ids_would(stride: int, seed: int) -> None:
    estimator = FrequencyEstimator(FrequencyConfig(buckets=1 << 12, seed=seed))
    estimator.update(np.arange(1000) * stride)
    estimator.update(ids((1 << 63) - 1), elapsed=100)
    looks_seen = np.mean(estimator.probability(np.arange(1000, 5000) * stride) > 0.5)
    assert looks_seen == pytest.approx(1 - math.exp(-1000 / 4096), abs=0.04)


# Checkpoints


@every_config
@given(before=STEPS, after=STEPS)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_a_loaded_state_goes_on_bit_by_bit(
    config: FrequencyConfig,
    before: list[tuple[list[int], float]],
    after: list[tuple[list[int], float]],
) -> None:
    unbroken, restored = FrequencyEstimator(config), FrequencyEstimator(config)
    learn(unbroken, before)
    restored.load(unbroken.state())
    learn(unbroken, after)
    learn(restored, after)
    assert_same_state(unbroken, restored)


def test_a_state_shares_no_memory_with_the_estimators() -> None:
    one, other = FrequencyEstimator(WHOLE), FrequencyEstimator(WHOLE)
    state = one.state()
    other.load(state)
    one.update(ids(7))
    for array in state.values():
        array[...] = 0
    assert_same_state(other, FrequencyEstimator(WHOLE))


@pytest.mark.parametrize(
    "difference",
    [
        {"hashes": 2},
        {"buckets": 1 << 11},
        {"alpha": 0.02},
        {"initial_gap": 50.0},
        {"first_hit": "paper"},
        {"count_aware": False},
        {"seed": 1},
    ],
)
def test_a_state_of_another_config_is_refused_by_name(difference: dict[str, Any]) -> None:
    estimator = FrequencyEstimator(WHOLE)
    (field,) = difference
    with pytest.raises(ValueError, match=field):
        estimator.load(FrequencyEstimator(replace(WHOLE, **difference)).state())


@pytest.mark.parametrize("name", ["config", "clock", "last", "gap", "hits"])
def test_a_broken_state_is_refused_by_name_and_changes_nothing(name: str) -> None:
    estimator, witness = FrequencyEstimator(WHOLE), FrequencyEstimator(WHOLE)
    other = FrequencyEstimator(WHOLE)
    other.update(ids(7))
    state = other.state()
    broken: list[dict[str, NDArray[Any]]] = [{k: v for k, v in state.items() if k != name}]
    if name != "config":
        broken += [state | {name: np.zeros(3)}, state | {name: state[name].astype(np.float32)}]
    for wrong in broken:
        with pytest.raises(ValueError, match=name):
            estimator.load(wrong)
        assert_same_state(estimator, witness)


# Configuration


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hashes", 0),
        ("buckets", 0),
        ("alpha", 0.0),
        ("alpha", 1.5),
        ("alpha", math.nan),
        ("initial_gap", 0.0),
        ("initial_gap", math.inf),
        ("first_hit", "half"),
        ("seed", -1),
    ],
)
def test_a_bad_config_names_its_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} .*{value!r}"):
        FrequencyConfig(**{field: value})
