"""The aggregator: pushes that hold the newest state, and no more than changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.aggregator import Aggregator, AggregatorConfig, Push
from features.behaviour import BehaviourConfig
from features.definitions import EVENT_TIME, ITEM_STATISTICS, USER_HISTORY, View
from streaming.artefact import Artefact, read_manifest
from streaming.cuts import CutDirectory, merge
from streaming.events import EventRules
from streaming.file_log import FileLog
from streaming.ids import stable_id
from streaming.log import EVENTS, Append, Record
from streaming.loop import Incremental, Loop, LoopConfig

AsRecords = Callable[..., list[Record]]
START_US = 1_672_531_200_000_000  # 2023-01-01, where the events of these tests begin
SECOND = 1_000_000


def aggregator(state: Artefact | None = None, users: int = 99) -> Aggregator:
    config = AggregatorConfig(popularity_half_life=4, remembered_events=8)
    return Aggregator(config, EventRules(), BehaviourConfig(length=3, users=users), state)


def rate(user: str, item: str, value: float = 4.0, **more: Any) -> dict[str, Any]:
    return {"kind": "rate", "user_id": user, "item_id": item, "value": value, **more}


def pushed(pushes: Sequence[Push], view: View) -> dict[int, dict[str, Any]]:
    """The rows of the view by key, times in microseconds; the last of several counts."""
    found: dict[int, dict[str, Any]] = {}
    for push in pushes:
        assert push.rows.schema == push.view.schema
        if push.view is view:
            times = push.rows[EVENT_TIME].cast(pa.int64()).to_pylist()
            for row, at in zip(push.rows.to_pylist(), times, strict=True):
                found[row[view.key]] = {**row, EVENT_TIME: at - START_US}
    return found


def steps_of(pushes: Sequence[Push]) -> list[pa.Table]:
    return [push.steps for push in pushes if push.steps is not None]


def test_a_push_holds_the_newest_state_of_what_changed(as_records: AsRecords) -> None:
    step = aggregator()
    step.on_batch(as_records([rate("u", "a"), rate("v", "b")]))
    pushes = step.on_batch(as_records([rate("u", "b", 3.0), rate("u", "c", 2.0)], start=2))
    u, (a, b, c) = stable_id("u"), (stable_id(item) for item in "abc")
    assert [push.view for push in pushes] == [USER_HISTORY, ITEM_STATISTICS]
    assert pushed(pushes, USER_HISTORY) == {
        u: {
            "user_id": u, EVENT_TIME: 3 * SECOND, "items": [a, b, c], "rewards": [1.0, 0.5, 0.0],
            "kinds": [6, 6, 6], "at_us": [START_US + n * SECOND for n in (0, 2, 3)],
            "scenarios": [-1, -1, -1], "sessions": [-1, -1, -1], "values": [4.0, 3.0, 2.0],
            "searched": [], "searched_at_us": [], "searched_suggested": [],
            "newest_us": START_US + 3 * SECOND,
        }
    }  # fmt: skip
    items = pushed(pushes, ITEM_STATISTICS)
    assert items.keys() == {b, c}
    assert (items[b]["actions"], items[b]["mean_reward"]) == (2, 0.75)
    assert items[b]["popularity"] == pytest.approx(2 ** (-2 / 4) + 0.5 * 2 ** (-1 / 4))
    assert (items[c]["actions"], items[c]["mean_reward"], items[c]["popularity"]) == (1, 0, 0)
    assert (items[b][EVENT_TIME], items[c][EVENT_TIME]) == (2 * SECOND, 3 * SECOND)


def test_who_only_searched_is_pushed_too_and_no_item_with_him(as_records: AsRecords) -> None:
    search = {"kind": "search", "user_id": "u", "query": "heat"}
    (push,) = aggregator().on_batch(as_records([search]))
    found = pushed([push], USER_HISTORY)[stable_id("u")]
    assert (found["items"], found["newest_us"]) == ([], START_US)


def test_steps_are_the_actions_and_words_one_by_one(as_records: AsRecords) -> None:
    """What the offline store keeps: each with the time of its user's newest event by then."""
    events = [
        {"kind": "search", "user_id": "u", "query": "heat up"},
        rate("v", "a", 3.0),
        rate("u", "b", at="2022-12-31T00:00:00Z"),  # came late
    ]
    step = aggregator()
    before = step.on_batch(as_records([rate("u", "a")]))
    pushes = step.on_batch(as_records(events, start=1))
    (first,), (steps,) = steps_of(before), steps_of(pushes)
    assert first.schema == USER_HISTORY.offline_schema
    u, v, a, b = (stable_id(name) for name in "uvab")
    assert first["step"].to_pylist() == [0]
    assert steps["step"].to_pylist() == [1, 2, 3, 4]
    assert steps["kept"].to_pylist() == [20, 20, 3, 3]
    assert steps["user_id"].to_pylist() == [u, u, v, u]
    assert steps["items"].to_pylist() == [[], [], [a], [b]]
    assert steps["values"].to_pylist() == [[], [], [3.0], [4.0]]
    assert [len(words) for words in steps["searched"].to_pylist()] == [1, 1, 0, 0]
    times = [START_US + n * SECOND for n in (1, 1, 2, 1)]
    assert steps["newest_us"].to_pylist() == times
    assert steps[EVENT_TIME].cast(pa.int64()).to_pylist() == times


