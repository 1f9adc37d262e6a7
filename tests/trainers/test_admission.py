"""The admission filter: counts that are never too low, in memory that does not grow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainers.admission import AdmissionConfig, AdmissionFilter

STREAMS = st.lists(st.integers(0, 30) | st.integers(0, 2**63 - 1), max_size=200)
CUTS = st.lists(st.integers(0, 200), max_size=5)


def array(ids: list[int]) -> NDArray[np.int64]:
    return np.array(ids, np.int64)


def admitted_in_parts(
    filter_: AdmissionFilter, stream: list[int], cuts: list[int]
) -> NDArray[np.bool_]:
    parts = np.split(array(stream), sorted(min(cut, len(stream)) for cut in cuts))
    return np.concatenate([filter_.admit(part) for part in parts])


def same(one: AdmissionFilter, other: AdmissionFilter) -> bool:
    a, b = one.state(), other.state()
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@given(stream=STREAMS, after=st.integers(1, 6))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_an_id_is_admitted_at_its_nth_hit(stream: list[int], after: int) -> None:
    hits: dict[int, int] = {}
    expected = []
    for one in stream:
        hits[one] = hits.get(one, 0) + 1
        expected.append(hits[one] >= after)
    roomy = AdmissionFilter(AdmissionConfig(after, buckets=1 << 20))
    assert roomy.admit(array(stream)).tolist() == expected


@given(seed=st.integers(0, 1_000), after=st.integers(2, 9), buckets=st.integers(1, 40))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_it_is_never_too_late_however_few_the_buckets(seed: int, after: int, buckets: int) -> None:
    stream = np.random.default_rng(seed).zipf(1.3, 300) % 50
    crowded = AdmissionFilter(AdmissionConfig(after, buckets=buckets))
    exact = AdmissionFilter(AdmissionConfig(after, buckets=1 << 16))
    assert (crowded.admit(stream) >= exact.admit(stream)).all()


@given(stream=STREAMS, cuts=CUTS, window=st.integers(1, 60))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_how_the_stream_is_cut_into_calls_changes_nothing(
    stream: list[int], cuts: list[int], window: int
) -> None:
    config = AdmissionConfig(3, buckets=64, window=window)
    whole, parts = AdmissionFilter(config), AdmissionFilter(config)
    expected = whole.admit(array(stream))
    assert admitted_in_parts(parts, stream, cuts).tolist() == expected.tolist()
    assert same(whole, parts)


def test_counts_are_halved_at_the_end_of_every_window() -> None:
    filter_ = AdmissionFilter(AdmissionConfig(5, buckets=1 << 10, window=100))
    filter_.admit(np.full(4, 7))
    filter_.admit(np.arange(1_000, 1_096))  # the window ends: 4 hits count as 2
    assert filter_.admit(np.full(3, 7)).tolist() == [False, False, True]
    rare = AdmissionFilter(AdmissionConfig(3, buckets=1 << 10, window=100))
    for window in range(5):
        strangers = np.arange(100 * window + 1_000, 100 * window + 1_099)
        assert not rare.admit(np.append(strangers, 7))[-1]  # once a window is not often enough


def test_few_of_many_rare_ids_are_admitted_too_early() -> None:
    filter_ = AdmissionFilter(AdmissionConfig(3, buckets=1 << 14))
    rare = np.random.default_rng(0).permutation(np.repeat(np.arange(4_000), 2))
    assert filter_.admit(rare).mean() < 0.03


def test_ever_new_ids_take_no_more_memory_and_counts_do_not_run_over() -> None:
    filter_ = AdmissionFilter(AdmissionConfig(254, buckets=128))
    size = sum(part.nbytes for part in filter_.state().values())
    assert filter_.admit(np.full(1_000, 3)).sum() == 1_000 - 253
    filter_.admit(np.arange(100_000))
    assert filter_.admit(np.full(2, 3)).all()
    assert sum(part.nbytes for part in filter_.state().values()) == size


@given(stream=STREAMS, more=STREAMS)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_loaded_filter_goes_on_to_the_same_bits(stream: list[int], more: list[int]) -> None:
    config = AdmissionConfig(4, buckets=32, window=70)
    unbroken, loaded = AdmissionFilter(config), AdmissionFilter(config)
    unbroken.admit(array(stream))
    state = unbroken.state()
    loaded.load(state)
    assert unbroken.admit(array(more)).tolist() == loaded.admit(array(more)).tolist()
    assert same(unbroken, loaded)
    again = AdmissionFilter(config)
    again.load(state)  # a state stays as it was taken
    assert len(more) == 0 or not same(again, loaded)


def test_a_state_with_other_buckets_is_refused() -> None:
    state = AdmissionFilter(AdmissionConfig(2, buckets=8)).state()
    with pytest.raises(ValueError, match="admission counts of shape"):
        AdmissionFilter(AdmissionConfig(2, buckets=9)).load(state)


def test_more_hits_than_can_be_counted_are_refused() -> None:
    with pytest.raises(ValueError, match=r"admission\.after is 255: it must be below 255"):
        AdmissionConfig(255)
