"""A list of numbers for each of many rows, each list replaced whole, all in one array."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.batch import Jagged
from streaming.growing import GrowingArray

Ids = NDArray[np.int64]
_SPARE = 65_536  # cells that may lie about unused beside half of all


class Runs:
    """The cells of row i are (n_i, width) numbers; a row that was never given any has none.

    Memory is bounded by twice what is in use: a list that is replaced leaves its place empty, and
    the places are closed up when more of them are empty than not.
    """

    def __init__(self, width: int) -> None:
        self.starts = GrowingArray(np.int64)
        self.lengths = GrowingArray(np.int64)
        self.cells = GrowingArray(np.int64, (width,))
        self._end = 0
        self._live = 0

    @property
    def size(self) -> int:
        """How many cells all rows have together."""
        return self._live

    def put(self, rows: Ids, offsets: Ids, cells: Ids) -> None:
        """Gives row `rows[i]` the cells `offsets[i]` to `offsets[i + 1]`; rows are distinct."""
        if not len(rows):
            return
        starts, lengths = self._reserve(int(rows.max()) + 1)
        self._live += len(cells) - int(lengths[rows].sum())
        self.cells.reserve(self._end + len(cells))[self._end : self._end + len(cells)] = cells
        starts[rows] = self._end + offsets[:-1]
        lengths[rows] = np.diff(offsets)
        self._end += len(cells)
        if self._end > 2 * self._live + _SPARE:
            self._close_up()

    def clear(self, rows: Ids) -> None:
        """Leaves these rows without cells."""
        self.put(rows, np.zeros(len(rows) + 1, np.int64), self.cells.rows[:0])

    def take(self, rows: Ids) -> tuple[Ids, Ids]:
        """The cells of rows, one after another: offsets (n + 1,) and cells (sum, width), copied."""
        if not len(rows):
            return np.zeros(1, np.int64), self.cells.rows[:0].copy()
        starts, lengths = self._reserve(int(rows.max()) + 1)
        found = Jagged.of(rows, lengths[rows])
        shift = np.repeat(starts[rows] - found.offsets[:-1], found.lengths)
        return found.offsets, self.cells.rows[shift + np.arange(len(shift))]

    def _reserve(self, rows: int) -> tuple[Ids, Ids]:
        return self.starts.reserve(rows), self.lengths.reserve(rows)

    def _close_up(self) -> None:
        rows = np.flatnonzero(self.lengths.rows)
        offsets, cells = self.take(rows)
        self.starts.rows[rows] = offsets[:-1]
        self.cells.rows[: len(cells)] = cells
        self._end = self._live = len(cells)
