"""When labels count: positives and negatives of the same impressions together.

A positive label is told as soon as it comes, a negative one when its window ends, minutes or days
later (`streaming.impressions`). Counted as they are told, the newest impressions, and so the newest
versions, would have only positives, and a rate would be wrong by as much as traffic has grown
meanwhile. So a positive waits until negatives of impressions that were shown after it are told: of
those its window has ended, too.

What remains: of a label that comes after another (a purchase after a click) negatives of who did
not click are told when the window of the *click* ends, and of who clicked only at the end of its
own; for so long after a start, or a change, its rate is too high among the impressions that are
known.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from serving.recent_ids import RecentIds

Rows = NDArray[np.void]  # as of `serving.quality.impressions_of`


class Cohort:
    """Holds back the positives of one label; at most `most`, beyond which the oldest count.

    A label that comes late, after its window, has been told as negative, and stays so: it is passed
    over as long as that is among the newest `remembered` negatives.
    """

    def __init__(self, most: int, remembered: int) -> None:
        self._most = most
        self._negatives = RecentIds(remembered)
        self._ended_us = np.iinfo(np.int64).min  # up to here windows have ended
        self._waiting: list[tuple[int, int, Rows]] = []  # a heap: since when, a number, those rows
        self._count = 0  # of rows that wait
        self._pushed = 0

    def __len__(self) -> int:
        return self._count

    def admit(self, rows: Rows, ended: NDArray[np.bool_]) -> Rows:
        """Takes labels as they are told, of which some are those of `ended` windows, (n,); returns
        the impressions that count now, in the order in which they were shown.
        """
        negatives, positives = rows[ended], rows[~ended]
        if len(negatives):
            self._negatives.new(negatives["key"])
            self._ended_us = max(self._ended_us, int(negatives["at_us"].max()))
        self._hold(positives[~self._negatives.has(positives["key"])])
        counted = np.concatenate([*self._due(), negatives])
        # Positives among the negatives: of many at once some have faded when the last is counted.
        return counted[np.argsort(counted["at_us"], kind="stable")]

    def _hold(self, rows: Rows) -> None:
        if len(rows):
            self._pushed += 1
            first_us = int(rows["at_us"].min())
            heapq.heappush(self._waiting, (first_us, self._pushed, rows))
            self._count += len(rows)

    def _due(self) -> list[Rows]:
        found = []
        while self._waiting and (
            self._waiting[0][0] <= self._ended_us or self._count > self._most
        ):  # fmt: skip
            first_us, _, rows = heapq.heappop(self._waiting)
            self._count -= len(rows)
            now = rows["at_us"] <= max(first_us, self._ended_us)
            found.append(rows[now])
            self._hold(rows[~now])
        return found
