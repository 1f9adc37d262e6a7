"""Events as numbers: each column against the events one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from streaming.event_columns import ACTION, NONE, EventColumns, codes, event_columns
from streaming.events import EVENT_SCHEMA
from streaming.ids import stable_id

TEXTS = st.none() | st.sampled_from(["", "a", "b", "né", "a b"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "event_id": st.just("e"),
            "kind": st.sampled_from(["click", "impression", "item"]),
            "at": st.integers(0, 2**50),
            "user_id": TEXTS,
            "item_id": TEXTS,
            "request_id": TEXTS,
            "session_id": TEXTS,
            "position": st.none() | st.integers(0, 2**31 - 1),
            "scenario": TEXTS,
            "value": st.none() | st.floats(-1e300, 1e300),
        }
    ),
    max_size=12,
)


def columns_of(rows: list[dict[str, Any]], start: int = 0) -> EventColumns:
    batch = pa.RecordBatch.from_pylist(rows, schema=EVENT_SCHEMA).slice(start)
    return event_columns(batch, np.arange(len(rows), dtype=np.int64)[start:])


@given(ROWS, st.integers(0, 3))
def test_columns_are_those_that_a_loop_over_the_events_finds(
    rows: list[dict[str, Any]], start: int
) -> None:
    found = columns_of(rows, start)
    rows = rows[start:]
    assert len(found) == len(rows)
    assert [found.kinds[n] for n in found.kind] == [row["kind"] for row in rows]
    scenarios = [None if n == NONE else found.scenarios[n] for n in found.scenario.tolist()]
    assert scenarios == [row["scenario"] for row in rows]
    for name in ("user_id", "item_id", "request_id", "session_id"):
        texts = [row[name] for row in rows]
        ids = [NONE if text is None else stable_id(text) for text in texts]
        assert getattr(found, name).tolist() == ids
    positions = [NONE if row["position"] is None else row["position"] for row in rows]
    assert found.position.tolist() == positions
    values = [None if math.isnan(value) else value for value in found.value.tolist()]
    assert values == [row["value"] for row in rows]
    assert found.at_us.tolist() == [row["at"] for row in rows]
    assert found.logged_us.tolist() == list(range(start, start + len(rows)))


@given(ROWS)
def test_kinds_and_scenarios_are_numbered_in_the_order_in_which_they_come(
    rows: list[dict[str, Any]],
) -> None:
    found = columns_of(rows)
    assert list(found.kinds) == list(dict.fromkeys(row["kind"] for row in rows))
    named = [row["scenario"] for row in rows if row["scenario"] is not None]
    assert list(found.scenarios) == list(dict.fromkeys(named))


def test_types_do_not_depend_on_what_is_in_the_columns() -> None:
    for rows in ([], [{"event_id": "e", "kind": "user", "at": 0}]):
        found = columns_of(rows)
        for name in ("kind", "scenario", "at_us", "logged_us"):
            assert getattr(found, name).dtype == np.int64, name
        for name in ("user_id", "item_id", "request_id", "session_id"):
            assert getattr(found, name).dtype == np.int64, name
        assert found.position.dtype == np.int32
        assert found.value.dtype == np.float64


@given(st.lists(st.integers(0, 2**63 - 1)))
def test_a_code_is_the_upper_half_of_an_id_and_none_stays_none(ids: list[int]) -> None:
    found = codes(np.array([*ids, NONE], np.int64))
    assert found.dtype == np.int32
    assert found.tolist() == [*(one >> 32 for one in ids), NONE]


def test_an_action_takes_no_more_memory_than_is_said() -> None:
    assert ACTION.itemsize == 33