def test_each_entity_is_pushed_once(as_records: AsRecords) -> None:
    pushes = aggregator().on_batch(as_records([rate("u", "a")] * 5 + [rate("v", "a")]))
    assert [push.rows.num_rows for push in pushes] == [2, 1]


@pytest.mark.parametrize(
    "events",
    [
        [],
        [{"kind": "item", "item_id": "i"}],
        [{"kind": "impression", "user_id": "u", "item_id": "i"}],
        [{"kind": "dance"}],
    ],
)
def test_what_is_no_action_pushes_nothing(
    as_records: AsRecords, events: list[dict[str, Any]]
) -> None:
    assert aggregator().on_batch(as_records(events)) == []
    assert aggregator().on_time(START_US) == []


def test_a_repeat_pushes_nothing(as_records: AsRecords) -> None:
    step = aggregator()
    once = rate("u", "a", event_id="once")
    step.on_batch(as_records([once]))
    assert step.on_batch(as_records([once, once])) == []


def test_the_time_of_an_entity_never_goes_back_when_events_come_late(
    as_records: AsRecords,
) -> None:
    """Else the store would take the older numbers for the newer ones."""
    step = aggregator()
    early = step.on_batch(as_records([rate("u", "a")], start=9))
    late = step.on_batch(as_records([rate("v", "a"), rate("u", "a")], start=3))
    last = step.on_batch(as_records([rate("v", "a")], start=5))
    for view, key in ((ITEM_STATISTICS, stable_id("a")), (USER_HISTORY, stable_id("u"))):
        times = [
            pushed(pushes, view)[key][EVENT_TIME]
            for pushes in (early, late, last)
            if key in pushed(pushes, view)
        ]
        assert times == sorted(times)


EVENT_IDS = st.sampled_from([f"e{n}" for n in range(30)])
STREAM = st.lists(
    st.builds(
        rate,
        st.sampled_from("uvw"),
        st.sampled_from("abc"),
        st.sampled_from([2.0, 3.0, 4.5]),
        event_id=EVENT_IDS,
    )
    | st.fixed_dictionaries(
        {
            "kind": st.just("search"),
            "user_id": st.sampled_from("uvwx"),
            "query": st.sampled_from(["heat", "toy story"]),
            "event_id": EVENT_IDS,
        }
    ),
    max_size=20,
)


@given(STREAM, st.lists(st.integers(1, 6), max_size=6), st.booleans())
def test_pushes_of_any_cut_into_batches_end_in_the_same_rows(
    as_records: AsRecords, events: list[dict[str, Any]], sizes: list[int], restarts: bool
) -> None:
    stream = as_records(events)
    whole = aggregator()
    expected = whole.on_batch(stream)

    step = aggregator()
    found: list[Push] = []
    start = 0
    for size in [*sizes, len(stream)]:
        found += step.on_batch(stream[start : start + size])
        start += size
        if restarts:
            step = aggregator(step.snapshot())
    assert pushed(found, USER_HISTORY) == pushed(expected, USER_HISTORY)
    steps = [pa.concat_tables(some) for some in (steps_of(found), steps_of(expected)) if some]
    assert steps == steps[::-1]
    one, other = pushed(found, ITEM_STATISTICS), pushed(expected, ITEM_STATISTICS)
    assert one.keys() == other.keys()
    for item, row in one.items():
        assert row["actions"] == other[item]["actions"]
        assert row["mean_reward"] == other[item]["mean_reward"]
    for name, table in step.snapshot().shards.items():
        assert table.equals(whole.snapshot().shards[name], check_metadata=True), name


def test_the_snapshot_counts_its_users(as_records: AsRecords) -> None:
    step = aggregator()
    step.on_batch(as_records([rate("u", "a"), rate("v", "a"), rate("u", "b")]))
    assert step.snapshot().meta["users"] == 2


# Cuts


def same(one: Artefact, other: Artefact) -> bool:
    assert one.meta == other.meta
    assert one.shards.keys() == other.shards.keys()
    return all(
        table.equals(other.shards[name], check_metadata=True) for name, table in one.shards.items()
    )


