"""How items respond: CTR and COEC from impressions, and clicks that come by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.coec import CoecConfig, CountedConfig
from features.rates import RateConfig
from features.response import ItemResponse, ResponseConfig
from streaming.artefact import Artefact
from streaming.event_columns import EventColumns, event_columns
from streaming.ids import stable_ids

AsBatch = Callable[..., pa.RecordBatch]
Events = list[dict[str, Any]]
CONFIG = ResponseConfig(
    ctr=RateConfig(rate=0.1, strength=10),
    coec=CoecConfig(strength=0.0),
    positions=CountedConfig(rate=0.1, strength=10),
)


def columns(batch: pa.RecordBatch) -> EventColumns:
    return event_columns(batch, np.zeros(batch.num_rows, np.int64))


def event(kind: str, item: str, position: int | None = 0, **more: Any) -> dict[str, Any]:
    told = {"kind": kind, "user_id": "u", "item_id": item, "position": position, **more}
    return {name: value for name, value in told.items() if value is not None}


def shown(item: str, position: int = 0) -> dict[str, Any]:
    return event("impression", item, position, request_id="r")


def told(response: ItemResponse, *names: str) -> list[tuple[float, float]]:
    found = response.columns(stable_ids(names), 2_000_000_000_000_000)
    return list(zip(found.ctr.tolist(), found.coec.tolist(), strict=True))


def test_a_click_that_comes_later_counts_for_the_item_and_its_position(as_batch: AsBatch) -> None:
    """Worked by hand: ten pseudo-impressions at a CTR of 0.1 stand before every count."""
    response = ItemResponse(CONFIG)
    changed = response.update(columns(as_batch([shown("a"), shown("b", 1), shown("c", 1)])))
    assert changed.tolist() == sorted(stable_ids(["a", "b", "c"]).tolist())
    response.update(columns(as_batch([event("click", "b", 1)], start=3)))
    (a, b, new) = told(response, "a", "b", "new")
    assert a[0] == pytest.approx(1 / 11)
    assert b[0] == pytest.approx(2 / 11)
    assert new[0] == pytest.approx(0.1)
    assert new[1] == 1.0
    assert a[1] == 0
    # Before it was shown: one impression without a click anywhere, none at its position.
    assert b[1] == pytest.approx(1 / ((0.1 * 10 + 0) / (10 + 1)))


def test_who_is_shown_at_the_bottom_is_not_the_worse_for_it(as_batch: AsBatch) -> None:
    """Both are clicked by a fifth of those who see them; only half look at the second place."""
    response = ItemResponse(ResponseConfig())
    rng = np.random.default_rng(0)
    events: Events = []
    for n in range(6_000):
        first, second = ("a", "b") if n % 10 else ("b", "a")
        events += [shown(first, 0), shown(second, 1)]
        events += [event("click", first, 0)] if rng.random() < 0.2 else []
        events += [event("click", second, 1)] if rng.random() < 0.1 else []
    response.update(columns(as_batch(events)))
    (a, b) = told(response, "a", "b")
    assert a[0] > 1.5 * b[0]
    assert a[1] / b[1] == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [event("click", "a", None)],  # came of something that was not shown here
        [{"kind": "impression", "user_id": "u", "item_id": "a", "request_id": "r"}],
        [event("like", "a", 0)],
    ],
)
def test_what_has_no_place_changes_nothing(as_batch: AsBatch, events: Events) -> None:
    response = ItemResponse(CONFIG)
    before = response.tables()
    assert response.update(columns(as_batch(events))).tolist() == []
    assert all(table.equals(before[name]) for name, table in response.tables().items())


EVENTS = st.lists(
    st.builds(
        event,
        st.sampled_from(["impression", "click", "like"]),
        st.sampled_from("abcd"),
        st.none() | st.integers(0, 3),
        scenario=st.sampled_from([None, "home", "mail"]),
    ),
    max_size=30,
)


@given(EVENTS, st.lists(st.integers(1, 7), max_size=5))
def test_any_cut_into_batches_and_any_restart_end_in_the_same_figures(
    as_batch: AsBatch, events: Events, sizes: list[int]
) -> None:
    whole, parts = ItemResponse(CONFIG), ItemResponse(CONFIG)
    whole.update(columns(as_batch(events)))
    start = 0
    for size in [*sizes, len(events)]:
        parts.update(columns(as_batch(events[start : start + size], start)))
        parts = ItemResponse(CONFIG, Artefact({}, parts.tables()))
        start += size
    assert told(parts, *"abcde") == told(whole, *"abcde")
