"""Ids that were seen lately, in bounded memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streaming.id_map import IdMap

Ids = NDArray[np.int64]


class RecentIds:
    """Remembers at least the newest `most` / 2 different ids, and at most `most`.

    >>> recent = RecentIds(most=1_000)
    >>> recent.new(np.array([7, 8, 7]))
    array([7, 8])
    >>> recent.new(np.array([8, 9]))
    array([9])
    """

    def __init__(self, most: int) -> None:
        self._half = max(1, most // 2)
        self._young, self._old = IdMap(), IdMap()

    def has(self, ids: Ids) -> NDArray[np.bool_]:
        """Whether each id (n,) is remembered, (n,)."""
        return (self._young.find(ids) >= 0) | (self._old.find(ids) >= 0)

    def new(self, ids: Ids) -> Ids:
        """Remembers ids; those that were not, each once, in order of size."""
        unseen: Ids = np.unique(ids[~self.has(ids)])
        self._young.add(ids)
        if len(self._young) >= self._half:
            self._young, self._old = IdMap(), self._young
        return unseen
