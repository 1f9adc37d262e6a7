"""What every `Log` keeps, whatever lies under it.

An implementation joins by a line in `IMPLEMENTATIONS`: from a directory and a count of partitions
to a function that opens the same log again and again, each time as another client.
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

from streaming.errors import Fenced, LogError
from streaming.file_log import FileLog
from streaming.log import EVENTS, SAMPLES, TOPICS, Append, Log, Positions, Record, TopicPartition

Open = Callable[[], Log]


def file_log(directory: Path, partitions: int) -> Open:
    return partial(FileLog, directory / "log.db", partitions=partitions)


IMPLEMENTATIONS: dict[str, Callable[[Path, int], Open]] = {"file": file_log}

EVENTS_0 = TopicPartition(EVENTS, 0)
SAMPLES_0 = TopicPartition(SAMPLES, 0)


@pytest.fixture(params=IMPLEMENTATIONS)
def clients(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[int], Log]]:
    """Opens the one log of this test, with so many partitions if it is not there yet."""
    opened: list[Log] = []

    def connect(partitions: int = 1) -> Log:
        opened.append(IMPLEMENTATIONS[request.param](tmp_path, partitions)())
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


def everything(log: Log, topics: Sequence[str] = (EVENTS,)) -> list[Record]:
    """All records of the topics, partition by partition."""
    return [
        record
        for place, end in log.ends(topics).items()
        for record in (log.read({place: 0}, end, 0) if end else [])
    ]


def values(records: Sequence[Record]) -> list[bytes]:
    return [record.value for record in records]


# Append and read


def test_records_come_back_as_they_were_appended_and_in_order(log: Log) -> None:
    log.append([Append(EVENTS, b"a", b"k"), Append(SAMPLES, b"other"), Append(EVENTS, b"", b"")])
    log.append(events(b"\x00\xff"))
    found = log.read({EVENTS_0: 0}, 10, 0)
    assert [(r.topic, r.partition, r.offset, r.key, r.value) for r in found] == [
        (EVENTS, 0, 0, b"k", b"a"),
        (EVENTS, 0, 1, b"", b""),
        (EVENTS, 0, 2, None, b"\x00\xff"),
    ]
    assert [record.place for record in found] == [EVENTS_0] * 3


def test_a_record_of_many_bytes_comes_back_whole(log: Log) -> None:
    value = bytes(range(256)) * 10_000
    log.append(events(value))
    assert values(log.read({EVENTS_0: 0}, 1, 0)) == [value]


def test_a_record_says_when_it_was_appended(log: Log) -> None:
    before = time.time_ns() // 1_000
    log.append(events(b"a"))
    after = time.time_ns() // 1_000
    (record,) = log.read({EVENTS_0: 0}, 1, 0)
    assert before <= record.logged_us <= after


def test_another_client_reads_what_was_appended(log: Log, other: Log) -> None:
    log.append(events(b"a"))
    other.append(events(b"b"))
    assert values(log.read({EVENTS_0: 0}, 9, 0)) == values(other.read({EVENTS_0: 0}, 9, 0))
    assert values(log.read({EVENTS_0: 0}, 9, 0)) == [b"a", b"b"]


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


def test_offsets_have_no_gaps_and_the_end_is_one_past_the_last(clients: Callable[..., Log]) -> None:
    log = clients(3)
    for n in range(30):
        log.append([Append(EVENTS, b"%d.%d" % (n, i), b"%d" % (n * i)) for i in range(n % 4)])
    ends = log.ends([EVENTS])
    assert list(ends) == [TopicPartition(EVENTS, p) for p in range(3)]
    assert sum(ends.values()) == sum(n % 4 for n in range(30))
    for place, end in ends.items():
        assert [r.offset for r in log.read({place: 0}, 999, 0)] == list(range(end))


def test_reading_starts_at_the_positions(log: Log) -> None:
    log.append(events(*(b"%d" % n for n in range(10))))
    assert [r.offset for r in log.read({EVENTS_0: 7}, 99, 0)] == [7, 8, 9]
    assert log.read({EVENTS_0: 10}, 99, 0) == []
    assert log.read({EVENTS_0: 99}, 99, 0) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 99])
def test_no_more_is_read_than_the_limit_but_one_record_from_each_partition(
    clients: Callable[..., Log], limit: int
) -> None:
    log = clients(3)
    log.append([Append(EVENTS, b"", b"%d" % n) for n in range(60)])
    read = log.read(dict.fromkeys(log.ends([EVENTS]), 0), limit, 0)
    assert len(read) <= max(limit, 3)
    assert {record.partition for record in read} == {0, 1, 2}


def test_reading_on_from_what_was_read_sees_everything_once(clients: Callable[..., Log]) -> None:
    log = clients(3)
    log.append([Append(EVENTS, b"%d" % n, b"%d" % n) for n in range(50)])
    positions = dict.fromkeys(log.ends([EVENTS]), 0)
    seen: list[int] = []
    while records := log.read(positions, 4, 0):
        positions.update({r.place: r.offset + 1 for r in records})
        seen += [int(r.value) for r in records]
    assert sorted(seen) == list(range(50))


def test_a_long_partition_does_not_hide_a_short_one(clients: Callable[..., Log]) -> None:
    log = clients(2)
    log.append(events(*([b""] * 100)))
    short = next(n for n in range(99) if _partition(log, b"%d" % n) == 1)
    log.append(events(b"here", key=b"%d" % short))
    assert b"here" in values(log.read(dict.fromkeys(log.ends([EVENTS]), 0), 10, 0))


def _partition(log: Log, key: bytes) -> int:
    before = log.ends([SAMPLES])
    log.append([Append(SAMPLES, b"", key)])
    return next(p.partition for p, end in log.ends([SAMPLES]).items() if end > before[p])


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
        assert values(client.read({SAMPLES_0: 0}, 9, 0)) == [b"1", b"2"]
        assert client.positions("g", [EVENTS]) == {EVENTS_0: 2}


def test_nothing_of_a_transaction_is_seen_before_it_ends(log: Log, other: Log) -> None:
    with log.transaction("g") as transaction:
        transaction.append([*events(b"a"), Append(SAMPLES, b"b")])
        transaction.advance({EVENTS_0: 0}, {EVENTS_0: 1})
        assert other.read({EVENTS_0: 0, SAMPLES_0: 0}, 9, 0) == []
        assert other.ends([EVENTS, SAMPLES]) == {EVENTS_0: 0, SAMPLES_0: 0}
        assert other.positions("g", [EVENTS]) == {EVENTS_0: 0}
    assert len(other.read({EVENTS_0: 0, SAMPLES_0: 0}, 9, 0)) == 2


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
    assert [(r.offset, r.value) for r in everything(log)] == [(0, b"before"), (1, b"after")]


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
    assert values(log.read({EVENTS_0: 0, SAMPLES_0: 0}, 10, 0)) == [b"cause", b"effect"]


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


def test_a_reader_that_follows_a_busy_writer_sees_each_record_once_and_in_order(
    log: Log, other: Log
) -> None:
    def write() -> None:
        for n in range(100):
            with other.transaction("writer") as transaction:
                transaction.append(events(b"%d" % (2 * n), b"%d" % (2 * n + 1)))

    seen: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while len(seen) < 200:
            records = log.read({EVENTS_0: len(seen)}, 1_000, 30.0)
            assert len(records) % 2 == 0, "half of a transaction was seen"
            seen += [int(r.value) for r in records]
            assert seen == list(range(len(seen)))
        writing.result()


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
        log.read({place: 0}, 1, 0)
    with (
        pytest.raises(LogError, match=f"{place.topic}/{place.partition}"),
        log.transaction("g") as transaction,
    ):
        transaction.advance({place: 0}, {place: 1})


def test_topics_that_are_not_there_have_no_positions_and_no_ends(log: Log) -> None:
    assert log.positions("g", ["gossip"]) == {}
    assert log.ends(["gossip"]) == {}
