"""The feature store: real Feast, with SQLite online and Parquet offline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.aggregator import Aggregator, AggregatorConfig, Push
from features.behaviour import BehaviourConfig
from features.definitions import EVENT_TIME, ITEM_STATISTICS, USER_HISTORY, VIEWS, View
from features.store import FeastStore
from streaming.events import EventRules
from streaming.file_log import FileLog
from streaming.ids import stable_id
from streaming.log import EVENTS, Append, Record
from streaming.loop import Loop, LoopConfig

START = datetime(2023, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
NOTHING = {"actions": None, "mean_reward": None, "popularity": None}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "features"


@pytest.fixture
def store(root: Path) -> FeastStore:
    store = FeastStore(root)
    store.apply()
    return store


def push(view: View, *rows: tuple[Any, ...]) -> Push:
    """Rows as (key, seconds after the start, feature, feature, ...)."""
    named = [
        dict(zip(view.schema.names, (key, START + seconds * SECOND, *rest), strict=True))
        for key, seconds, *rest in rows
    ]
    return Push(view, pa.Table.from_pylist(named, schema=view.schema))


def items(*rows: tuple[Any, ...]) -> Push:
    """Rows as (key, seconds, actions)."""
    return push(ITEM_STATISTICS, *((key, at, actions, 0.5, 2.0) for key, at, actions in rows))


def users(*rows: tuple[Any, ...]) -> Push:
    """Rows as (key, seconds, items)."""
    return push(USER_HISTORY, *((key, at, of, [0.5] * len(of), at) for key, at, of in rows))


def online(store: FeastStore, *keys: int) -> list[int | None]:
    return [row["actions"] for row in store.read(ITEM_STATISTICS, keys)]


def at_moment(store: FeastStore, key: int, seconds: float) -> int | None:
    """The actions of an item that were known so long after the start."""
    actions = store.as_of(ITEM_STATISTICS, key, START + seconds * SECOND)["actions"]
    return None if actions is None else int(actions)


def parts(root: Path, view: View) -> list[pa.Table]:
    """The Parquet files of a view that have rows, oldest first."""
    found = [pq.read_table(file) for file in sorted((root / "offline" / view.name).iterdir())]
    return [table for table in found if table.num_rows]


# Online


def test_what_was_pushed_is_read_at_once(store: FeastStore) -> None:
    assert store.push([users((1, 0, [7, 8])), items((7, 0, 3), (8, 1, 4))]) == []
    assert store.read(USER_HISTORY, [1]) == [
        {"items": [7, 8], "rewards": [0.5, 0.5], "newest_us": 0}
    ]
    assert store.read(ITEM_STATISTICS, [8, 7]) == [
        {"actions": 4, "mean_reward": 0.5, "popularity": 2.0},
        {"actions": 3, "mean_reward": 0.5, "popularity": 2.0},
    ]


def test_an_unknown_entity_has_none_in_every_feature(store: FeastStore) -> None:
    store.push([items((7, 0, 3))])
    assert store.read(ITEM_STATISTICS, [9, 7])[0] == NOTHING
    assert store.read(USER_HISTORY, [7]) == [{"items": None, "rewards": None, "newest_us": None}]


def test_answers_come_in_the_order_of_the_keys_and_repeats_are_answered(store: FeastStore) -> None:
    store.push([items(*((n, 0, n) for n in range(1, 6)))])
    assert online(store, 3, 5, 3, 9, 1) == [3, 5, 3, None, 1]


def test_no_keys_are_no_answers(store: FeastStore) -> None:
    assert store.read(ITEM_STATISTICS, []) == []


def test_the_newest_value_wins(store: FeastStore) -> None:
    for actions in (1, 2, 3):
        store.push([items((7, actions, actions), (8, 0, actions))])
    assert online(store, 7, 8) == [3, 3]


def test_ids_use_all_63_bits(store: FeastStore) -> None:
    ids = [stable_id("a"), stable_id("b"), 2**63 - 1, 2**63 - 2, 2**53 + 1, 2**53]
    store.push([items(*((key, 0, n) for n, key in enumerate(ids)))])
    assert online(store, *ids) == list(range(6))


def test_pushing_nothing_changes_nothing(store: FeastStore, root: Path) -> None:
    assert store.push([]) == []
    store.flush()
    assert parts(root, ITEM_STATISTICS) == []


# Offline


def test_a_flush_makes_one_parquet_part_for_each_view_that_changed(
    store: FeastStore, root: Path
) -> None:
    store.push([items((7, 0, 1)), users((1, 0, [7]))])
    store.push([items((7, 1, 2), (8, 1, 1))])
    assert parts(root, ITEM_STATISTICS) == parts(root, USER_HISTORY) == []
    store.flush()
    (of_items,) = parts(root, ITEM_STATISTICS)
    (of_users,) = parts(root, USER_HISTORY)
    assert of_items["item_id"].to_pylist() == [7, 7, 8]
    assert of_items["actions"].to_pylist() == [1, 2, 1]
    assert of_users["items"].to_pylist() == [[7]]
    assert of_items[EVENT_TIME].cast(pa.timestamp("us", "UTC")).to_pylist() == [
        START, START + SECOND, START + SECOND,
    ]  # fmt: skip

    store.push([items((9, 2, 1))])
    store.flush()
    assert [len(table) for table in parts(root, ITEM_STATISTICS)] == [3, 1]
    assert len(parts(root, USER_HISTORY)) == 1


def test_a_flush_of_nothing_makes_nothing(store: FeastStore, root: Path) -> None:
    store.push([items((7, 0, 1))])
    store.flush()
    before = sorted((root / "offline").rglob("*"))
    store.flush()
    assert sorted((root / "offline").rglob("*")) == before


def test_the_past_is_known_as_it_was_at_each_moment(store: FeastStore) -> None:
    for seconds, actions in ((10, 1), (20, 2), (30, 3)):
        store.push([items((7, seconds, actions), (8, seconds, 90 + actions))])
        store.flush()
    moments = {10: 1, 10.000001: 1, 19.999999: 1, 20: 2, 25: 2, 30: 3, 1e6: 3}
    assert {at: at_moment(store, 7, at) for at in moments} == moments
    assert at_moment(store, 8, 20) == 92


def test_a_history_of_the_past_comes_back_whole(store: FeastStore) -> None:
    store.push([users((1, 10, [7]), (1, 20, [7, 8]))])
    store.flush()
    known = store.as_of(USER_HISTORY, 1, START + 20 * SECOND)
    assert (list(known["items"]), list(known["rewards"]), known["newest_us"]) == (
        [7, 8], [0.5, 0.5], 20,
    )  # fmt: skip


def test_before_its_first_event_nothing_was_known_of_an_entity(store: FeastStore) -> None:
    store.push([items((7, 10, 1), (8, 0, 1))])
    store.flush()
    for key, seconds in ((7, 9.999999), (7, -1), (9, 99)):
        assert store.as_of(ITEM_STATISTICS, key, START + seconds * SECOND) == NOTHING


def test_an_empty_store_knew_nothing(store: FeastStore) -> None:
    assert store.as_of(ITEM_STATISTICS, 7, START) == NOTHING


@pytest.mark.parametrize("apart", [True, False])
def test_of_pushes_with_one_time_the_last_wins(store: FeastStore, apart: bool) -> None:
    """Events of one second are the rule in a replay: many pushes tell of the same moment."""
    last: dict[int, int] = {}
    for actions in range(1, 31):
        seconds = (10, 10, 20, 5)[actions % 4]
        last[seconds] = actions
        store.push([items((7, seconds, actions), (8, seconds, actions))])
        if apart and actions % 7 == 0:
            store.flush()
    store.flush()
    for key in (7, 8):
        assert {seconds: at_moment(store, key, seconds) for seconds in last} == last


# Opening again


def test_applying_again_changes_nothing(store: FeastStore, root: Path) -> None:
    store.push([items((7, 0, 3))])
    store.flush()
    before = sorted(file.name for file in (root / "offline").rglob("*"))
    store.apply()
    assert online(store, 7) == [3]
    assert sorted(file.name for file in (root / "offline").rglob("*")) == before
    assert [view.name for view in store._store.list_feature_views()] == [v.name for v in VIEWS]


def test_a_store_that_is_opened_again_reads_the_same(store: FeastStore, root: Path) -> None:
    store.push([items((7, 10, 3)), users((1, 10, [7]))])
    store.flush()
    expected = store.read(ITEM_STATISTICS, [7, 8]), store.read(USER_HISTORY, [1])
    again = FeastStore(root)
    again.apply()
    assert (again.read(ITEM_STATISTICS, [7, 8]), again.read(USER_HISTORY, [1])) == expected
    assert at_moment(again, 7, 10) == 3
    again.push([items((7, 20, 4))])
    again.flush()
    assert online(again, 7) == [4]
    assert [at_moment(again, 7, at) for at in (10, 20)] == [3, 4]


# Behind the loop


@pytest.fixture
def log(tmp_path: Path) -> Iterator[FileLog]:
    log = FileLog(tmp_path / "log.db")
    yield log
    log.close()


def aggregating(log: FileLog, root: Path) -> tuple[Loop[Aggregator], FeastStore]:
    """A loop as the service runs it; making another one is what a restart does."""
    store = FeastStore(root)
    store.apply()
    loop = Loop(
        log,
        "aggregator",
        [EVENTS],
        lambda state: Aggregator(AggregatorConfig(), EventRules(), BehaviourConfig(), state),
        root.parent / "cuts",
        execute=store.push,
        redo=store.keep_back,
        flush=store.flush,
        config=LoopConfig(idle_s=0, cut_every_s=1e9),
    )
    return loop, store


def feed(log: FileLog, records: list[Record]) -> None:
    log.append([Append(EVENTS, record.value, record.key) for record in records])


def test_the_offline_store_misses_nothing_when_the_process_dies_between_two_cuts(
    log: FileLog, root: Path, as_records: Callable[..., list[Record]]
) -> None:
    like = {"kind": "like", "user_id": "u", "item_id": "i"}
    loop, _ = aggregating(log, root)
    for n in range(2):
        feed(log, as_records([like], start=n))
        loop.turn()
        if n == 0:
            loop.cut()
    del loop  # and with it what was kept back

    loop, store = aggregating(log, root)
    feed(log, as_records([like], start=2))
    loop.turn()
    loop.cut()
    assert store.read(ITEM_STATISTICS, [stable_id("i")])[0]["actions"] == 3
    told = [row for table in parts(root, ITEM_STATISTICS) for row in table["actions"].to_pylist()]
    assert sorted(set(told)) == [1, 2, 3]
