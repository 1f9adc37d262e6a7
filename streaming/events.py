"""Events: what producers send, the rules they must keep, and their two forms in the log.

One record of the topic `events` is either one JSON object (any producer, any language) or one
Arrow IPC stream that holds a batch with `EVENT_SCHEMA`. `decode` reads both into the same columns.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pyarrow as pa

from streaming.arrow_record import encode_batch
from streaming.errors import EventRejected
from streaming.log import EVENTS, Append, Record

EVENT_SCHEMA = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("at", pa.timestamp("us", "UTC"), nullable=False),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("request_id", pa.string()),
        ("session_id", pa.string()),
        ("position", pa.int32()),
        ("scenario", pa.string()),
        ("value", pa.float64()),
        ("query", pa.string()),
        ("attributes", pa.string()),  # a JSON object, or null
    ]
)

LIMITED_TEXTS = ("event_id", "user_id", "item_id", "request_id", "session_id", "scenario")
ANY_VALUE = (-1e300, 1e300)
DEEPEST = 32  # levels of JSON
LONGEST_IN_LOG = 4  # times what may be sent

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TYPE_ERROR = re.compile(r"^(?P<reason>.*) - at `\$\.(?P<field>\w+)")
_FIELD_ERROR = re.compile(r"(?P<reason>unknown|missing required) field `(?P<field>[^`]*)`")


class Event(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """One thing that happened. Ids are strings; `at` is event time, UTC; `position` 0 is the top.

    `event_id` names the event for good: a second event with the same id is dropped.
    """

    kind: str
    user_id: str | None = None
    item_id: str | None = None
    event_id: str | None = None
    at: datetime | None = None
    request_id: str | None = None
    session_id: str | None = None
    position: int | None = None
    scenario: str | None = None
    value: float | None = None
    query: str | None = None
    attributes: dict[str, Any] | None = None


# Says that event time has reached `at`, on a partition where nothing else says so.
TICK = "tick"

DEFAULT_KINDS: Mapping[str, tuple[str, ...]] = {
    "impression": ("user_id", "item_id"),
    "click": ("user_id", "item_id"),
    "like": ("user_id", "item_id"),
    "wish": ("user_id", "item_id"),
    "cart": ("user_id", "item_id"),
    "buy": ("user_id", "item_id"),
    "rate": ("user_id", "item_id", "value"),
    "watch": ("user_id", "item_id", "value"),
    "search": ("user_id", "query"),
    "item": ("item_id",),
    "user": ("user_id",),
}


@dataclass(frozen=True)
class EventRules:
    """What an acceptable event is: an open set of kinds, each with the fields it must carry."""

    kinds: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(DEFAULT_KINDS))
    value_range: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {"rate": (0.0, 5.0), "watch": (0.0, 1.0)}
    )
    max_bytes: int = 65_536
    max_id_characters: int = 256
    max_ahead_s: float = 300.0

    @property
    def all_kinds(self) -> dict[str, tuple[str, ...]]:
        """The kinds of the recipe, and the one that belongs to the stream itself."""
        return {**self.kinds, TICK: ()}


def parse_event(raw: bytes | Mapping[str, Any], rules: EventRules, now_us: int) -> Event:
    """One event from JSON, with `event_id` and `at` filled in where they were absent.

    `now_us` is when it arrived (UTC, microseconds): it becomes `at` where none is given.

    Raises:
        EventRejected: names the field, its value and what is wrong with it.
    """
    if isinstance(raw, bytes):
        raw = parse_object(raw, rules.max_bytes)
    position = raw.get("position")
    if isinstance(position, float) and position.is_integer():
        raw = {**raw, "position": int(position)}  # in JSON 2.0 is the integer 2
    try:
        event = msgspec.convert(raw, Event)
        at = _EPOCH + timedelta(microseconds=now_us) if event.at is None else event.at
    except msgspec.ValidationError as error:
        raise _explain(str(error), raw) from None
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    event_id = uuid.uuid4().hex if event.event_id is None else event.event_id
    event = msgspec.structs.replace(event, event_id=event_id)
    _check(event, at, rules, now_us)
    return msgspec.structs.replace(event, at=at.astimezone(UTC))


def microseconds(at: datetime) -> int:
    """An aware time as whole microseconds since 1970, UTC."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def encode_event(event: Event) -> Append:
    """The event as a JSON record; events of one user share a partition, and so do an item's."""
    return Append(EVENTS, msgspec.json.encode(event), key_of(event))


def key_of(event: Event) -> bytes:
    """What decides the partition of an event: its user, else its item."""
    return (event.user_id or event.item_id or "").encode()


