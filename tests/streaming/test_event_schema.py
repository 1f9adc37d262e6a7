"""The published JSON Schema says what the parser does."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from streaming.errors import EventRejected
from streaming.event_schema import event_json_schema
from streaming.events import DEFAULT_KINDS, Event, EventRules, microseconds, parse_event

PUBLISHED = Path(__file__).parents[2] / "docs" / "event.schema.json"
NOW_US = microseconds(datetime(2024, 5, 6, tzinfo=UTC))
VALIDATOR = Draft202012Validator(event_json_schema())


def accepted(event: Any, rules: EventRules | None = None) -> bool:
    try:
        parse_event(json.dumps(event).encode(), rules or EventRules(), NOW_US)
    except EventRejected:
        return False
    return True


def test_what_is_published_is_what_the_rules_say() -> None:
    assert json.loads(PUBLISHED.read_text()) == event_json_schema(), (
        "run: python -m streaming.event_schema > docs/event.schema.json"
    )


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(event_json_schema())


TEXTS = st.none() | st.sampled_from(["", "a", "é" * 256, "x" * 257]) | st.integers()
EVENTS = st.fixed_dictionaries(
    {"kind": st.sampled_from([*DEFAULT_KINDS, "tick", "dance", None, 7])},
    optional={
        "user_id": TEXTS | st.just("u"),
        "item_id": TEXTS | st.just("i"),
        "event_id": TEXTS,
        "request_id": TEXTS,
        "session_id": TEXTS,
        "scenario": TEXTS,
        "query": st.none() | st.sampled_from(["", "q"]) | st.booleans(),
        "at": st.none()
        | st.sampled_from(["2024-05-05T00:00:00Z", "2024-05-05T00:00:00.5", "now", "", 7])
        | st.datetimes(datetime(1971, 1, 1), datetime(2024, 1, 1)).map(lambda at: at.isoformat()),
        "position": st.none() | st.integers(-2, 2**31 + 1) | st.sampled_from([1.5, 2.0, "1"]),
        "value": st.none() | st.floats(-1, 6) | st.integers(-1, 6) | st.sampled_from([1e301, "1"]),
        "attributes": st.none() | st.sampled_from([{}, {"a": [1]}, [], 7, "a"]),
        "colour": st.just("red"),
    },
)


@settings(max_examples=300)
@given(EVENTS, st.sets(st.sampled_from(["colour", "kind", *Event.__struct_fields__])))
def test_the_schema_accepts_what_the_parser_accepts(
    event: dict[str, Any], dropped: set[str]
) -> None:
    event = {"user_id": "u", "item_id": "i"} | event
    event = {name: value for name, value in event.items() if name == "kind" or name not in dropped}
    assert VALIDATOR.is_valid(event) == accepted(event)


@pytest.mark.parametrize("event", [[], None, 7, "event", {}])
def test_what_is_no_event_is_none_for_both(event: Any) -> None:
    assert not VALIDATOR.is_valid(event)
    assert not accepted(event)


def test_a_recipe_with_rules_of_its_own_has_a_schema_of_its_own() -> None:
    rules = EventRules(kinds={"hum": ("query",)}, value_range={"hum": (7, 8)}, max_id_characters=2)
    validator = Draft202012Validator(event_json_schema(rules))
    good: dict[str, Any] = {"kind": "hum", "query": "q", "value": 7.5, "event_id": "ab"}
    for change in ({}, {"kind": "click"}, {"value": 6.5}, {"event_id": "abc"}, {"query": None}):
        event = good | change
        assert validator.is_valid(event) == accepted(event, rules) == (not change)
