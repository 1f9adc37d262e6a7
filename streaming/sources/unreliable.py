"""A source as the network delivers it: out of order, repeated, from clocks that are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from streaming.events import EVENT_SCHEMA
from streaming.ids import stable_ids
from streaming.sources.chance import Ints, uniform
from streaming.sources.source import Source

_SOURCE_BATCH = 8_192


@dataclass(frozen=True)
class UnreliableConfig:
    """How bad it gets. An event arrives up to `late_by` places of the source late.

    A share `duplicated` arrives a second time, up to as late again. One of `producers` sends
    the events of a user; its clock is wrong by up to `skew_s`, always by the same.
    """

    seed: NonNegativeInt = 0
    late_by: NonNegativeInt = 1_000
    duplicated: NonNegativeFloat = 0.05
    producers: PositiveInt = 4
    skew_s: NonNegativeFloat = 0.0


class Unreliable:
    """Wraps a Source; every event arrives at least once, always in the same wrong order.

    It is a Source itself. Reading forward holds `2 * late_by` events; a step back reads from the
    start.
    """

    def __init__(self, source: Source, config: UnreliableConfig) -> None:
        self._source = source
        self._config = config
        self._twice = self._duplicates(0, source.total)
        self._read = 0
        self._parts: Iterator[pa.RecordBatch] | None = None
        self._held = _none()

    @property
    def name(self) -> str:
        return f"{self._source.name}-unreliable-{self._config.seed}"

    @property
    def total(self) -> int:
        """Repeats are counted."""
        return self._source.total + int(self._twice.sum())

    def batch(self, start: int, size: int) -> pa.RecordBatch:
        """Up to `size` arrivals from number `start` on."""
        if self._parts is None or start < self._read:
            self._read, self._parts, self._held = 0, self._arrivals(), _none()
        wanted = min(start + size, self.total)
        while self._read + self._held.num_rows < wanted:
            part = next(self._parts)
            dropped = min(max(start - self._read, 0), self._held.num_rows)
            self._held = pa.concat_batches([self._held.slice(dropped), part])
            self._read += dropped
        found = self._held.slice(start - self._read, max(wanted - start, 0))
        self._held = self._held.slice(start - self._read)
        self._read = start
        return found

    def _arrivals(self) -> Iterator[pa.RecordBatch]:
        """Everything in the order of arrival: events whose place cannot be overtaken any more."""
        waiting, due = _none(), np.empty(0)
        for first in range(0, self._source.total, _SOURCE_BATCH):
            events = self._skewed(self._source.batch(first, _SOURCE_BATCH))
            places = np.arange(first, first + events.num_rows)
            arrives = places + self._delay("late", places)
            again = np.flatnonzero(self._twice[places])
            repeats = events.take(pa.array(again))
            second = arrives[again] + self._delay("late again", places[again])
            waiting = pa.concat_batches([waiting, events, repeats])
            due = np.concatenate([due, arrives, second])
            order = np.argsort(due, kind="stable")
            safe = int(np.searchsorted(due[order], first + events.num_rows, side="left"))
            yield waiting.take(pa.array(order[:safe]))
            waiting, due = waiting.take(pa.array(order[safe:])), due[order[safe:]]
        yield waiting

    def _duplicates(self, first: int, end: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        twice = uniform(self._config.seed, "twice", np.arange(first, end))
        return twice < self._config.duplicated

    def _delay(self, what: str, places: Ints) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return self._config.late_by * uniform(self._config.seed, what, places)

    def _skewed(self, events: pa.RecordBatch) -> pa.RecordBatch:
        if not self._config.skew_s:
            return events
        senders = pc.coalesce(events["user_id"], events["item_id"], "")
        producer = stable_ids(senders.to_pylist()) % self._config.producers
        skew = 2 * uniform(self._config.seed, "clock", producer) - 1
        skew_us = (self._config.skew_s * 1e6 * skew).astype(np.int64)
        at = pc.add(events["at"].cast(pa.int64()), pa.array(skew_us))
        place = events.schema.get_field_index("at")
        return events.set_column(
            place, EVENT_SCHEMA.field("at"), at.cast(EVENT_SCHEMA.field("at").type)
        )


def _none() -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=EVENT_SCHEMA)
