"""The replay: a data set's events into the log, each once, never far ahead of those who learn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from streaming.events import encode_events
from streaming.log import EVENTS, Log, TopicPartition


class Source(Protocol):
    """A finite, numbered sequence of events."""

    @property
    def name(self) -> str: ...

    @property
    def total(self) -> int: ...

    def batch(self, start: int, size: int) -> pa.RecordBatch:
        """Up to `size` events from number `start` on."""
        ...


@dataclass(frozen=True)
class ReplayConfig:
    """`record_size` events travel in one record; at most `ahead` records wait for a consumer.

    A small `ahead` keeps the way short for a live event, which queues behind what was replayed.
    `events_per_s` paces the replay; 0 is as fast as it goes. With a `limit` only so many events
    of the source are replayed; 0 is all.
    """

    record_size: PositiveInt = 256
    ahead: PositiveInt = 4
    wait_s: float = 0.01
    events_per_s: NonNegativeFloat = 0.0
    limit: NonNegativeInt = 0


@dataclass(frozen=True, slots=True)
class ReplayProgress:
    """How many of the source's events lie in the log, and the event time reached (µs)."""

    done: int
    total: int
    at_us: int | None


class Replay:
    """Appends a source to `events`, and goes on where it stopped.

    The number of the next event is committed in the same transaction as the events before it,
    as the position of a group that nobody else uses: a killed replay repeats nothing.
    """

    def __init__(
        self, log: Log, source: Source, waiting: Callable[[], int], config: ReplayConfig
    ) -> None:
        self._log = log
        self._source = source
        self._waiting = waiting
        self._config = config
        self._group = f"replay:{source.name}"
        self._place = TopicPartition(EVENTS, 0)
        limit = config.limit or source.total
        self._total = max(min(source.total, limit), self._done())
        self.progress = ReplayProgress(self._done(), self._total, None)

    def run(self, stopping: threading.Event) -> None:
        """Replays until the source ends or it is told to stop."""
        due = time.monotonic()
        while self.progress.done < self._total and not stopping.is_set():
            if self._waiting() >= self._config.ahead or time.monotonic() < due:
                stopping.wait(self._config.wait_s)
                continue
            self._append_next()
            if self._config.events_per_s:
                due += self._config.record_size / self._config.events_per_s

    def _append_next(self) -> None:
        done = self.progress.done
        batch = self._source.batch(done, min(self._config.record_size, self._total - done))
        with self._log.transaction(self._group) as transaction:
            transaction.append([encode_events(batch)])
            transaction.advance({self._place: done}, {self._place: done + batch.num_rows})
        newest = batch["at"][batch.num_rows - 1].value
        self.progress = ReplayProgress(done + batch.num_rows, self._total, newest)

    def _done(self) -> int:
        return self._log.positions(self._group, [EVENTS])[self._place]
