"""What every `Log` keeps, whatever lies under it.

An implementation joins by a line in `IMPLEMENTATIONS`: from a test's own directory and broker, and
a count of partitions, to a function that opens the same log again and again, each time as another
client. Offsets grow, and nothing more is known of them: Kafka's transactions use some up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks._broker import Broker
from streaming.errors import Fenced, LogError
from streaming.file_log import FileLog
from streaming.kafka_client import Cluster
from streaming.kafka_log import KafkaLog
from streaming.log import EVENTS, SAMPLES, TOPICS, Append, Log, Positions, Record, TopicPartition
from streaming.memory_log import MemoryLog

Open = Callable[[], Log]


def file_log(request: pytest.FixtureRequest, directory: Path, partitions: int) -> Open:
    return partial(FileLog, directory / "log.db", partitions=partitions)


def memory_log(request: pytest.FixtureRequest, directory: Path, partitions: int) -> Open:
    return partial(MemoryLog, str(directory), partitions=partitions)


def memory_log_with_gaps(request: pytest.FixtureRequest, directory: Path, partitions: int) -> Open:
    return partial(MemoryLog, str(directory), partitions=partitions, gaps=True)


def kafka_log(request: pytest.FixtureRequest, directory: Path, partitions: int) -> Open:
    broker: Broker = request.getfixturevalue("broker")
    make_topics(broker.url, dict.fromkeys(TOPICS, partitions))
    return partial(KafkaLog, f"{broker.url}?session_timeout_ms=1500&heartbeat_interval_ms=100")


def make_topics(url: str, partitions: dict[str, int]) -> None:
    """Makes those that are not there."""
    cluster = Cluster(url)
    missing = partitions.keys() - cluster.partitions(partitions)
    wanted = {t: {"num_partitions": partitions[t], "replication_factor": 1} for t in missing}
    if wanted:
        cluster.ask(lambda admin: admin.create_topics(wanted))
    cluster.close()


IMPLEMENTATIONS: dict[str, Callable[[pytest.FixtureRequest, Path, int], Open]] = {
    "file": file_log,
    "memory": memory_log,
    "memory with gaps": memory_log_with_gaps,
    "kafka": kafka_log,
}

EVENTS_0 = TopicPartition(EVENTS, 0)
SAMPLES_0 = TopicPartition(SAMPLES, 0)


@pytest.fixture(params=IMPLEMENTATIONS)
def clients(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[int], Log]]:
    """Opens the one log of this test, with so many partitions if it is not there yet."""
    opened: list[Log] = []
    if request.param == "kafka":
        request.getfixturevalue("broker")  # now, so that it outlives its clients

    def connect(partitions: int = 1) -> Log:
        opened.append(IMPLEMENTATIONS[request.param](request, tmp_path, partitions)())
        return opened[-1]

    yield connect
    for log in opened:
        log.close()


@pytest.fixture
def log(clients: Callable[..., Log]) -> Log:
    return clients()


@pytest.fixture
def other(log: Log, clients: Callable[..., Log]) -> Log:
    """A second client of the log that `log` is."""
    return clients()


def events(*values: bytes, key: bytes | None = None) -> list[Append]:
    return [Append(EVENTS, value, key) for value in values]


PATIENCE_S = 10.0  # for what is there already; a remote log still has to fetch it


def read(log: Log, positions: Positions, limit: int = 999) -> list[Record]:
    """What is in the log from `positions` on; there must be something."""
    found = log.read(positions, limit, PATIENCE_S)
    assert found
    return found


def everything(log: Log, topics: Sequence[str] = (EVENTS,)) -> list[Record]:
    """All records of the topics, partition by partition."""
    found: list[Record] = []
    positions = log.positions("nobody", topics)
    for place, end in log.ends(topics).items():
        at = positions[place]
        while at < end:
            found += read(log, {place: at})
            at = found[-1].offset + 1
    return found


def values(records: Sequence[Record]) -> list[bytes]:
    return [record.value for record in records]


# Append and read


def test_records_come_back_as_they_were_appended_and_in_order(log: Log) -> None:
    log.append([Append(EVENTS, b"a", b"k"), Append(SAMPLES, b"other"), Append(EVENTS, b"", b"")])
    log.append(events(b"\x00\xff"))
    found = everything(log)
    assert [(r.topic, r.partition, r.key, r.value) for r in found] == [
        (EVENTS, 0, b"k", b"a"),
        (EVENTS, 0, b"", b""),
        (EVENTS, 0, None, b"\x00\xff"),
    ]
    assert [record.place for record in found] == [EVENTS_0] * 3


def test_a_record_of_many_bytes_comes_back_whole(log: Log) -> None:
    value = bytes(range(256)) * 10_000
    log.append(events(value))
    assert values(everything(log)) == [value]


def test_a_record_says_when_it_was_appended(log: Log) -> None:
    before_ms = time.time_ns() // 1_000_000
    log.append(events(b"a"))
    after_ms = time.time_ns() // 1_000_000
    (record,) = everything(log)
    assert before_ms <= record.logged_us // 1_000 <= after_ms


def test_another_client_reads_what_was_appended(log: Log, other: Log) -> None:
    log.append(events(b"a"))
    other.append(events(b"b"))
    assert values(everything(log)) == values(everything(other)) == [b"a", b"b"]


def test_the_records_of_a_key_share_a_partition_in_order(clients: Callable[..., Log]) -> None:
    log = clients(3)
    for start in range(0, 200, 10):
        numbers = range(start, start + 10)
        log.append([Append(EVENTS, b"%d" % n, b"key %d" % (n % 40)) for n in numbers])
    places: dict[bytes | None, set[TopicPartition]] = {}
    order: dict[bytes | None, list[int]] = {}
    for record in everything(log):
        places.setdefault(record.key, set()).add(record.place)
        order.setdefault(record.key, []).append(int(record.value))
    assert len(order) == 40
    assert all(len(of_one_key) == 1 for of_one_key in places.values())
    assert all(numbers == sorted(numbers) for numbers in order.values())
    assert set.union(*places.values()) == {TopicPartition(EVENTS, p) for p in range(3)}


def test_a_key_has_the_same_partition_in_every_topic(clients: Callable[..., Log]) -> None:
    log = clients(3)
    keys = [b"key %d" % n for n in range(20)]
    log.append([Append(topic, b"", key) for key in keys for topic in (EVENTS, SAMPLES)])
    where = [{r.key: r.partition for r in everything(log, [topic])} for topic in (EVENTS, SAMPLES)]
    assert where[0] == where[1]
    assert len(where[0]) == 20


def test_partition_of_says_where_a_key_comes_to_lie(clients: Callable[..., Log]) -> None:
    log = clients(3)
    keys = [b"key %d" % n for n in range(20)]
    log.append([Append(SAMPLES, b"", key) for key in keys])
    assert {r.key: r.partition for r in everything(log, [SAMPLES])} == {
        key: log.partition_of(SAMPLES, key) for key in keys
    }


def test_a_record_lies_where_its_partition_says_whatever_its_key(
    clients: Callable[..., Log],
) -> None:
    log = clients(3)
    log.append([Append(EVENTS, b"%d" % n, b"key", n) for n in range(3)])
    log.append([Append(EVENTS, b"%d" % n, None, n) for n in range(3)])
    assert [(r.partition, r.value) for r in everything(log)] == [
        (n, b"%d" % n) for n in (0, 0, 1, 1, 2, 2)
    ]
    with log.transaction("g") as transaction:
        transaction.append([Append(EVENTS, b"2", b"key", 2)])
    assert [r.partition for r in everything(log)] == [0, 0, 1, 1, 2, 2, 2]


def test_records_without_a_key_lie_in_the_first_partition(clients: Callable[..., Log]) -> None:
    log = clients(3)
    log.append([Append(EVENTS, b"a"), Append(EVENTS, b"b", b"")])
    assert {record.partition for record in everything(log)} == {0}
    assert log.partition_of(EVENTS, b"") == 0


def test_offsets_grow_and_the_end_is_one_past_the_last(clients: Callable[..., Log]) -> None:
    log = clients(3)
    for n in range(12):
        log.append([Append(EVENTS, b"", b"%d" % (n * i)) for i in range(n % 4)])
    ends = log.ends([EVENTS])
    assert list(ends) == [TopicPartition(EVENTS, p) for p in range(3)]
    offsets: dict[TopicPartition, list[int]] = {place: [] for place in ends}
    for record in everything(log):
        offsets[record.place].append(record.offset)
    assert sum(map(len, offsets.values())) == sum(n % 4 for n in range(12))
    for place, of_place in offsets.items():
        assert of_place == sorted(set(of_place))
        assert ends[place] == of_place[-1] + 1


def test_who_has_read_everything_stands_at_the_ends(clients: Callable[..., Log]) -> None:
    log = clients(2)
    log.append([Append(EVENTS, b"", None, n % 2) for n in range(6)])
    with log.transaction("g") as transaction:
        transaction.append([Append(EVENTS, b"", None, 1)])
    with pytest.raises(ZeroDivisionError):
        transact(log, events(b"undone"), {}, error=ZeroDivisionError)
    positions = log.positions("g", [EVENTS])
    with log.transaction("g") as transaction:
        transaction.advance(positions, {r.place: r.offset + 1 for r in everything(log)})
    assert log.positions("g", [EVENTS]) == log.ends([EVENTS])


def test_reading_starts_at_the_positions(log: Log) -> None:
    log.append(events(*(b"%d" % n for n in range(10))))
    offsets = [record.offset for record in everything(log)]
    assert values(read(log, {EVENTS_0: offsets[7]})) == [b"7", b"8", b"9"]
    assert values(read(log, {EVENTS_0: offsets[2]}, 3)) == [b"2", b"3", b"4"]
    assert log.read({EVENTS_0: offsets[9] + 1}, 99, 0) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 99])
def test_no_more_is_read_than_the_limit_but_one_record_from_each_partition(
    clients: Callable[..., Log], limit: int
) -> None:
    log = clients(3)
    log.append([Append(EVENTS, b"", None, n % 3) for n in range(60)])
    positions = log.positions("g", [EVENTS])
    seen: set[int] = set()
    for _ in range(9):
        if positions == log.ends([EVENTS]):
            break
        records = read(log, positions, limit)
        assert len(records) <= max(limit, 3)
        seen |= {record.partition for record in records}
        positions |= {record.place: record.offset + 1 for record in records}
    assert seen == {0, 1, 2}


def test_reading_on_from_what_was_read_sees_everything_once(clients: Callable[..., Log]) -> None:
    log = clients(3)
    log.append([Append(EVENTS, b"%d" % n, b"%d" % n) for n in range(50)])
    positions = log.positions("g", [EVENTS])
    seen: list[int] = []
    while positions != log.ends([EVENTS]):
        records = read(log, positions, 4)
        positions |= {record.place: record.offset + 1 for record in records}
        seen += [int(record.value) for record in records]
    assert sorted(seen) == list(range(50))
    assert log.read(positions, 4, 0) == []


def test_a_long_partition_does_not_hide_a_short_one(clients: Callable[..., Log]) -> None:
    log = clients(2)
    log.append([Append(EVENTS, b"", None, 0) for _ in range(100)])
    log.append([Append(EVENTS, b"here", None, 1)])
    positions = log.positions("g", [EVENTS])
    seen: list[bytes] = []
    for _ in range(3):
        records = read(log, positions, 10)
        positions |= {record.place: record.offset + 1 for record in records}
        seen += values(records)
    assert b"here" in seen


def test_appending_nothing_changes_nothing(log: Log) -> None:
    log.append([])
    assert log.ends(TOPICS) == {TopicPartition(topic, 0): 0 for topic in TOPICS}


# Waiting


def test_a_read_without_patience_returns_at_once(log: Log) -> None:
    started = time.monotonic()
    assert log.read({EVENTS_0: 0}, 1, 0) == []
    assert time.monotonic() - started < 1


def test_a_read_waits_out_its_time_for_nothing(log: Log) -> None:
    started = time.monotonic()
    assert log.read({EVENTS_0: 0}, 1, 0.05) == []
    assert 0.05 <= time.monotonic() - started < 5


def test_reading_no_partition_waits_out_its_time(log: Log) -> None:
    started = time.monotonic()
    assert log.read({}, 1, 0.05) == []
    assert 0.05 <= time.monotonic() - started < 5


def test_a_waiting_reader_wakes_when_another_client_appends(log: Log, other: Log) -> None:
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(log.read, {EVENTS_0: 0, SAMPLES_0: 0}, 9, 60.0)
        assert not waiting.done()
        other.append([Append(SAMPLES, b"late")])
        assert values(waiting.result()) == [b"late"]
    assert time.monotonic() - started < 30


def test_a_waiting_reader_does_not_wake_for_a_transaction_that_is_undone(
    log: Log, other: Log
) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(log.read, {EVENTS_0: 0}, 9, 60.0)
        with pytest.raises(ZeroDivisionError):
            transact(other, events(b"never"), {}, error=ZeroDivisionError)
        other.append(events(b"soon"))
        assert values(waiting.result()) == [b"soon"]


# Transactions


def transact(
    log: Log,
    records: Sequence[Append],
    end: Positions,
    start: Positions | None = None,
    error: type[BaseException] | None = None,
) -> None:
    """A transaction of group "g" that ends well or with an error."""
    with log.transaction("g") as transaction:
        transaction.append(records)
        transaction.advance(start or {}, end)
        if error is not None:
            raise error


def test_a_transaction_makes_appends_and_positions_visible(log: Log, other: Log) -> None:
    log.append(events(b"a", b"b"))
    with log.transaction("g") as transaction:
        transaction.append([Append(SAMPLES, b"1")])
        transaction.advance({EVENTS_0: 0}, {EVENTS_0: 2})
        transaction.append([Append(SAMPLES, b"2")])
    for client in (log, other):
        assert values(everything(client, [SAMPLES])) == [b"1", b"2"]
        assert client.positions("g", [EVENTS]) == {EVENTS_0: 2}


def test_nothing_of_a_transaction_is_seen_before_it_ends(log: Log, other: Log) -> None:
    with log.transaction("g") as transaction:
        transaction.append([*events(b"a"), Append(SAMPLES, b"b")])
        transaction.advance({EVENTS_0: 0}, {EVENTS_0: 1})
        assert other.read({EVENTS_0: 0, SAMPLES_0: 0}, 9, 0) == []
        assert other.ends([EVENTS, SAMPLES]) == {EVENTS_0: 0, SAMPLES_0: 0}
        assert other.positions("g", [EVENTS]) == {EVENTS_0: 0}
    assert len(everything(other, [EVENTS, SAMPLES])) == 2


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_an_exception_undoes_all_of_a_transaction(
    log: Log, other: Log, error: type[BaseException]
) -> None:
    log.append(events(b"before"))
    with pytest.raises(error):
        transact(log, events(b"undone"), {EVENTS_0: 1}, error=error)
    for client in (log, other):
        assert values(everything(client)) == [b"before"]
        assert client.positions("g", [EVENTS]) == {EVENTS_0: 0}
    other.append(events(b"after"))
    assert values(everything(log)) == [b"before", b"after"]


def test_groups_stand_apart(log: Log) -> None:
    with log.transaction("g") as transaction:
        transaction.advance({EVENTS_0: 0}, {EVENTS_0: 5})
    assert log.positions("g", [EVENTS, SAMPLES]) == {EVENTS_0: 5, SAMPLES_0: 0}
    assert log.positions("another", [EVENTS]) == {EVENTS_0: 0}


def test_a_transaction_of_progress_alone_and_one_of_appends_alone(log: Log) -> None:
    with log.transaction("g") as transaction:
        transaction.advance({EVENTS_0: 0}, {EVENTS_0: 3})
    with log.transaction("g") as transaction:
        transaction.append(events(b"a"))
    with log.transaction("g"):
        pass
    assert log.positions("g", [EVENTS]) == {EVENTS_0: 3}
    assert values(everything(log)) == [b"a"]


def test_several_partitions_advance_together(clients: Callable[..., Log]) -> None:
    log = clients(2)
    first, second = (TopicPartition(EVENTS, p) for p in range(2))
    with log.transaction("g") as transaction:
        transaction.advance({first: 0}, {first: 4})
    with log.transaction("g") as transaction:
        transaction.advance({first: 4, second: 0}, {first: 5, second: 7})
    assert log.positions("g", [EVENTS]) == {first: 5, second: 7}


@pytest.mark.parametrize("start", [{}, {EVENTS_0: 0}, {EVENTS_0: 1}, {EVENTS_0: 3}])
def test_a_stale_start_is_fenced_and_its_work_undone(
    log: Log, other: Log, start: dict[TopicPartition, int]
) -> None:
    with log.transaction("g") as transaction:
        transaction.advance({EVENTS_0: 0}, {EVENTS_0: 2})
    with pytest.raises(Fenced, match=r"group 'g' stands at 2 in events/0, not at \d"):
        transact(other, events(b"undone"), {EVENTS_0: 9}, start)
    assert log.positions("g", [EVENTS]) == {EVENTS_0: 2}
    assert everything(log) == []


def test_one_stale_partition_fences_all_of_them(clients: Callable[..., Log]) -> None:
    log = clients(2)
    first, second = (TopicPartition(EVENTS, p) for p in range(2))
    with log.transaction("g") as transaction:
        transaction.advance({}, {second: 1})
    with pytest.raises(Fenced), log.transaction("g") as transaction:
        transaction.advance({first: 0, second: 0}, {first: 5, second: 5})
    assert log.positions("g", [EVENTS]) == {first: 0, second: 1}


def test_of_two_that_work_for_a_group_only_one_commits(log: Log, other: Log) -> None:
    together = threading.Barrier(2)

    def work(client: Log, name: bytes) -> str:
        together.wait()
        try:
            with client.transaction("g") as transaction:
                transaction.append(events(name))
                transaction.advance({EVENTS_0: 0}, {EVENTS_0: 1})
        except Fenced:
            return "fenced"
        return "committed"

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(work, (log, other), (b"one", b"two")))
    assert sorted(outcomes) == ["committed", "fenced"]
    assert len(everything(log)) == 1


class Meanwhile(dict[TopicPartition, int]):
    """Positions; once the first is looked at, something else happens."""

    def __init__(self, positions: dict[TopicPartition, int], happen: Callable[[], None]) -> None:
        super().__init__(positions)
        self._happen = happen

    def items(self) -> Any:
        for n, pair in enumerate(super().items()):
            if n == 1:
                self._happen()
            yield pair


def test_one_read_sees_all_of_a_transaction_or_none_of_it(log: Log, other: Log) -> None:
    def commit() -> None:
        with other.transaction("g") as transaction:
            transaction.append([Append(EVENTS, b"cause"), Append(SAMPLES, b"effect")])

    seen = log.read(Meanwhile({EVENTS_0: 0, SAMPLES_0: 0}, commit), 10, 0)
    assert values(seen) in ([], [b"cause", b"effect"])
    assert values(everything(log, [EVENTS, SAMPLES])) == [b"cause", b"effect"]


# Opening again, and at the same time


def test_a_log_that_is_opened_again_holds_what_it_held(clients: Callable[..., Log]) -> None:
    log = clients(2)
    log.append([Append(EVENTS, b"%d" % n, b"%d" % n) for n in range(9)])
    with log.transaction("g") as transaction:
        transaction.advance({}, {TopicPartition(EVENTS, 1): 3})
    before = everything(log), log.ends(TOPICS), log.positions("g", TOPICS)
    log.close()
    again = clients(2)
    assert (everything(again), again.ends(TOPICS), again.positions("g", TOPICS)) == before


def test_many_threads_append_through_one_client_and_lose_nothing(log: Log) -> None:
    def produce(name: int) -> None:
        for n in range(25):
            log.append(events(b"%d %d" % (name, n)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(produce, range(4)))
    found = [tuple(map(int, r.value.split())) for r in everything(log)]
    assert sorted(found) == [(name, n) for name in range(4) for n in range(25)]
    for name in range(4):
        assert [n for who, n in found if who == name] == list(range(25))


@pytest.mark.parametrize("timeout_s", [30.0, 0.0])
def test_a_reader_that_follows_a_busy_writer_sees_each_record_once_and_in_order(
    log: Log, other: Log, timeout_s: float
) -> None:
    def write() -> None:
        for n in range(100):
            with other.transaction("writer") as transaction:
                transaction.append(events(b"%d" % (2 * n), b"%d" % (2 * n + 1)))

    seen: list[int] = []
    position = 0
    deadline = time.monotonic() + 60
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while len(seen) < 200:
            records = log.read({EVENTS_0: position}, 1_000, timeout_s)
            assert len(records) % 2 == 0, "half of a transaction was seen"
            seen += [int(r.value) for r in records]
            assert seen == list(range(len(seen)))
            position = records[-1].offset + 1 if records else position
            assert time.monotonic() < deadline
        writing.result()


# Groups


def test_a_group_that_never_was_stands_at_the_first_record(log: Log) -> None:
    log.append(events(b"a", b"b"))
    assert log.positions("new", [EVENTS]) == {EVENTS_0: everything(log)[0].offset}


def test_one_process_alone_has_every_partition(clients: Callable[..., Log]) -> None:
    log = clients(3)
    membership = log.join("g", [EVENTS, SAMPLES])
    places = {TopicPartition(topic, p) for topic in (EVENTS, SAMPLES) for p in range(3)}
    until(lambda: membership.assigned() == places)
    membership.leave()


def test_one_who_comes_after_another_has_left_has_every_partition(
    clients: Callable[..., Log],
) -> None:
    first, second = clients(2), clients(2)
    places = {TopicPartition(EVENTS, p) for p in range(2)}
    for log in (first, second):
        membership = log.join("g", [EVENTS])
        until(lambda membership=membership: membership.assigned() == places)  # type: ignore[misc]
        membership.leave()


def test_one_who_is_asked_only_now_and_then_has_every_partition(
    clients: Callable[..., Log],
) -> None:
    """What a broker answers while nobody asks is not lost."""
    membership = clients(2).join("g", [EVENTS])
    places = {TopicPartition(EVENTS, p) for p in range(2)}
    for _ in range(10):
        if membership.assigned() == places:
            break
        time.sleep(1.5)  # a broker answers before
    assert membership.assigned() == places
    membership.leave()


def test_two_processes_share_the_partitions_and_one_inherits(
    request: pytest.FixtureRequest, clients: Callable[..., Log]
) -> None:
    first, second = clients(3), clients(3)
    if isinstance(first, FileLog):
        pytest.skip("the embedded log does not share: one process has everything")
    places = {TopicPartition(EVENTS, p) for p in range(3)}
    one = first.join("g", [EVENTS])
    until(lambda: one.assigned() == places)
    two = second.join("g", [EVENTS])

    def shared() -> bool:
        parts = one.assigned(), two.assigned()
        return all(parts) and set.union(*map(set, parts)) == places

    until(shared)
    assert not one.assigned() & two.assigned()
    one.leave()
    until(lambda: two.assigned() == places)
    two.leave()


def until(condition: Callable[[], bool]) -> None:
    """Asks until it is so; a broker takes seconds to share partitions out."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# What is not there


def test_an_append_to_an_unknown_topic_is_refused_and_nothing_is_appended(log: Log) -> None:
    with pytest.raises(LogError, match="'gossip'"):
        log.append([*events(b"a"), Append("gossip", b"b")])
    assert everything(log) == []
    log.append(events(b"b"))
    assert values(everything(log)) == [b"b"]


@pytest.mark.parametrize(
    "place", [TopicPartition("gossip", 0), TopicPartition(EVENTS, 1), TopicPartition(EVENTS, -1)]
)
def test_an_unknown_partition_can_be_neither_read_nor_advanced(
    log: Log, place: TopicPartition
) -> None:
    with pytest.raises(LogError, match=f"{place.topic}/{place.partition}"):
        log.read({place: 0}, 1, 1.0)
    with (
        pytest.raises(LogError, match=f"{place.topic}/{place.partition}"),
        log.transaction("g") as transaction,
    ):
        transaction.advance({place: 0}, {place: 1})


def test_topics_that_are_not_there_have_no_positions_and_no_ends(log: Log) -> None:
    assert log.positions("g", ["gossip"]) == {}
    assert log.ends(["gossip"]) == {}
