"""The replay: each event of a source once, however often the process dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from streaming.events import EventRules, decode_events, event_batch, parse_event
from streaming.file_log import FileLog
from streaming.log import EVENTS, Append, TopicPartition
from streaming.sources.replay import Replay, ReplayConfig, ReplayProgress

EVENTS_0 = TopicPartition(EVENTS, 0)
RULES = EventRules()
START_US = 1_600_000_000_000_000


class Numbers:
    """Users that are called by their number, a second apart."""

    def __init__(self, total: int, name: str = "numbers") -> None:
        self.name = name
        self.total = total

    def batch(self, start: int, size: int) -> pa.RecordBatch:
        numbers = range(start, min(start + size, self.total))
        raw = ({"kind": "user", "user_id": str(n), "event_id": f"e{n}"} for n in numbers)
        return event_batch(
            parse_event(event, RULES, START_US + n * 1_000_000)
            for n, event in zip(numbers, raw, strict=True)
        )


def nobody_waits() -> int:
    return 0


def replay(
    log: FileLog, total: int = 100, waiting: Callable[[], int] = nobody_waits, **config: Any
) -> Replay:
    return Replay(log, Numbers(total), waiting, ReplayConfig(**{"record_size": 8, **config}))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[FileLog]:
    log = FileLog(tmp_path / "log.db")
    yield log
    log.close()


def logged(log: FileLog) -> list[int]:
    """The numbers of the events in the log."""
    records = log.read({EVENTS_0: 0}, 1_000_000, 0)
    return [int(user) for user in decode_events(records, RULES).events["user_id"].to_pylist()]


def at_us(number: int) -> int:
    return START_US + number * 1_000_000


# To the end


@pytest.mark.parametrize("total", [0, 1, 8, 9, 100])
def test_every_event_is_in_the_log_once_and_in_order(log: FileLog, total: int) -> None:
    work = replay(log, total)
    assert work.progress == ReplayProgress(0, total, None)
    work.run(threading.Event())
    assert logged(log) == list(range(total))
    assert log.ends([EVENTS])[EVENTS_0] == -(-total // 8)
    assert work.progress == ReplayProgress(total, total, at_us(total - 1) if total else None)


def test_a_finished_replay_does_not_begin_again(log: FileLog) -> None:
    replay(log).run(threading.Event())
    again = replay(log)
    assert (again.progress.done, again.progress.total) == (100, 100)
    again.run(threading.Event())
    assert logged(log) == list(range(100))


def test_another_source_begins_at_its_own_beginning(log: FileLog) -> None:
    replay(log, 3).run(threading.Event())
    Replay(log, Numbers(2, "others"), nobody_waits, ReplayConfig()).run(threading.Event())
    assert logged(log) == [0, 1, 2, 0, 1]


def test_live_events_may_lie_between_those_of_the_replay(log: FileLog) -> None:
    live = Append(EVENTS, b'{"kind":"user","user_id":"-1"}', b"-1")

    def somebody_writes() -> int:
        log.append([live])
        return 0

    replay(log, 20, somebody_writes).run(threading.Event())
    assert logged(log) == [-1, *range(8), -1, *range(8, 16), -1, *range(16, 20)]


@pytest.mark.parametrize(("limit", "expected"), [(0, 100), (1, 1), (16, 16), (21, 21), (999, 100)])
def test_with_a_limit_only_so_many_events_are_replayed(
    log: FileLog, limit: int, expected: int
) -> None:
    for _ in range(2):
        work = replay(log, limit=limit)
        work.run(threading.Event())
        assert logged(log) == list(range(expected))
        assert (work.progress.done, work.progress.total) == (expected, expected)


def test_a_limit_below_what_was_replayed_before_takes_nothing_back(log: FileLog) -> None:
    replay(log, limit=24).run(threading.Event())
    work = replay(log, limit=16)
    work.run(threading.Event())
    assert logged(log) == list(range(24))
    assert (work.progress.done, work.progress.total) == (24, 24)


def test_a_pace_is_kept(log: FileLog) -> None:
    started = time.monotonic()
    replay(log, 80, events_per_s=1_000, wait_s=0.001).run(threading.Event())
    assert time.monotonic() - started >= 0.072  # nine records of 8 ms before the tenth
    assert logged(log) == list(range(80))


# Keeping the distance


@pytest.mark.parametrize("ahead", [1, 3])
def test_never_more_than_ahead_records_wait(log: FileLog, ahead: int) -> None:
    consumed = 0
    waited: list[int] = []

    def waiting() -> int:
        """Takes one record each time the replay has come as far as it may."""
        nonlocal consumed
        waited.append(log.ends([EVENTS])[EVENTS_0] - consumed)
        if waited[-1] == ahead:
            consumed += 1
        return waited[-1]

    replay(log, 100, waiting, ahead=ahead, wait_s=0).run(threading.Event())
    assert max(waited) == ahead
    assert logged(log) == list(range(100))


def test_a_replay_that_waits_goes_on_when_a_record_was_consumed(log: FileLog) -> None:
    waits = threading.Event()
    consumed = threading.Event()

    def waiting() -> int:
        lag = log.ends([EVENTS])[EVENTS_0] - (10 if consumed.is_set() else 0)
        if lag == 2:
            waits.set()
        return lag

    stopping = threading.Event()
    work = replay(log, 100, waiting, ahead=2)
    thread = threading.Thread(target=work.run, args=(stopping,), daemon=True)
    thread.start()
    assert waits.wait(60)
    assert log.ends([EVENTS])[EVENTS_0] == 2
    consumed.set()
    assert log.read({EVENTS_0: 11}, 1, timeout_s=60)
    stopping.set()
    thread.join(60)
    assert not thread.is_alive()
    assert log.ends([EVENTS])[EVENTS_0] == 12


# Stopping and dying


def test_it_stops_when_it_is_told_to_and_goes_on_from_there(log: FileLog) -> None:
    stopping = threading.Event()
    asked = 0

    def stop_at_the_third() -> int:
        nonlocal asked
        asked += 1
        if asked == 3:
            stopping.set()
        return 0

    work = replay(log, 100, stop_at_the_third)
    work.run(stopping)
    assert work.progress == ReplayProgress(24, 100, at_us(23))
    assert logged(log) == list(range(24))
    work.run(stopping)
    assert logged(log) == list(range(24))

    replay(log, record_size=5).run(threading.Event())
    assert logged(log) == list(range(100))


def test_it_stops_at_once_while_it_waits(log: FileLog) -> None:
    stopping = threading.Event()
    asked = threading.Event()

    def waiting() -> int:
        asked.set()
        return 99

    work = replay(log, 100, waiting, wait_s=3_600)
    thread = threading.Thread(target=work.run, args=(stopping,), daemon=True)
    thread.start()
    assert asked.wait(60)
    stopping.set()
    thread.join(60)
    assert not thread.is_alive()
    assert logged(log) == []


def replay_in_a_process(path: Path, total: int) -> None:
    log = FileLog(path)
    replay(log, total, record_size=3).run(threading.Event())
    log.close()


def test_a_killed_replay_repeats_nothing_and_misses_nothing(
    processes: ForkServerContext, tmp_path: Path, log: FileLog
) -> None:
    total = 600
    for target in (7, 30, 31, 80, 130):
        child = processes.Process(target=replay_in_a_process, args=(tmp_path / "log.db", total))
        child.start()
        assert log.read({EVENTS_0: target}, 1, timeout_s=60)
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        found = logged(log)
        assert found == list(range(len(found)))
        assert 0 < len(found) < total
        assert replay(log, total).progress.done == len(found)
    replay(log, total, record_size=64).run(threading.Event())
    assert logged(log) == list(range(total))
