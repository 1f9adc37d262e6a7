"""From the columns of somebody's file to events: which column is which field, read leniently.

Ids may be numbers, numbers may be text, and times may be written in several ways. A chunk of
columns is converted as a whole; if anything in it is unusual, each of its rows is looked at by
itself, and what cannot be an event is refused with field, value and reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from streaming.errors import ConfigError, EventRejected
from streaming.events import EVENT_SCHEMA, Event, event_batch
from streaming.sources.tabular import Chunk

FIELDS = tuple(EVENT_SCHEMA.names)
_TEXTS = (
    "event_id", "kind", "user_id", "item_id", "request_id", "session_id", "scenario", "query",
)  # fmt: skip
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS_US = {"s": 1_000_000.0, "ms": 1_000.0, "us": 1.0, "ns": 0.001}
# Up to which number a time is taken to be in that unit: from 1973 to the year 5138 they differ.
_UNIT_UP_TO = {"s": 1e11, "ms": 1e14, "us": 1e17, "ns": 1e20}
_TIME_HINT = "write it like 2026-11-21T10:00:00Z or as a Unix time, or tell --at-format"


@dataclass(frozen=True)
class MappingConfig:
    """`columns` names the column of a field, `constants` its value where no column has it.

    `attributes` are columns that go into the attributes under their own names; those in `split`
    become lists. `at_format` is "auto", a unit (s, ms, us, ns) or a pattern of strptime; a time
    without a zone is UTC.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    attributes: tuple[str, ...] = ()
    split: Mapping[str, str] = field(default_factory=dict)
    at_format: str = "auto"

    def __post_init__(self) -> None:
        for name in (*self.columns, *self.constants):
            if name not in FIELDS:
                raise ConfigError(
                    f"{name!r} is no field of an event: known are {', '.join(FIELDS)}"
                )
        if both := self.columns.keys() & self.constants.keys():
            raise ConfigError(f"{min(both)} has a column and a fixed value: give one of the two")
        if self.attributes and "attributes" in {**self.columns, **self.constants}:
            raise ConfigError("--attributes and a column for `attributes`: give one of the two")
        if strangers := self.split.keys() - set(self.attributes):
            raise ConfigError(f"--split {min(strangers)}: it is not among --attributes")
        if self.at_format not in {"auto", *_UNITS_US} and "%" not in self.at_format:
            raise ConfigError(
                f"--at-format {self.at_format!r}: give s, ms, us, ns or a pattern like '%d.%m.%Y'"
            )


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that cannot be an event; `raw` is it as JSON, by the names of events' fields."""

    line: int
    raw: bytes
    error: EventRejected


@dataclass(frozen=True, slots=True)
class Mapped:
    """The rows of a chunk as columns of `EVENT_SCHEMA`, where ids and times may still be absent."""

    events: pa.RecordBatch
    lines: list[int]
    refused: list[Refused]


