"""Events: what producers send, the rules they must keep, and their two forms in the log.

One record of the topic `events` is either one JSON object (any producer, any language) or one
Arrow IPC stream that holds a batch with `EVENT_SCHEMA`. Both are read into the same columns.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streaming.arrow_record import STREAM_STARTS, decode_batch, encode_batch
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
        ("position", pa.int32()),
        ("scenario", pa.string()),
        ("value", pa.float64()),
        ("query", pa.string()),
        ("attributes", pa.string()),  # a JSON object, or null
    ]
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TEXTS = ("event_id", "user_id", "item_id", "request_id", "scenario")
_ANY_VALUE = (-1e300, 1e300)
_DEEPEST = 32
_END_OF_TIME_US = 62_135_596_800_000_000  # as long after 1970 as the year 1 is before it
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
        raw = _parse_json(raw, rules.max_bytes)
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
    key = event.user_id or event.item_id or ""
    return Append(EVENTS, msgspec.json.encode(event), key.encode())


def encode_events(batch: pa.RecordBatch, key: bytes | None = None) -> Append:
    """A batch with `EVENT_SCHEMA` as one Arrow record."""
    return Append(EVENTS, encode_batch(batch), key)


def event_batch(events: Iterable[Event]) -> pa.RecordBatch:
    """Checked events as columns with `EVENT_SCHEMA`."""
    rows = [
        {
            **msgspec.structs.asdict(event),
            "attributes": None
            if event.attributes is None
            else msgspec.json.encode(event.attributes).decode(),
        }
        for event in events
    ]
    return pa.RecordBatch.from_pylist(rows, schema=EVENT_SCHEMA)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record, or one row of an Arrow record, that cannot be accepted.

    `raw` is what was refused: the record as it came, or the row as a record of its own.
    """

    record: Record
    row: int | None
    raw: bytes
    error: EventRejected


@dataclass(frozen=True, slots=True)
class Decoded:
    """The acceptable events of some records in log order, and what was refused.

    `logged_us` has one entry per event: when its record was appended.
    """

    events: pa.RecordBatch
    logged_us: np.ndarray[Any, np.dtype[np.int64]]
    rejected: list[Rejected]


def decode_events(records: Sequence[Record], rules: EventRules) -> Decoded:
    """Reads records of the topic `events`, in either form; never raises for what they hold."""
    batches: list[pa.RecordBatch] = []
    logged: list[tuple[int, int]] = []
    rejected: list[Rejected] = []
    singles: list[Event] = []

    def flush_singles() -> None:
        if singles:
            batches.append(event_batch(singles))
            singles.clear()

    for record in records:
        try:
            if record.value.startswith(STREAM_STARTS):
                flush_singles()
                batch, bad = _decode_arrow(record, rules)
                batches.append(batch)
                rejected += bad
                logged.append((record.logged_us, batch.num_rows))
            else:
                singles.append(_read_single(record, rules))
                logged.append((record.logged_us, 1))
        except EventRejected as error:
            rejected.append(Rejected(record, None, record.value, error))
    flush_singles()
    times, counts = zip(*logged, strict=True) if logged else ((), ())
    return Decoded(
        pa.concat_batches(batches) if batches else event_batch([]),
        np.repeat(np.array(times, dtype=np.int64), np.array(counts, dtype=np.int64)),
        rejected,
    )


# -- the rules, one event at a time --------------------------------------------------------


def _read_single(record: Record, rules: EventRules) -> Event:
    """The event of a JSON record; without an id it is named after its place, at every reading."""
    # What was accepted within the limit may have grown by being filled in and written anew.
    raw = _parse_json(record.value, 4 * rules.max_bytes)
    raw.setdefault("event_id", f"{record.topic}/{record.partition}/{record.offset}")
    return parse_event(raw, rules, record.logged_us)


