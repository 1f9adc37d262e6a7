"""Several partitions of `events` and of `samples`: who shares the work, and nothing else, changes.

A user's events lie in one partition, in order, and all that a joiner knows is of one partition. So
with several of them the same rows leave as with one, but for three things: the moment at which an
event was logged, how rows are cut into micro-batches, and the order of rows between partitions.
(And a fourth, where events come out of their order in time: each partition has a time of its own,
and by that it is said what comes too late.)
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks._broker import Broker
from features.aggregator import Aggregator, AggregatorConfig, Push
from features.catalog import Catalog
from infra.home import Home
from infra.recipe import Recipe
from infra.status import joiner_counts
from infra.wiring import archiver, joiner_loop
from streaming.archive import Archive
from streaming.archive_check import verify
from streaming.archiver import ArchiveStep
from streaming.artefact import Artefact
from streaming.dead_letters import Letters
from streaming.events import encode_event, parse_event
from streaming.ids import stable_id
from streaming.impressions import ImpressionsConfig, Label
from streaming.joiner import JoinerConfig
from streaming.log import EVENTS, SAMPLES, Append, Log, Record, TopicPartition
from streaming.loop import Loop, LoopConfig
from streaming.open_log import open_log
from streaming.samples import decode_samples
from streaming.shares import Shares
from streaming.sources.registry import open_source
from streaming.sources.replay import Replay, ReplayConfig
from streaming.topics import Topics, TopicsConfig

RECIPE = Recipe()
ALONE = {EVENTS: 1, SAMPLES: 1}
SHARED = {EVENTS: 3, SAMPLES: 2}
PATIENCE_S = 60.0
MOVIELENS, BANDIT = "ml-latest-small", "open-bandit"
SOURCES = {
    MOVIELENS: ReplayConfig(limit=12_000),  # all movies, and the first ratings
    BANDIT: ReplayConfig(limit=5_000, close_after_s=86_400.0),  # impressions, and few clicks
}
Rows = list[dict[str, Any]]


def home_of(path: Path) -> Home:
    home = Home(path)
    home.make()
    return home


def replay(log: Log, name: str) -> None:
    Replay(log, open_source(name, None), lambda: 0, SOURCES[name]).run(threading.Event())


def take_all(step: Callable[[], object], log: Log, group: str, topics: Sequence[str]) -> None:
    """Steps until the group has read everything."""
    deadline = time.monotonic() + PATIENCE_S
    while log.positions(group, topics) != log.ends(topics):
        step()
        assert time.monotonic() < deadline


def join(log: Log, home: Home, recipe: Recipe = RECIPE) -> Shares:
    """Joins all that is there, in every partition, and makes a cut."""
    shares = joiner_loop(recipe, home, log)
    take_all(shares.turn, log, "joiner", [EVENTS])
    shares.cut()
    return shares


def all_records(log: Log, topic: str) -> list[Record]:
    """Partition by partition."""
    found: list[Record] = []
    for place, end in log.ends([topic]).items():
        at = 0
        while at < end:
            found += log.read({place: at}, 100, PATIENCE_S)
            at = found[-1].offset + 1
    return found


def rows_of(records: Sequence[Record]) -> Rows:
    """The rows of micro-batches, but for when their events were logged."""
    return [row for r in records for row in decode_samples(r).drop_columns("logged_us").to_pylist()]


@pytest.fixture(scope="module")
def joined(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str, Mapping[str, int]], tuple[Log, Home]]]:
    """A log into which a source was replayed, joined to its end; each is made once."""
    made: dict[tuple[str, int], tuple[Log, Home]] = {}

    def make(name: str, partitions: Mapping[str, int]) -> tuple[Log, Home]:
        key = (name, partitions[EVENTS])
        if key not in made:
            home = home_of(tmp_path_factory.mktemp("home"))
            log = open_log(home.log_url, partitions=partitions)
            replay(log, name)
            join(log, home)
            made[key] = log, home
        return made[key]

    yield make
    for log, _ in made.values():
        log.close()


Joined = Callable[[str, Mapping[str, int]], tuple[Log, Home]]


# The same samples


@pytest.mark.parametrize("name", SOURCES)
def test_each_partition_gives_its_users_rows_of_a_run_with_one_partition(
    joined: Joined, name: str
) -> None:
    log, _ = joined(name, SHARED)
    alone, _ = joined(name, ALONE)
    batch = open_source(name, None).batch(0, SOURCES[name].limit)
    keys = {key for column in ("user_id", "item_id") for key in batch[column].to_pylist() if key}
    partition = {stable_id(key): log.partition_of(EVENTS, key.encode()) for key in keys}
    expected: dict[int, Rows] = defaultdict(list)
    for row in rows_of(all_records(alone, SAMPLES)):
        expected[partition[row["user_id"] or row["item_id"]]].append(row)

    found: dict[int, Rows] = defaultdict(list)
    for record in all_records(log, SAMPLES):
        found[int(record.key or b"")] += rows_of([record])
    assert sorted(found) == sorted(expected) == [0, 1, 2]
    for number, rows in expected.items():
        assert found[number] == rows  # and so in the same order


@pytest.mark.parametrize("name", SOURCES)
def test_samples_lie_by_the_number_of_their_partition_of_events(joined: Joined, name: str) -> None:
    log, _ = joined(name, SHARED)
    lie = Counter((r.key, r.partition) for r in all_records(log, SAMPLES))
    assert set(lie) == {(b"0", 0), (b"1", 1), (b"2", 0)}


def test_every_window_ends_in_every_partition(joined: Joined) -> None:
    log, home = joined(BANDIT, SHARED)
    _, alone = joined(BANDIT, ALONE)
    counts, counts_alone = (joiner_counts(one.cuts("joiner")) for one in (home, alone))
    labels = [row["label_click"] for row in rows_of(all_records(log, SAMPLES))]
    assert len(labels) - labels.count(None) == counts["opened"] > 1_000
    # How long a decided one is remembered counts from what its partition knew of the time.
    del counts["open"], counts_alone["open"]
    assert counts == counts_alone


# On any log


@pytest.fixture(params=["file", "kafka"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    """An empty log with several partitions: the embedded one, or one on a real broker."""
    url = (tmp_path / "log.db").as_uri()
    if request.param == "kafka":
        broker: Broker = request.getfixturevalue("broker")
        url = f"{broker.url}?session_timeout_ms=1500&heartbeat_interval_ms=100"
        topics = Topics(broker.url, TopicsConfig(SHARED[EVENTS], SHARED[SAMPLES]))
        topics.apply(topics.plan())
        topics.close()
    with closing(open_log(url, partitions=SHARED)) as log:
        yield log


def event(number: int, kind: str = "like", **fields: Any) -> Append:
    raw = {"kind": kind, "event_id": f"e{number}", "user_id": f"u{number}", "item_id": "i"}
    return encode_event(parse_event(raw | fields, RECIPE.events, time.time_ns() // 1_000))


def users(records: Sequence[Record]) -> Counter[int]:
    return Counter(row["user_id"] for row in rows_of(records))


def test_joiners_write_to_every_partition_of_samples(shared: Log, tmp_path: Path) -> None:
    shared.append([event(n) for n in range(40)])
    join(shared, home_of(tmp_path / "home"))
    records = all_records(shared, SAMPLES)
    assert users(records) == Counter(stable_id(f"u{n}") for n in range(40))
    assert {(r.key, r.partition) for r in records} == {(b"0", 0), (b"1", 1), (b"2", 0)}


class Rank:
    """A Step of one rank of a group: keeps what it was given."""

    def __init__(self, state: Artefact | None) -> None:
        self.taken: list[Record] = []

    def on_batch(self, records: Sequence[Record]) -> list[Append]:
        self.taken += records
        return []

    def on_time(self, now_us: int) -> list[Append]:
        return []

    def snapshot(self) -> Artefact:
        return Artefact({}, {"nothing": pa.table({})})


def ranks(log: Log, cuts: Path, count: int) -> list[Loop[Rank]]:
    """The loops of a group, each with every `count`-th partition of `samples`."""
    places = log.ends([SAMPLES])
    return [
        Loop(log, "ranks", [SAMPLES], Rank, cuts / str(rank),
             only=[place for place in places if place.partition % count == rank])
        for rank in range(count)
    ]  # fmt: skip


def test_the_ranks_of_a_group_have_each_micro_batch_once(shared: Log, tmp_path: Path) -> None:
    shared.append([event(n) for n in range(40)])
    join(shared, home_of(tmp_path / "home"))
    group = ranks(shared, tmp_path / "cuts", 2)
    take_all(lambda: [rank.turn() for rank in group], shared, "ranks", [SAMPLES])
    taken = [rank.step.taken for rank in group]
    assert [{r.partition for r in records} for records in taken] == [{0}, {1}]
    assert users(taken[0]) + users(taken[1]) == Counter(stable_id(f"u{n}") for n in range(40))


# Time


def test_a_window_ends_in_a_partition_that_is_silent_or_behind(tmp_path: Path) -> None:
    """Each partition that holds something is told the time; one without events is not."""
    home = home_of(tmp_path / "home")
    impressions = ImpressionsConfig({"click": Label(0.05)}, wait_s=0.01)
    joining = JoinerConfig(tick_after_s=0.02, impressions=impressions)
    recipe = Recipe(joiner=joining, loop=LoopConfig(limit=6, idle_s=0.01))
    with closing(open_log(home.log_url, partitions=SHARED)) as log:
        shown = event(0, "impression", request_id="r", at=datetime.now(UTC).isoformat())
        silent, behind = shown._replace(partition=0), shown._replace(partition=2)
        more = [event(n, "user")._replace(partition=2) for n in range(1, 200)]
        log.append([silent, behind, *more])
        shares, deadline = joiner_loop(recipe, home, log), time.monotonic() + PATIENCE_S
        while sum(log.ends([SAMPLES]).values()) < 2:
            shares.turn()
            assert time.monotonic() < deadline
        records = all_records(log, SAMPLES)
        assert sorted(r.key or b"" for r in records) == [b"0", b"2"]
        assert [row["label_click"] for row in rows_of(records)] == [0.0, 0.0]
        ends = log.ends([EVENTS])
        assert [ends[TopicPartition(EVENTS, p)] > n for p, n in ((0, 1), (2, 200))] == [True, True]
        assert ends[TopicPartition(EVENTS, 1)] == 0


# Whoever reads all of the partitions


def final_state(log: Log, cuts: Path) -> tuple[dict[str, dict[int, Any]], int]:
    """The newest pushed row of every entity, less what depends on the order between users; and
    how many items the catalog knows.
    """
    newest: dict[str, dict[int, Any]] = defaultdict(dict)

    def push(pushes: Sequence[Push]) -> list[Append]:
        for one in pushes:
            for row in one.rows.to_pylist():
                newest[one.view.name][row[one.view.schema.names[0]]] = row
        return []

    def aggregate(state: Artefact | None) -> Aggregator:
        return Aggregator(RECIPE.aggregator, RECIPE.events, RECIPE.behaviour, state)

    def catalogue(state: Artefact | None) -> Catalog:
        return Catalog(RECIPE.events, RECIPE.behaviour, AggregatorConfig(), state)

    loop = Loop(log, "aggregator", [EVENTS], aggregate, cuts / "aggregator", execute=push)
    take_all(loop.turn, log, "aggregator", [EVENTS])
    catalog = Loop(log, "catalog", [EVENTS], catalogue, cuts / "catalog")
    take_all(catalog.turn, log, "catalog", [EVENTS])
    return newest, len(catalog.step)


def test_the_features_of_every_user_are_those_of_one_partition(
    joined: Joined, tmp_path: Path
) -> None:
    found, items = final_state(joined(MOVIELENS, SHARED)[0], tmp_path / "shared")
    expected, items_alone = final_state(joined(MOVIELENS, ALONE)[0], tmp_path / "alone")
    assert items == items_alone > 9_000
    assert found.keys() == expected.keys()
    assert found["user_history"] == expected["user_history"]
    statistics, alone = found["item_statistics"], expected["item_statistics"]
    assert statistics.keys() == alone.keys()
    for item, row in statistics.items():
        assert row["actions"] == alone[item]["actions"]
        assert row["mean_reward"] == pytest.approx(alone[item]["mean_reward"])


def test_the_archive_has_every_row_of_every_partition(joined: Joined) -> None:
    log, home = joined(BANDIT, SHARED)
    keeper = archiver(RECIPE, home, log)
    take_all(keeper.turn, log, "archive", [EVENTS, SAMPLES])
    keeper.write()
    until = log.ends([EVENTS, SAMPLES])
    step = ArchiveStep(RECIPE.events, RECIPE.joiner.remembered_events)
    verdicts = verify(Archive(home.archive), log, until, step)
    assert [verdict.good for verdict in verdicts] == [True, True]
    events, samples = (verdict.compared for verdict in verdicts)
    assert events == SOURCES[BANDIT].limit
    assert samples == len(rows_of(all_records(log, SAMPLES)))


def test_letters_tell_the_partition_that_they_came_from(tmp_path: Path) -> None:
    home = home_of(tmp_path / "home")
    with closing(open_log(home.log_url, partitions=SHARED)) as log:
        log.append([Append(EVENTS, b"no event", partition=p) for p in range(3)])
        join(log, home)
        waiting = list(Letters(log).waiting())
        assert sorted(filed.letter.origin for filed in waiting) == [f"events/{p}/0" for p in "012"]
        Letters(log).redrive(waiting, [event(n) for n in range(3)])
        join(log, home)
        assert len(rows_of(all_records(log, SAMPLES))) == 3
        assert list(Letters(log).waiting()) == []


# More partitions of samples than before


def test_after_more_partitions_of_samples_each_row_is_still_read_once(tmp_path: Path) -> None:
    home = home_of(tmp_path / "home")
    with closing(open_log(home.log_url, partitions={EVENTS: 3})) as log:
        log.append([event(n) for n in range(40)])
        join(log, home)
        (reader,) = ranks(log, tmp_path / "cuts", 1)
        take_all(reader.turn, log, "ranks", [SAMPLES])
        reader.cut()
        log.append([event(n) for n in range(40, 60)])
        join(log, home)  # and these are not read yet
        before = reader.step.taken
    # The embedded log offers no way to do what Kafka's administrators can.
    with closing(sqlite3.connect(tmp_path / "home" / "log.db", isolation_level=None)) as database:
        database.execute("UPDATE topics SET partitions = 2 WHERE name = ?", (SAMPLES,))
    with closing(open_log(home.log_url)) as log:
        log.append([event(n) for n in range(60, 100)])
        join(log, home)
        (reader,) = ranks(log, tmp_path / "cuts", 1)
        take_all(reader.turn, log, "ranks", [SAMPLES])
        after = reader.step.taken
    assert {(r.key, r.partition) for r in before} == {(b"0", 0), (b"1", 0), (b"2", 0)}
    assert (b"1", 0) in {(r.key, r.partition) for r in after}
    assert (b"1", 1) in {(r.key, r.partition) for r in after}
    assert users(before) + users(after) == Counter(stable_id(f"u{n}") for n in range(100))
