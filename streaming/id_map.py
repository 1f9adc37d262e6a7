"""id -> row without collisions: open addressing over one interleaved array."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streaming.kernels import find_rows, has_room, insert_ids, slots_for


class IdMap:
    """Numbers ids in the order in which they are added: the n-th new id gets row n."""

    def __init__(self, ids: NDArray[np.int64] | None = None) -> None:
        self._ids = np.empty(64, np.int64)
        self._count = 0
        self._slots = slots_for(0)
        if ids is not None:
            self.add(ids)

    def __len__(self) -> int:
        return self._count

    @property
    def ids(self) -> NDArray[np.int64]:
        """The ids in row order, shape (len,); a view that must not be written to."""
        return self._ids[: self._count]

    def find(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each id, -1 where there is none; allocates no row."""
        rows = np.empty(ids.size, np.int64)
        find_rows(self._slots, ids, rows)
        return rows

    def add(self, ids: NDArray[np.int64]) -> None:
        """Numbers ids that are distinct, non-negative and not there yet."""
        needed = self._count + ids.size
        if needed > self._ids.size:
            self._ids = np.resize(self._ids, max(needed, 2 * self._ids.size))
        self._ids[self._count : needed] = ids
        if not has_room(self._slots, needed):
            self._slots = slots_for(needed)
            insert_ids(self._slots, self._ids[:needed], 0)
        else:
            insert_ids(self._slots, ids, self._count)
        self._count = needed
