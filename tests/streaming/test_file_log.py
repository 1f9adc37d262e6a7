"""The embedded log among real processes: killed, crowded, out of space, and not a log at all."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from streaming.errors import ConfigError, LogError, LogFull
from streaming.file_log import FileLog
from streaming.log import EVENTS, SAMPLES, TOPICS, Append, TopicPartition
from streaming.open_log import open_log

EVENTS_0 = TopicPartition(EVENTS, 0)
SAMPLES_0 = TopicPartition(SAMPLES, 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
def log(path: Path) -> Iterator[FileLog]:
    log = FileLog(path)
    yield log
    log.close()


def read_all(log: FileLog, place: TopicPartition = EVENTS_0) -> list[bytes]:
    records = log.read({place: 0}, 1_000_000, 0)
    assert [record.offset for record in records] == list(range(len(records)))
    return [record.value for record in records]


# Offsets


def test_offsets_have_no_gaps_even_where_a_transaction_was_undone(path: Path) -> None:
    log = FileLog(path, partitions=3)
    for n in range(30):
        log.append([Append(EVENTS, b"", b"%d" % (n * i)) for i in range(n % 4)])
        with pytest.raises(ZeroDivisionError), log.transaction("g") as transaction:
            transaction.append([Append(EVENTS, b"undone", b"%d" % n)])
            raise ZeroDivisionError
    ends = log.ends([EVENTS])
    assert sum(ends.values()) == sum(n % 4 for n in range(30))
    for place, end in ends.items():
        assert [r.offset for r in log.read({place: 0}, 999, 0)] == list(range(end))
    log.close()


def test_nothing_lies_past_the_end(log: FileLog) -> None:
    log.append([Append(EVENTS, b"a")])
    assert log.read({EVENTS_0: 99}, 99, 0) == []


# Several processes


def append_some(path: Path, name: int, count: int, start: Barrier) -> None:
    log = FileLog(path)
    start.wait()
    for n in range(count):
        log.append([Append(EVENTS, b"%d %d" % (name, n))])
    log.close()


def test_two_processes_that_append_at_once_lose_nothing(
    processes: ForkServerContext, path: Path, log: FileLog
) -> None:
    start = processes.Barrier(2)
    writers = [processes.Process(target=append_some, args=(path, w, 100, start)) for w in range(2)]
    _run(writers)
    found = [tuple(map(int, value.split())) for value in read_all(log)]
    assert sorted(found) == [(w, n) for w in range(2) for n in range(100)]
    for w in range(2):
        assert [n for who, n in found if who == w] == list(range(100))


def test_processes_may_make_the_same_log_at_the_same_moment(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    for n in range(4):
        path = tmp_path / f"{n}.db"
        start = processes.Barrier(6)
        _run([processes.Process(target=open_and_append, args=(path, start)) for _ in range(6)])
        log = FileLog(path)
        assert read_all(log) == [b"hello"] * 6
        log.close()


def test_opening_waits_for_somebody_who_is_making_the_log(path: Path) -> None:
    somebody = sqlite3.connect(path, isolation_level=None)
    somebody.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(FileLog, path)
        with pytest.raises(TimeoutError):
            opening.result(timeout=0.1)
        somebody.execute("COMMIT")
        somebody.close()
        opening.result(timeout=60).close()


def open_and_append(path: Path, start: Barrier) -> None:
    start.wait()
    log = FileLog(path)
    log.append([Append(EVENTS, b"hello")])
    log.close()


def append_one(path: Path) -> None:
    log = FileLog(path)
    log.append([Append(EVENTS, b"from afar")])
    log.close()


def test_a_waiting_reader_wakes_when_another_process_appends(
    processes: ForkServerContext, path: Path, log: FileLog
) -> None:
    writer = processes.Process(target=append_one, args=(path,))
    writer.start()
    (record,) = log.read({EVENTS_0: 0}, 1, timeout_s=60)
    assert record.value == b"from afar"
    _join(writer)


def _run(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        worker.start()
    for worker in workers:
        _join(worker)


def _join(worker: BaseProcess) -> None:
    worker.join(60)
    assert worker.exitcode == 0


# Closed


def close_while_another_thread_works(path: Path) -> None:
    """Runs in a process of its own: SQLite takes the process with it."""
    for _ in range(20):
        log = FileLog(path)
        begun = threading.Event()

        def work(log: FileLog, begun: threading.Event) -> None:
            while True:
                log.append([Append(EVENTS, b"x")])
                log.read({EVENTS_0: 0}, 50, 0)
                begun.set()

        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(work, log, begun)
            assert begun.wait(60)
            log.close()
            with pytest.raises(LogError, match="closed"):
                working.result(timeout=60)


# that comes later opens the log again.
def test_closing_ends_the_work_of_other_threads_with_an_error(
    processes: ForkServerContext, path: Path
) -> None:
    child = processes.Process(target=close_while_another_thread_works, args=(path,), daemon=True)
    child.start()
    child.join(60)
    assert child.exitcode == 0


# Killed


def append_for_ever(path: Path, told: Path) -> None:
    """Appends 3 records and an answer to them at a time; tells after each how many there are."""
    log = FileLog(path)
    with told.open("ab", buffering=0) as telling:
        while True:
            done = log.positions("writer", [EVENTS])[EVENTS_0]
            with log.transaction("writer") as transaction:
                for n in range(done, done + 3):
                    transaction.append([Append(EVENTS, b"%d" % n)])
                transaction.append([Append(SAMPLES, b"%d" % (done + 3))])
                transaction.advance({EVENTS_0: done}, {EVENTS_0: done + 3})
            telling.write(b"%d\n" % (done + 3))


def test_what_a_killed_writer_was_told_is_durable_is_there(
    processes: ForkServerContext, path: Path, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    for life in range(1, 6):
        writer = processes.Process(target=append_for_ever, args=(path, told))
        writer.start()
        watching = FileLog(path)
        assert watching.read({SAMPLES_0: life * 13}, 1, timeout_s=60)
        watching.close()
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join(60)
        assert writer.exitcode == -signal.SIGKILL

        log = FileLog(path)
        found = read_all(log)
        durable = int(told.read_bytes().split(b"\n")[-2])
        assert len(found) in (durable, durable + 3)
        assert found == [b"%d" % n for n in range(len(found))]
        assert read_all(log, SAMPLES_0) == [b"%d" % n for n in range(3, len(found) + 1, 3)]
        assert log.positions("writer", [EVENTS]) == {EVENTS_0: len(found)}
        log.close()


# No space


def fill_up(log: FileLog) -> int:
    """Appends until the log is full; returns how many records went in."""
    for count in range(100_000):
        try:
            log.append([Append(EVENTS, b"x" * 1_000)])
        except LogFull:
            return count
    raise AssertionError("the log is never full")


def advance_and_append_much(log: FileLog) -> None:
    with log.transaction("g") as transaction:
        transaction.advance({EVENTS_0: 0}, {EVENTS_0: 1})
        transaction.append([Append(EVENTS, b"x" * 100_000)])


def test_a_full_log_says_so_keeps_what_it_has_and_goes_on_when_there_is_space(
    log: FileLog,
) -> None:
    """SQLite refuses to grow the file, exactly as it does when the disk is full."""
    log.append([Append(EVENTS, b"first")])
    pages = log._connection.execute("PRAGMA page_count").fetchone()[0]
    log._connection.execute(f"PRAGMA max_page_count = {pages + 5}")
    count = 1 + fill_up(log)
    with pytest.raises(LogFull, match=r"no space is left for the log .*free some disk space"):
        advance_and_append_much(log)

    assert len(read_all(log)) == count
    assert log.positions("g", [EVENTS]) == {EVENTS_0: 0}
    log._connection.execute("PRAGMA max_page_count = 1000000")
    log.append([Append(EVENTS, b"last")])
    assert read_all(log)[-1] == b"last"
    assert len(read_all(log)) == count + 1


def test_a_full_disk_loses_nothing_and_ends_with_free_space(small_disk: Path) -> None:
    filler = small_disk / "filler"
    log = FileLog(small_disk / "log.db")
    filler.write_bytes(b"x" * 150_000)
    count = fill_up(log)
    with pytest.raises(LogFull, match=r"no space is left for the log .*free some disk space"):
        advance_and_append_much(log)
    assert len(read_all(log)) == count > 10
    filler.unlink()
    log.append([Append(EVENTS, b"last")])
    log.close()
    again = FileLog(small_disk / "log.db")
    assert len(read_all(again)) == count + 1
    again.close()


# Opening


def test_a_file_that_is_no_log_is_left_alone_and_named(path: Path) -> None:
    path.write_bytes(b"these are my holiday notes\n" * 100)
    with pytest.raises(LogError, match=r"log\.db is damaged or is not a log .*move it away"):
        FileLog(path)
    assert path.read_bytes() == b"these are my holiday notes\n" * 100


def test_a_damaged_log_is_named(path: Path) -> None:
    log = FileLog(path)
    log.append([Append(EVENTS, b"x" * 500) for _ in range(200)])
    log.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * len(data[4096:])
    path.write_bytes(data)
    with pytest.raises(LogError, match=r"log\.db is damaged or is not a log"):
        read_all(FileLog(path))


def test_a_directory_is_no_log(path: Path) -> None:
    path.mkdir()
    with pytest.raises(LogError, match=r"log\.db cannot be used"):
        FileLog(path)


def test_a_place_where_no_file_can_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match="file"):
        FileLog(tmp_path / "file" / "log.db")


def test_missing_directories_are_made(tmp_path: Path) -> None:
    log = FileLog(tmp_path / "a" / "b" / "log.db")
    log.append([Append(EVENTS, b"x")])
    log.close()
    assert (tmp_path / "a" / "b" / "log.db").exists()


def test_partitions_of_a_topic_that_exists_stay_as_they_are(path: Path) -> None:
    FileLog(path, partitions=2, topics=[EVENTS]).close()
    log = FileLog(path, partitions=5, topics=[EVENTS, "new"])
    assert len(log.ends([EVENTS])) == 2
    assert len(log.ends(["new"])) == 5
    log.close()
    log = FileLog(path, partitions={EVENTS: 7, "newer": 3}, topics=[EVENTS, "newer", "newest"])
    assert [len(log.ends([topic])) for topic in (EVENTS, "newer", "newest")] == [2, 3, 1]
    log.close()


@pytest.mark.parametrize("topic", ['x"; DROP TABLE topics; --', "a b", "", "a/b"])
def test_a_topic_with_strange_letters_is_refused(path: Path, topic: str) -> None:
    with pytest.raises(LogError, match="use letters, digits"):
        FileLog(path, topics=[topic])
    log = FileLog(path, topics=["plain-name_2"])
    assert len(log.ends(["plain-name_2"])) == 1
    log.close()


def test_every_commit_waits_for_the_disk(log: FileLog) -> None:
    assert log._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert log._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_closed_log_leaves_one_plain_file(path: Path) -> None:
    log = FileLog(path)
    log.append([Append(EVENTS, b"x")])
    log.close()
    assert [file.name for file in path.parent.iterdir()] == ["log.db"]
    plain = sqlite3.connect(path)
    assert plain.execute('SELECT value FROM "events/0"').fetchall() == [(b"x",)]
    plain.close()


# By URL


def test_a_file_url_opens_the_embedded_log(path: Path) -> None:
    log = open_log(f"file://{path}")
    log.append([Append(EVENTS, b"x")])
    assert len(log.ends(TOPICS)) == len(TOPICS)
    log.close()
    assert path.exists()


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_log_that_is_made_gets_the_partitions_that_are_asked_for(path: Path, scheme: str) -> None:
    url = path.as_uri() if scheme == "file" else f"memory://{path.name}-{id(path)}"
    open_log(url, partitions={EVENTS: 3, SAMPLES: 2}).close()
    again = open_log(url, partitions={EVENTS: 4})
    assert [len(again.ends([topic])) for topic in TOPICS] == [3, 2, 1, 1]
    again.close()


@pytest.mark.parametrize("partitions", [{"event": 2}, {EVENTS: 0}])
def test_partitions_that_cannot_be_are_refused(path: Path, partitions: dict[str, int]) -> None:
    with pytest.raises(
        ConfigError, match="partitions of 'event.*give at least 1, to any of events"
    ):
        open_log(path.as_uri(), partitions=partitions)
    assert not path.exists()


def test_a_path_in_a_url_may_be_escaped(tmp_path: Path) -> None:
    open_log(f"file://{tmp_path}/my%20log%23.db").close()
    assert (tmp_path / "my log#.db").exists()


@pytest.mark.parametrize(
    "url",
    [
        "file:///x/log.db?mode=ro",
        "file:///x/log.db#1",
        "",
        "log.db",
        "/x/log.db",
        "file://relative/log.db",
        "file:",
        "pulsar://host/x",
    ],
)
def test_any_other_url_is_a_mistake_in_the_recipe(url: str) -> None:
    with pytest.raises(ConfigError, match="the known form is file:///absolute/path"):
        open_log(url)
