"""The compiled hash map, against a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.kernels import (
    EMPTY,
    FULLEST,
    ROOMY,
    behind,
    find_rows,
    get,
    grown,
    has_room,
    home,
    mix,
    put,
    rehash,
    remove,
    slots_for,
)

FEW = st.integers(0, 40)  # so that keys come again
KEYS = FEW | st.integers(0, 2**63 - 1)
CHANGES = st.lists(st.tuples(st.booleans(), KEYS, st.integers(-9, 2**62)), max_size=150)


def crowded(keys: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A map in which runs of taken slots are long, and go round the end."""
    return np.zeros(2 * (keys + 2), np.int64)


def taken(slots: np.ndarray[tuple[int], np.dtype[np.int64]]) -> int:
    return int(np.count_nonzero(slots[::2]))


@given(CHANGES)
def test_a_map_holds_what_a_dictionary_holds(changes: list[tuple[bool, int, int]]) -> None:
    slots = crowded(150)
    expected: dict[int, int] = {}
    for puts, key, value in changes:
        if puts:
            put(slots, key, value)
            expected[key] = value
        else:
            remove(slots, key)
            expected.pop(key, None)
        assert get(slots, key) == expected.get(key, EMPTY)
    assert {key: get(slots, key) for key in expected} == expected
    assert taken(slots) == len(expected)


@given(st.sets(FEW, min_size=20), st.randoms(use_true_random=False))
def test_keys_that_lie_in_each_others_way_can_be_taken_out_in_any_order(
    keys: set[int], random: object
) -> None:
    slots = crowded(len(keys))  # two places stay free
    for key in keys:
        put(slots, key, 2 * key)
    left = sorted(keys)
    random.shuffle(left)  # type: ignore[attr-defined]
    while left:
        remove(slots, left.pop())
        assert [get(slots, key) for key in left] == [2 * key for key in left]
    assert taken(slots) == 0


def test_taking_out_what_is_not_there_changes_nothing() -> None:
    slots = slots_for(3)
    put(slots, 7, 1)
    before = slots.copy()
    remove(slots, 8)
    assert (slots == before).all()


@given(st.dictionaries(KEYS, st.integers(0, 2**62), max_size=60), st.lists(KEYS, max_size=20))
def test_many_keys_are_found_at_once(pairs: dict[int, int], others: list[int]) -> None:
    slots = slots_for(len(pairs))
    for key, value in pairs.items():
        put(slots, key, value)
    asked = np.array([*pairs, *others], np.int64)
    found = np.zeros(len(asked), np.int64)
    find_rows(slots, asked, found)
    assert found.tolist() == [pairs.get(key, EMPTY) for key in asked.tolist()]


@given(st.dictionaries(KEYS, st.integers(0, 99), max_size=60))
def test_a_larger_map_takes_over_every_pair(pairs: dict[int, int]) -> None:
    small, large = slots_for(len(pairs)), slots_for(10_000)
    for key, value in pairs.items():
        put(small, key, value)
    rehash(small, large)
    assert {key: get(large, key) for key in pairs} == pairs
    assert taken(large) == len(pairs)


@pytest.mark.parametrize("count", [0, 1, 12, 13, 76, 77, 1_000, 123_456])
def test_a_map_has_room_for_what_it_was_made_for_and_some_more(count: int) -> None:
    slots = slots_for(count)
    assert has_room(slots, max(count, int(1.2 * count)))
    assert not has_room(slots, max(13, int(1.24 * count) + 1))
    assert ROOMY < FULLEST < 1  # a place stays free: every search ends


@pytest.mark.parametrize("count", [1, 16, 1_000, 4_097, 2**31 + 11])
def test_keys_want_to_lie_evenly_among_places_of_any_number(count: int) -> None:
    homes = np.array([int(home(key, np.uint64(count))) for key in range(4_000)])
    assert homes.min() >= 0
    assert homes.max() < count
    quarters = np.bincount(4 * homes // count, minlength=4)
    assert count < 4 or (np.abs(quarters - 1_000) < 120).all()


def test_behind_the_last_place_comes_the_first() -> None:
    assert [int(behind(np.uint64(at), np.uint64(3))) for at in range(3)] == [1, 2, 0]


def test_mixing_changes_half_of_the_bits_for_every_bit() -> None:
    for n in range(50):
        for bit in range(0, 64, 7):
            changed = int(mix(np.uint64(n))) ^ int(mix(np.uint64(n ^ (1 << bit))))
            assert 12 <= changed.bit_count() <= 52


def test_growing_keeps_what_is_there_and_adds_zeros() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    larger = grown(array, 4)
    assert larger.dtype == np.float32
    assert larger.tolist() == [[0, 1, 2], [3, 4, 5], [0, 0, 0], [0, 0, 0]]
