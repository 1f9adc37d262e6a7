"""`EventProducer`, the SDK: events from a Python program into the log, many to a record."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from streaming.errors import Backpressure, EventRejected, LogError
from streaming.events import (
    Event,
    EventRules,
    encode_events,
    event_batch,
    key_of,
    parse_event,
    parse_object,
)
from streaming.log import EVENTS, Append, Log

_FIRST_RETRY_S = 0.05


@dataclass(frozen=True)
class EventProducerConfig:
    """A partition's record leaves with `batch_events`, or `linger_s` after its first event.

    At most `max_pending` events, and about `max_pending_bytes` of them as JSON, wait for the log.
    A log that fails is asked again after ever longer pauses, up to `max_retry_s`; `close` gives
    up after `close_timeout_s`.
    """

    batch_events: PositiveInt = 4_096
    linger_s: NonNegativeFloat = 0.05
    max_pending: PositiveInt = 100_000
    max_pending_bytes: PositiveInt = 64 << 20
    max_retry_s: PositiveFloat = 5.0
    close_timeout_s: NonNegativeFloat = 30.0


class _Pending(NamedTuple):
    event: Event
    size: int
    sent_s: float  # on the monotonic clock


class EventProducer:
    """Sends events in the background; any number of threads may use one producer.

    An event has its `event_id` from the moment it is sent. What is appended a second time,
    because the log failed after it had taken the first, is a repeat that every consumer drops.
    Events of one user stay in order. The log stays open. A process that ends without `close`
    loses what has not left yet.

    >>> from streaming.memory_log import MemoryLog
    >>> log = MemoryLog()
    >>> with EventProducer(log) as producer:
    ...     event_id = producer.send(kind="like", user_id="ada", item_id="318")
    >>> log.ends(["events"])
    {TopicPartition(topic='events', partition=0): 1}
    """

    def __init__(
        self,
        log: Log,
        config: EventProducerConfig | None = None,
        rules: EventRules | None = None,
    ) -> None:
        self._log = log
        self._config = config or EventProducerConfig()
        self._rules = rules or EventRules()
        self._name = secrets.token_hex(8)
        self._numbers = count()
        self._changed = threading.Condition()  # guards all that follows
        self._queue: deque[_Pending] = deque()
        self._by_partition: dict[int, list[_Pending]] = {}
        self._leaving: dict[int, list[_Pending]] = {}
        self._accepted = self._delivered = self._bytes = 0
        self._deliver_up_to = 0  # events that were accepted before a flush do not linger
        self._retry_s = 0.0  # the pause after the last failure; 0 while the log works
        self._failure: Exception | None = None
        self._closing = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="event-producer", daemon=True)
        self._thread.start()

    def send(
        self, event: Event | Mapping[str, Any] | None = None, *, timeout_s: float = 0, **fields: Any
    ) -> str:
        """Accepts an event, given whole or by its fields, and returns its `event_id`.

        Waits up to `timeout_s` for room.

        Raises:
            EventRejected: names the field, its value and what is wrong with it.
            Backpressure: the log does not keep up; the event was not accepted.
            LogError: the producer is closed.
        """
        pending = self._checked(event, fields)
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._fits(pending), timeout_s)
            if self._closing or self._stopped:
                raise LogError(
                    f"the producer is closed{self._reason()}: make a new one"
                ) from self._failure
            if not self._fits(pending):
                raise Backpressure(max(self._retry_s, self._config.linger_s), self._reason())
            self._queue.append(pending)
            self._accepted += 1
            self._bytes += pending.size
            if len(self._queue) in (1, self._config.batch_events):
                self._changed.notify_all()
        return str(pending.event.event_id)

    def flush(self, timeout_s: float | None = None) -> None:
        """Returns once everything sent so far is durable in the log.

        Raises:
            LogError: it was not within `timeout_s`; the events are still on their way.
        """
        with self._changed:
            accepted = self._deliver_up_to = self._accepted
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or self._delivered >= accepted, timeout_s)
            if self._delivered < accepted:
                late = accepted - self._delivered
                raise LogError(
                    f"{late} events are not delivered yet{self._reason()}: look after the log, and"
                    " call flush again"
                ) from self._failure

    def close(self) -> None:
        """Delivers everything and ends; the second time it does nothing.

        Raises:
            LogError: says how many events could not be delivered; `undelivered` has them. Some
                may be in the log after all: sending them again as they are does no harm.
        """
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped, self._config.close_timeout_s)
            self._stopped = True
            self._changed.notify_all()
            left = self._accepted - self._delivered
        if left:
            raise LogError(
                f"{left} events were not delivered{self._reason()}: they are in `undelivered`,"
                " send them again once the log works"
            ) from self._failure
        self._thread.join()

    @property
    def undelivered(self) -> list[Event]:
        """The events that are not known to be durable, those of one user in order."""
        with self._changed:
            groups = (*self._leaving.values(), *self._by_partition.values(), self._queue)
            return [one.event for group in groups for one in group]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- what the caller's thread does -----------------------------------------------------

    def _checked(self, event: Event | Mapping[str, Any] | None, fields: dict[str, Any]) -> _Pending:
        given = msgspec.structs.asdict(event) if isinstance(event, Event) else dict(event or {})
        given = {name: value for name, value in {**given, **fields}.items() if value is not None}
        if "event_id" not in given:  # it travels at a fifth of the bytes of one that is all chance
            given["event_id"] = f"{self._name}-{next(self._numbers)}"
        checked = parse_event(given, self._rules, time.time_ns() // 1000)
        try:
            size = len(msgspec.json.encode(checked))
            if checked.attributes is not None:  # a copy, which the caller cannot change any more
                text = msgspec.json.encode(checked.attributes)
                copy = parse_object(text, self._rules.max_bytes)
                checked = msgspec.structs.replace(checked, attributes=copy)
        except (TypeError, ValueError, RecursionError) as error:
            raise EventRejected("event", given, f"cannot be written as JSON: {error}") from None
        if size > self._rules.max_bytes:
            reason = f"an event may have {self._rules.max_bytes} bytes at most"
            raise EventRejected("event", f"{size} bytes", reason)
        return _Pending(checked, size, time.monotonic())

    def _fits(self, pending: _Pending) -> bool:
        waiting = self._accepted - self._delivered
        config = self._config
        return waiting == 0 or (
            waiting < config.max_pending and self._bytes + pending.size <= config.max_pending_bytes
        )

    def _reason(self) -> str:
        return "" if self._failure is None else f" ({self._failure})"

    # -- what the background thread does ---------------------------------------------------

    def _run(self) -> None:
        try:
            while self._await_work():
                self._attempt()
        except Exception as error:  # noqa: BLE001 - a defect of the log: whoever sends is told
            self._failure = error
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _await_work(self) -> bool:
        """Returns when something may be due; False when all is done."""
        with self._changed:
            if self._retry_s:
                self._changed.wait_for(lambda: self._stopped, self._retry_s)
            while not self._stopped and self._accepted == self._delivered:
                if self._closing:
                    return False
                self._changed.wait()
            if not (self._stopped or self._hurried() or self._leaving):
                firsts = [group[0] for group in self._by_partition.values()]
                oldest_s = min(one.sent_s for one in (*firsts, *list(self._queue)[:1]))
                full = self._config.batch_events
                self._changed.wait_for(
                    lambda: self._stopped or self._hurried() or len(self._queue) >= full,
                    max(0.0, oldest_s + self._config.linger_s - time.monotonic()),
                )
            return not self._stopped

    def _hurried(self) -> bool:
        return self._closing or self._delivered < self._deliver_up_to

    def _attempt(self) -> None:
        """Appends what is due, all or none of it; after a failure the same once more."""
        try:
            if not self._leaving:
                self._gather()
            if self._leaving:
                self._log.append(self._appends())
        except LogError as error:
            self._failure = error
            longer_s = max(_FIRST_RETRY_S, 2 * self._retry_s)
            self._retry_s = min(longer_s, self._config.max_retry_s)
            return
        with self._changed:
            for group in self._leaving.values():
                self._delivered += len(group)
                self._bytes -= sum(one.size for one in group)
            self._leaving = {}
            self._retry_s, self._failure = 0.0, None
            self._changed.notify_all()

    def _gather(self) -> None:
        """Sorts the queue by partition, and makes of what is due the events that leave next."""
        for _ in range(len(self._queue)):
            partition = self._log.partition_of(EVENTS, key_of(self._queue[0].event))
            with self._changed:
                self._by_partition.setdefault(partition, []).append(self._queue.popleft())
        with self._changed:
            lingered_s = time.monotonic() - self._config.linger_s
            for partition, group in list(self._by_partition.items()):
                full = len(group) >= self._config.batch_events
                if full or self._hurried() or group[0].sent_s <= lingered_s:
                    self._leaving[partition] = self._by_partition.pop(partition)

    def _appends(self) -> list[Append]:
        size = self._config.batch_events
        return [
            encode_events(event_batch(one.event for one in group[n : n + size]))._replace(
                partition=partition
            )
            for partition, group in self._leaving.items()
            for n in range(0, len(group), size)
        ]
