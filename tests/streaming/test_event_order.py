"""The order of events: within the lateness bound it does not matter how they arrive."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.behaviour import Behaviour, BehaviourConfig
from streaming.decode import decode_events
from streaming.event_order import EventOrder, Ordered, encode_tick
from streaming.events import EVENT_SCHEMA, EventRules
from streaming.impressions import ImpressionsConfig, Label
from streaming.joiner import Joiner, JoinerConfig
from streaming.log import EVENTS, SAMPLES, Record
from streaming.samples import decode_samples

START_US = 1_700_000_000_000_000
SECOND = 1_000_000
LATENESS_S = 5
LABELS = {"click": Label(10.0), "cart": Label(20.0, after="click")}

Names = list[str]


def batch(*events: tuple[str, float]) -> pa.RecordBatch:
    """Events by their ids and times; what begins with i is an impression, with t a tick."""
    kinds = {"i": "impression", "t": "tick"}
    rows = [
        {"event_id": name, "kind": kinds.get(name[0], "click"), "at": _us(at_s)}
        for name, at_s in events
    ]
    return pa.RecordBatch.from_pylist(rows, schema=EVENT_SCHEMA)


def take(order: EventOrder, *events: tuple[str, float], logged_s: float = 1e6) -> Ordered:
    return order.take(batch(*events), np.full(len(events), _us(logged_s), np.int64))


def names(ordered: Ordered) -> Names:
    found: Names = ordered.events["event_id"].to_pylist()
    return found


def seconds(ordered: Ordered) -> list[float]:
    return [(now_us - START_US) / SECOND for now_us in ordered.now_us.tolist()]


def _us(at_s: float) -> int:
    return START_US + round(at_s * SECOND)


# Without waiting


def test_with_a_lateness_of_0_events_are_taken_as_they_come() -> None:
    order = EventOrder(0)
    taken = take(order, ("b", 5), ("a", 3), ("i", 5), ("c", 8))
    assert names(taken) == ["b", "a", "i", "c"]
    assert seconds(taken) == [5, 5, 5, 8]  # the time of the partition never goes back
    assert order.next_due_us is None
    assert seconds(take(order, ("d", 1))) == [8]
    assert order.late == 2


def test_nothing_is_nothing() -> None:
    for lateness_us in (0, SECOND):
        taken = take(EventOrder(lateness_us))
        assert (names(taken), taken.events.schema) == ([], EVENT_SCHEMA)


# Waiting


def test_an_event_leaves_when_time_has_passed_it_by_the_lateness() -> None:
    order = EventOrder(5 * SECOND)
    assert names(take(order, ("a", 10))) == []
    assert order.next_due_us == _us(15)
    assert names(take(order, ("b", 15))) == []  # one more of the same time may still come
    taken = take(order, ("c", 15.5))
    assert (names(taken), seconds(taken)) == (["a"], [10])
    assert order.next_due_us == _us(20)


def test_events_leave_in_the_order_of_their_time() -> None:
    order = EventOrder(5 * SECOND)
    taken = take(order, ("a", 10), ("b", 7), ("c", 9), ("d", 6), ("e", 99))
    assert names(taken) == ["d", "b", "c", "a"]
    assert seconds(taken) == [6, 7, 9, 10]
    assert order.late == 0


def test_among_equal_times_impressions_come_first() -> None:
    """Feedback may carry the time of its request."""
    order = EventOrder(5 * SECOND)
    taken = take(order, ("a", 10), ("b", 10), ("i2", 10), ("i1", 10), ("x", 9), ("z", 99))
    assert names(taken)[0] == "x"
    assert sorted(names(taken)[1:3]) == ["i1", "i2"]
    assert sorted(names(taken)[3:]) == ["a", "b"]


def test_what_comes_too_late_is_counted_and_dealt_with_at_the_next_release() -> None:
    order = EventOrder(5 * SECOND)
    assert names(take(order, ("a", 10), ("b", 20), ("late", 12))) == ["a"]
    assert order.late == 1
    taken = take(order, ("c", 30))
    assert (names(taken)[0], seconds(taken)[0]) == ("late", 15)
    assert names(taken) == ["late", "b"]


def test_no_event_is_later_than_it_was_logged() -> None:
    order = EventOrder(0)
    taken = take(order, ("ahead", 250), ("b", 3), logged_s=4)
    assert seconds(taken) == [4, 4]
    assert (order.newest_us, order.late) == (_us(4), 1)
    assert taken.events["at"][0].value == _us(250)  # what it says of itself stays


def test_a_tick_releases_what_is_complete_by_it_and_waits_for_nothing_itself() -> None:
    order = EventOrder(5 * SECOND)
    taken = take(order, ("a", 10), ("b", 14), ("t1", 18))
    assert names(taken) == ["a", "t1"]
    assert seconds(taken)[1] == pytest.approx(13)
    assert order.next_due_us == _us(19)
    assert names(take(order, ("t2", 30))) == ["b", "t2"]
    assert order.next_due_us is None


def test_a_tick_from_the_past_is_neither_late_nor_held() -> None:
    order = EventOrder(5 * SECOND)
    take(order, ("a", 10))
    taken = take(order, ("t", 2))
    assert names(taken) == ["t"]
    assert order.late == 0
    assert order.next_due_us == _us(15)


@pytest.mark.parametrize("lateness_s", [0, 2, 5, 9])
def test_what_is_held_survives_a_restart_with_another_lateness(lateness_s: int) -> None:
    before = EventOrder(5 * SECOND)
    take(before, ("a", 10), ("b", 12), ("late", 2))
    order = EventOrder(lateness_s * SECOND)
    order.restore(before.table(), before.newest_us, before.late)
    assert order.late == 1
    taken = take(order, ("c", 40))
    assert names(taken)[:3] == ["late", "a", "b"]
    assert seconds(taken) == sorted(seconds(taken))
    assert ("c" in names(taken)) == (lateness_s == 0)
    assert (order.next_due_us is None) == (lateness_s == 0)


def test_an_empty_state_is_restored() -> None:
    order = EventOrder(5 * SECOND)
    order.restore(EventOrder(5 * SECOND).table(), 0, 0)
    assert order.next_due_us is None
    assert names(take(order, ("a", 1), ("b", 99))) == ["a"]


def test_a_tick_is_an_event_that_every_consumer_accepts_once() -> None:
    ticks = [encode_tick("joiner", START_US + n, 3) for n in (7, 7, 8)]
    assert {(tick.topic, tick.partition) for tick in ticks} == {(EVENTS, 3)}
    stored = [Record(EVENTS, 3, n, None, tick.value, START_US + 9) for n, tick in enumerate(ticks)]
    decoded = decode_events(stored, EventRules())
    assert decoded.rejected == []
    assert decoded.events["kind"].to_pylist() == ["tick"] * 3
    assert [at.value for at in decoded.events["at"]] == [START_US + n for n in (7, 7, 8)]
    first, again, other = decoded.events["event_id"].to_pylist()
    assert first == again != other


DRAWN = st.lists(
    st.tuples(st.sampled_from("abcditt"), st.sampled_from([*range(12), 0.5, 25, 40])), max_size=25
)


@given(DRAWN, st.lists(st.integers(1, 6), max_size=6), st.booleans(), st.sampled_from([0, 2, 5]))
def test_any_cut_into_batches_with_a_restart_at_each_gives_the_same_order(
    drawn: list[tuple[str, float]], sizes: list[int], restarts: bool, lateness_s: int
) -> None:
    events = [(f"{kind}{n}", at_s) for n, (kind, at_s) in enumerate(drawn)]
    whole = EventOrder(lateness_s * SECOND)
    expected = take(whole, *events)
    order = EventOrder(lateness_s * SECOND)
    found: Names = []
    times: list[float] = []
    start = 0
    for size in [*sizes, len(events)]:
        taken = take(order, *events[start : start + size])
        found, times = found + names(taken), times + seconds(taken)
        start += size
        if restarts:
            again = EventOrder(lateness_s * SECOND)
            again.restore(order.table(), order.newest_us, order.late)
            order = again
    assert (found, times) == (names(expected), seconds(expected))
    assert times == sorted(times)
    assert order.table().equals(whole.table())
    assert (order.newest_us, order.late, order.next_due_us) == (
        whole.newest_us, whole.late, whole.next_due_us,
    )  # fmt: skip


# Through the whole joiner


def joiner(lateness_s: float = LATENESS_S) -> Joiner:
    impressions = ImpressionsConfig(LABELS, wait_s=2.0, remember_s=5.0)
    config = JoinerConfig(lateness_s=lateness_s, history=3, impressions=impressions)
    return Joiner(config, EventRules(), Behaviour(BehaviourConfig(length=3)))


def record(event: dict[str, Any], logged_s: float = 200.0) -> Record:
    told = {name: value for name, value in event.items() if name != "at_s"}
    at = np.datetime64(_us(event["at_s"]), "us")
    value = json.dumps({**told, "at": f"{at}Z"}).encode()
    return Record(EVENTS, 0, 0, None, value, _us(logged_s))


def rows(join: Joiner, records: Sequence[Record]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for n, output in enumerate(join.on_batch(records)):
        assert output.topic == SAMPLES
        found += decode_samples(Record(SAMPLES, 0, n, None, output.value, 0)).to_pylist()
    return found


def event(name: str, kind: str, at_s: float, user: str = "u", item: str = "i") -> dict[str, Any]:
    return {"event_id": name, "kind": kind, "user_id": user, "item_id": item, "value": 3.0,
            "request_id": f"of {user}", "at_s": at_s}  # fmt: skip


END = {"event_id": "end", "kind": "tick", "at_s": 150.0}
STORY = st.lists(
    st.builds(
        event,
        st.just(""),
        st.sampled_from(["impression", "impression", "click", "cart", "rate"]),
        st.sampled_from([*range(40), 0.5, 1.5]),
        st.sampled_from("uv"),
        st.sampled_from("abc"),
    ),
    max_size=20,
)
DELAYS = st.lists(st.floats(0, LATENESS_S), min_size=20, max_size=20)


@settings(max_examples=75)
@given(STORY, DELAYS, st.lists(st.tuples(st.integers(0, 19), st.floats(0, 90)), max_size=8))
def test_any_order_of_arrival_and_any_repetition_give_the_same_rows(
    story: list[dict[str, Any]], delays: list[float], repeats: list[tuple[int, float]]
) -> None:
    """An event that arrives less than the lateness after its time is never too late."""
    named = [{**one, "event_id": f"e{n}"} for n, one in enumerate(story)]
    in_time = sorted(named, key=lambda one: one["at_s"])
    arrivals = [(one["at_s"] + delay, one) for one, delay in zip(named, delays, strict=False)]
    arrivals += [
        (named[n]["at_s"] + delays[n] + later, named[n])
        for n, later in repeats
        if n < len(named)
    ]  # fmt: skip
    arrivals.sort(key=lambda pair: pair[0])

    tidy, messy = joiner(), joiner()
    expected = rows(tidy, [record(one) for one in [*in_time, END]])
    found = [row for _, one in arrivals for row in rows(messy, [record(one)])]
    found += rows(messy, [record(END)])
    assert found == expected
    assert messy.counts["late_events"] == 0
    for name, count in tidy.counts.items():
        assert name == "repeated_events" or messy.counts[name] == count


def test_feedback_that_overtakes_its_impression_finds_it() -> None:
    click, shown = event("c", "click", 4), event("i", "impression", 3)
    (row, closed) = rows(joiner(), [record(one) for one in (click, shown, END)])
    assert (row["kind"], row["label_click"], row["history"]) == ("click", 1.0, [])
    assert (closed["label_click"], closed["label_cart"]) == (None, 0.0)


def test_what_is_too_late_for_its_window_still_is_learnt_as_late() -> None:
    story = [event("i", "impression", 0), event("x", "rate", 30, user="v"),
             event("c", "click", 2)]  # fmt: skip
    join = joiner()
    found = rows(join, [record(one) for one in [*story, END]])
    labels = [(row["label_click"], row["label_cart"]) for row in found if row["kind"] != "rate"]
    assert labels == [(0.0, 0.0), (1.0, None)]
    assert (join.counts["late_events"], join.counts["late"]) == (1, 1)


@pytest.mark.parametrize("lateness_s", [0.0, 5.0])
def test_a_clock_that_runs_ahead_cannot_end_the_windows_of_others(lateness_s: float) -> None:
    join = joiner(lateness_s)
    arriving = [
        (0, event("i", "impression", 0)),
        (1, event("ahead", "rate", 200, user="v")),
        (2, event("ahead too", "impression", 250, user="v")),
        (7, event("c", "click", 7)),
    ]
    found = [row for at_s, one in arriving for row in rows(join, [record(one, at_s)])]
    found += rows(join, [record(END)])
    clicks = [row["label_click"] for row in found if row["kind"] == "click"]
    assert clicks == [1.0]
    assert join.counts["negatives"] == 2  # the other's own window, and that for a cart
    assert join.counts["late_events"] == 0