def _parse_json(raw: bytes, max_bytes: int) -> dict[str, Any]:
    if len(raw) > max_bytes:
        reason = f"an event may have {max_bytes} bytes at most"
        raise EventRejected("event", f"{len(raw)} bytes", reason)
    try:
        parsed = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EventRejected("event", raw[:100], f"not a JSON object: {error}") from None
    if not isinstance(parsed, dict):
        raise EventRejected("event", raw[:100], "not a JSON object")
    if _nested_deeper(parsed, _DEEPEST):
        raise EventRejected("event", raw[:100], f"nested more than {_DEEPEST} levels deep")
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
    for name in _TEXTS:
        text = getattr(event, name)
        if text is not None and not 0 < len(text) <= rules.max_id_characters:
            raise EventRejected(name, text, f"must have 1 to {rules.max_id_characters} characters")
    if event.position is not None and not 0 <= event.position < 2**31:
        raise EventRejected("position", event.position, "must be 0 (the top) or more")
    if event.value is not None:
        low, high = rules.value_range.get(event.kind, _ANY_VALUE)
        if not low <= event.value <= high:  # also False for a NaN
            reason = f"must be a number from {low:g} to {high:g} for {event.kind!r}"
            raise EventRejected("value", event.value, reason)
    at_us = microseconds(at)
    if at_us < 0:
        raise EventRejected("at", at.isoformat(), "before 1970")
    if at_us > now_us + rules.max_ahead_s * 1e6:
        reason = f"more than {rules.max_ahead_s:g} s in the future; check the sender's clock"
        raise EventRejected("at", at.isoformat(), reason)


# -- the same rules, on columns ------------------------------------------------------------


def _decode_arrow(record: Record, rules: EventRules) -> tuple[pa.RecordBatch, list[Rejected]]:
    try:
        rows = decode_batch(record.value, EVENT_SCHEMA, "EVENT_SCHEMA")
    except ValueError as error:
        raise EventRejected("event", "an Arrow record", str(error)) from None
    suspects = np.flatnonzero(~_acceptable(rows, rules, record.logged_us))
    if len(suspects) == 0:
        return rows, []
    # The column check only says which rows to look at: the reason comes from the same words
    # that a single event gets.
    rejected, kept = [], np.ones(rows.num_rows, dtype=bool)
    for row in suspects:
        one = rows.slice(row, 1)
        try:
            parse_event(_row_values(one, rules), rules, record.logged_us)
        except EventRejected as error:
            kept[row] = False
            rejected.append(Rejected(record, int(row), encode_batch(one), error))
    return rows.filter(pa.array(kept)), rejected


def _row_values(one: pa.RecordBatch, rules: EventRules) -> dict[str, Any]:
    """A batch of one row as a single event would have come; only those get an id and a time."""
    at_us = one["at"].cast(pa.int64())[0].as_py()
    if at_us is not None and abs(at_us) >= _END_OF_TIME_US:  # no datetime can hold it
        raise EventRejected("at", f"{at_us} us", "not within the years 1970 to 9999")
    (row,) = one.to_pylist()
    values = {name: value for name, value in row.items() if value is not None}
    for name in ("event_id", "at"):
        if name not in values:
            raise EventRejected(name, None, "missing, and every row must have it")
    if "attributes" in values:
        try:
            values["attributes"] = _parse_json(values["attributes"].encode(), rules.max_bytes)
        except EventRejected as error:
            raise EventRejected("attributes", values["attributes"], error.reason) from None
    return values


def _acceptable(rows: pa.RecordBatch, rules: EventRules, now_us: int) -> np.ndarray[Any, Any]:
    """A row that is True keeps every rule; one that is False deserves a closer look."""
    at = rows["at"].cast(pa.int64())
    good = pc.and_(
        pc.greater_equal(at, 0), pc.less_equal(at, now_us + int(rules.max_ahead_s * 1e6))
    )
    for name in _TEXTS:
        size = pc.utf8_length(rows[name])
        fits = pc.and_(pc.greater(size, 0), pc.less_equal(size, rules.max_id_characters))
        good = pc.and_(good, pc.fill_null(fits, name != "event_id"))
    good = pc.and_(good, pc.fill_null(pc.greater_equal(rows["position"], 0), True))
    kinds_ok = pa.array(np.zeros(rows.num_rows, dtype=bool))
    for kind, required in rules.all_kinds.items():
        low, high = rules.value_range.get(kind, _ANY_VALUE)
        ok = pc.equal(rows["kind"], kind)
        for name in required:
            ok = pc.and_(ok, pc.is_valid(rows[name]))
        fits = pc.and_(pc.greater_equal(rows["value"], low), pc.less_equal(rows["value"], high))
        kinds_ok = pc.or_(kinds_ok, pc.and_(ok, pc.fill_null(fits, True)))
    # Attributes are free text inside Arrow: let the single-event check parse them.
    good = pc.and_(good, pc.and_(kinds_ok, pc.is_null(rows["attributes"])))
    result: np.ndarray[Any, Any] = pc.fill_null(good, False).to_numpy(zero_copy_only=False)
    return result
