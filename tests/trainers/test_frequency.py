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

from trainers.frequency import FrequencyConfig, FrequencyEstimator, merge_states

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
            mean[item] = (1 - w) * old + w * ((clock - last.get(item, 0.0)) / c)
            last[item] = clock
    unseen = config.initial_gap if config.first_hit == "paper" else max(clock, 1.0)
    expected = np.array([1 / mean.get(item, unseen) for item in range(10)])
    if not config.count_aware:
        expected = np.minimum(expected, 1)

    np.testing.assert_array_equal(estimator.probability(np.arange(10)), expected)


@every_config
@given(steps=STEPS, seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_order_of_the_ids_in_a_step_leaves_no_trace(
    config: FrequencyConfig, steps: list[tuple[list[int], float]], seed: int
) -> None:
    config = replace(config, buckets=5)  # with collisions
    one, other = FrequencyEstimator(config), FrequencyEstimator(config)
    rng = np.random.default_rng(seed)
    learn(one, steps)
    learn(other, [(rng.permutation(items).tolist(), elapsed) for items, elapsed in steps])
    assert_same_state(one, other)


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


def test_the_bias_fades_by_one_minus_alpha_at_each_hit_when_gaps_are_random() -> None:
    alpha, p, start = 0.05, 0.2, 40.0
    rng = np.random.default_rng(0)
    items, hits = np.arange(4000), np.zeros(4000, np.int64)
    estimator = FrequencyEstimator(
        replace(PAPER, buckets=1 << 20, alpha=alpha, initial_gap=start, seed=1)
    )
    mean: dict[int, list[float]] = {t: [] for t in (1, 5, 20, 60)}
    for _ in range(500):
        hit = items[rng.random(len(items)) < p]
        estimator.update(hit)
        hits[hit] += 1
        for t, gaps in mean.items():  # each item's gap just after its t-th hit
            gaps.extend(1 / estimator.probability(hit[hits[hit] == t]))
    for t, gaps in mean.items():
        bias = (1 - alpha) ** t * (start - 1 / p)
        assert len(gaps) == len(items)
        assert np.mean(gaps) - 1 / p == pytest.approx(bias, rel=0.02, abs=0.06)


def test_the_inverse_of_the_gap_is_biased_up_by_half_of_alpha() -> None:
    alpha, p, items = 0.05, 0.03, np.arange(10_000)
    rng = np.random.default_rng(0)
    # Two hashes, or the ids that collide would add to the bias.
    config = replace(PAPER, hashes=2, buckets=1 << 20, alpha=alpha, initial_gap=1 / p)
    estimator = FrequencyEstimator(config)
    for _ in range(2500):
        estimator.update(np.flatnonzero(rng.random(len(items), np.float32) < p))
    bias = estimator.probability(items).mean() / p - 1
    assert bias == pytest.approx(alpha / 2, rel=0.15)


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


@pytest.mark.parametrize("elapsed", [0.0, -1.0, math.nan, math.inf, 1e-20])
def test_a_clock_that_does_not_advance_is_refused(elapsed: float) -> None:
    estimator, witness = FrequencyEstimator(WHOLE), FrequencyEstimator(WHOLE)
    for each in (estimator, witness):
        each.update(ids(7), 100.0)
    with pytest.raises(ValueError, match=f"elapsed .*{elapsed}"):
        estimator.update(ids(7), elapsed)
    assert_same_state(estimator, witness)


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


@pytest.mark.parametrize("item", [0, 1, 1 << 40, (1 << 63) - 2])
def test_each_hash_puts_an_id_elsewhere(item: int) -> None:
    config = replace(WHOLE, hashes=4)
    estimator = FrequencyEstimator(config)
    estimator.update(ids(item))
    hash_, bucket = np.divmod(np.flatnonzero(estimator.state()["hits"]), config.buckets)
    assert hash_.tolist() == [0, 1, 2, 3]
    assert len(set(bucket.tolist())) == 4


# Figures


@every_config
def test_figures_tell_the_clock_and_the_use_of_the_buckets(config: FrequencyConfig) -> None:
    estimator = FrequencyEstimator(replace(config, alpha=0.05))
    names = ["frequency_clock", "frequency_buckets_used", "frequency_saturated"]
    assert estimator.figures() == dict.fromkeys(names, 0.0)
    for step in range(900):
        estimator.update(ids(1, 2, *([3] if step % 3 == 0 else []), 1, 4 + step % 2), elapsed=1.2)
        estimator.update(ids(1), elapsed=0.3)
    used = 5 / config.buckets
    assert list(estimator.figures()) == names
    # Id 1 comes by twice in 1.5 units of the clock, or three times, counted; id 2 once.
    assert list(estimator.figures().values()) == pytest.approx([1350, used, 1 / 5])
    for length, share in [(0.4, 0), (1.6, 2 / 5), (3.1, 4 / 5), (4.6, 1), (999, 1)]:
        assert estimator.figures(length)["frequency_saturated"] == share


def test_figures_count_all_buckets_once_they_are_full() -> None:
    estimator = FrequencyEstimator(replace(WHOLE, buckets=8, hashes=2))
    estimator.update(np.arange(1000))
    assert estimator.figures()["frequency_buckets_used"] == 1.0
    assert estimator.figures()["frequency_saturated"] == 1.0


# Ranks


def owner(item: int, ranks: int) -> int:
    return item * 7919 % 101 % ranks


def learn_on_ranks(
    ranks: Sequence[FrequencyEstimator], steps: Sequence[tuple[list[int], float]]
) -> None:
    """Each rank takes the ids it owns, and the clock of all."""
    for items, elapsed in steps:
        for rank, estimator in enumerate(ranks):
            own = [item for item in items if owner(item, len(ranks)) == rank]
            estimator.update(ids(*own), elapsed)


def start_ranks(config: FrequencyConfig, count: int, state: Any = None) -> list[FrequencyEstimator]:
    ranks = [FrequencyEstimator(config) for _ in range(count)]
    for estimator in ranks:
        if state is not None:
            estimator.load(state)
    return ranks


@every_config
@given(phases=st.lists(st.tuples(st.integers(1, 4), STEPS), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_ranks_know_what_one_would_know_however_often_ids_change_their_owner(
    config: FrequencyConfig, phases: list[tuple[int, list[tuple[list[int], float]]]]
) -> None:
    alone, state = FrequencyEstimator(config), None
    for count, steps in phases:
        ranks = start_ranks(config, count, state)
        learn_on_ranks(ranks, steps)
        learn(alone, steps)
        for item in range(10):
            estimator = ranks[owner(item, count)]
            assert estimator.probability(ids(item)) == alone.probability(ids(item))
        state = merge_states([estimator.state() for estimator in ranks])
    merged = FrequencyEstimator(config)
    merged.load(state or {})
    assert_same_state(merged, alone)


@every_config
@given(steps=STEPS, count=st.integers(1, 4))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_an_entry_that_ranks_share_is_that_of_the_rank_which_hit_it_last(
    config: FrequencyConfig, steps: list[tuple[list[int], float]], count: int
) -> None:
    config = replace(config, buckets=3)
    ranks = start_ranks(config, count)
    learn_on_ranks(ranks, steps)
    states = [estimator.state() for estimator in ranks]
    merged = merge_states(states)

    def entry(state: dict[str, NDArray[Any]], bucket: int) -> tuple[float, float, int]:
        return state["last"][bucket], -state["gap"][bucket], state["hits"][bucket]

    for bucket in range(merged["last"].size):
        entries = [entry(state, bucket) for state in states]
        assert entry(merged, bucket) in entries
        assert entry(merged, bucket)[:2] == max(entries)[:2]
    again = merge_states([merged, *states, merged])
    for name, array in merged.items():
        np.testing.assert_array_equal(array, again[name])


def test_a_merged_state_shares_no_memory_with_the_ranks() -> None:
    states = [estimator.state() for estimator in start_ranks(WHOLE, 2)]
    for array in merge_states(states).values():
        array[...] = 1
    for name, array in FrequencyEstimator(WHOLE).state().items():
        np.testing.assert_array_equal(states[0][name], array)


def test_ranks_with_different_clocks_are_refused() -> None:
    one, other = start_ranks(WHOLE, 2)
    one.update(ids(7), elapsed=2)
    other.update(ids(), elapsed=3)
    with pytest.raises(ValueError, match=r"clock.*3\..*2\."):
        merge_states([one.state(), other.state()])


def test_ranks_with_different_configs_are_refused_by_name() -> None:
    states = [FrequencyEstimator(c).state() for c in (WHOLE, replace(WHOLE, seed=1))]
    with pytest.raises(ValueError, match="seed"):
        merge_states(states)


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
