"""What the tests of the features floor share: events, and one real feature store a test."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import settings

from streaming.events import EventRules, event_batch, parse_event
from streaming.log import EVENTS, Record

# The same examples in every run, and time enough for each on a busy machine.
settings.register_profile("headrace", deadline=None, derandomize=True)
settings.load_profile("headrace")

NOW_US = 1_700_000_000_000_000


def _whole(event: dict[str, Any], number: int) -> dict[str, Any]:
    """An event with an id and a time of its own."""
    at = f"2023-01-01T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}Z"
    return {"event_id": f"e{number}", "at": at, **event}


@pytest.fixture(scope="session")
def as_batch() -> Callable[..., pa.RecordBatch]:
    """Events as columns; each without an id or a time gets its number for both."""

    def make(events: Sequence[dict[str, Any]], start: int = 0) -> pa.RecordBatch:
        return event_batch(
            parse_event(_whole(event, n), EventRules(), NOW_US)
            for n, event in enumerate(events, start)
        )

    return make


@pytest.fixture(scope="session")
def as_records() -> Callable[..., list[Record]]:
    """The same events as records of the log, one each."""

    def make(events: Sequence[dict[str, Any]], start: int = 0) -> list[Record]:
        return [
            Record(EVENTS, 0, n, None, json.dumps(_whole(event, n)).encode(), NOW_US + n)
            for n, event in enumerate(events, start)
        ]

    return make
