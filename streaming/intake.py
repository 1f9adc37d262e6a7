"""The intake of every consumer of events: decode, refuse what breaks the rules, drop repeats."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streaming.events import Decoded, EventRules, decode_events
from streaming.ids import stable_ids
from streaming.log import Record


class Intake:
    """Turns records into events that are acceptable and new.

    An event whose `event_id` is among the last `remembered` ones is a repeat and is dropped.
    Memory is bounded: some 100 bytes for each remembered id.
    """

    def __init__(self, rules: EventRules, remembered: int = 200_000) -> None:
        self._rules = rules
        self._remembered = remembered
        self._seen: OrderedDict[int, None] = OrderedDict()  # in the order of arrival
        self.repeats = 0

    def take(self, records: Sequence[Record]) -> Decoded:
        """The new events of these records, in log order, and what was refused."""
        decoded = decode_events(records, self._rules)
        fresh = self._fresh(stable_ids(decoded.events["event_id"].to_pylist()))
        if fresh.all():
            return decoded
        self.repeats += int((~fresh).sum())
        kept = decoded.events.filter(pa.array(fresh))
        return Decoded(kept, decoded.logged_us[fresh], decoded.rejected)

    def _fresh(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        fresh = np.ones(len(ids), dtype=bool)
        for i, event_id in enumerate(ids.tolist()):
            if event_id in self._seen:
                fresh[i] = False
                continue
            self._seen[event_id] = None
            if len(self._seen) > self._remembered:
                self._seen.popitem(last=False)
        return fresh

    def snapshot(self) -> pa.Table:
        return pa.table({"event": pa.array(list(self._seen), pa.int64())})

    def restore(self, table: pa.Table) -> None:
        self._seen = OrderedDict.fromkeys(table["event"].to_pylist())
