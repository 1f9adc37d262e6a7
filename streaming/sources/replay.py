"""The replay: a source's events into the log, each once, at the pace that is asked for."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from streaming.errors import ConfigError, Fenced
from streaming.event_order import encode_tick
from streaming.events import EVENT_SCHEMA, encode_events
from streaming.log import EVENTS, Append, Log, TopicPartition
from streaming.sources.source import Source

# A replay counts from here. A group that never was may stand at any lower position: that of the
# first record which its partition still holds.
_COUNT_FROM = 1 << 40
_REMEMBERED_KEYS = 1 << 18


@dataclass(frozen=True)
class ReplayConfig:
    """`record_size` events travel in one record; at most `ahead` records of a partition wait.

    A small `ahead` keeps the way short for a live event, which queues behind what was replayed.
    With a `limit` only so many events of the source are replayed; 0 is all.

    `speed` paces by event time: 1 is as it was, 60 makes a minute a second. `events_per_s` paces by
    number. 0 is as fast as it goes, for both. With `shift_to_now`, which needs a `speed`, each
    event gets the time at which it is due: the next one now. At its end the replay tells every
    partition that event time has come `close_after_s` further, so that what waits for late events
    ends too; 0 tells nothing.
    """

    record_size: PositiveInt = 256
    ahead: PositiveInt = 4
    wait_s: float = 0.01
    speed: NonNegativeFloat = 0.0
    events_per_s: NonNegativeFloat = 0.0
    limit: NonNegativeInt = 0
    shift_to_now: bool = False
    close_after_s: NonNegativeFloat = 0.0


@dataclass(frozen=True, slots=True)
class ReplayProgress:
    """How many of the source's events lie in the log, and the event time reached (µs)."""

    done: int
    total: int
    at_us: int | None


class Replay:
    """Appends a source to `events`, and goes on where it stopped.

    The number of the next event is committed in the same transaction as the events before it, as
    the position of a group that is the source's own: a killed replay repeats nothing, and two of
    one source share the work. Events of one user lie in one partition, in order.

    `waiting` tells how many records wait for a consumer.

    Raises:
        ConfigError: `shift_to_now` without a `speed`.
    """

    def __init__(
        self, log: Log, source: Source, waiting: Callable[[], int], config: ReplayConfig
    ) -> None:
        paced = 0 < config.speed < math.inf
        if config.shift_to_now and not paced:
            raise ConfigError("replay.shift_to_now needs replay.speed: 1 is as fast as it was")
        self._log = log
        self._source = source
        self._waiting = waiting
        self._config = config
        self._group = f"replay:{source.name}"
        self._counter = TopicPartition(EVENTS, 0)
        self._partitions = len(log.ends([EVENTS]))
        self._partition_of = lru_cache(_REMEMBERED_KEYS)(self._ask_partition)
        self._size = config.record_size * self._partitions
        self._clock = _Clock(config.speed, shifting=config.shift_to_now) if paced else None
        self._next: tuple[int, pa.RecordBatch] | None = None
        self._position = 0
        done = self._look_up()
        self._total = max(min(source.total, config.limit or source.total), done)
        self.progress = ReplayProgress(done, self._total, None)

    def run(self, stopping: threading.Event) -> None:
        """Replays until the source ends or it is told to stop."""
        due = time.monotonic()
        while self.progress.done < self._total and not stopping.is_set():
            events = self._events_due() if time.monotonic() >= due else None
            if events is None or self._waiting() >= self._config.ahead * self._partitions:
                stopping.wait(self._config.wait_s)
                continue
            try:
                self._append(events)
            except Fenced:  # another replay of this source was faster: go on from where it is
                self.progress = ReplayProgress(self._look_up(), self._total, self.progress.at_us)
                continue
            if self._config.events_per_s:
                due += events.num_rows / self._config.events_per_s

    def _events_due(self) -> pa.RecordBatch | None:
        """The next events whose time has come, if there are any."""
        done = self.progress.done
        if self._next is None or self._next[0] != done:
            size = min(self._size, self._total - done)
            self._next = (done, self._source.batch(done, size))
        batch = self._next[1]
        if self._clock is None:
            return batch
        at_us = _times_us(batch)
        due = int(np.searchsorted(at_us, self._clock.reached_us(int(at_us[0])), side="right"))
        return self._clock.shifted(batch.slice(0, due)) if due else None

    def _append(self, events: pa.RecordBatch) -> None:
        end = self.progress.done + events.num_rows
        newest_us = int(_times_us(events)[-1])
        records = self._records(events)
        if end == self._total and self._config.close_after_s:
            records += self._ticks(end, newest_us + int(self._config.close_after_s * 1e6))
        with self._log.transaction(self._group) as transaction:
            transaction.append(records)
            counted = _COUNT_FROM + end
            transaction.advance({self._counter: self._position}, {self._counter: counted})
        self._position = counted
        self.progress = ReplayProgress(end, self._total, newest_us)

    def _records(self, events: pa.RecordBatch) -> list[Append]:
        if self._partitions == 1:
            return [encode_events(events)._replace(partition=0)]
        keys = pc.dictionary_encode(pc.coalesce(events["user_id"], events["item_id"], ""))
        of_key = [self._partition_of(key) for key in keys.dictionary.to_pylist()]
        partition = np.array(of_key)[keys.indices.to_numpy()]
        return [
            encode_events(events.filter(pa.array(partition == n)))._replace(partition=n)
            for n in np.unique(partition).tolist()
        ]

    def _ticks(self, end: int, at_us: int) -> list[Append]:
        """Word for every partition that event time is `at_us`, or now if that is earlier."""
        at_us = min(at_us, time.time_ns() // 1000)
        sender = f"{self._source.name}/{end}"
        return [encode_tick(sender, at_us, n) for n in range(self._partitions)]

    def _ask_partition(self, key: str) -> int:
        return self._log.partition_of(EVENTS, key.encode())

    def _look_up(self) -> int:
        """How many events the log says are done."""
        self._position = self._log.positions(self._group, [EVENTS])[self._counter]
        return max(0, self._position - _COUNT_FROM)


class _Clock:
    """Says which event time is due: it runs `speed` times as fast as ours, from the first ask."""

    def __init__(self, speed: float, *, shifting: bool) -> None:
        self._speed = speed
        self._shifting = shifting
        self._first_us: int | None = None
        self._begun_s = 0.0
        self._begun_us = 0

    def reached_us(self, next_us: int) -> int:
        """The event time reached; `next_us` is that of the next event, where the clock starts."""
        if self._first_us is None:
            self._first_us = next_us
            self._begun_s, self._begun_us = time.monotonic(), time.time_ns() // 1000
        return self._first_us + int((time.monotonic() - self._begun_s) * self._speed * 1e6)

    def shifted(self, events: pa.RecordBatch) -> pa.RecordBatch:
        """The events with the times at which they are due, if that is wanted."""
        if not self._shifting or self._first_us is None:
            return events
        since_us = (_times_us(events) - self._first_us) / self._speed
        field = EVENT_SCHEMA.field("at")
        at = pa.array(self._begun_us + since_us.astype(np.int64)).cast(field.type)
        return events.set_column(EVENT_SCHEMA.get_field_index("at"), field, at)


def _times_us(events: pa.RecordBatch) -> NDArray[np.int64]:
    times: NDArray[np.int64] = events["at"].cast(pa.int64()).to_numpy()
    return times