class EventMapping:
    """A mapping held against the columns of one file; None is a file whose rows name their own.

    Raises:
        ConfigError: a column is not there, or nothing says of which kind the events are.
    """

    def __init__(self, config: MappingConfig, name: str, columns: Sequence[str] | None) -> None:
        self._config = config
        given = {**config.columns, **config.constants}
        # A row that names its own columns is an event already, unless it is said what it is.
        self.strict = columns is None and not config.columns and not config.attributes
        same = {f: f for f in FIELDS if f not in given and (columns is None or f in columns)}
        if config.attributes:
            same.pop("attributes", None)
        self.columns: dict[str, str] = {**same, **config.columns}
        self.ignored: list[str] = []
        if columns is None:
            return
        for target in (*self.columns.values(), *config.attributes):
            if target not in columns:
                raise ConfigError(_no_column(name, target, columns))
        if "kind" not in self.columns and "kind" not in config.constants:
            raise ConfigError(
                f"nothing says of which kind the events of {name} are (its columns are"
                f" {', '.join(columns)}): add --set kind=click, or --map kind=COLUMN"
            )
        if not self.wanted:
            raise ConfigError(
                f"no column of {name} is a field of an event: it has {', '.join(columns)}; name"
                " them, for example with --map user_id=COLUMN --map item_id=COLUMN"
            )
        self.ignored = [
            c for c in columns if c not in self.columns.values() and c not in config.attributes
        ]

    @property
    def wanted(self) -> list[str]:
        """The columns that are needed, each once."""
        return list(dict.fromkeys([*self.columns.values(), *self._config.attributes]))

    def events(self, chunk: Chunk) -> Mapped:
        """The rows of a chunk as events; never raises for what they hold."""
        broken = [
            Refused(b.line, b.raw, EventRejected("row", _shown(b.raw), b.reason))
            for b in chunk.broken
        ]
        if isinstance(chunk.rows, pa.RecordBatch):
            try:
                return Mapped(self._columnar(chunk.rows), chunk.lines, broken)
            except (pa.ArrowException, _Unusual):
                rows: Sequence[Any] = chunk.rows.to_pylist()
        else:
            rows = chunk.rows
        mapped = self._each(rows, chunk.lines)
        return Mapped(mapped.events, mapped.lines, [*broken, *mapped.refused])

    # -- row by row ------------------------------------------------------------------------

    def _each(self, rows: Sequence[Any], lines: Sequence[int]) -> Mapped:
        events, kept, refused = [], [], []
        for line, row in zip(lines, rows, strict=True):
            try:
                events.append(self._event(row))
                kept.append(line)
            except EventRejected as error:
                refused.append(Refused(line, self._raw(row), error))
        return Mapped(event_batch(events), kept, refused)

    def _event(self, row: bytes | Mapping[str, Any]) -> Event:
        if isinstance(row, bytes):
            if self.strict and not self._config.constants and self._config.at_format == "auto":
                try:
                    return _decode_event(row)
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    pass  # the lenient reading has the last word
            row = _object(row)
        return lenient_event(self._fields(row), self._config.at_format)

    def _fields(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row by the names of fields, values as they are."""
        if self.strict:
            return {**row, **self._config.constants}
        values: dict[str, Any] = dict(self._config.constants)
        for name, column in self.columns.items():
            values[name] = _look_up(row, column)
        if self._config.attributes:
            values["attributes"] = self._attributes(row)
        return {name: value for name, value in values.items() if value is not None}

    def _attributes(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        found = {name: _look_up(row, name) for name in self._config.attributes}
        for name, separator in self._config.split.items():
            if isinstance(text := found[name], str):
                found[name] = [part for part in text.split(separator) if part]
        return {name: value for name, value in found.items() if value is not None} or None

    def _raw(self, row: bytes | Mapping[str, Any]) -> bytes:
        try:
            values = _object(row) if isinstance(row, bytes) else row
            return msgspec.json.encode(self._fields(values), enc_hook=str)
        except (EventRejected, UnicodeEncodeError):
            return row if isinstance(row, bytes) else repr(row).encode()

    # -- whole columns ---------------------------------------------------------------------

    def _columnar(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """All rows at once, or an error that says only that something is unusual."""
        n, config = rows.num_rows, self._config
        arrays = {}
        for name, value in config.constants.items():
            event = lenient_event({"kind": "?", name: value}, config.at_format)
            arrays[name] = pa.repeat(event_batch([event])[name][0], n)
        for name, column in self.columns.items():
            arrays[name] = self._field(name, rows[column])
        if config.attributes:
            texts = [
                None if found is None else msgspec.json.encode(found, enc_hook=_plain).decode()
                for found in map(self._attributes, rows.select(config.attributes).to_pylist())
            ]
            arrays["attributes"] = pa.array(texts, pa.string())
        if arrays["kind"].null_count:
            raise _Unusual
        schema = pa.schema([(f.name, f.type) for f in EVENT_SCHEMA])
        columns = [arrays.get(f.name, pa.nulls(n, f.type)) for f in schema]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _field(self, name: str, column: pa.Array) -> pa.Array:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if name in _TEXTS:
            if not (pa.types.is_integer(column.type) or _is_text(column.type)):
                raise _Unusual
            return column.cast(pa.string())
        if name == "position":
            return column.cast(pa.int32())
        if name == "value":
            return column.cast(pa.float64())
        if name == "at":
            return _times(column, self._config.at_format)
        raise _Unusual  # attributes


class _Unusual(Exception):
    """Something that has to be looked at row by row."""


_decode_event: Callable[[bytes], Event] = msgspec.json.Decoder(Event).decode


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _times(column: pa.Array, form: str) -> pa.Array:
    """Times that are all written in one way, as timestamps."""
    target = EVENT_SCHEMA.field("at").type
    if pa.types.is_timestamp(column.type):
        return column.cast(target)
    if _is_text(column.type):
        if "%" in form:
            raise _Unusual
        if form == "auto":
            try:
                return column.cast(pa.timestamp("us")).cast(target)
            except pa.ArrowInvalid:
                pass  # with a zone, or a number
            try:
                return column.cast(target)
            except pa.ArrowInvalid:
                pass
        column = column.cast(pa.int64())
    if not pa.types.is_integer(column.type) or len(column) == column.null_count:
        raise _Unusual
    if pc.min(column).as_py() < 0:
        raise _Unusual
    units = {_unit_of(pc.min_max(column)[end].as_py(), form) for end in ("min", "max")}
    if len(units) > 1:
        raise _Unusual
    (unit,) = units
    if unit == "ns":
        return pc.divide(column, 1_000).cast(target)
    return pc.multiply_checked(column.cast(pa.int64()), int(_UNITS_US[unit])).cast(target)


def _unit_of(number: float, form: str) -> str:
    if form != "auto":
        return form
    for unit, limit in _UNIT_UP_TO.items():
        if abs(number) < limit:
            return unit
    raise _Unusual


# -- one value at a time -------------------------------------------------------------------


def lenient_event(values: Mapping[str, Any], at_format: str = "auto") -> Event:
    """An event of values that somebody else has written; the rules are not looked at.

    >>> lenient_event({"kind": "rate", "user_id": 7, "at": "1700000000", "value": "4.5"}).value
    4.5

    Raises:
        EventRejected: names the field, its value and what is wrong with it.
    """
    known: dict[str, Any] = {}
    for name, value in values.items():
        if name not in FIELDS:
            reason = "unknown field; what is your own belongs inside `attributes`"
            raise EventRejected(name, value, reason)
        if value is None:
            continue
        if name in _TEXTS:
            known[name] = _text(name, value)
        elif name == "at":
            known[name] = _time(value, at_format)
        elif name == "attributes":
            known[name] = _attributes(value)
        else:
            known[name] = _number(name, value)
    if "kind" not in known:
        raise EventRejected("kind", None, "missing, and every event must have it")
    return Event(**known)


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))  # what a table makes of integers when some are absent
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise EventRejected(name, value, "must be text or a number")


def _number(name: str, value: object) -> float | int:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError
        number = float(value)
        if name == "value":
            return number
        if not number.is_integer() or abs(number) >= 2**31:
            raise EventRejected(name, value, "must be 0 (the top) or more, and whole")
        return int(number)
    except (TypeError, ValueError, OverflowError):
        raise EventRejected(name, value, "must be a number") from None


def _time(value: object, form: str) -> datetime:
    try:
        if isinstance(value, datetime):
            at = value
        elif isinstance(value, str) and "%" in form:
            at = datetime.strptime(value, form)
        elif isinstance(value, str) and form == "auto" and not _is_number(value):
            at = datetime.fromisoformat(value.strip())
        elif isinstance(value, int | float | str) and not isinstance(value, bool):
            number = (
                float(value) if isinstance(value, float) or not _is_whole(value) else int(value)
            )
            unit = _unit_of(number, form)
            scaled = number // 1_000 if unit == "ns" else number * int(_UNITS_US[unit])
            at = _EPOCH + timedelta(microseconds=math.floor(scaled))
        else:
            raise TypeError
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (TypeError, ValueError, OverflowError, _Unusual):
        hint = f"it should have the form {form!r}" if form != "auto" else _TIME_HINT
        raise EventRejected("at", value, f"not a time: {hint}") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_whole(value: int | str) -> bool:
    return isinstance(value, int) or value.strip().lstrip("+-").isdecimal()


def _attributes(value: object) -> dict[str, Any]:
    parsed = value
    if isinstance(value, str):
        try:
            parsed = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError):
            parsed = None
    if not isinstance(parsed, dict):
        raise EventRejected("attributes", value, "must be a JSON object")
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(parsed, enc_hook=_plain))
    return plain


def _plain(value: object) -> str:
    """What JSON does not know, as text."""
    return str(value)


def _object(row: bytes) -> dict[str, Any]:
    try:
        parsed = msgspec.json.decode(row)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EventRejected("event", _shown(row), f"not a JSON object: {error}") from None
    if not isinstance(parsed, dict):
        raise EventRejected("event", _shown(row), "not a JSON object")
    return parsed


def _look_up(row: Mapping[str, Any], column: str) -> Any:
    """The value under a name; `customer.id` also finds what lies inside `customer`."""
    if column in row or "." not in column:
        return row.get(column)
    outer, inner = column.split(".", 1)
    inside = row.get(outer)
    return _look_up(inside, inner) if isinstance(inside, Mapping) else None


def _shown(raw: bytes) -> str:
    return raw[:100].decode(errors="replace")


def _no_column(name: str, column: str, columns: Sequence[str]) -> str:
    sentence = f"{name} has no column {column!r}: it has {', '.join(columns[:20])}"
    if len(columns) == 1:
        return f"{sentence}; if that is several columns in one, give the right --delimiter"
    return sentence


# -- names for events that have none -------------------------------------------------------


def with_ids(mapped: Mapped, name: str) -> pa.RecordBatch:
    """The events, those without an id named after the source, their line and what they say.

    The same row of the same file has the same id at every reading.
    """
    events = mapped.events
    if events.num_rows == 0 or events["event_id"].null_count == 0:
        return events
    texts = [
        pa.scalar("\x00")
        if events[name].null_count == events.num_rows
        else pc.fill_null(_as_text(events[name]), "\x00")
        for name in FIELDS[1:]
        if name != "session_id"
    ]
    # Rows without a session keep the ids that releases before there were any gave them.
    session = pc.fill_null(pc.binary_join_element_wise("\x1f", events["session_id"], ""), "")
    joined = pc.binary_join_element_wise(*texts, "\x1f")
    joined = pc.binary_join_element_wise(joined, session, "").cast(pa.binary()).to_pylist()
    source = name[-128:]
    made = [
        f"{source}:{line}:{xxhash.xxh3_64_intdigest(text):016x}"
        for line, text in zip(mapped.lines, joined, strict=True)
    ]
    ids = pc.coalesce(events["event_id"], pa.array(made, pa.string()))
    return events.set_column(0, EVENT_SCHEMA.field("event_id"), ids)


def _as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())  # writing out a date takes a hundred times as long
    return column.cast(pa.string())


def with_times(events: pa.RecordBatch, now_us: int) -> pa.RecordBatch:
    """The events, those without a time happening now; with `EVENT_SCHEMA`."""
    at = EVENT_SCHEMA.field("at").type
    now = pa.scalar(np.int64(now_us), pa.int64()).cast(at)
    columns = [
        pc.fill_null(column, now) if name == "at" else column
        for name, column in zip(events.schema.names, events.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=EVENT_SCHEMA)
