"""Events: the rules, the words of a refusal, and two forms that mean the same."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streaming.decode import Decoded, decode_events
from streaming.errors import EventRejected
from streaming.events import (
    DEFAULT_KINDS,
    EVENT_SCHEMA,
    Event,
    EventRules,
    encode_event,
    encode_events,
    event_batch,
    microseconds,
    parse_event,
)
from streaming.log import EVENTS, Append, Record

NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
NOW_US = microseconds(NOW)
RULES = EventRules()
RATE: dict[str, Any] = {"kind": "rate", "user_id": "u", "item_id": "i", "value": 4.5}
USER: dict[str, Any] = {"kind": "user", "user_id": "u"}

AsRecords = Callable[[list[Append]], list[Record]]


def parse(event: dict[str, Any]) -> Event:
    return parse_event(json.dumps(event).encode(), RULES, NOW_US)


def refusal(raw: bytes | dict[str, Any]) -> EventRejected:
    raw = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    with pytest.raises(EventRejected) as caught:
        parse_event(raw, RULES, NOW_US)
    return caught.value


def record(value: bytes) -> Record:
    return Record(EVENTS, 0, 0, None, value, NOW_US)


def decode(*values: bytes) -> Decoded:
    return decode_events([record(value) for value in values], RULES)


def arrow(rows: list[dict[str, Any]], schema: pa.Schema = EVENT_SCHEMA) -> bytes:
    """An Arrow record as another program might send it: nothing about the rows is checked."""
    arrays = [pa.array([row.get(f.name) for row in rows], f.type) for f in schema]
    return stream(pa.RecordBatch.from_arrays(arrays, schema=schema))


def stream(batch: pa.RecordBatch, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    value: bytes = sink.getvalue().to_pybytes()
    return value


# What is accepted


def test_an_event_comes_back_with_every_field() -> None:
    sent = {
        **RATE,
        "event_id": "e",
        "at": "2024-05-06T07:08:09.123456Z",
        "request_id": "r",
        "session_id": "s",
        "position": 3,
        "scenario": "home",
        "query": "q",
        "attributes": {"colour": ["red", {"deep": 1}]},
    }
    assert parse(sent) == Event(
        kind="rate",
        user_id="u",
        item_id="i",
        event_id="e",
        at=NOW,
        request_id="r",
        session_id="s",
        position=3,
        scenario="home",
        value=4.5,
        query="q",
        attributes={"colour": ["red", {"deep": 1}]},
    )


@pytest.mark.parametrize("kind", DEFAULT_KINDS)
def test_every_kind_needs_exactly_its_fields(kind: str) -> None:
    values = {"user_id": "u", "item_id": "i", "value": 0.5, "query": "q"}
    whole = {"kind": kind, **{name: values[name] for name in DEFAULT_KINDS[kind]}}
    assert parse(whole).kind == kind
    for name in DEFAULT_KINDS[kind]:
        error = refusal({k: v for k, v in whole.items() if k != name})
        assert (error.field, error.value) == (name, "None")
        assert error.reason == f"missing, and kind {kind!r} must have it"


def test_an_event_without_a_time_happened_when_it_arrived() -> None:
    assert parse(USER).at == NOW


def test_an_event_without_an_id_gets_one_of_its_own() -> None:
    first, second = parse(USER).event_id, parse(USER).event_id
    assert first
    assert second
    assert first != second


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-05-06T07:08:09Z", datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)),
        ("2024-05-06T07:08:09", datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)),
        ("2024-05-06T07:08:09+02:00", datetime(2024, 5, 6, 5, 8, 9, tzinfo=UTC)),
        ("1970-01-01T00:00:00Z", datetime(1970, 1, 1, tzinfo=UTC)),
        ("2024-05-06T07:13:09.123456Z", NOW + timedelta(seconds=300)),
    ],
)
def test_times_become_utc_and_one_without_a_zone_is_taken_for_utc(
    text: str, expected: datetime
) -> None:
    at = parse({**USER, "at": text}).at
    assert at == expected
    assert at is not None
    assert at.utcoffset() == timedelta(0)


@pytest.mark.parametrize("characters", [1, 256])
def test_ids_may_have_up_to_256_characters_of_any_script(characters: int) -> None:
    assert parse({**USER, "user_id": "é" * characters}).user_id == "é" * characters


@pytest.mark.parametrize("value", [0, 0.0, 2.5, 5, 5.0])
def test_the_ends_of_the_range_belong_to_it(value: float) -> None:
    assert parse({**RATE, "value": value}).value == value


def test_a_position_may_be_written_as_a_number_with_a_point() -> None:
    assert parse({**RATE, "position": 2.0}).position == 2


def test_a_kind_without_a_range_takes_any_number() -> None:
    assert parse({**RATE, "kind": "buy", "value": -1e17}).value == -1e17


def test_the_kinds_and_limits_are_those_of_the_rules() -> None:
    rules = EventRules(
        kinds={"hum": ("query",)}, value_range={"hum": (7, 8)}, max_id_characters=2, max_bytes=99
    )
    event: dict[str, Any] = {"kind": "hum", "query": "q", "value": 7.5, "event_id": "ab"}
    assert parse_event(event, rules, NOW_US).value == 7.5
    for change in ({"kind": "click"}, {"value": 6.5}, {"event_id": "abc"}, {"query": "q" * 99}):
        with pytest.raises(EventRejected):
            parse_event(json.dumps(event | change).encode(), rules, NOW_US)


# What is refused, and in which words


@pytest.mark.parametrize(
    ("change", "name", "value", "reason"),
    [
        ({"user_id": 7}, "user_id", "7", "Expected `str | null`, got `int`: ids are strings, put"),
        ({"item_id": 1.5}, "item_id", "1.5", "ids are strings, put it in quotes"),
        ({"event_id": True}, "event_id", "True", "Expected `str | null`, got `bool`"),
        ({"user_id": ""}, "user_id", "''", "must have 1 to 256 characters"),
        ({"item_id": "x" * 257}, "item_id", "'" + "x" * 116 + "...", "must have 1 to 256"),
        ({"scenario": "x" * 257}, "scenario", "'" + "x" * 116 + "...", "must have 1 to 256"),
        ({"session_id": "x" * 257}, "session_id", "'" + "x" * 116 + "...", "must have 1 to 256"),
        ({"session_id": ""}, "session_id", "''", "must have 1 to 256 characters"),
        ({"session_id": 7}, "session_id", "7", "Expected `str | null`, got `int`"),
        ({"kind": "dance"}, "kind", "'dance'", "unknown; known are impression, click, like"),
        ({"kind": 3}, "kind", "3", "Expected `str`, got `int`"),
        ({"kind": None}, "kind", "None", "Expected `str`, got `null`"),
        ({"value": 5.01}, "value", "5.01", "must be a number from 0 to 5 for 'rate'"),
        ({"value": -0.01}, "value", "-0.01", "must be a number from 0 to 5 for 'rate'"),
        ({"value": "4"}, "value", "'4'", "Expected `float | null`, got `str`"),
        ({"value": 10**400}, "value", "1" + "0" * 116 + "...", "out of range"),
        ({"kind": "buy", "value": 1e301}, "value", "1e+301", "must be a number from -1e+300 to"),
        ({"position": -1}, "position", "-1", "must be 0 (the top) or more"),
        ({"position": 2**31}, "position", str(2**31), "must be 0 (the top) or more"),
        ({"position": 1.5}, "position", "1.5", "Expected `int | null`, got `float`"),
        ({"at": "yesterday"}, "at", "'yesterday'", "write it like 2026-11-21T10:00:00Z"),
        ({"at": "2024-02-30T00:00:00Z"}, "at", "'2024-02-30T00:00:00Z'", "write it like"),
        ({"at": 1714979289}, "at", "1714979289", "write it like 2026-11-21T10:00:00Z"),
        ({"at": "1969-12-31T23:59:59Z"}, "at", "'1969-12-31T23:59:59+00:00'", "before 1970"),
        (
            {"at": "2024-05-06T07:13:10Z"},
            "at",
            "'2024-05-06T07:13:10+00:00'",
            "more than 300 s in the future; check the sender's clock",
        ),
        ({"attributes": [1]}, "attributes", "[1]", "Expected `object | null`, got `array`"),
        ({"colour": "red"}, "colour", "'red'", "unknown field; what is your own belongs inside"),
    ],
)
def test_a_refusal_names_the_field_its_value_and_the_reason(
    change: dict[str, Any], name: str, value: str, reason: str
) -> None:
    error = refusal(RATE | change)
    assert (error.field, error.value) == (name, value)
    assert reason in error.reason
    assert str(error) == f"{error.field} = {error.value}: {error.reason}"


def test_an_event_without_a_kind_is_refused() -> None:
    error = refusal({"user_id": "u"})
    assert (error.field, error.reason) == ("kind", "missing, and every event must have it")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["rate", "buy"])
def test_a_value_that_is_not_a_finite_number_is_refused(kind: str, value: float) -> None:
    with pytest.raises(EventRejected, match=r"value = .*must be a number from"):
        parse_event({**RATE, "kind": kind, "value": value}, RULES, NOW_US)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"no", b'{"kind":"user","user_id":"\xff"}', b'{"value":NaN}', b"[1", b"\x00" * 9],
)
def test_what_is_not_json_is_refused_and_shown(raw: bytes) -> None:
    error = refusal(raw)
    assert error.field == "event"
    assert error.value == repr(raw)
    assert error.reason.startswith("not a JSON object: ")


@pytest.mark.parametrize("raw", [b"[]", b'[{"kind":"user"}]', b"null", b"7", b'"text"'])
def test_json_that_is_not_an_object_is_refused(raw: bytes) -> None:
    error = refusal(raw)
    assert (error.field, error.reason) == ("event", "not a JSON object")


def test_an_event_may_have_65536_bytes_and_no_more() -> None:
    empty = len(json.dumps({**USER, "query": ""}))
    assert parse({**USER, "query": "x" * (65_536 - empty)}).query
    error = refusal({**USER, "query": "x" * (65_537 - empty)})
    assert (error.field, error.value) == ("event", "'65537 bytes'")
    assert error.reason == "an event may have 65536 bytes at most"


@pytest.mark.parametrize(
    "form", [b"%b", b'{"kind":%b}', b'{"kind":"user","user_id":"u","attributes":{"a":%b}}']
)
@pytest.mark.parametrize("depth", [900, 940, 960, 980, 1_000, 30_000])
def test_json_nested_ever_so_deep_is_refused(form: bytes, depth: int) -> None:
    assert refusal(form % (b"[" * depth + b"]" * depth)).reason


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_that_leaves_the_calendar_in_utc_is_refused(at: str) -> None:
    assert refusal({**USER, "at": at}).field == "at"


def test_an_empty_event_id_is_refused_like_any_other_empty_id() -> None:
    assert refusal({**USER, "event_id": ""}).field == "event_id"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
FIELDS = st.sampled_from(Event.__struct_fields__)


@given(st.binary() | st.binary().map(lambda tail: b"\xff\xff\xff\xff" + tail))
def test_any_bytes_are_an_event_or_refused(raw: bytes) -> None:
    decoded = decode(raw)
    assert decoded.events.num_rows + len(decoded.rejected) <= 1
    assert all(str(rejected.error) for rejected in decoded.rejected)


@given(JSON | st.dictionaries(FIELDS | st.text(max_size=3), JSON, max_size=5))
@example({"kind": "user", "user_id": "u", "at": "9999-12-31T23:59:59-00:01"})
@example({"kind": "user", "user_id": "u", "attributes": {"n": 10**40}})
def test_any_json_is_an_event_or_refused(value: Any) -> None:
    decoded = decode(json.dumps(value).encode())
    assert decoded.events.num_rows + len(decoded.rejected) == 1
    assert decoded.events.schema == EVENT_SCHEMA


# Two forms, one meaning

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
MAYBE_TEXT = st.none() | TEXT
TIMES = st.datetimes(datetime(1970, 1, 1), datetime(2024, 5, 6)).map(
    lambda at: at.replace(tzinfo=UTC)
)


@st.composite
def good_events(draw: st.DrawFn) -> Event:
    kind = draw(st.sampled_from(sorted(DEFAULT_KINDS)))
    needed = DEFAULT_KINDS[kind]

    def text(name: str) -> str | None:
        return draw(TEXT if name in needed else MAYBE_TEXT)

    value = draw(st.floats(0, 1) if "value" in needed else st.none() | st.floats(0, 1))
    attributes = st.dictionaries(TEXT, st.integers() | TEXT | st.lists(TEXT), max_size=2)
    return Event(
        kind=kind,
        user_id=text("user_id"),
        item_id=text("item_id"),
        query=text("query"),
        event_id=draw(TEXT),
        at=draw(TIMES),
        request_id=draw(MAYBE_TEXT),
        session_id=draw(MAYBE_TEXT),
        position=draw(st.none() | st.integers(0, 2**31 - 1)),
        scenario=draw(MAYBE_TEXT),
        value=value,
        attributes=draw(st.none() | attributes),
    )


@given(st.lists(st.lists(good_events(), max_size=3), max_size=4), st.data())
def test_json_and_arrow_hold_the_same_columns(
    groups: list[list[Event]], data: st.DataObject
) -> None:
    events = [event for group in groups for event in group]
    as_json = [record(encode_event(event).value) for event in events]
    one_arrow = [record(encode_events(event_batch(events)).value)]
    mixed: list[Record] = []
    for group in groups:
        if data.draw(st.booleans()):
            mixed.append(record(encode_events(event_batch(group)).value))
        else:
            mixed += [record(encode_event(event).value) for event in group]

    expected = event_batch(events)
    for records in (as_json, one_arrow, mixed):
        decoded = decode_events(records, RULES)
        assert decoded.events.equals(expected)
        assert decoded.logged_us.tolist() == [NOW_US] * len(events)
        assert decoded.rejected == []


def test_an_event_that_was_accepted_is_accepted_again_when_it_is_read_from_the_log() -> None:
    """The id and the time that it was given make it longer than it came."""
    empty = len(json.dumps({**USER, "query": ""}))
    event = parse({**USER, "query": "x" * (65_536 - empty)})
    decoded = decode(encode_event(event).value)
    assert decoded.rejected == []
    assert decoded.events.equals(event_batch([event]))


def test_a_record_without_an_id_has_the_same_id_at_every_reading() -> None:
    """A step that replays its records must come to the same state."""
    value = json.dumps(USER).encode()
    records = [Record(EVENTS, 0, offset, None, value, NOW_US) for offset in range(3)]
    first, again = (decode_events(records, RULES).events["event_id"] for _ in range(2))
    assert first.equals(again)
    assert len(set(first.to_pylist())) == 3


def test_an_event_carries_the_time_at_which_its_own_record_was_logged() -> None:
    pair = encode_events(event_batch([parse(USER), parse(USER)])).value
    single = encode_event(parse(USER)).value
    bad = b"{}"
    values = [single, pair, bad, single, b"\xff\xff\xff\xff", pair]
    records = [Record(EVENTS, 0, n, None, v, NOW_US + n) for n, v in enumerate(values)]
    decoded = decode_events(records, RULES)
    assert (decoded.logged_us - NOW_US).tolist() == [0, 1, 1, 3, 5, 5]
    assert [r.record.offset for r in decoded.rejected] == [2, 4]


def test_no_records_are_no_events() -> None:
    decoded = decode()
    assert decoded.events.schema == EVENT_SCHEMA
    assert decoded.events.num_rows == len(decoded.logged_us) == 0


def test_events_of_one_user_share_a_key_and_so_do_those_of_an_item() -> None:
    assert encode_event(parse(RATE)).key == b"u"
    assert encode_event(parse({"kind": "item", "item_id": "i"})).key == b"i"
    assert encode_event(parse(RATE)).topic == EVENTS


def test_events_written_before_there_were_sessions_are_read_without_one() -> None:
    event = parse({**RATE, "event_id": "e", "at": "2024-05-06T07:08:09Z", "request_id": "r"})
    new = event_batch([event])
    old = new.select([name for name in EVENT_SCHEMA.names if name != "session_id"])
    single = encode_event(event).value
    assert b"session_id" not in single
    for values in ([stream(old)], [stream(old), stream(old)], [single], [single, stream(old)]):
        decoded = decode(*values)
        assert decoded.rejected == []
        assert decoded.events.equals(pa.concat_batches([new] * len(values)))
        assert decoded.events["session_id"].null_count == len(values)


# Arrow records


def test_bad_rows_are_refused_alone_and_the_others_kept() -> None:
    good = {"event_id": "e", "at": NOW_US, **RATE}
    changes: list[dict[str, Any]] = [
        {},
        {"value": 9.0},
        {"kind": "dance"},
        {"attributes": '{"a": 1}'},
        {"user_id": None},
        {"position": -1},
        {"at": -1},
        {"at": NOW_US + 10**9},
        {"item_id": "x" * 257},
        {"value": float("nan")},
        {},
    ]
    decoded = decode(arrow([{**good, **change} for change in changes]))
    assert decoded.events.num_rows == len(decoded.logged_us) == 3
    assert decoded.events["attributes"].to_pylist() == [None, '{"a": 1}', None]
    assert [rejected.row for rejected in decoded.rejected] == [1, 2, 4, 5, 6, 7, 8, 9]
    for rejected in decoded.rejected:
        assert rejected.row is not None
        row = {**good, **changes[rejected.row]}
        row["at"] = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=row["at"])
        with pytest.raises(EventRejected) as alone:
            parse_event({k: v for k, v in row.items() if v is not None}, RULES, NOW_US)
        assert str(rejected.error) == str(alone.value)


IDS = st.none() | st.sampled_from(["", "i", "é" * 256, "x" * 257])
ROWS = st.fixed_dictionaries(
    {
        "event_id": st.sampled_from(["e", "x" * 256, "x" * 257]),
        "kind": st.none() | st.sampled_from(["", "dance", *DEFAULT_KINDS]),
        "at": st.sampled_from([0, -1, NOW_US, NOW_US + 300_000_000, NOW_US + 300_000_001])
        | st.integers(-(10**15), 10**16),
        "user_id": IDS,
        "item_id": IDS,
        "request_id": IDS,
        "session_id": IDS,
        "position": st.none() | st.sampled_from([-(2**31), -1, 0, 2**31 - 1]),
        "scenario": IDS,
        "value": st.none() | st.floats() | st.sampled_from([0.0, 1.0, 5.0, 1e300, -1e301]),
        "query": st.none() | st.sampled_from(["", "q"]),
        "attributes": st.none() | st.sampled_from(["{}", '{"a":[1]}', "[1]", "{", ""]),
    }
)


@given(st.lists(ROWS, min_size=1, max_size=20))
def test_the_column_check_accepts_what_a_single_event_may_be_and_nothing_else(
    rows: list[dict[str, Any]],
) -> None:
    reasons: list[str | None] = []
    for row in rows:
        event = {name: value for name, value in row.items() if value is not None}
        event["at"] = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=row["at"])
        try:
            if row["attributes"] is not None:
                event["attributes"] = msgspec.json.decode(row["attributes"], type=dict[str, Any])
            parse_event(event, RULES, NOW_US)
            reasons.append(None)
        except EventRejected as error:
            reasons.append(str(error))
        except msgspec.DecodeError:
            reasons.append("")

    decoded = decode(arrow(rows))
    kept = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    assert decoded.events["user_id"].to_pylist() == [row["user_id"] for row in kept]
    assert decoded.events["position"].to_pylist() == [row["position"] for row in kept]
    refused = {row: reason for row, reason in enumerate(reasons) if reason is not None}
    assert [rejected.row for rejected in decoded.rejected] == list(refused)
    for rejected, reason in zip(decoded.rejected, refused.values(), strict=True):
        assert not reason or str(rejected.error) == reason


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"event_id": None}, "event_id"),
        ({"event_id": ""}, "event_id"),
        ({"at": None}, "at"),
        ({"at": 2**62}, "at"),
        ({"at": -(2**62)}, "at"),
        ({"attributes": "[1]"}, "attributes"),
        ({"attributes": "{"}, "attributes"),
        ({"attributes": '{"a":' + "[" * 5_000 + "]" * 5_000 + "}"}, "attributes"),
    ],
)
def test_a_row_of_an_arrow_record_is_refused_by_the_name_of_its_field(
    change: dict[str, Any], name: str
) -> None:
    good = {"event_id": "e", "at": NOW_US, **USER}
    decoded = decode(arrow([good, {**good, **change}]))
    assert decoded.events.num_rows == 1
    (rejected,) = decoded.rejected
    assert (rejected.row, rejected.error.field) == (1, name)


def test_a_truncated_arrow_record_is_refused_whole(as_records: AsRecords) -> None:
    whole = encode_events(event_batch([parse(RATE) for _ in range(9)])).value
    for size in range(4, len(whole) - 8, 7):  # the last 8 bytes only say that no more follows
        decoded = decode(whole[:size], encode_event(parse(RATE)).value)
        assert decoded.events.num_rows == 1
        (rejected,) = decoded.rejected
        assert rejected.row is None
        assert rejected.record.value == whole[:size]
        assert str(rejected.error).startswith("event = 'an Arrow record': cannot be read: ")


def schema_with(**types: pa.DataType) -> pa.Schema:
    return pa.schema([(f.name, types.get(f.name, f.type)) for f in EVENT_SCHEMA])


@pytest.mark.parametrize(
    "schema",
    [
        pa.schema([f for f in EVENT_SCHEMA if f.name not in ("query", "attributes")]),
        pa.schema(reversed(list(EVENT_SCHEMA))),
        schema_with(user_id=pa.large_string(), item_id=pa.string_view(), query=pa.null()),
        schema_with(kind=pa.dictionary(pa.int8(), pa.string())),
        schema_with(at=pa.timestamp("ns"), position=pa.uint64(), value=pa.float32()),
        schema_with(at=pa.timestamp("us", "Asia/Tokyo"), value=pa.int8()),
    ],
)
def test_columns_of_an_arrow_record_that_say_the_same_are_accepted(schema: pa.Schema) -> None:
    whole = {"event_id": "e", "at": NOW_US, "position": 7, **RATE, "value": 4}
    rows = [whole, {**whole, "position": None}]
    batch = decode(arrow(rows)).events
    decoded = decode(stream(pa.RecordBatch.from_pylist(batch.to_pylist(), schema=schema)))
    assert decoded.rejected == []
    assert decoded.events.equals(batch)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (pa.schema([f for f in EVENT_SCHEMA if f.name != "at"]), "'at' is missing"),
        (pa.schema([*EVENT_SCHEMA, ("colour", pa.string())]), "'colour' is unknown"),
        (pa.schema([*EVENT_SCHEMA, ("value", pa.float64())]), "'value' is twice"),
        (schema_with(at=pa.int64()), "'at' is int64, not timestamp[us, tz=UTC]"),
        (schema_with(user_id=pa.binary()), "'user_id' is binary, not string"),
        (schema_with(value=pa.string()), "'value' is string, not double"),
        (schema_with(position=pa.float64()), "'position' is double, not int32"),
    ],
)
def test_other_columns_of_an_arrow_record_are_refused_by_name(
    schema: pa.Schema, reason: str
) -> None:
    decoded = decode(stream(pa.RecordBatch.from_pylist([], schema=schema)))
    (rejected,) = decoded.rejected
    assert f"must have EVENT_SCHEMA: the column {reason}" in str(rejected.error)


@pytest.mark.parametrize(
    ("schema", "change"),
    [
        (schema_with(at=pa.timestamp("ns")), {"at": 1_001}),
        (schema_with(at=pa.timestamp("s")), {"at": 2**60}),
        (schema_with(position=pa.int64()), {"position": 2**40}),
        (schema_with(value=pa.int64()), {"value": 2**53 + 1}),
    ],
)
def test_what_would_be_lost_on_the_way_is_refused(
    schema: pa.Schema, change: dict[str, Any]
) -> None:
    decoded = decode(arrow([{"event_id": "e", "at": 1_000, **RATE, "value": 1, **change}], schema))
    (rejected,) = decoded.rejected
    (name,) = change
    assert f"the column {name!r} cannot become" in str(rejected.error)


def test_a_few_bytes_cannot_claim_a_host_of_rows() -> None:
    schema = schema_with(**dict.fromkeys(EVENT_SCHEMA.names, pa.null()))
    nothing = pa.Array.from_buffers(pa.null(), 2**31 - 1, [None])
    empty = pa.RecordBatch.from_arrays([nothing for _ in schema], schema=schema)
    (rejected,) = decode(stream(empty)).rejected
    assert "holds more than 1000000 rows" in str(rejected.error)


def test_metadata_of_an_arrow_record_does_not_matter() -> None:
    row = {"event_id": "e", "at": NOW_US, **USER}
    values = [arrow([row], EVENT_SCHEMA.with_metadata({"by": by})) for by in ("one", "other")]
    assert decode(*values).events.num_rows == 2


def test_an_arrow_record_of_several_batches_is_read_whole() -> None:
    batch = event_batch([parse(RATE), parse(USER)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, EVENT_SCHEMA) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch.slice(1))
    decoded = decode(sink.getvalue().to_pybytes())
    assert decoded.events["user_id"].to_pylist() == ["u", "u", "u"]
    assert decoded.events["kind"].to_pylist() == ["rate", "user", "user"]


def test_an_arrow_record_without_rows_is_no_events() -> None:
    for value in (arrow([]), stream(event_batch([]), "lz4")):
        decoded = decode(value)
        assert decoded.events.num_rows == len(decoded.logged_us) == len(decoded.rejected) == 0


def test_text_that_is_not_utf8_never_becomes_an_event() -> None:
    columns = event_batch([parse(USER), parse(USER)]).columns
    broken = pa.array([b"fine", b"\xff\xfe"], pa.binary()).view(pa.string())
    columns[EVENT_SCHEMA.get_field_index("query")] = broken
    decoded = decode(stream(pa.RecordBatch.from_arrays(columns, schema=EVENT_SCHEMA)))
    decoded.events.validate(full=True)
    assert decoded.rejected


def decode_damaged_records(seed: int) -> None:
    """Runs in a process of its own: what goes wrong here takes the process with it."""
    rng = random.Random(seed)
    batch = event_batch([parse({**RATE, "user_id": f"u{n}"}) for n in range(20)])
    for compression in (None, "lz4"):
        whole = stream(batch, compression)
        for _ in range(400):
            damaged = bytearray(whole)
            damaged[rng.randrange(4, len(whole))] ^= 1 << rng.randrange(8)
            decoded = decode(bytes(damaged))
            decoded.events.validate(full=True)
            assert decoded.events.num_rows + len(decoded.rejected) <= 21


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_in_an_arrow_record_never_ends_the_process(processes: Any, seed: int) -> None:
    child = processes.Process(target=decode_damaged_records, args=(seed,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
