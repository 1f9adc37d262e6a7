"""Partitions that move between processes: each record counts once, whoever has it and when."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kafka.admin import KafkaAdminClient

from benchmarks._broker import Broker
from streaming.artefact import Artefact
from streaming.cuts import CutDirectory
from streaming.errors import LogError
from streaming.file_log import FileLog
from streaming.kafka_client import Unreachable
from streaming.kafka_log import KafkaLog
from streaming.log import EVENTS, Append, Log, Membership, Record, TopicPartition
from streaming.loop import Loop, LoopConfig
from streaming.memory_log import Fault, MemoryLog
from streaming.shares import Shares, SharesConfig

TOTALS = "totals"
TOPICS = (EVENTS, TOTALS)
PARTITIONS = 3
RECORDS = 90
PLACES = tuple(TopicPartition(EVENTS, partition) for partition in range(PARTITIONS))


class Counting:
    """One output for each record, with how many came before it in its partition."""

    def __init__(self, state: Artefact | None) -> None:
        self.count: int = state.meta["count"] if state else 0

    def on_batch(self, records: Sequence[Record]) -> list[Append]:
        outputs = []
        for record in records:
            told = b"%d %b" % (self.count, record.value)
            outputs.append(Append(TOTALS, told, None, record.partition))
            self.count += 1
        return outputs

    def on_time(self, now_us: int) -> list[Append]:
        return []

    def snapshot(self) -> Artefact:
        return Artefact({"count": self.count}, {"nothing": pa.table({})})


def make_shares(
    log: Log, cuts: Path, *, limit: int = 12, idle_s: float = 0, cut_every_s: float = 1e9
) -> Shares:
    def make_loop(place: TopicPartition) -> Loop[Counting]:
        directory = cuts / f"{place.topic}-{place.partition}"
        config = LoopConfig(cut_every_s=cut_every_s)
        return Loop(log, "counter", [EVENTS], Counting, directory, only=[place], config=config)

    return Shares(log, "counter", [EVENTS], make_loop, SharesConfig(limit, idle_s))


def feed(log: Log, count: int = RECORDS, start: int = 0) -> None:
    numbers = range(start, start + count)
    log.append([Append(EVENTS, b"event %d" % n, None, n % PARTITIONS) for n in numbers])


def told(log: Log) -> dict[int, list[bytes]]:
    """The outputs, partition by partition."""
    found: dict[int, list[bytes]] = {partition: [] for partition in range(PARTITIONS)}
    positions = log.positions("reader", [TOTALS])
    while positions != log.ends([TOTALS]):
        for record in log.read(positions, 1000, 10.0):
            found[record.partition].append(record.value)
            positions[record.place] = record.offset + 1
    return found


def expected(count: int = RECORDS) -> dict[int, list[bytes]]:
    return {
        p: [b"%d event %d" % (i, n) for i, n in enumerate(range(p, count, PARTITIONS))]
        for p in range(PARTITIONS)
    }


def is_done(log: Log) -> bool:
    """Whether the group has read everything."""
    return log.positions("counter", [EVENTS]) == log.ends([EVENTS])


def run_out(shares: Shares, log: Log) -> None:
    deadline = time.monotonic() + 60
    while not is_done(log):
        shares.turn()
        assert time.monotonic() < deadline


@pytest.fixture
def log() -> Iterator[MemoryLog]:
    log = MemoryLog(partitions=PARTITIONS, topics=TOPICS)
    yield log
    log.close()


# Alone


def test_alone_it_has_every_partition(log: MemoryLog, tmp_path: Path) -> None:
    feed(log)
    shares = make_shares(log, tmp_path)
    run_out(shares, log)
    assert set(shares.loops) == set(PLACES)
    assert told(log) == expected()


def test_on_the_embedded_log_too(tmp_path: Path) -> None:
    log = FileLog(tmp_path / "log.db", partitions=PARTITIONS, topics=TOPICS)
    feed(log)
    run_out(make_shares(log, tmp_path / "cuts"), log)
    assert told(log) == expected()
    log.close()


def test_stopping_makes_a_cut_of_each_partition_and_leaves(log: MemoryLog, tmp_path: Path) -> None:
    feed(log)
    stopping = threading.Event()
    shares = make_shares(log, tmp_path, idle_s=0.001)
    running = threading.Thread(target=shares.run, args=(stopping,))
    running.start()
    while not is_done(log):
        time.sleep(0.001)
    stopping.set()
    running.join(60)
    ends = log.ends([EVENTS])
    for place in PLACES:
        state, positions = CutDirectory(tmp_path / f"events-{place.partition}").newest()
        assert state is not None
        assert state.meta == {"count": RECORDS // PARTITIONS}
        assert positions == {place: ends[place]}
    other = log.join("counter", [EVENTS])
    assert other.assigned() == set(PLACES)  # it left


def test_an_error_in_a_loop_hands_everything_back_without_a_cut(tmp_path: Path) -> None:
    log = MemoryLog(
        partitions=PARTITIONS, topics=TOPICS, faults=[Fault("abort", at=8, topic=TOTALS)]
    )
    feed(log)
    with pytest.raises(LogError, match="abort"):
        make_shares(log, tmp_path).run(threading.Event())
    assert list(tmp_path.iterdir()) == []
    run_out(make_shares(log, tmp_path), log)
    assert told(log) == expected()


def test_a_partition_without_records_holds_no_other_up(log: MemoryLog, tmp_path: Path) -> None:
    log.append([Append(EVENTS, b"event", None, 1) for _ in range(200)])
    shares = make_shares(log, tmp_path, idle_s=10.0)
    started = time.monotonic()
    for _ in range(20):
        shares.turn()
    assert time.monotonic() - started < 5


def test_membership_is_asked_again_after_each_replay(tmp_path: Path) -> None:
    log = Scripted(partitions=PARTITIONS, topics=TOPICS)
    log.coming = TakesBack(set(PLACES))
    shares = make_shares(log, tmp_path)
    shares.turn()
    assert set(shares.loops) == {PLACES[0]}


# With others


def test_two_share_and_one_inherits(log: MemoryLog, tmp_path: Path) -> None:
    feed(log)
    first, second = (make_shares(log, tmp_path) for _ in range(2))
    for _ in range(3):
        first.turn()
        second.turn()
    assert {*first.loops, *second.loops} == set(PLACES)
    assert not first.loops.keys() & second.loops.keys()
    first._membership.leave()
    run_out(second, log)
    assert set(second.loops) == set(PLACES)
    assert told(log) == expected()


@dataclass
class Script:
    """A membership that says what it is told to."""

    places: set[TopicPartition] = field(default_factory=set)

    def assigned(self) -> frozenset[TopicPartition]:
        return frozenset(self.places)

    def leave(self) -> None:
        self.places.clear()


class TakesBack(Script):
    """After it has been asked once, only the first partition is left."""

    def assigned(self) -> frozenset[TopicPartition]:
        told = super().assigned()
        self.places = {PLACES[0]}
        return told


class Scripted(MemoryLog):
    """A log that lets in the one member that `coming` is."""

    coming: Script

    def join(self, group: str, topics: Sequence[str]) -> Membership:  # type: ignore[override]
        return self.coming


def test_one_that_was_fenced_goes_on_with_what_it_still_has(tmp_path: Path) -> None:
    log = Scripted(partitions=PARTITIONS, topics=TOPICS)
    feed(log)
    both = []
    for _ in range(2):
        log.coming = Script(set(PLACES))
        both.append(make_shares(log, tmp_path))
    both[0].turn()
    both[1].turn()
    both[0].turn()
    assert not both[0].loops  # every one of them came too late
    run_out(both[0], log)
    assert told(log) == expected()


class Process:
    """A process that believes what it is told about its part; an error of the log kills it."""

    def __init__(self, log: Scripted, cuts: Path) -> None:
        self._log = log
        self._cuts = cuts
        self.start()

    def start(self, *places: TopicPartition) -> None:
        """Begins a new life, with no cut of the last."""
        self._log.coming = self.script = Script(set(places))
        self._shares = make_shares(self._log, self._cuts)

    def act(self, what: str, place: TopicPartition) -> None:
        if what == "give":
            self.script.places.add(place)
        elif what == "take":
            self.script.places.discard(place)
        elif what == "cut":
            self._shares.cut()
        elif what == "die":
            self.start()
        else:
            self.turn()

    def turn(self) -> None:
        try:
            self._shares.turn()
        except LogError:
            self.start(*self.script.places)


ACTS = st.tuples(
    st.sampled_from(["turn", "turn", "turn", "give", "give", "take", "cut", "die"]),
    st.integers(0, 1),
    st.sampled_from(PLACES),
)
FAULTS = st.builds(
    Fault, st.sampled_from(["abort", "unknown"]), st.integers(0, RECORDS), st.just(TOTALS)
) | st.builds(Fault, st.just("pause"), st.integers(0, RECORDS), st.just(EVENTS), st.integers(1, 9))
HERE = PLACES[0]


@settings(max_examples=100)
@given(
    acts=st.lists(ACTS, min_size=30, max_size=60),
    faults=st.lists(FAULTS, max_size=3),
    gaps=st.booleans(),
)
@example(  # both believe that a partition is theirs, and the one that lost it makes a cut
    acts=[
        ("give", 0, HERE), ("turn", 0, HERE), ("give", 1, HERE), ("turn", 1, HERE),
        ("cut", 0, HERE), ("turn", 1, HERE), ("die", 1, HERE), ("turn", 0, HERE),
    ],
    faults=[], gaps=True,
)  # fmt: skip
@example(  # both believe it, and take turns
    acts=[
        ("give", 0, HERE), ("turn", 0, HERE), ("give", 1, HERE), ("turn", 1, HERE),
        ("turn", 0, HERE), ("turn", 1, HERE), ("turn", 0, HERE), ("turn", 1, HERE),
    ],
    faults=[], gaps=False,
)  # fmt: skip
def test_wherever_partitions_go_each_record_is_told_once_and_in_order(
    acts: list[tuple[str, int, TopicPartition]], faults: list[Fault], gaps: bool
) -> None:
    log = Scripted(partitions=PARTITIONS, topics=TOPICS, faults=faults, gaps=gaps)
    feed(log)
    with TemporaryDirectory() as cuts:
        processes = [Process(log, Path(cuts)) for _ in range(2)]
        for what, who, place in acts:
            processes[who].act(what, place)
        processes[0].start(*PLACES)
        while not is_done(log):
            processes[0].turn()
    assert told(log) == expected()


# Real processes on a real broker


def work(url: str, cuts: Path, has: Path) -> None:
    """A process of the group; tells in a file which partitions it has.

    This broker, unlike Apache Kafka, may hang up on a superseded commit instead of refusing it;
    the process then fails for want of an answer, and is started again.
    """
    while True:
        with suppress(Unreachable), closing(KafkaLog(url)) as log:
            shares = make_shares(log, cuts, limit=1000, idle_s=0.02, cut_every_s=0.2)
            had = None
            while True:
                shares.turn()
                if had != shares.loops.keys():
                    had = set(shares.loops)
                    has.write_text(" ".join(str(place.partition) for place in sorted(had)))


class Cluster:
    """Two processes that share the partitions of a real broker, while events keep coming."""

    def __init__(self, processes: ForkServerContext, broker: Broker, home: Path) -> None:
        admin = KafkaAdminClient(bootstrap_servers=broker.address)
        admin.create_topics(
            {t: {"num_partitions": PARTITIONS, "replication_factor": 1} for t in TOPICS}
        )
        admin.close()
        options = "session_timeout_ms=1500&heartbeat_interval_ms=100&request_timeout_ms=5000"
        self.url = f"{broker.url}?{options}"
        self.log = KafkaLog(self.url)
        self.fed = 0
        self._home = home
        self._processes = processes

    def start(self, name: str) -> BaseProcess:
        process = self._processes.Process(
            target=work, args=(self.url, self._home / "cuts", self._home / name), daemon=True
        )
        process.start()
        return process

    def has(self, name: str) -> set[str]:
        file = self._home / name
        return set(file.read_text().split()) if file.exists() else set()

    def feed_until(self, condition: Callable[[], bool]) -> None:
        """Feeds until it is so, and a few more."""
        deadline = time.monotonic() + 60
        while not condition():
            self._feed_one()
            assert time.monotonic() < deadline
        for _ in range(9):
            self._feed_one()

    def _feed_one(self) -> None:
        feed(self.log, 1, self.fed)
        self.fed += 1

    def wait_until_done(self) -> None:
        deadline = time.monotonic() + 60
        while not is_done(self.log):
            time.sleep(0.02)
            assert time.monotonic() < deadline


@pytest.fixture
def cluster(processes: ForkServerContext, broker: Broker, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(processes, broker, tmp_path)
    yield cluster
    cluster.log.close()


def stop(*processes: BaseProcess) -> None:
    for process in processes:
        process.kill()
        process.join(60)


def assert_told_once(cluster: Cluster) -> None:
    """Every output once and in order.

    This broker, unlike Apache Kafka, shows readers what a transaction wrote before it was undone.
    A process has one transaction at a time, so that may have happened in one partition: the
    records of one transaction lie there, and directly behind them, once more, those that count.
    """
    found, wanted = told(cluster.log), expected(cluster.fed)
    differing = [partition for partition in found if found[partition] != wanted[partition]]
    assert len(differing) <= 1
    for partition in differing:
        here, want = found[partition], wanted[partition]
        undone = len(here) - len(want)
        pairs = zip(here, want, strict=False)
        behind = next((n for n, (one, other) in enumerate(pairs) if one != other), len(want))
        assert 0 < undone <= behind
        assert here == want[:behind] + want[behind - undone :]


def test_one_joins_and_one_is_killed(cluster: Cluster) -> None:
    first = cluster.start("first")
    cluster.feed_until(lambda: len(cluster.has("first")) == PARTITIONS)
    second = cluster.start("second")
    cluster.feed_until(lambda: bool(cluster.has("first")) and bool(cluster.has("second")))
    stop(first)  # with SIGKILL
    cluster.feed_until(lambda: len(cluster.has("second")) == PARTITIONS)
    cluster.wait_until_done()
    stop(second)
    assert_told_once(cluster)


def test_one_that_sleeps_while_its_partitions_move_wakes_up_fenced(cluster: Cluster) -> None:
    first = cluster.start("first")
    cluster.feed_until(lambda: len(cluster.has("first")) == PARTITIONS)
    os.kill(first.pid or 0, signal.SIGSTOP)
    second = cluster.start("second")
    cluster.feed_until(lambda: len(cluster.has("second")) == PARTITIONS)
    os.kill(first.pid or 0, signal.SIGCONT)
    cluster.feed_until(
        lambda: (
            cluster.has("first") | cluster.has("second") == {"0", "1", "2"}
            and len(cluster.has("second")) < PARTITIONS
        )
    )
    cluster.wait_until_done()
    assert first.is_alive()
    stop(first, second)
    assert_told_once(cluster)
