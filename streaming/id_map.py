"""id -> row without collisions: open addressing over one interleaved array."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streaming.growing import GrowingArray
from streaming.kernels import (
    EMPTY,
    FULLEST,
    compiled,
    get,
    has_room,
    put,
    remove,
    slots_for,
)
from streaming.prefetch import AHEAD, prefetch_home

_AT_ONCE = 1 << 16  # slots: a smaller map moves into its larger one at once
_NEARLY_FULL = 0.74  # of the slots are taken: it is time to prepare the larger map
# For each new id so many slots move, and so many numbers of the larger map are touched: either
# is done long before the next one begins.
_MOVES_PER_ID, _TOUCHED_PER_ID = 48, 256
_NO_SLOTS = np.empty(0, np.int64)


class IdMap:
    """Gives every id a row of its own; the row of an id that was removed is given again.

    Without removals the n-th new id gets row n. A map that becomes full moves into a larger one
    a few slots at a time, with every addition, so that no addition waits for all of it.
    """

    def __init__(self, ids: NDArray[np.int64] | None = None) -> None:
        self._slots = slots_for(0)
        self._old = _NO_SLOTS  # the map that is moving into `_slots`
        self._moved = 0
        self._next = _NO_SLOTS  # the map that this one will move into
        self._touched = 0
        self._ids = GrowingArray(np.int64)
        self._free = GrowingArray(np.int64)
        # Rows that were ever given, and how many of them are free.
        self._counts = np.zeros(2, np.int64)
        if ids is not None:
            self.add(ids)

    def __len__(self) -> int:
        given, free = self._counts
        return int(given - free)

    @property
    def rows(self) -> int:
        """Rows that were ever given: all are smaller than this."""
        return int(self._counts[0])

    @property
    def ids(self) -> NDArray[np.int64]:
        """The id of every row, (rows,), -1 for a free one; a view, to be read at once."""
        ids: NDArray[np.int64] = self._ids.rows[: self.rows]
        return ids

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return (
            self._slots.nbytes + self._old.nbytes + self._next.nbytes + 8 * int(self._counts.sum())
        )

    def find(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each id, -1 where there is none; allocates no row."""
        rows = np.empty(ids.size, np.int64)
        _find(self._slots, self._old, ids, rows)
        return rows

    def add(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each id, after those were given one that had none; ids may repeat."""
        rows = self.find(ids)
        missing = int(np.count_nonzero(rows == EMPTY))
        if missing:
            if not has_room(self._slots, len(self) + missing):
                ordered = np.sort(ids[rows == EMPTY])  # many times as fast as np.unique
                missing = 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1]))
            self._make_room(len(self) + missing)
            by_row = self._ids.reserve(self.rows + missing)
            _add(self._slots, ids, by_row, self._free.rows, self._counts, rows)
        return rows

    def remove(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Takes out those of the ids that are there; returns the rows that are free now."""
        rows = self.find(ids)
        free = self._free.reserve(int(self._counts[1]) + ids.size)
        removed = _remove(self._slots, self._old, ids, self._ids.rows, free, self._counts, rows)
        return rows[:removed]

    def move(self, slots: int) -> None:
        """Moves so many slots of a map that is moving; without new ids nothing else would."""
        if not self._old.size:
            return
        end = min(self._moved + slots, self._old.size // 2)
        _move_slots(self._old, self._slots, self._moved, end)
        self._moved = end
        if end == self._old.size // 2:
            self._old, self._moved = _NO_SLOTS, 0

    def _make_room(self, count: int) -> None:
        more = count - len(self)
        if self._old.size:
            self.move(more * _MOVES_PER_ID)
        elif count > _NEARLY_FULL * self._slots.size / 2:
            self._prepare(more)
        if has_room(self._slots, count):
            return
        self.move(self._old.size)  # whatever is left: the next move must not begin before
        larger = self._next if has_room(self._next, count) else slots_for(count)
        self._old, self._slots, self._next, self._moved = self._slots, larger, _NO_SLOTS, 0
        if self._old.size <= 2 * _AT_ONCE:
            self.move(self._old.size)

    def _prepare(self, more: int) -> None:
        """Touches the memory of the larger map before it is used.

        The system clears pages at the first touch, and the first ids would touch all of them.
        """
        if not self._next.size:
            self._next, self._touched = slots_for(int(FULLEST * self._slots.size / 2)), 0
        end = self._touched + more * _TOUCHED_PER_ID
        self._next[self._touched : end] = 0
        self._touched = end


@compiled
def _find(
    slots: NDArray[np.int64],
    old: NDArray[np.int64],
    ids: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> None:
    for i in range(ids.size):
        if i + AHEAD < ids.size:
            prefetch_home(slots, ids[i + AHEAD])
        rows[i] = get(slots, ids[i])
    if old.size > 0:
        for i in range(ids.size):
            if i + AHEAD < ids.size and rows[i + AHEAD] == EMPTY:
                prefetch_home(old, ids[i + AHEAD])
            if rows[i] == EMPTY:
                rows[i] = get(old, ids[i])


@compiled
def _add(
    slots: NDArray[np.int64],
    ids: NDArray[np.int64],
    by_row: NDArray[np.int64],
    free: NDArray[np.int64],
    counts: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> None:
    """Gives a row to every id whose row is EMPTY; one may be there more than once."""
    for i in range(ids.size):
        if rows[i] != EMPTY:
            continue
        row = get(slots, ids[i])
        if row == EMPTY:
            if counts[1] > 0:
                counts[1] -= 1
                row = free[counts[1]]
            else:
                row = counts[0]
                counts[0] += 1
            put(slots, ids[i], row)
            by_row[row] = ids[i]
        rows[i] = row


@compiled
def _remove(  # noqa: PLR0913 - the parts of a map
    slots: NDArray[np.int64],
    old: NDArray[np.int64],
    ids: NDArray[np.int64],
    by_row: NDArray[np.int64],
    free: NDArray[np.int64],
    counts: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> int:
    """Takes out the ids that have a row, keeps those rows at the front of `rows`."""
    removed = 0
    for i in range(ids.size):
        row = rows[i]
        if row == EMPTY or by_row[row] != ids[i]:  # not there, or named twice
            continue
        remove(slots, ids[i])
        if old.size > 0 and get(old, ids[i]) != EMPTY:
            put(old, ids[i], EMPTY)  # nothing may move up in a map that is being moved
        by_row[row] = EMPTY
        free[counts[1]] = row
        counts[1] += 1
        rows[removed] = row
        removed += 1
    return removed


@compiled
def _move_slots(old: NDArray[np.int64], new: NDArray[np.int64], start: int, end: int) -> None:
    for at in range(start, end):
        if old[2 * at] != 0 and old[2 * at + 1] != EMPTY:
            put(new, ~old[2 * at], old[2 * at + 1])
