"""The id map against a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streaming.id_map import IdMap

LARGEST = 2**63 - 1
# Few small ids, so that repeats and neighbours occur, and the ends of the range.
IDS = st.integers(0, 400) | st.integers(0, LARGEST) | st.sampled_from([0, LARGEST])


def array(ids: list[int]) -> NDArray[np.int64]:
    return np.array(ids, np.int64)


@given(
    batches=st.lists(st.lists(IDS, unique=True, max_size=120), max_size=10),
    strangers=st.lists(IDS, max_size=30),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_agrees_with_a_dictionary(batches: list[list[int]], strangers: list[int]) -> None:
    rows, witness = IdMap(), dict[int, int]()
    for batch in batches:
        fresh = [i for i in batch if i not in witness]
        rows.add(array(fresh))
        for i in fresh:
            witness[i] = len(witness)

        asked = [*batch, *strangers]
        assert rows.find(array(asked)).tolist() == [witness.get(i, -1) for i in asked]
        assert len(rows) == len(witness)
        assert rows.ids.tolist() == list(witness)


@pytest.mark.parametrize("stride", [1, 2**20, 2**40 + 1])
def test_grows_to_a_hundred_thousand_ids_and_finds_each(stride: int) -> None:
    ids = np.arange(100_000) * stride
    rows = IdMap()
    for part in np.array_split(ids, 7):
        rows.add(part)
    np.testing.assert_array_equal(rows.find(ids), np.arange(len(ids)))
    np.testing.assert_array_equal(rows.ids, ids)
    assert (rows.find(ids + 1_000_003 * stride) == -1).all()


def test_the_first_and_the_last_id_of_the_range_are_ids_like_any_other() -> None:
    rows = IdMap(array([LARGEST]))
    assert rows.find(array([0, LARGEST])).tolist() == [-1, 0]
    rows.add(array([0]))
    assert rows.find(array([0, LARGEST, 1])).tolist() == [1, 0, -1]


def test_finding_never_gives_a_row_to_an_id() -> None:
    rows = IdMap(array([5, 7]))
    asked = np.arange(10_000)
    for _ in range(3):
        found = rows.find(asked)
        assert np.flatnonzero(found >= 0).tolist() == [5, 7]
    assert len(rows) == 2
    assert rows.ids.tolist() == [5, 7]
    np.testing.assert_array_equal(asked, np.arange(10_000))
    rows.add(array([9]))
    assert rows.find(array([9])).tolist() == [2]


def test_finding_in_an_empty_map_and_finding_nothing() -> None:
    assert IdMap().find(array([0, 3])).tolist() == [-1, -1]
    assert IdMap(array([3])).find(array([])).shape == (0,)


def test_an_array_that_may_not_be_written_to_is_found_all_the_same() -> None:
    rows = IdMap(array([4, 5]))
    asked = array([5, 6])
    asked.flags.writeable = False  # as the columns of an Arrow table are
    assert rows.find(asked).tolist() == [1, -1]
