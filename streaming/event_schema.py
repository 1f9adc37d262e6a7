"""The rules of events as JSON Schema, for producers in any language.

`docs/event.schema.json` is what this makes of the default rules; write it anew with
`python -m streaming.event_schema > docs/event.schema.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from streaming.events import ANY_VALUE, LIMITED_TEXTS, Event, EventRules

_TIME = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|[+-]\d{2}:\d{2})?$"
_MEANINGS = {
    "event_id": "Names the event for good: a second event with the same id is dropped.",
    "kind": "What happened; it decides which other fields there must be.",
    "at": "When it happened; a time without a zone is UTC, and without a time it is the arrival.",
    "user_id": "Who did it.",
    "item_id": "What it was done to.",
    "request_id": "The answer in which the item was shown.",
    "session_id": "The visit during which the user did it.",
    "position": "Where in that answer it was shown; 0 is the top.",
    "scenario": "The place in the product where it happened, such as home or search.",
    "value": "The rating, the watched fraction, or the price.",
    "query": "What was searched for.",
    "attributes": "Whatever else there is to say.",
}


def event_json_schema(rules: EventRules | None = None) -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) of one JSON event.

    What it accepts `parse_event` accepts too, but for what no schema can say: days that are not
    in the calendar, times in the future, the size of the whole.
    """
    rules = rules or EventRules()
    (event,) = msgspec.json.schema(Event)["$defs"].values()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Event",
        "description": "One thing that happened, as one JSON record of the topic `events`.",
        "type": event["type"],
        "required": event["required"],
        "additionalProperties": event["additionalProperties"],
        "properties": {
            name: _field(name, found, rules) for name, found in event["properties"].items()
        },
        "allOf": [_kind(kind, needed, rules) for kind, needed in rules.all_kinds.items()],
    }


def _field(name: str, found: Mapping[str, Any], rules: EventRules) -> dict[str, Any]:
    one: dict[str, Any] = {"description": _MEANINGS[name]}
    kinds = [option["type"] for option in found.get("anyOf", [found])]
    one["type"] = kinds if len(kinds) > 1 else kinds[0]
    if name == "kind":
        one["enum"] = list(rules.all_kinds)
    elif name == "at":
        one |= {"format": "date-time", "pattern": _TIME}
    elif name == "position":
        one |= {"minimum": 0, "maximum": 2**31 - 1}
    elif name == "value":
        low, high = ANY_VALUE
        one |= {"minimum": low, "maximum": high}
    elif name in LIMITED_TEXTS:
        one |= {"minLength": 1, "maxLength": rules.max_id_characters}
    return one


def _kind(kind: str, needed: tuple[str, ...], rules: EventRules) -> dict[str, Any]:
    """What an event of this kind must have besides."""
    properties: dict[str, Any] = {name: {"not": {"type": "null"}} for name in needed}
    if kind in rules.value_range:
        low, high = rules.value_range[kind]
        properties["value"] = {**properties.get("value", {}), "minimum": low, "maximum": high}
    then = {"required": list(needed), "properties": properties}
    return {"if": {"properties": {"kind": {"const": kind}}}, "then": then}


if __name__ == "__main__":
    json.dump(event_json_schema(), sys.stdout, indent=2)
    sys.stdout.write("\n")
