"""The id map against a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray

from streaming.id_map import IdMap

LARGEST = 2**63 - 1
# Few small ids, so that repeats and neighbours occur, and the ends of the range.
IDS = st.integers(0, 400) | st.integers(0, LARGEST) | st.sampled_from([0, LARGEST])
BATCHES = st.lists(IDS, max_size=120)
# So many ids that the map that holds them moves into its next one a few slots at a time.
MANY = 70_000


def array(ids: list[int]) -> NDArray[np.int64]:
    return np.array(ids, np.int64)


class Witness:
    """What the map should hold: ids with rows, and the rows that were freed."""

    def __init__(self) -> None:
        self.rows: dict[int, int] = {}
        self.free: set[int] = set()
        self.given = 0

    def add(self, ids: list[int], rows: list[int]) -> None:
        """Takes the rows that the map gave, and fails unless it may give these."""
        for one, row in zip(ids, rows, strict=True):
            if one in self.rows:
                assert row == self.rows[one]
                continue
            if self.free:
                self.free.remove(row)  # a row that is free is given before a new one
            else:
                assert row == self.given
                self.given += 1
            self.rows[one] = row

    def remove(self, ids: list[int], rows: list[int]) -> None:
        freed = [self.rows.pop(one) for one in ids if one in self.rows]
        assert rows == freed
        self.free.update(freed)

    def agrees(self, rows: IdMap, strangers: list[int]) -> None:
        asked = [*self.rows, *strangers]
        assert rows.find(array(asked)).tolist() == [self.rows.get(one, -1) for one in asked]
        assert (len(rows), rows.rows) == (len(self.rows), self.given)
        by_row = np.full(self.given, -1)
        by_row[list(self.rows.values())] = list(self.rows)
        np.testing.assert_array_equal(rows.ids, by_row)


class AgainstADictionary(RuleBasedStateMachine):
    """Small maps, which move at once."""

    @initialize(ids=st.none() | BATCHES)
    def begin(self, ids: list[int] | None) -> None:
        self.rows, self.witness = IdMap(None if ids is None else array(ids)), Witness()
        if ids:
            self.witness.add(ids, self.rows.find(array(ids)).tolist())

    @rule(ids=BATCHES)
    def add(self, ids: list[int]) -> None:
        self.witness.add(ids, self.rows.add(array(ids)).tolist())

    @rule(ids=BATCHES)
    def remove(self, ids: list[int]) -> None:
        self.witness.remove(ids, self.rows.remove(array(ids)).tolist())

    @rule(share=st.integers(1, 3), data=st.data())
    def remove_known(self, share: int, data: st.DataObject) -> None:
        """Those that are there, most of them: removals at random would rarely hit one."""
        ids = list(self.witness.rows)[data.draw(st.integers(0, 5)) :: share]
        self.witness.remove(ids, self.rows.remove(array(ids)).tolist())

    @rule(ids=BATCHES)
    def find(self, ids: list[int]) -> None:
        self.witness.agrees(self.rows, ids)

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "witness"):
            self.witness.agrees(self.rows, [])


TestAgainstADictionary = AgainstADictionary.TestCase
TestAgainstADictionary.settings = settings(
    max_examples=40, stateful_step_count=15, deadline=None, derandomize=True
)


def large_map(known: int, stride: int = 1) -> IdMap:
    """A map of the ids 0, stride, ... that came in parts."""
    rows = IdMap()
    for part in np.array_split(np.arange(known) * stride, 20):
        rows.add(part)
    return rows


def moving(rows: IdMap) -> bool:
    """Whether the map is being moved into a larger one."""
    return bool(rows._old.size)


@pytest.mark.parametrize("stride", [1, 2**40 + 1])
def test_nothing_is_lost_at_any_moment_of_a_move(stride: int) -> None:
    rows = large_map(MANY, stride)
    ids = np.arange(2 * MANY) * stride
    known, moments = MANY, 0
    while known < 2 * MANY:
        part = ids[known : known + 499]
        np.testing.assert_array_equal(rows.add(part), np.arange(known, known + part.size))
        known += part.size
        moments += moving(rows)
        np.testing.assert_array_equal(rows.find(ids[:known]), np.arange(known))
        assert (rows.find(ids[known : known + 500] + 1) == -1).all()
    np.testing.assert_array_equal(rows.ids, ids)
    assert moments > 5  # else this shows nothing about a move


@pytest.mark.parametrize("seed", [0, 1])
def test_a_moving_map_agrees_with_a_plain_array(seed: int) -> None:
    """Removals while a move is under way, and the same ids back again, in either half."""
    rng = np.random.default_rng(seed)
    rows = large_map(MANY)
    expected = np.full(2 * MANY, -1)
    expected[:MANY] = np.arange(MANY)
    moments = 0
    while len(rows) < 1.6 * MANY:
        gone = rng.integers(0, 2 * MANY, 150)
        freed = rows.remove(gone)
        live = np.unique(gone[expected[gone] >= 0])
        np.testing.assert_array_equal(np.sort(freed), np.sort(expected[live]))
        expected[live] = -1
        fresh = np.concatenate([rng.integers(0, 2 * MANY, 1_000), gone[:99], gone[:99]])
        known = expected[fresh] >= 0
        given_rows = rows.add(fresh)
        np.testing.assert_array_equal(given_rows[known], expected[fresh[known]])
        expected[fresh] = given_rows
        moments += moving(rows)
        np.testing.assert_array_equal(rows.find(np.arange(2 * MANY)), expected)
    taken = expected[expected >= 0]
    assert len(rows) == taken.size == np.unique(taken).size  # no two share a row
    assert moments > 5


def test_an_id_that_was_removed_during_a_move_stays_away_when_its_old_slot_moves() -> None:
    rows = large_map(MANY)
    fresh = MANY
    while not moving(rows):
        rows.add(np.arange(fresh, fresh + 500))
        fresh += 500
    gone = np.arange(0, MANY, 3)
    freed = set(rows.remove(gone).tolist())
    assert freed == set(gone.tolist())
    back = gone[::2]
    given_rows = rows.add(back)
    while moving(rows):
        rows.add(np.arange(fresh, fresh + 500))
        fresh += 500
    np.testing.assert_array_equal(rows.find(back), given_rows)
    away = rows.find(gone[1::2])
    assert (away == -1).all()
    assert set(given_rows.tolist()) <= freed


def test_a_steady_size_with_ever_new_ids_needs_no_more_rows_and_no_larger_map() -> None:
    rows = large_map(MANY)
    rows.remove(np.arange(1_000))
    before = rows.nbytes
    for start in range(0, 200_000, 1_000):
        rows.add(np.arange(MANY + start, MANY + start + 1_000))
        rows.remove(np.arange(1_000 + start, 2_000 + start))
    assert (len(rows), rows.rows) == (MANY - 1_000, MANY)
    assert rows.nbytes <= before + 8 * 1_000
    assert (rows.find(np.arange(200_000)) == -1).all()


@pytest.mark.parametrize("together", [10_000, 300_000])
def test_a_single_addition_may_be_larger_than_the_map_even_during_a_move(together: int) -> None:
    rows, fresh = large_map(MANY), MANY
    while not moving(rows):
        rows.add(np.arange(fresh, fresh + 500))
        fresh += 500
    rows.add(np.arange(fresh, fresh + together))
    np.testing.assert_array_equal(
        rows.find(np.arange(fresh + together)), np.arange(fresh + together)
    )


@pytest.mark.parametrize("known", [70_000, 100_000, 271_828])
def test_an_id_takes_at_most_34_bytes_when_no_larger_map_is_near(known: int) -> None:
    rows = large_map(known)
    slots = rows._slots.nbytes / 16
    if moving(rows) or rows._next.size:
        rows.add(np.arange(10**6, 10**6 + int(0.765 * slots) - known))
        while moving(rows):
            rows.add(np.arange(2 * 10**6 + len(rows), 2 * 10**6 + len(rows) + 500))
    assert rows.nbytes <= 34 * len(rows)


def test_the_memory_of_a_map_that_has_moved_is_given_back() -> None:
    rows = large_map(MANY)
    while not moving(rows):
        rows.add(np.arange(len(rows), len(rows) + 500))
    while moving(rows):
        rows.add(np.arange(len(rows), len(rows) + 500))
    assert rows._old.base is None  # a view would keep all of it alive


def test_a_map_that_gets_no_new_ids_arrives_when_it_is_moved() -> None:
    rows = large_map(MANY)
    while not moving(rows):
        rows.add(np.arange(len(rows), len(rows) + 500))
    known, before = len(rows), rows.nbytes
    while moving(rows):
        np.testing.assert_array_equal(rows.find(np.arange(known + 9))[:known], np.arange(known))
        rows.move(5_000)
    assert (rows.find(np.arange(known + 9)) == [*range(known), *9 * [-1]]).all()
    assert rows.nbytes < before
    rows.move(5_000)  # there is nothing to do
    assert (len(rows), rows.rows) == (known, known)


def test_one_new_id_a_million_times_takes_the_room_of_one() -> None:
    rows = IdMap()
    assert (rows.add(np.full(1_000_000, 5)) == 0).all()
    assert rows.nbytes < 10_000


def test_the_first_and_the_last_id_of_the_range_are_ids_like_any_other() -> None:
    rows = IdMap(array([LARGEST]))
    assert rows.find(array([0, LARGEST])).tolist() == [-1, 0]
    rows.add(array([0]))
    assert rows.find(array([0, LARGEST, 1])).tolist() == [1, 0, -1]
    assert rows.remove(array([LARGEST, 0])).tolist() == [0, 1]
    assert rows.find(array([0, LARGEST])).tolist() == [-1, -1]


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


def test_finding_in_an_empty_map_and_finding_adding_and_removing_nothing() -> None:
    assert IdMap().find(array([0, 3])).tolist() == [-1, -1]
    rows = IdMap(array([3]))
    for verb in (rows.find, rows.add, rows.remove):
        assert verb(array([])).shape == (0,)
    assert rows.remove(array([4, 5])).shape == (0,)
    assert rows.ids.tolist() == [3]


def test_an_array_that_may_not_be_written_to_is_good_all_the_same() -> None:
    rows = IdMap(array([4, 5]))
    asked = array([5, 6])
    asked.flags.writeable = False  # as the columns of an Arrow table are
    assert rows.find(asked).tolist() == [1, -1]
    assert rows.add(asked).tolist() == [1, 2]
    assert rows.remove(asked).tolist() == [1, 2]
