"""Sums that fade: against a table written down event by event, in any cut into batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.decayed import DecayedSums, Floats, Ids
from streaming.artefact import read_artefact, write_artefact
from streaming.errors import ConfigError

SUMS = {"short": 7.0, "long": 300.0, "ever": math.inf}
NOW = 1_000
Event = tuple[int, int, int]  # key, time, value

EVENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, NOW), st.integers(0, 9)), max_size=50)
MANY_KEYS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, NOW), st.integers(0, 9)), max_size=120
)


def table(most: int = 1_000) -> DecayedSums:
    return DecayedSums(SUMS, most)


def add(sums: DecayedSums, events: Sequence[Event]) -> DecayedSums:
    keys, times, values = np.array(events, np.int64).reshape(-1, 3).T
    sums.add(keys, times, np.repeat(values[:, None], len(sums.names), axis=1).astype(float))
    return sums


def faded(events: Sequence[Event], key: int, at: int, half_life: float) -> float:
    return sum(v * 2 ** (-(at - t) / half_life) for k, t, v in events if k == key)


def ids(*numbers: int) -> Ids:
    return np.array(numbers, np.int64)


def one(value: float, columns: int = 3) -> Floats:
    return np.full((1, columns), value)


@given(EVENTS)
def test_a_sum_is_that_of_its_events_each_faded_by_its_age(events: list[Event]) -> None:
    sums = add(table(), events)
    found = sums.get(np.arange(6), NOW)
    expected = [[faded(events, key, NOW, h) for h in SUMS.values()] for key in range(6)]
    assert found == pytest.approx(np.array(expected), rel=1e-9)
    assert len(sums) == len({key for key, _, _ in events})


@given(EVENTS)
def test_what_an_event_found_is_the_sum_of_those_before_it(events: list[Event]) -> None:
    events = sorted(events, key=lambda event: event[1])
    sums = table()
    keys, times, values = np.array(events, np.int64).reshape(-1, 3).T
    before = sums.observe(keys, times, np.repeat(values[:, None], 3, axis=1).astype(float))
    for i, (key, at, _) in enumerate(events):
        expected = [faded(events[:i], key, at, h) for h in SUMS.values()]
        assert before[i] == pytest.approx(expected, rel=1e-9)


@given(MANY_KEYS, st.lists(st.integers(0, 120), max_size=4), st.sampled_from([1, 5, 16, 1_000]))
def test_the_state_is_the_same_to_the_bit_in_any_cut_into_batches_and_over_restarts(
    events: list[Event], cuts: list[int], most: int
) -> None:
    whole, parts = add(table(most), events), table(most)
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(events)], strict=True):
        add(parts, events[begin:end])
        parts = DecayedSums(SUMS, most, state=parts.table())
    assert parts.table().equals(whole.table(), check_metadata=True)


@given(EVENTS, st.permutations(range(50)))
def test_events_of_whole_numbers_may_come_in_any_order_without_half_lives(
    events: list[Event], order: list[int]
) -> None:
    """Plain counts are exact; what fades differs by no more than rounding."""
    mixed = [events[i] for i in order if i < len(events)]
    found, expected = (add(table(), e).get(np.arange(6), NOW) for e in (mixed, events))
    assert found[:, 2].tolist() == expected[:, 2].tolist()
    assert found == pytest.approx(expected, rel=1e-12)


@given(EVENTS, EVENTS)
def test_merged_tables_hold_what_one_would_have_counted(
    mine: list[Event], theirs: list[Event]
) -> None:
    one_of_all = add(add(table(), mine), theirs)
    merged, other = add(table(), mine), add(table(), theirs)
    untouched = other.table()
    merged.merge(other)
    assert merged.get(np.arange(6), NOW) == pytest.approx(one_of_all.get(np.arange(6), NOW))
    assert np.array_equal(merged.newest_us(np.arange(6)), one_of_all.newest_us(np.arange(6)))
    assert other.table().equals(untouched)
    other.merge(add(table(), mine))
    assert np.array_equal(other.get(np.arange(6), NOW), merged.get(np.arange(6), NOW))


@given(MANY_KEYS, st.integers(1, 20))
def test_no_more_keys_are_kept_than_allowed_and_none_is_overcounted(
    events: list[Event], most: int
) -> None:
    sums = add(table(most), events)
    distinct = {key for key, _, _ in events}
    assert len(sums) <= most
    assert (sums.forgotten > 0) == (len(distinct) > most)
    for key in distinct:
        assert sums.get(ids(key), NOW)[0, 2] <= faded(events, key, NOW, math.inf)


def test_the_smallest_go_and_of_equal_ones_those_that_were_seen_longest_ago() -> None:
    sums = DecayedSums({"plain": math.inf}, most=16)
    sums.add(np.arange(16), np.arange(16) + 100, np.array([[5.0]] * 8 + [[1.0]] * 8))
    sums.add(ids(8), ids(500), np.zeros((1, 1)))  # seen again, not more often
    sums.add(ids(99), ids(501), one(1.0, 1))
    assert sums.ids[:, 0].tolist() == [*range(9), *range(11, 16), 99]
    assert sums.forgotten == 2
    assert sums.get(ids(9, 10, 99), 0)[:, 0].tolist() == [0, 0, 1]


def test_what_is_heavy_stays_while_a_million_others_pass() -> None:
    sums = DecayedSums({"plain": math.inf}, most=1_000)
    for n in range(20):
        passing = np.arange(50_000) + 50_000 * n + 10
        sums.add(passing, np.full(50_000, n), np.ones((50_000, 1)))
        sums.add(np.arange(3), np.full(3, n), np.full((3, 1), 100.0))
    assert sums.get(np.arange(3), 20)[:, 0].tolist() == [2_000] * 3
    assert len(sums) <= 1_000


def test_a_late_event_counts_as_if_it_had_come_in_time() -> None:
    late, timely = table(), table()
    add(late, [(1, 900, 2), (1, 30, 4)])
    add(timely, [(1, 30, 4), (1, 900, 2)])
    assert np.array_equal(late.get(ids(1), NOW), timely.get(ids(1), NOW))
    assert late.newest_us(ids(1, 2)).tolist() == [900, 0]


def test_times_of_this_century_and_jumps_of_many_half_lives_keep_numbers_finite() -> None:
    second = 1_000_000
    sums = DecayedSums({"second": second, "ever": math.inf}, most=10)
    year_us = 365 * 86_400 * second
    times = np.array([53 * year_us, 53 * year_us + second, 54 * year_us])
    sums.add(ids(1, 1, 2), times, np.ones((3, 2)))
    assert sums.get(ids(1), int(times[1])).tolist() == [[1.5, 2.0]]
    assert sums.get(ids(1, 2), int(times[2])).tolist() == [[0.0, 2.0], [1.0, 1.0]]
    assert sums.get(ids(1), 0)[0, 0] == pytest.approx(1.5)  # before its events: as of them


def test_reading_changes_nothing_and_makes_no_rows() -> None:
    sums = add(table(), [(1, 5, 1)])
    before = sums.table()
    assert sums.get(ids(1, 2, -1), 900)[1:].tolist() == [[0, 0, 0]] * 2
    assert sums.has(ids(1, 2, -1)).tolist() == [True, False, False]
    assert sums.table().equals(before)


def test_keys_of_several_ids_are_told_apart_and_one_that_is_missing_leaves_the_row_out() -> None:
    sums = DecayedSums({"n": math.inf}, 100, ("field", "value"))
    keys = np.array([[0, 1], [1, 0], [0, 1], [0, -1], [-1, 1]])
    sums.add(keys, np.zeros(5, np.int64), np.ones((5, 1)))
    assert sums.ids.tolist() == [[0, 1], [1, 0]]
    assert sums.get(keys, 0)[:, 0].tolist() == [2, 1, 2, 0, 0]
    assert sums.table().column_names == ["field", "value", "newest_us", "n", "n_era"]


def test_nothing_is_added_of_a_batch_with_a_number_that_is_not_finite() -> None:
    sums = table()
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="short, long, ever is not finite"):
            sums.add(ids(1), ids(1), one(wrong))
    assert len(sums) == 0


def test_an_array_that_may_not_be_written_to_is_good_all_the_same() -> None:
    columns = ids(1, 2), ids(3, 4), np.ones((2, 3))
    for column in columns:
        column.flags.writeable = False
    sums = table()
    sums.add(*columns)
    assert sums.get(columns[0], 4)[:, 2].tolist() == [1, 1]


def test_the_state_survives_the_disk_to_the_last_bit(tmp_path: Path) -> None:
    sums = add(table(), [(1, 3, 1), (2, 700, 3), (1, 11, 9)])
    write_artefact(tmp_path / "cut", {}, {"sums": sums.table()})
    again = DecayedSums(SUMS, 1_000, state=read_artefact(tmp_path / "cut").shards["sums"])
    for each in (sums, again):
        add(each, [(2, 801, 1), (3, 2, 2)])
    assert again.table().equals(sums.table(), check_metadata=True)


def test_a_restored_sum_goes_on_with_another_half_life_from_what_it_was() -> None:
    sums = DecayedSums({"a": 10.0, "b": math.inf}, 10)
    sums.add(ids(1), ids(100), one(8.0, 2))
    again = DecayedSums({"a": 20.0, "b": 50.0, "new": 1.0}, 10, state=sums.table())
    assert again.get(ids(1), 100).tolist() == [[8.0, 8.0, 0.0]]
    assert again.get(ids(1), 200).tolist() == [[0.25, 2.0, 0.0]]


def test_a_smaller_bound_is_kept_when_a_larger_state_is_restored() -> None:
    sums = DecayedSums({"n": math.inf}, 100)
    sums.add(np.arange(100), np.zeros(100, np.int64), np.arange(100.0)[:, None])
    again = DecayedSums({"n": math.inf}, 20, state=sums.table())
    assert len(again) <= 20
    assert again.get(ids(99), 0)[0, 0] == 99


def test_tables_that_count_something_else_cannot_be_merged_or_made() -> None:
    with pytest.raises(ConfigError, match="merge tables of one configuration"):
        table().merge(DecayedSums({**SUMS, "short": 8.0}, 1_000))
    with pytest.raises(ConfigError, match="give positive numbers"):
        DecayedSums({"a": 0.0}, 10)
    with pytest.raises(ConfigError, match="give positive numbers"):
        DecayedSums({"a": 1.0}, 0)