@given(STREAM, st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=6), st.integers(1, 4))
def test_what_changed_restores_a_step_that_goes_on_as_if_it_had_never_stopped(
    as_records: AsRecords, events: list[dict[str, Any]], cuts: list[tuple[int, bool]], users: int
) -> None:
    """At any cut, of those before it some never settled; users are forgotten meanwhile."""
    stream = as_records(events)
    step = aggregator(users=users)
    durable = step.mark()
    chain = [step.snapshot()]
    start = 0
    for size, settles in cuts:
        step.on_batch(stream[start : start + size])
        start += size
        mark = step.mark()
        chain.append(step.changes(durable))
        if settles:
            step.settle(mark)
            durable = mark
        again = aggregator(merge(chain), users)
        assert same(again.snapshot(), step.snapshot())
    again = aggregator(merge(chain), users)
    found, expected = again.on_batch(stream[start:]), step.on_batch(stream[start:])
    assert [push.view for push in found] == [push.view for push in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.rows.equals(other.rows)
        assert one.steps == other.steps
    assert same(again.snapshot(), step.snapshot())


@pytest.mark.parametrize("whole", [False, True])
def test_what_a_cut_holds_stays_while_the_step_goes_on(as_records: AsRecords, whole: bool) -> None:
    """It is written in the background."""
    step = aggregator(users=2)
    mark = step.mark()
    search = {"kind": "search", "user_id": "u", "query": "heat"}
    step.on_batch(as_records([rate("u", "a"), rate("v", "b"), search]))
    cut = step.snapshot() if whole else step.changes(mark)
    before = {name: table.to_pydict() for name, table in cut.shards.items()}
    more = [rate(user, item) for user in "vwx" for item in "abc"]
    step.on_batch(as_records([*more, {**search, "user_id": "x"}], start=3))
    assert {name: table.to_pydict() for name, table in cut.shards.items()} == before


def test_a_cut_tells_of_users_who_acted_since_the_one_before(as_records: AsRecords) -> None:
    step = aggregator()
    step.on_batch(as_records([rate(f"u{n}", "a") for n in range(50)]))
    mark = step.mark()
    step.on_batch(as_records([rate("u7", "b"), rate("u7", "c"), rate("u9", "c")], start=50))
    changed = step.changes(mark).shards
    assert changed["behaviour"]["user_id"].to_pylist() == [stable_id("u7"), stable_id("u9")]
    assert len(changed["behaviour-records"]) == 3
    assert len(changed["behaviour-searches"]) == len(changed["behaviour-searches-records"]) == 0


def test_in_a_loop_its_cuts_continue_each_other_behind_the_offline_rows(
    as_records: AsRecords, tmp_path: Path
) -> None:
    log = FileLog(tmp_path / "log.db", topics=[EVENTS])
    cuts = tmp_path / "cuts"
    kept: list[pa.Table] = []
    durable: list[pa.Table] = []
    ahead: list[int] = []

    def execute(pushes: Sequence[Push]) -> list[Append]:
        kept.extend(steps_of(pushes))
        return []

    def flush() -> None:
        durable.extend(kept)
        kept.clear()

    def look(point: int) -> None:
        if point == 5:
            meta = CutDirectory(cuts).newest_meta()
            assert meta is not None
            ahead.append(meta["steps"] - sum(map(len, durable)))

    def start() -> Loop[Aggregator]:
        config = LoopConfig(limit=4, idle_s=0, cut_every_s=0, background=True, deltas=99)
        return Loop(
            log, "aggregator", [EVENTS], aggregator, cuts,
            execute=execute, redo=execute, flush=flush, config=config, reached=look,
        )  # fmt: skip

    events = as_records([rate("uvw"[n % 3], "abcde"[n % 5]) for n in range(60)])
    log.append([Append(EVENTS, record.value) for record in events])
    loop = start()
    assert isinstance(loop.step, Incremental)
    while loop.turn():
        pass
    loop.cut()
    assert set(ahead) == {0}
    bases = [read_manifest(path).get("base") for path in sorted(cuts.glob("cut-*"))]
    assert bases[0] is None
    assert any(bases[1:])
    assert same(start().step.snapshot(), loop.step.snapshot())
    log.close()


def test_items_that_are_only_shown_are_pushed_with_their_response(as_records: AsRecords) -> None:
    step = aggregator()
    place = {"user_id": "u", "item_id": "a", "position": 0}
    shown = {**place, "kind": "impression", "request_id": "r"}
    first = step.on_batch(as_records([shown] * 4))
    assert [push.view for push in first] == [ITEM_STATISTICS]
    a = stable_id("a")
    row = pushed(first, ITEM_STATISTICS)[a]
    assert (row["actions"], row["mean_reward"], row["popularity"]) == (0, None, 0.0)
    assert (row["ctr"], row[EVENT_TIME]) == (pytest.approx(1 / 24), 3 * SECOND)
    after = step.on_batch(as_records([{**place, "kind": "click"}], start=4))
    row = pushed(after, ITEM_STATISTICS)[a]
    assert (row["actions"], row["ctr"]) == (1, pytest.approx(2 / 24))
    assert row["coec"] > 1
