"""Decoding in bulk: the columns and refusals of the one-by-one parser, for any bytes at all."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streaming.decode import Decoded, decode_events
from streaming.errors import EventRejected
from streaming.events import (
    DEFAULT_KINDS,
    EVENT_SCHEMA,
    Event,
    EventRules,
    encode_events,
    event_batch,
    microseconds,
    parse_event,
    read_event,
)
from streaming.json_columns import scan
from streaming.log import EVENTS, Record

NOW_US = microseconds(datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC))
RULES = EventRules()


def records(values: list[bytes]) -> list[Record]:
    return [Record(EVENTS, 3, 40 + n, None, v, NOW_US + n) for n, v in enumerate(values)]


def one_by_one(given: list[Record]) -> tuple[list[Event], list[tuple[int, str]]]:
    """The judge: every record on its own, by the parser of single events."""
    events, refused = [], []
    for record in given:
        try:
            events.append(read_event(record, RULES))
        except EventRejected as error:
            refused.append((record.offset, str(error)))
    return events, refused


def agrees(values: list[bytes]) -> Decoded:
    given = records(values)
    events, refused = one_by_one(given)
    decoded = decode_events(given, RULES)
    assert decoded.events.to_pylist() == event_batch(events).to_pylist()
    assert decoded.events.equals(event_batch(events))
    decoded.events.validate(full=True)
    assert [(r.record.offset, str(r.error)) for r in decoded.rejected] == refused
    bad = {offset for offset, _ in refused}
    assert decoded.logged_us.tolist() == [r.logged_us for r in given if r.offset not in bad]
    return decoded


# JSON as producers write it, with something wrong here and there

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ODD_TEXT = st.sampled_from(["", "é" * 200, "x" * 256, "x" * 257, "null", "a\x00b", 'a"b', "\\"])
TIMES = st.one_of(
    st.datetimes(datetime(1969, 12, 30), datetime(2024, 5, 6)).map(lambda at: at.isoformat()),
    st.from_regex(
        r"(19[67]\d|20[02]\d|2100)-[01]\d-[0-3]\d[T ][0-2]\d:[0-5]\d:[0-6]\d(\.\d{1,9})?"
        r"(Z|z|\+00:00|-00:00|\+01:00|\+0000|\+00)?",
        fullmatch=True,
    ),
    TEXT,
)
NUMBERS = st.one_of(
    st.from_regex(r"-?(0|[1-9]\d{0,20})(\.\d{1,20})?([eE][+-]?\d{1,3})?", fullmatch=True),
    st.sampled_from(["0", "-0", "-0.0", "01", "1.", ".5", "1e", "1e400", "1e-400", "2147483648"]),
    st.floats(0, 5).map(json.dumps),
    st.integers(0, 20).map(str),
)
VALUES: dict[str, st.SearchStrategy[str]] = {
    "kind": st.sampled_from([*DEFAULT_KINDS, "tick", "dance"]).map(json.dumps),
    "at": TIMES.map(json.dumps),
    "position": NUMBERS,
    "value": NUMBERS,
    "attributes": st.dictionaries(TEXT, st.integers() | TEXT | st.lists(TEXT), max_size=2).map(
        lambda d: json.dumps(d, ensure_ascii=False)
    )
    | st.sampled_from(["{}", "{]}", '{"a":1,}', "[1]", '{"a":' * 31 + "{}" + "}" * 31, '{"}":1}']),
}
ANYTHING = st.one_of(
    st.sampled_from(["null", "true", "7", '"text"', "{}", "[]", "nul", "nullx", "NaN"]),
    *VALUES.values(),
)
SPACE = st.sampled_from(["", "", "", " ", "\n", "\t \r", "\v", "\xa0"])


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """Text that is nearly always a JSON object, and often an event."""
    names = draw(
        st.lists(
            st.sampled_from(Event.__struct_fields__),
            max_size=8,
            unique=draw(st.integers(0, 9)) > 0,
        )
    )
    needed = [] if draw(st.integers(0, 5)) == 0 else ["kind", "user_id", "item_id", "query"]
    members = []
    for name in [*needed, *(n for n in names if n not in needed)]:
        usual = VALUES.get(name, (TEXT | ODD_TEXT).map(lambda t: json.dumps(t, ensure_ascii=False)))
        value = draw(usual if draw(st.integers(0, 9)) else ANYTHING)
        members.append(f'{draw(SPACE)}"{name}"{draw(SPACE)}:{draw(SPACE)}{value}{draw(SPACE)}')
    text = draw(SPACE) + "{" + ",".join(members) + "}" + draw(SPACE)
    return text.encode()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    value = bytearray(draw(objects()))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(value) - 1))
        byte = st.sampled_from(b'{}[],:"\\\x00\n 0e-\xff\xc3') | st.integers(0, 255)
        if draw(st.booleans()):
            value[at] = draw(byte)
        else:
            value[at : at + draw(st.integers(0, 2))] = bytes([draw(byte)])
    return bytes(value)


@settings(max_examples=200)
@given(st.lists(objects() | objects() | damaged() | st.binary(max_size=9), max_size=8))
@example([b'{"kind":"user","user_id":"a', b'b"}'])
@example([b'{"kind":"user","user_id":"a"},{"kind":"user","user_id":"b"}', b""])
@example([b'{"kind":"user","user_id":"a"}\x00{"kind":"user","user_id":"b"}'])
@example([b'{"kind":"user","user_id":"\xc3"}', b'{"kind":"user","user_id":"\xa9"}'])
def test_json_becomes_what_the_parser_of_single_events_makes_of_it(values: list[bytes]) -> None:
    agrees([v for v in values if not v.startswith(b"\xff\xff\xff\xff")])


@given(st.lists(st.tuples(st.booleans(), st.lists(objects(), max_size=3)), max_size=5))
def test_both_forms_together_keep_the_order_of_the_log(
    groups: list[tuple[bool, list[bytes]]],
) -> None:
    values: list[bytes] = []
    expected: list[Event] = []
    for as_arrow, group in groups:
        if as_arrow:
            good, _ = one_by_one(records(group))
            values.append(encode_events(event_batch(good)).value)
            expected += good
        else:
            start = len(values)
            values += group
            expected += one_by_one(records(values)[start:])[0]
    assert decode_events(records(values), RULES).events.equals(event_batch(expected))


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "impression", "user_id": "u", "item_id": "i", "position": 3, "scenario": "home"},
        {"kind": "watch", "user_id": "ü", "item_id": "日本", "value": 0.8333333333333334},
        {"kind": "item", "item_id": "i", "attributes": {"colours": ["red", "\u00e9"], "n": 1.5}},
        {"kind": "search", "user_id": "u", "query": "two words", "at": "2024-05-06T07:08:09.5Z"},
        {"kind": "user", "user_id": "u", "event_id": None, "at": None, "value": None},
    ],
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_what_producers_usually_write_is_read_quickly(
    event: dict[str, Any], separators: tuple[str, str]
) -> None:
    value = json.dumps(event, separators=separators, ensure_ascii=False).encode()
    assert scan([value]).found.all()
    assert agrees([value]).events.num_rows == 1


def test_an_event_whose_id_is_null_has_the_same_id_at_every_reading() -> None:
    value = b'{"kind":"user","user_id":"u","event_id":null}'
    escaped = b'{"kind":"user","user_id":"\\u0075","event_id":null}'
    names = agrees([value, escaped]).events["event_id"].to_pylist()
    assert names == [f"{EVENTS}/3/40", f"{EVENTS}/3/41"]


@pytest.mark.parametrize("size", [4 * 65_536, 4 * 65_536 + 1])
def test_a_record_may_have_four_times_the_bytes_of_an_event(size: int) -> None:
    value = b'{"kind":"search","user_id":"u","query":"%b"}'
    agrees([value % (b"x" * (size - len(value) + 2)), value % b"x"])


def test_every_day_is_where_the_calendar_has_it() -> None:
    days = np.arange("1970-01-01", "2101-01-01", dtype="M8[D]")
    values = [b'{"kind":"user","at":"%bT23:59:58.9Z"}' % str(day).encode() for day in days]
    scanned = scan(values)
    assert scanned.found.all()
    expected = days.astype("M8[us]").astype(np.int64) + 86_398_900_000
    assert scanned.at_us.tolist() == expected.tolist()


def test_attributes_are_written_alike_in_both_ways() -> None:
    value = b'{"kind":"item","item_id":"i","attributes":{ "b" : 1.0, "a":"\\u00e9", "b":[ ] }}'
    (text,) = agrees([value]).events["attributes"].to_pylist()
    assert text == msgspec.json.encode(parse_event(value, RULES, NOW_US).attributes).decode()


def test_no_more_and_no_fewer_columns_come_of_nothing() -> None:
    assert agrees([]).events.schema == EVENT_SCHEMA
