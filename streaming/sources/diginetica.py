"""Diginetica: clicks in anonymous shop sessions, in the form of ADER (Mi et al., RecSys 2020).

The file must not be passed on; it is read from where the user has it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streaming.errors import SourceError
from streaming.events import microseconds
from streaming.sources.source import SourceInfo
from streaming.sources.table import Part, TableSource, declared, event_ids, joined, read_parquet

_S = 1_000_000  # microseconds


class Diginetica(TableSource):
    """Clicks of anonymous sessions, as in ADER (Mi et al., RecSys 2020): each is a user too.

    The data has an order and no times. **The clock is invented**: period p is the p-th week from
    `START_US` on, sessions begin in the order of the file, evenly over the week, and the clicks of
    a session are `CLICK_EVERY_US` apart. A session that reaches into the next period goes on at a
    time of that period. So one may split by period, and must not claim anything about time.
    """

    START_US = microseconds(datetime(2016, 1, 4, tzinfo=UTC))
    PERIOD_US = 7 * 24 * 3600 * _S
    CLICK_EVERY_US = 30 * _S

    def __init__(self, directory: Path) -> None:
        name = "diginetica"
        file = directory / "diginetica.parquet"
        integers = dict.fromkeys(("period", "session", "item"), pa.int64())
        clicks = read_parquet(file, integers)
        period = clicks["period"].to_numpy()
        if period.min() < 0 or np.any(np.diff(period) < 0):
            raise SourceError(f"{file} is not in the order of its periods: fetch it again")
        at_us = self._clock(period, clicks["session"].to_numpy())
        rows = np.argsort(at_us, kind="stable")
        clicks, at_us = clicks.take(pa.array(rows)), at_us[rows]
        items = clicks["item"].cast(pa.string())
        sessions = joined("session-", clicks["session"].cast(pa.string()))
        made = Part("click", at_us, np.arange(len(rows)), {
            "event_id": event_ids(name, rows),
            "user_id": sessions,
            "item_id": items,
            "session_id": sessions,
        })  # fmt: skip
        super().__init__(name, [declared(name, "item", at_us, {"item_id": items}), made])

    def _clock(self, period: NDArray[np.int64], session: NDArray[np.int64]) -> NDArray[np.int64]:
        """A time for each row; what one session does within one period is a visit."""
        _, first, visit = np.unique(
            np.stack([period, session]), axis=1, return_index=True, return_inverse=True
        )
        begins = first[visit]
        number = _number_within(begins)
        starts = np.searchsorted(period, period)  # the first row of the row's period
        size = np.searchsorted(period, period, side="right") - starts
        room = self.PERIOD_US - (number.max() + 1) * self.CLICK_EVERY_US
        if room <= 0:
            raise SourceError(f"a session of {number.max() + 1} clicks does not fit into a week")
        offset = (begins - starts) * (room / size)
        within = offset.astype(np.int64) + number * self.CLICK_EVERY_US
        times: NDArray[np.int64] = self.START_US + period * self.PERIOD_US + within
        return times


def _number_within(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many rows of the same group come before each row, shape (n,)."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    begins = np.flatnonzero(np.r_[True, np.diff(ordered) != 0])
    counts = np.diff(np.r_[begins, len(ordered)])
    number = np.empty(len(groups), dtype=np.int64)
    number[order] = np.arange(len(groups)) - np.repeat(begins, counts)
    return number


DIGINETICA = SourceInfo(
    name="diginetica",
    about="shop: clicks in anonymous sessions, 17 periods; the clock is invented",
    open=Diginetica,
    events=1_036_619,
    users=204_789,
    items=43_136,
    span="order only",
    terms="competition data, must not be passed on",
    folder="ader-diginetica",
    files=("diginetica.parquet",),
)