def encode_events(batch: pa.RecordBatch, key: bytes | None = None) -> Append:
    """A batch with `EVENT_SCHEMA` as one Arrow record."""
    return Append(EVENTS, encode_batch(batch), key)


def event_batch(events: Iterable[Event]) -> pa.RecordBatch:
    """Checked events as columns with `EVENT_SCHEMA`."""
    rows = list(events)
    columns = {f.name: [getattr(event, f.name) for event in rows] for f in EVENT_SCHEMA}
    columns["attributes"] = [
        None if found is None else msgspec.json.encode(found).decode()
        for found in columns["attributes"]
    ]
    arrays = [pa.array(columns[f.name], f.type) for f in EVENT_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=EVENT_SCHEMA)


def read_event(record: Record, rules: EventRules) -> Event:
    """The event of a JSON record; without an id it is named after its place, at every reading.

    Raises:
        EventRejected: as `parse_event` does.
    """
    # What was accepted within the limit may have grown by being filled in and written anew.
    raw = parse_object(record.value, LONGEST_IN_LOG * rules.max_bytes)
    if raw.get("event_id") is None:
        raw["event_id"] = name_of(record)
    return parse_event(raw, rules, record.logged_us)


def name_of(record: Record) -> str:
    """The `event_id` of an event that came without one."""
    return f"{record.topic}/{record.partition}/{record.offset}"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record, or one row of an Arrow record, that cannot be accepted.

    `raw` is what was refused: the record as it came, or the row as a record of its own.
    """

    record: Record
    row: int | None
    raw: bytes
    error: EventRejected


def parse_object(raw: bytes, max_bytes: int, levels: int = DEEPEST) -> dict[str, Any]:
    """A JSON object, nested so many levels at most.

    Raises:
        EventRejected: it is too long, too deep, or not a JSON object.
    """
    if len(raw) > max_bytes:
        reason = f"an event may have {max_bytes} bytes at most"
        raise EventRejected("event", f"{len(raw)} bytes", reason)
    try:
        parsed = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EventRejected("event", raw[:100], f"not a JSON object: {error}") from None
    if not isinstance(parsed, dict):
        raise EventRejected("event", raw[:100], "not a JSON object")
    # Most have fewer brackets than levels are allowed, and need no closer look.
    if raw.count(b"{") + raw.count(b"[") > levels and _nested_deeper(parsed, levels):
        raise EventRejected("event", raw[:100], f"nested more than {levels} levels deep")
    return parsed


def _nested_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_nested_deeper(one, levels - 1) for one in inside)


def _explain(message: str, raw: Mapping[str, Any]) -> EventRejected:
    if match := _TYPE_ERROR.match(message):
        name, reason = match["field"], match["reason"]
        if name == "at":
            reason += ": write it like 2026-11-21T10:00:00Z"
        if name in ("user_id", "item_id"):
            reason += ": ids are strings, put it in quotes"
        return EventRejected(name, raw.get(name), reason)
    if match := _FIELD_ERROR.search(message):
        name = match["field"]
        if match["reason"] == "unknown":
            reason = "unknown field; what is your own belongs inside `attributes`"
            return EventRejected(name, raw.get(name), reason)
        return EventRejected(name, None, "missing, and every event must have it")
    return EventRejected("event", raw, message)


def _check(event: Event, at: datetime, rules: EventRules, now_us: int) -> None:
    required = rules.all_kinds.get(event.kind)
    if required is None:
        raise EventRejected("kind", event.kind, f"unknown; known are {', '.join(rules.kinds)}")
    for name in required:
        if getattr(event, name) is None:
            raise EventRejected(name, None, f"missing, and kind {event.kind!r} must have it")
    for name in LIMITED_TEXTS:
        text = getattr(event, name)
        if text is not None and not 0 < len(text) <= rules.max_id_characters:
            raise EventRejected(name, text, f"must have 1 to {rules.max_id_characters} characters")
    if event.position is not None and not 0 <= event.position < 2**31:
        raise EventRejected("position", event.position, "must be 0 (the top) or more")
    if event.value is not None:
        low, high = rules.value_range.get(event.kind, ANY_VALUE)
        if not low <= event.value <= high:  # also False for a NaN
            reason = f"must be a number from {low:g} to {high:g} for {event.kind!r}"
            raise EventRejected("value", event.value, reason)
    at_us = microseconds(at)
    if at_us < 0:
        raise EventRejected("at", at.isoformat(), "before 1970")
    if at_us > now_us + rules.max_ahead_s * 1e6:
        reason = f"more than {rules.max_ahead_s:g} s in the future; check the sender's clock"
        raise EventRejected("at", at.isoformat(), reason)
