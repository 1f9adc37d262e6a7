"""The intake of every consumer of events: decode, refuse what breaks the rules, drop repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streaming.decode import Decoded, decode_events
from streaming.events import EVENT_SCHEMA, EventRules, Rejected
from streaming.ids import stable_ids
from streaming.kernels import EMPTY, compiled, get, put, remove, slots_for
from streaming.log import Record

_FIELDS = frozenset((*EVENT_SCHEMA.names, "event"))  # `event` is the whole of it


class Intake:
    """Turns records into events that are acceptable and new.

    An event whose `event_id` is among the last `remembered` ones is a repeat and is dropped.
    Memory is bounded: 34 to 61 bytes for each remembered id, from the start. What is counted is
    counted since this object was made; of the repeats, its owner may go on with an older count.
    """

    def __init__(self, rules: EventRules, remembered: int = 200_000) -> None:
        self._rules = rules
        self._ring = np.empty(remembered, dtype=np.int64)  # ids in the order of arrival
        self._taken = 0  # so many ids were put into the ring, round and round
        self._places = slots_for(remembered + 1)
        self.accepted = 0
        self.repeats = 0
        self.rejected: Counter[str] = Counter()  # by the field that was wrong

    def take(self, records: Sequence[Record]) -> Decoded:
        """The new events of these records, in log order, and what was refused."""
        decoded = decode_events(records, self._rules)
        self.rejected.update(_field(one) for one in decoded.rejected)
        fresh = self._fresh(stable_ids(decoded.events["event_id"].to_pylist()))
        accepted = int(fresh.sum())
        self.accepted += accepted
        if accepted == len(fresh):
            return decoded
        self.repeats += len(fresh) - accepted
        kept = decoded.events.filter(pa.array(fresh))
        return Decoded(kept, decoded.logged_us[fresh], decoded.rejected)

    def _fresh(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        fresh = np.zeros(len(ids), dtype=np.bool_)
        self._taken = _remember(ids, self._ring, self._places, self._taken, fresh)
        return fresh

    def snapshot(self) -> pa.Table:
        """The ids, oldest first; the table shares no memory with the intake."""
        size = min(self._taken, len(self._ring))
        in_order = self._ring[np.arange(self._taken - size, self._taken) % len(self._ring)]
        return pa.table({"event": pa.array(in_order, pa.int64())})

    def restore(self, table: pa.Table) -> None:
        """Remembers what the snapshot holds, of it the newest where there is less room now."""
        self._taken = 0
        self._places = slots_for(len(self._ring) + 1)
        self._fresh(table["event"].combine_chunks().to_numpy())


def _field(rejected: Rejected) -> str:
    """Which field was wrong; senders may invent names, of which there must be no end of counts."""
    name = rejected.error.field
    return name if name in _FIELDS else "unknown"


@compiled
def _remember(
    ids: NDArray[np.int64],
    ring: NDArray[np.int64],
    places: NDArray[np.int64],
    taken: int,
    fresh: NDArray[np.bool_],
) -> int:
    """Marks the ids that are not in the ring, each put into it for the oldest; how many ever."""
    for i in range(len(ids)):
        if get(places, ids[i]) != EMPTY:
            continue
        fresh[i] = True
        slot = taken % len(ring)
        if taken >= len(ring):
            remove(places, ring[slot])
        ring[slot] = ids[i]
        put(places, ids[i], slot)
        taken += 1
    return taken
