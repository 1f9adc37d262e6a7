"""The time of a partition, and its events in the order of that time.

The time of a partition is the newest event time seen in it. A sender whose clock runs ahead cannot
push it: no event is later than it was logged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streaming.arrow_record import encode_batch
from streaming.event_columns import Ids
from streaming.events import EVENT_SCHEMA, TICK
from streaming.ids import stable_ids
from streaming.log import EVENTS, Append

_HELD = EVENT_SCHEMA.append(pa.field("held_us", pa.int64())).append(
    pa.field("logged_us", pa.int64())
)


@dataclass(frozen=True, slots=True)
class Ordered:
    """Events to be dealt with now, and for each the time of the partition, which never goes back,
    and when it was logged (µs).
    """

    events: pa.RecordBatch
    now_us: Ids
    logged_us: Ids


def encode_tick(sender: str, at_us: int, partition: int) -> Append:
    """A record that tells a partition of `events` the time; twice the same is a repeat."""
    tick = {"event_id": f"{TICK}/{sender}/{partition}/{at_us}", "kind": TICK, "at": at_us}
    batch = pa.RecordBatch.from_pylist([tick], schema=EVENT_SCHEMA)
    return Append(EVENTS, encode_batch(batch), partition=partition)


class EventOrder:
    """Puts events in the order of their time, as far as `lateness_us` reaches.

    With a lateness of 0 they are taken as they come. Else an event is held back until the time of
    the partition has passed it by the lateness; whatever the order of arrival within that bound,
    and however it is cut into batches, the same events leave in the same order. One that comes
    even later is dealt with at once, and counted.
    """

    def __init__(self, lateness_us: int) -> None:
        self._lateness_us = lateness_us
        self.newest_us = 0
        self.late = 0
        self._held = pa.RecordBatch.from_pylist([], schema=_HELD)

    @property
    def next_due_us(self) -> int | None:
        """After which time of the partition an event that is held will leave; None if none is."""
        if self._held.num_rows == 0:
            return None
        return int(pc.min(self._held["held_us"]).as_py()) + self._lateness_us

    def take(self, events: pa.RecordBatch, logged_us: Ids) -> Ordered:
        """Takes what came, and returns what is due."""
        at_us = np.minimum(events["at"].cast(pa.int64()).to_numpy(zero_copy_only=False), logged_us)
        newest = np.maximum.accumulate(np.append(self.newest_us, at_us))
        self.newest_us = int(newest[-1])
        passed = newest[:-1] - self._lateness_us  # for each, before it came
        tick = pc.equal(events["kind"], TICK).to_numpy(zero_copy_only=False)
        self.late += int(((at_us < passed) & ~tick).sum())
        if self._lateness_us == 0 and self._held.num_rows == 0:
            return Ordered(events, newest[1:], logged_us)
        # A tick stands behind all that is complete by it, and so leaves at once.
        held_us = np.where(tick, newest[1:] - self._lateness_us - 1, np.maximum(at_us, passed))
        held = pa.RecordBatch.from_arrays(
            [*events.columns, pa.array(held_us), pa.array(logged_us)], _HELD.names
        )
        return self._release(pa.concat_batches([self._held, held.cast(_HELD)]))

    def _release(self, held: pa.RecordBatch) -> Ordered:
        held_us = held["held_us"].to_numpy()
        due = (held_us < self.newest_us - self._lateness_us) | (self._lateness_us == 0)
        self._held = held.filter(pa.array(~due))
        held = held.filter(pa.array(due))
        # Among equal times impressions come first, for feedback may carry the time of its request.
        # Ticks come last, in the order of the log.
        later = pc.not_equal(held["kind"], "impression").to_numpy(zero_copy_only=False)
        tick = pc.equal(held["kind"], TICK).to_numpy(zero_copy_only=False)
        ids = np.where(tick, 0, stable_ids(held["event_id"].to_pylist()))
        order = np.lexsort((ids, tick, later, held["held_us"].to_numpy()))
        held = held.take(pa.array(order))
        events = held.select(EVENT_SCHEMA.names).cast(EVENT_SCHEMA)
        return Ordered(events, held["held_us"].to_numpy(), held["logged_us"].to_numpy())

    def table(self) -> pa.Table:
        """What is held."""
        return pa.Table.from_batches([self._held])

    def restore(self, held: pa.Table, newest_us: int, late: int) -> None:
        self._held = pa.concat_batches(held.to_batches() or [self._held])
        self.newest_us = newest_us
        self.late = late
