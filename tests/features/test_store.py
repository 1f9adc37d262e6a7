"""The feature store: real Feast, with SQLite or a real Redis online and Parquet offline."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.aggregator import Aggregator, AggregatorConfig, Push
from features.behaviour import BehaviourConfig
from features.definitions import (
    EVENT_TIME,
    ITEM_STATISTICS,
    USER_HISTORY,
    VIEWS,
    Feature,
    FeatureError,
    View,
)
from features.freshness import saved_freshness
from features.store import FeastStore
from features.store_config import StoreConfig
from streaming.errors import ConfigError
from streaming.events import EventRules
from streaming.file_log import FileLog
from streaming.ids import stable_id
from streaming.log import EVENTS, Append, Record
from streaming.loop import Loop, LoopConfig

START = datetime(2023, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
NOTHING = ITEM_STATISTICS.defaults


@pytest.fixture(scope="session")
def redis_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis that keeps nothing on disk, stopped at the end."""
    if shutil.which("redis-server") is None:
        assert "HEADRACE_REQUIRE_REDIS" not in os.environ, "Redis is required and not there"
        pytest.skip("no redis-server on this machine")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = tmp_path_factory.mktemp("redis")
    told = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(place)]
    server = subprocess.Popen(["redis-server", *told], stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "features"


@pytest.fixture(params=["sqlite", "redis"])
def config(request: pytest.FixtureRequest, root: Path) -> StoreConfig:
    """Each test has a project of its own in the one Redis."""
    if request.param == "sqlite":
        return StoreConfig()
    address = request.getfixturevalue("redis_address")
    return StoreConfig(f"{address}/1", f"p{abs(hash(root))}")


@pytest.fixture
def store(root: Path, config: StoreConfig) -> FeastStore:
    store = FeastStore(root, config)
    store.apply()
    return store


@pytest.fixture
def embedded(root: Path) -> FeastStore:
    store = FeastStore(root)
    store.apply()
    return store


NOBODY: dict[str, Any] = {
    "items": [], "rewards": [], "kinds": [], "at_us": [], "scenarios": [], "sessions": [],
    "values": [],
    "searched": [], "searched_at_us": [], "searched_suggested": [], "newest_us": None,
}  # fmt: skip


def push(view: View, *rows: tuple[Any, ...]) -> Push:
    """Rows as (key, seconds after the start, feature, feature, ...)."""
    named = [
        dict(zip(view.schema.names, (key, START + seconds * SECOND, *rest), strict=True))
        for key, seconds, *rest in rows
    ]
    return Push(view, pa.Table.from_pylist(named, schema=view.schema))


def items(*rows: tuple[Any, ...]) -> Push:
    """Rows as (key, seconds, actions)."""
    rest = (0.5, 2.0, 0.1, 1.5)
    return push(ITEM_STATISTICS, *((key, at, actions, *rest) for key, at, actions in rows))


def users(*rows: tuple[Any, ...]) -> Push:
    """Rows as (key, seconds, items)."""
    known = (
        (key, at, {**NOBODY, "items": of, "rewards": [0.5] * len(of), "newest_us": at})
        for key, at, of in rows
    )
    return push(USER_HISTORY, *((key, at, *features.values()) for key, at, features in known))


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
    known = {**NOBODY, "items": [7, 8], "rewards": [0.5, 0.5], "newest_us": 0}
    assert store.read(USER_HISTORY, [1]) == [known]
    assert store.read(ITEM_STATISTICS, [8, 7]) == [
        {"actions": 4, "mean_reward": 0.5, "popularity": 2.0, "ctr": 0.1, "coec": 1.5},
        {"actions": 3, "mean_reward": 0.5, "popularity": 2.0, "ctr": 0.1, "coec": 1.5},
    ]


def test_an_unknown_entity_has_the_default_of_every_feature(store: FeastStore) -> None:
    store.push([items((7, 0, 3))])
    assert store.read(ITEM_STATISTICS, [9, 7])[0] == NOTHING
    assert store.read(USER_HISTORY, [7]) == [NOBODY]


def test_answers_come_in_the_order_of_the_keys_and_repeats_are_answered(store: FeastStore) -> None:
    store.push([items(*((n, 0, n) for n in range(1, 6)))])
    assert online(store, 3, 5, 3, 9, 1) == [3, 5, 3, 0, 1]


def test_no_keys_are_no_answers(store: FeastStore) -> None:
    assert store.read(ITEM_STATISTICS, []) == []


def test_the_newest_event_time_wins_and_of_equal_ones_the_last_push(store: FeastStore) -> None:
    for actions in (1, 2, 3):
        store.push([items((7, actions, actions), (8, 0, actions))])
    assert online(store, 7, 8) == [3, 3]
    store.push([items((7, 2.999999, 9), (8, 0.000001, 9))])  # only a microsecond, in one push
    assert online(store, 7, 8) == [3, 9]


def test_within_a_push_the_newest_event_time_wins_as_well(store: FeastStore) -> None:
    store.push([items((7, 5, 1), (7, 9, 2), (7, 8, 3), (8, 4, 4), (8, 4, 5))])
    assert online(store, 7, 8) == [2, 5]
    store.push([items((7, 8, 6), (7, 8.5, 7))])
    assert online(store, 7) == [2]


def test_ids_use_all_63_bits(store: FeastStore) -> None:
    ids = [stable_id("a"), stable_id("b"), 2**63 - 1, 2**63 - 2, 2**53 + 1, 2**53]
    store.push([items(*((key, 0, n) for n, key in enumerate(ids)))])
    assert online(store, *ids) == list(range(6))


def test_pushing_nothing_changes_nothing(store: FeastStore, root: Path) -> None:
    assert store.push([]) == []
    store.flush()
    assert parts(root, ITEM_STATISTICS) == []


def test_what_is_pushed_is_what_feast_itself_reads(store: FeastStore) -> None:
    """The short way past the registry writes what the long way finds."""
    store.push([users((1, 0, [7, 8]), (2, 5, [])), items((7, 0, 3))])
    feast = store._store
    found = feast.get_online_features(
        features=feast.get_feature_service("serving"),
        entity_rows=[{"user_id": 1, "item_id": 7}, {"user_id": 2, "item_id": 9}],
    ).to_dict()
    assert found["items"] == [[7, 8], []]
    assert found["rewards"] == [[0.5, 0.5], []]
    assert found["newest_us"] == [0, 5]
    assert (found["actions"], found["popularity"]) == ([3, None], [2.0, None])


def test_what_feast_itself_pushes_is_read(store: FeastStore) -> None:
    rows = items((7, 0, 3), (8, 1, 4)).rows
    store._store.push("item_statistics_push", rows.to_pandas())
    assert online(store, 7, 8) == [3, 4]


EVERY_TYPE = View(
    "every_type",
    "thing_id",
    (
        Feature("small", pa.int32(), "", 1),
        Feature("exact", pa.float64(), "", 0.5),
        Feature("short", pa.float32(), ""),
        Feature("yes", pa.bool_(), "", False),
        Feature("word", pa.string(), "", "none"),
        Feature("words", pa.list_(pa.string()), "", ("a", "b")),
        Feature("flags", pa.list_(pa.bool_()), ""),
        Feature("numbers", pa.list_(pa.float64()), "", ()),
    ),
)


def test_every_type_comes_back_and_a_null_is_the_default(root: Path, config: StoreConfig) -> None:
    store = FeastStore(root, config, (EVERY_TYPE,))
    store.apply()
    row = (2, 0.1, 0.25, True, "ö", ["x", ""], [True, False], [0.1, 0.2])
    empty: tuple[Any, ...] = (0, 0.0, 0.0, False, "", [], [], [])
    store.push([push(EVERY_TYPE, (1, 0, *row), (2, 0, *[None] * 8), (3, 0, *empty))])
    read = [tuple(found.values()) for found in store.read(EVERY_TYPE, [1, 2, 3])]
    assert read == [row, tuple(EVERY_TYPE.defaults.values()), empty]
    assert read[1][:6] == (1, 0.5, None, False, "none", ["a", "b"])
    store.flush()
    assert list(store.as_of(EVERY_TYPE, 1, START).values()) == list(row)
    assert store.as_of(EVERY_TYPE, 2, START) == EVERY_TYPE.defaults


def test_what_has_lived_its_time_is_the_default(root: Path, config: StoreConfig) -> None:
    views = (View("mood", "user_id", (Feature("high", pa.int64(), "", -1),), timedelta(days=2)),)
    store = FeastStore(root, config, views)
    store.apply()
    store.push([push(views[0], (1, 0, 5))])
    store.flush()
    for age, known in (
        (timedelta(0), 5),
        (timedelta(days=2), 5),
        (timedelta(days=2, seconds=1), -1),
    ):
        assert store.read(views[0], [1], now=START + age) == [{"high": known}], age
        assert store.as_of(views[0], 1, START + age) == {"high": known}, age
    assert store.read(views[0], [1]) == [{"high": -1}]  # by now


def test_training_and_serving_read_what_is_theirs(root: Path, config: StoreConfig) -> None:
    features = (
        Feature("both", pa.int64(), ""),
        Feature("learnt", pa.int64(), "", used=("training",)),
        Feature("shown", pa.int64(), "", used=("serving",)),
    )
    view = View("uses", "user_id", features)
    store = FeastStore(root, config, (view,))
    store.apply()
    store.push([push(view, (1, 0, 1, 2, 3))])
    store.flush()
    assert store.read(view, [1]) == [{"both": 1, "shown": 3}]
    assert store.as_of(view, 1, START) == {"both": 1, "learnt": 2}


def test_threads_read_while_one_pushes(store: FeastStore) -> None:
    stop, seen = threading.Event(), []

    def watch() -> None:
        last = 0
        while not stop.is_set():
            (found,) = online(store, 7)
            assert found is not None
            assert found >= last
            last = found
        seen.append(last)

    with ExitStack() as stack:
        for _ in range(3):
            thread = threading.Thread(target=watch)
            thread.start()
            stack.callback(thread.join)
        stack.callback(stop.set)
        for n in range(1, 31):
            store.push([items((7, n, n))])
        time.sleep(0.05)
    assert seen == [30, 30, 30]


def test_freshness_is_told_by_view_and_left_for_other_processes(
    store: FeastStore, root: Path
) -> None:
    assert saved_freshness(root) == {}
    now_us = time.time_ns() // 1000
    pushed = items((7, 3, 1), (8, 2, 1))
    store.push([Push(pushed.view, pushed.rows, logged_us=now_us - 2_000_000), users((1, 1, [7]))])
    store.flush()
    told = saved_freshness(root)
    assert told == store.freshness.figures()
    assert 2 <= told["item_statistics"]["age_p99_s"] < 60
    assert told["item_statistics"]["newest_event_us"] == int(START.timestamp() * 1e6) + 3_000_000
    assert (told["item_statistics"]["rows"], told["user_history"]["rows"]) == (2, 1)
    assert "age_p99_s" not in told["user_history"]


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


def test_what_is_offline_fills_an_online_store_that_was_lost(
    store: FeastStore, as_records: Callable[..., list[Record]]
) -> None:
    """Histories come back from their steps."""
    rates = [{"kind": "rate", "user_id": user, "item_id": item, "value": 4.0}
             for user in "uvw" for item in "abcde"]  # fmt: skip
    search = {"kind": "search", "user_id": "v", "query": "heat"}
    step = Aggregator(AggregatorConfig(), EventRules(), BehaviourConfig(length=3))
    for n, event in enumerate([*rates, search]):
        store.push(step.on_batch(as_records([event], start=n)))
    store.flush()
    people, things = ([stable_id(name) for name in names] for names in ("uvwx", "abcde"))
    before = store.read(USER_HISTORY, people), store.read(ITEM_STATISTICS, things)
    assert [len(row["items"]) for row in before[0]] == [3, 3, 3, 0]

    store.clear()
    store.apply()
    assert store.read(USER_HISTORY, people) == [NOBODY] * 4
    store.refill()
    assert repr((store.read(USER_HISTORY, people), store.read(ITEM_STATISTICS, things))) == repr(
        before
    )


def test_many_small_files_become_one_and_the_past_stays_what_it_was(
    embedded: FeastStore, root: Path
) -> None:
    """Also where the process died before the old ones were gone."""
    place = root / "offline" / ITEM_STATISTICS.name
    for seconds in range(63):
        embedded.push([items((7, seconds // 2, seconds))])
        if seconds == 61:
            before = {file: file.read_bytes() for file in place.iterdir()}
        embedded.flush()
    embedded._merger.shutdown()
    assert len(list(place.iterdir())) == 1
    moments = [at_moment(embedded, 7, seconds) for seconds in (0, 1, 15, 31, 99)]
    assert moments == [1, 3, 31, 62, 62]
    for file, content in before.items():
        if not file.exists():
            file.write_bytes(content)
    assert [at_moment(embedded, 7, seconds) for seconds in (0, 1, 15, 31, 99)] == moments


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
    assert store.plan() == store.apply() == []
    assert online(store, 7) == [3]
    assert sorted(file.name for file in (root / "offline").rglob("*")) == before
    stored = [view.name for view in VIEWS if view.stored]
    assert [view.name for view in store._store.list_feature_views()] == stored


def test_a_store_that_is_opened_again_reads_the_same(
    store: FeastStore, root: Path, config: StoreConfig
) -> None:
    store.push([items((7, 10, 3)), users((1, 10, [7]))])
    store.flush()
    expected = store.read(ITEM_STATISTICS, [7, 8]), store.read(USER_HISTORY, [1])
    again = FeastStore(root, config)
    again.apply()
    assert (again.read(ITEM_STATISTICS, [7, 8]), again.read(USER_HISTORY, [1])) == expected
    assert at_moment(again, 7, 10) == 3
    again.push([items((7, 20, 4))])
    again.flush()
    assert online(again, 7) == [4]
    assert [at_moment(again, 7, at) for at in (10, 20)] == [3, 4]


# The registry


def test_a_plan_says_what_apply_then_does(root: Path) -> None:
    store = FeastStore(root)
    planned = store.plan()
    assert not root.exists()
    assert {(c.action, c.kind, c.name) for c in planned} >= {
        ("create", "feature view", "user_history"),
        ("create", "feature view", "item_statistics"),
        ("create", "feature service", "training"),
        ("create", "feature service", "serving"),
        ("create", "entity", "user"),
        ("create", "entity", "item"),
    }
    assert store.applied() == {}
    assert store.apply() == planned
    assert store.applied() == {"user_history": 1, "item_statistics": 1}


def more(view: View, *features: Feature) -> tuple[View, ...]:
    return (View(view.name, view.key, (*view.features, *features), view.ttl),)


def test_a_feature_that_is_added_is_unknown_before(root: Path, config: StoreConfig) -> None:
    old = (ITEM_STATISTICS,)
    store = FeastStore(root, config, old)
    store.apply()
    store.push([items((7, 0, 3))])
    store.flush()

    (view,) = new = more(ITEM_STATISTICS, Feature("shown", pa.int64(), "how often", -1))
    store = FeastStore(root, config, new)
    (change,) = [c for c in store.plan() if c.kind == "feature view"]
    assert (change.action, change.name) == ("update", "item_statistics")
    assert "+shown" in change.detail
    store.apply()
    assert store.plan() == []
    assert store.applied() == {"item_statistics": 2}
    known = {"actions": 3, "mean_reward": 0.5, "popularity": 2.0, "ctr": 0.1, "coec": 1.5}
    known["shown"] = -1
    assert store.read(view, [7]) == [known]
    assert store.as_of(view, 7, START) == known
    store.push([push(view, (7, 1, 4, 0.5, 2.0, 0.1, 1.5, 9))])
    store.flush()
    assert store.read(view, [7])[0]["shown"] == 9
    assert store.as_of(view, 7, START + SECOND)["shown"] == 9


def test_a_view_that_is_no_longer_declared_stays(root: Path) -> None:
    FeastStore(root).apply()
    store = FeastStore(root, views=(USER_HISTORY,))
    removed = [c.name for c in store.plan() if c.action == "remove" and c.kind == "feature view"]
    assert removed == ["item_statistics"]
    store.apply()
    assert set(FeastStore(root).applied()) == {"item_statistics", "user_history"}


def test_a_feature_keeps_its_type(embedded: FeastStore, root: Path) -> None:
    changed = View("item_statistics", "item_id", (Feature("actions", pa.float64(), ""),))
    store = FeastStore(root, views=(changed,))
    for attempt in (store.plan, store.apply):
        with pytest.raises(FeatureError, match=r"item_statistics\.actions is Int64 in .* Float64"):
            attempt()


def written_by(store: FeastStore, **tags: str) -> None:
    """Makes the registry what another version would have left."""
    project = store._store.get_project("headrace")
    project.tags = {**project.tags, **tags}
    store._store.apply([project])


def test_a_registry_of_another_feast_is_taken_over_when_asked(
    embedded: FeastStore, root: Path
) -> None:
    written_by(embedded, feast="0.1.0")
    with pytest.raises(FeatureError, match=r"Feast 0\.1\.0 wrote .*registry\.db.*features plan"):
        FeastStore(root).apply()
    (change,) = FeastStore(root).plan()
    assert (change.kind, change.detail) == ("project", "tags")
    FeastStore(root).apply(take_over=True)
    FeastStore(root).apply()


def test_a_registry_of_another_headrace_is_refused(embedded: FeastStore, root: Path) -> None:
    written_by(embedded, layout="7")
    for take_over in (False, True):
        with pytest.raises(FeatureError, match=r"another version of Headrace .*layout 7.*--fresh"):
            FeastStore(root).apply(take_over=take_over)


def test_a_registry_that_cannot_be_read_is_refused(embedded: FeastStore, root: Path) -> None:
    (root / "registry.db").write_bytes(b"not a registry")
    with pytest.raises(FeatureError, match=r"registry\.db cannot be read .*--fresh"):
        FeastStore(root).apply()


# What cannot work


def test_a_missing_online_store_is_told_and_made_again(embedded: FeastStore, root: Path) -> None:
    for file in root.glob("online.db*"):
        file.unlink()
    store = FeastStore(root)
    for attempt in (lambda: store.read(USER_HISTORY, [1]), lambda: store.push([items((7, 0, 1))])):
        with pytest.raises(FeatureError, match=r"online\.db cannot be used.*features apply"):
            attempt()
    assert not list(root.glob("online.db*"))
    store.apply()
    store.push([items((7, 0, 1))])
    assert online(store, 7) == [1]


def test_a_view_without_a_table_is_told(embedded: FeastStore, root: Path) -> None:
    other = View("moods", "user_id", (Feature("high", pa.int64(), ""),))
    with pytest.raises(FeatureError, match=r"no such table: headrace_moods.*features apply"):
        FeastStore(root, views=(other,)).read(other, [1])


def test_a_redis_that_is_not_there_is_told(root: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"redis://ada:secret@127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(FeatureError, match=r"redis://127\.0\.0\.1:\d+/0 cannot") as told:
            FeastStore(root, StoreConfig(address)).apply()
    assert "secret" not in str(told.value)


def test_what_is_not_declared_is_refused_and_nothing_is_pushed(embedded: FeastStore) -> None:
    strange = items((7, 0, 1)).rows.append_column("mood", pa.array([1]))
    with pytest.raises(FeatureError, match="a push to item_statistics has mood, which nothing"):
        embedded.push([Push(ITEM_STATISTICS, strange)])
    wrong = items((7, 0, 1)).rows.set_column(2, "actions", pa.array([1.0]))
    with pytest.raises(FeatureError, match="actions as float64, and .* it as int64"):
        embedded.push([Push(ITEM_STATISTICS, wrong)])
    lacking = items((7, 0, 1)).rows.drop_columns(["popularity"])
    with pytest.raises(FeatureError, match="lacks popularity"):
        embedded.push([Push(ITEM_STATISTICS, lacking)])
    view = View("moods", "user_id", (Feature("high", pa.int64(), ""),))
    for attempt in (
        lambda: embedded.push([push(view, (1, 0, 1))]),
        lambda: embedded.read(view, [1]),
        lambda: embedded.as_of(view, 1, START),
    ):
        with pytest.raises(FeatureError, match="the view moods is not declared"):
            attempt()
    assert online(embedded, 7) == [0]


@pytest.mark.parametrize(
    ("online", "why"),
    [
        ("mysql://somewhere", "names no store"),
        ("redis://", "names no store"),
        ("redis://host:port", "no port"),
        ("redis://host:6379/first", "a database in Redis is a number"),
        ("redis://ada:a%2Cb@host", "no password with a comma"),
    ],
)
def test_an_online_store_that_cannot_be(online: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        StoreConfig(online)


def test_a_project_needs_a_name() -> None:
    with pytest.raises(ConfigError, match="features.project"):
        StoreConfig(project='x"; DROP TABLE')


def test_clearing_forgets_what_is_online(store: FeastStore) -> None:
    """Or a replay from the start would be older than what is there, and change nothing."""
    store.push([items((7, 9, 3)), users((1, 9, [7]))])
    store.clear()
    store.apply()
    assert online(store, 7) == [0]
    store.push([items((7, 1, 1))])
    assert online(store, 7) == [1]


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
        redo=store.push_again,
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
