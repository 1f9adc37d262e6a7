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

from streaming.decode import decode_events
from streaming.errors import ConfigError
from streaming.events import EventRules, event_batch, parse_event
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


# Several partitions


class Visits:
    """Eleven items, then clicks of 29 users on them, a second apart."""

    name = "visits"

    def __init__(self, total: int = 300) -> None:
        self.total = total

    def batch(self, start: int, size: int) -> pa.RecordBatch:
        numbers = range(start, min(start + size, self.total))
        return event_batch(
            parse_event(self._event(n), RULES, START_US + n * 1_000_000) for n in numbers
        )

    def _event(self, n: int) -> dict[str, Any]:
        if n < 11:
            return {"kind": "item", "item_id": str(n), "event_id": f"e{n}"}
        visit = {"kind": "click", "user_id": f"u{n % 29}", "item_id": str(n % 11)}
        return {**visit, "event_id": f"e{n}"}


@pytest.fixture
def wide_log(tmp_path: Path) -> Iterator[FileLog]:
    log = FileLog(tmp_path / "wide.db", partitions=3)
    yield log
    log.close()


def by_partition(log: FileLog) -> dict[int, list[dict[str, Any]]]:
    places = [TopicPartition(EVENTS, n) for n in range(3)]
    return {
        place.partition: decode_events(log.read({place: 0}, 10_000, 0), RULES).events.to_pylist()
        for place in places
    }


def test_a_user_lies_in_the_partition_of_the_key_in_order(wide_log: FileLog) -> None:
    Replay(wide_log, Visits(), nobody_waits, ReplayConfig(record_size=8)).run(threading.Event())
    found = by_partition(wide_log)
    assert all(len(rows) > 20 for rows in found.values())
    for partition, rows in found.items():
        for row in rows:
            key = row["user_id"] or row["item_id"]
            assert wide_log.partition_of(EVENTS, key.encode()) == partition
        assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
    ids = sorted(int(row["event_id"][1:]) for rows in found.values() for row in rows)
    assert ids == list(range(300))


def test_ahead_counts_for_each_partition(wide_log: FileLog) -> None:
    def waiting() -> int:
        return sum(wide_log.ends([EVENTS]).values())

    stopping = threading.Event()
    work = Replay(wide_log, Visits(), waiting, ReplayConfig(record_size=8, ahead=2, wait_s=0.01))
    thread = threading.Thread(target=work.run, args=(stopping,), daemon=True)
    thread.start()
    assert wide_log.read({TopicPartition(EVENTS, 0): 1}, 1, timeout_s=60)
    time.sleep(0.05)
    stopping.set()
    thread.join(60)
    assert 6 <= waiting() <= 8


# The end


def ticks(log: FileLog, partition: int = 0) -> list[int]:
    records = log.read({TopicPartition(EVENTS, partition): 0}, 1_000_000, 0)
    events = decode_events(records, RULES).events
    times = events["at"].cast(pa.int64()).to_pylist()
    kinds = events["kind"].to_pylist()
    return [at for at, kind in zip(times, kinds, strict=True) if kind == "tick"]


def test_the_end_closes_every_partition_once(wide_log: FileLog) -> None:
    config = ReplayConfig(record_size=8, close_after_s=86_400)
    for _ in range(2):
        Replay(wide_log, Visits(), nobody_waits, config).run(threading.Event())
        end_us = at_us(299) + 86_400_000_000
        assert [ticks(wide_log, n) for n in range(3)] == [[end_us]] * 3


def test_without_a_delay_nothing_is_closed(log: FileLog) -> None:
    replay(log).run(threading.Event())
    assert ticks(log) == []


def test_a_replay_that_was_stopped_closes_nothing(log: FileLog) -> None:
    stopping = threading.Event()

    def stop() -> int:
        stopping.set()
        return 0

    replay(log, 100, stop, close_after_s=60).run(stopping)
    assert logged(log) == list(range(8))
    assert ticks(log) == []


def test_time_is_never_moved_past_now(log: FileLog) -> None:
    before_us = time.time_ns() // 1000
    replay(log, close_after_s=1e12).run(threading.Event())
    assert before_us <= ticks(log)[0] <= time.time_ns() // 1000


# The pace of event time


def test_a_speed_paces_by_event_time(log: FileLog) -> None:
    started = time.monotonic()
    replay(log, 41, speed=80, wait_s=0.002).run(threading.Event())
    assert 0.5 <= time.monotonic() - started < 5  # forty seconds, eighty times as fast
    assert logged(log) == list(range(41))


def test_events_are_not_appended_before_they_are_due(log: FileLog) -> None:
    stopping = threading.Event()
    work = replay(log, 100, speed=1, wait_s=0.002)
    thread = threading.Thread(target=work.run, args=(stopping,), daemon=True)
    thread.start()
    assert log.read({EVENTS_0: 0}, 1, timeout_s=60)
    time.sleep(0.1)
    stopping.set()
    thread.join(60)
    assert logged(log) == [0]


@pytest.mark.parametrize("speed", [0.0, float("inf")])
def test_without_a_speed_time_does_not_matter(log: FileLog, speed: float) -> None:
    replay(log, speed=speed).run(threading.Event())
    assert logged(log) == list(range(100))


def test_shifted_events_happen_when_they_are_due(log: FileLog) -> None:
    before_us = time.time_ns() // 1000
    replay(log, 41, speed=80, shift_to_now=True, wait_s=0.002).run(threading.Event())
    after_us = time.time_ns() // 1000
    events = decode_events(log.read({EVENTS_0: 0}, 1_000, 0), RULES).events
    times = events["at"].cast(pa.int64()).to_pylist()
    assert before_us <= times[0] <= times[-1] <= after_us
    assert [at - times[0] for at in times] == [n * 12_500 for n in range(41)]
    assert logged(log) == list(range(41))


def test_a_shifted_replay_goes_on_from_now(log: FileLog) -> None:
    config: dict[str, Any] = {"speed": 1e6, "shift_to_now": True}
    replay(log, limit=50, **config).run(threading.Event())
    middle_us = time.time_ns() // 1000
    replay(log, **config).run(threading.Event())
    events = decode_events(log.read({EVENTS_0: 0}, 1_000, 0), RULES).events
    times = events["at"].cast(pa.int64()).to_pylist()
    assert times[49] <= middle_us <= times[50]


def test_a_shift_without_a_speed_is_refused(log: FileLog) -> None:
    with pytest.raises(ConfigError, match=r"shift_to_now needs replay\.speed"):
        replay(log, shift_to_now=True)


# Where it counts


def test_two_replays_of_one_source_share_the_work(log: FileLog) -> None:
    works = [replay(log, 400, record_size=4) for _ in range(2)]
    threads = [threading.Thread(target=w.run, args=(threading.Event(),)) for w in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert logged(log) == list(range(400))


def test_a_partition_that_has_lost_its_first_records_is_no_progress(log: FileLog) -> None:
    group = "replay:numbers"  # a new group stands where the partition begins
    with log.transaction(group) as transaction:
        transaction.advance({EVENTS_0: 0}, {EVENTS_0: 5_000})
    work = replay(log)
    assert work.progress.done == 0
    work.run(threading.Event())
    assert logged(log) == list(range(100))
