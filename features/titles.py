"""Titles, searched by words and parts of words."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streaming.growing import GrowingArray
from streaming.id_map import IdMap

Ids = NDArray[np.int64]
_TAIL = 1_024  # titles that may be newer than the column, or an eighth of all


class Titles:
    """The title of every item that has one, case aside; other threads may search.

    A search looks through one Arrow column of all titles, and through those that changed since it
    was made.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._rows = IdMap()
        self._titles: list[str | None] = []  # by row
        self._column = pa.array([], pa.string())  # of the first rows, as they were
        self._changed = GrowingArray(np.bool_)  # by row, and the rows themselves
        self._tail: list[int] = []

    def put(self, items: Ids, titles: Sequence[str | None]) -> None:
        """The items, which are distinct, have these titles now; None for none."""
        with self._lock:
            for row, title in zip(self._rows.add(items).tolist(), titles, strict=True):
                self._set(row, None if title is None else title.casefold())
            self._settle()

    def remove(self, items: Ids) -> None:
        """These items are gone."""
        with self._lock:
            for row in self._rows.remove(items).tolist():
                self._set(row, None)
            self._settle()

    def search(self, words: Sequence[str]) -> tuple[Ids, Ids, list[str]]:
        """The items whose title has every word (in small letters); how many of them begin a word
        of the title; and the title in small letters.
        """
        with self._lock:
            rows = np.flatnonzero(_having(self._column, words))
            rows = rows[~self._changed.reserve(len(self._titles))[rows]]
            tail = np.array(self._tail, np.int64)
            newer = pa.array([self._titles[row] for row in self._tail], pa.string())
            rows = np.append(rows, tail[_having(newer, words)])
            titles = [self._titles[row] or "" for row in rows.tolist()]
            items = self._rows.ids[rows]
        return items, _starts(titles, words), titles

    def _set(self, row: int, title: str | None) -> None:
        self._titles.extend([None] * (row + 1 - len(self._titles)))
        self._titles[row] = title
        changed = self._changed.reserve(row + 1)
        if not changed[row]:
            changed[row] = True
            self._tail.append(row)

    def _settle(self) -> None:
        if len(self._tail) > max(_TAIL, len(self._titles) // 8):
            self._column = pa.array(self._titles, pa.string())
            self._changed.rows[:] = False
            self._tail = []


def _having(titles: pa.Array, words: Sequence[str]) -> NDArray[np.bool_]:
    """Whether a title has all the words."""
    found = np.ones(len(titles), np.bool_)
    for word in words:
        found &= pc.fill_null(pc.match_substring(titles, word), False).to_numpy(False)
    return found


def _starts(titles: Sequence[str], words: Sequence[str]) -> Ids:
    column = pa.array([f" {title}" for title in titles], pa.string())
    starts = np.zeros(len(titles), np.int64)
    for word in words:
        starts += pc.match_substring(column, f" {word}").to_numpy(False)
    return starts
