"""Events that were posted: a list as one, lines as they come; what is taken is durable."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from serving.http.bodies import Unpacker
from serving.http.schemas import (
    AcceptedEvent,
    EventsAnswer,
    LinesAnswer,
    RejectedEvent,
    RejectedLine,
)
from serving.metrics import ServingMetrics
from serving.times import time_text
from streaming.errors import EventRejected
from streaming.events import Event, EventRules, encode_event, microseconds, parse_event
from streaming.log import Log

_WAITING_BYTES = 1 << 20
_REJECTED_SHOWN = 1_000


@dataclass(frozen=True, slots=True)
class Desk:
    """Where posted events are taken in."""

    log: Log
    rules: EventRules
    metrics: ServingMetrics

    def append(self, events: list[Event], rejected: int) -> None:
        """The events are durable on return."""
        if events:
            self.log.append([encode_event(event) for event in events])
        self.metrics.events.labels("accepted").inc(len(events))
        self.metrics.events.labels("rejected").inc(rejected)


def take_list(desk: Desk, listed: list[Any]) -> EventsAnswer:
    """Checks each event by itself; those that pass are in the log, durably, on return."""
    now_us = time.time_ns() // 1000
    answer = EventsAnswer()
    events = []
    for index, raw in enumerate(listed):
        try:
            if not isinstance(raw, dict):
                raise EventRejected("event", raw, "not a JSON object")
            event = parse_event(json.dumps(raw).encode(), desk.rules, now_us)
        except EventRejected as error:
            why = {"field": error.field, "value": error.value, "reason": error.reason}
            answer.rejected.append(RejectedEvent(index=index, **why))
            continue
        events.append(event)
        at = None if event.at is None else time_text(microseconds(event.at))
        answer.accepted.append(AcceptedEvent(event_id=event.event_id or "", at=at or ""))
    desk.append(events, len(answer.rejected))
    return answer


# -- lines ---------------------------------------------------------------------------------


class _Line(NamedTuple):
    number: int
    raw: bytes
    size: int


class Lines:
    """Cuts bytes into lines; of one that is longer than `longest` only the beginning is kept."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._held = bytearray()
        self._size = 0
        self._number = 0

    def feed(self, data: bytes) -> Iterator[_Line]:
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._hold(part)
            yield from self.finish(ended=True)
        self._hold(rest)

    def finish(self, *, ended: bool = False) -> Iterator[_Line]:
        """The line that is held, if there is one."""
        if not (ended or self._size):
            return
        self._number += 1
        yield _Line(self._number, bytes(self._held), self._size)
        self._held.clear()
        self._size = 0

    def _hold(self, part: bytes) -> None:
        self._size += len(part)
        self._held += part[: max(0, self._longest - len(self._held))]


class LineTaker:
    """Takes a body of lines in batches of `batch` events; `answer` says what is durable so far."""

    def __init__(self, desk: Desk, batch: int, unpacker: Unpacker) -> None:
        self._desk = desk
        self._batch = batch
        self._unpacker = unpacker
        self._lines = Lines(desk.rules.max_bytes + 1)
        self._waiting: list[_Line] = []
        self._waiting_bytes = 0
        self.answer = LinesAnswer()

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the body.

        Raises:
            HeadraceError: the body or the log cannot go on; `answer` holds for what came before.
        """
        for piece in self._unpacker.feed(data):
            self._take(self._lines.feed(piece))

    def finish(self) -> LinesAnswer:
        """The body has ended.

        Raises:
            HeadraceError: as `feed`.
        """
        for piece in self._unpacker.finish():
            self._take(self._lines.feed(piece))
        self._take(self._lines.finish())
        self.settle()
        return self.answer

    def settle(self) -> None:
        """Appends the lines that wait for their batch to be full."""
        now_us = time.time_ns() // 1000
        events, rejected = [], []
        for line in self._waiting:
            try:
                event = self._parse(line, now_us)
            except EventRejected as error:
                why = {"field": error.field, "value": error.value, "reason": error.reason}
                rejected.append(RejectedLine(line=line.number, **why))
                continue
            if event is not None:
                events.append(event)
        self._desk.append(events, len(rejected))
        answer = self.answer
        if self._waiting:
            answer.lines = self._waiting[-1].number
        answer.accepted_count += len(events)
        answer.rejected_count += len(rejected)
        answer.rejected += rejected[: _REJECTED_SHOWN - len(answer.rejected)]
        self._waiting.clear()
        self._waiting_bytes = 0

    def _take(self, lines: Iterator[_Line]) -> None:
        for line in lines:
            self._waiting.append(line)
            self._waiting_bytes += len(line.raw)
            if len(self._waiting) >= self._batch or self._waiting_bytes >= _WAITING_BYTES:
                self.settle()

    def _parse(self, line: _Line, now_us: int) -> Event | None:
        most = self._desk.rules.max_bytes
        if line.size > most:
            reason = f"an event may have {most} bytes at most"
            raise EventRejected("event", f"{line.size} bytes", reason)
        raw = line.raw.strip()
        return parse_event(raw, self._desk.rules, now_us) if raw else None
