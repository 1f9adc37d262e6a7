"""The log in memory: one for all who know its name, and wrong exactly where it is asked to be."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from streaming.errors import ConfigError, LogError
from streaming.log import EVENTS, SAMPLES, Append, TopicPartition
from streaming.memory_log import Fault, MemoryLog
from streaming.open_log import open_log

EVENTS_0 = TopicPartition(EVENTS, 0)


def feed(log: MemoryLog, values: str, partition: int = 0) -> None:
    """One append for each letter."""
    for value in values:
        log.append([Append(EVENTS, value.encode(), None, partition)])


def look(log: MemoryLog, place: TopicPartition = EVENTS_0) -> str:
    """One read of all that can be seen, a letter for each record."""
    return b"".join(record.value for record in log.read({place: 0}, 999, 0)).decode()


# Names


def test_clients_of_a_name_share_a_log_that_outlives_them(tmp_path: Path) -> None:
    first, second = MemoryLog(str(tmp_path), partitions=2), MemoryLog(str(tmp_path), partitions=5)
    feed(first, "ab", partition=1)
    assert look(second, TopicPartition(EVENTS, 1)) == "ab"
    assert len(second.ends([EVENTS])) == 2
    first.close()
    second.close()
    assert look(MemoryLog(str(tmp_path)), TopicPartition(EVENTS, 1)) == "ab"


def test_a_log_without_a_name_is_private() -> None:
    first, second = MemoryLog(), MemoryLog()
    feed(first, "a")
    assert look(second) == ""


def test_a_url_opens_the_log_of_that_name(tmp_path: Path) -> None:
    name = f"{tmp_path.name}.url"
    log = open_log(f"memory://{name}?partitions=3")
    log.append([Append(EVENTS, b"a", None, 2)])
    assert len(log.ends([EVENTS])) == 3
    assert look(MemoryLog(name), TopicPartition(EVENTS, 2)) == "a"


@pytest.mark.parametrize(
    "url", ["memory://", "memory://x/y", "memory://x?partitions=0", "memory://x?p=1", "memory:x"]
)
def test_any_other_url_is_a_mistake_in_the_recipe(url: str) -> None:
    with pytest.raises(ConfigError, match=r"memory://NAME"):
        open_log(url)


def test_a_closed_client_can_do_nothing_and_its_waiting_reader_is_told() -> None:
    log = MemoryLog()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(log.read, {EVENTS_0: 0}, 1, 60.0)
        assert not reading.done()
        log.close()
        with pytest.raises(LogError, match="closed"):
            reading.result()
    calls: list[Callable[[], object]] = [
        lambda: feed(log, "a"),
        lambda: log.ends([EVENTS]),
        lambda: log.positions("g", [EVENTS]),
        lambda: log.transaction("g").__enter__(),
        lambda: log.join("g", [EVENTS]),
    ]
    for call in calls:
        with pytest.raises(LogError, match="closed"):
            call()


def test_nothing_is_lost_between_many_threads() -> None:
    log = MemoryLog()
    start = threading.Barrier(4)

    def count_up(_: int) -> None:
        start.wait()
        for _ in range(200):
            feed(log, "x")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count_up, range(4)))
    assert look(log) == "x" * 800


def test_with_gaps_every_commit_uses_up_an_offset_in_each_partition_it_touched() -> None:
    log = MemoryLog(partitions=2, gaps=True)
    log.append([Append(EVENTS, b"a", None, 0), Append(EVENTS, b"b", None, 0)])
    with log.transaction("g") as transaction:
        transaction.append([Append(EVENTS, b"c", None, 0)])
        transaction.advance({EVENTS_0: 0}, {EVENTS_0: 2})
    feed(log, "d", partition=1)
    assert [record.offset for record in log.read({EVENTS_0: 0}, 9, 0)] == [0, 1, 3]
    assert log.ends([EVENTS]) == {EVENTS_0: 4, TopicPartition(EVENTS, 1): 1}


# Retention


def test_what_is_trimmed_is_gone_and_new_groups_begin_behind_it() -> None:
    log = MemoryLog()
    feed(log, "abcde")
    log.trim(EVENTS_0, 3)
    assert log.positions("new", [EVENTS]) == {EVENTS_0: 3}
    assert log.ends([EVENTS]) == {EVENTS_0: 5}
    assert look(log) == "de"
    with pytest.raises(LogError, match=r"events/0 .* begins at 3 and 2 was asked for"):
        log.read({EVENTS_0: 2}, 9, 0)
    log.trim(EVENTS_0, 99)
    assert log.positions("new", [EVENTS]) == log.ends([EVENTS]) == {EVENTS_0: 5}


# Faults


def test_abort_undoes_all_of_a_transaction_and_lets_it_be_done_again() -> None:
    log = MemoryLog(faults=[Fault("abort", at=1)])

    def commit() -> None:
        with log.transaction("g") as transaction:
            transaction.append([Append(EVENTS, b"a"), Append(EVENTS, b"b"), Append(SAMPLES, b"s")])
            transaction.advance({EVENTS_0: 0}, {EVENTS_0: 1})

    with pytest.raises(LogError, match=r"undid a commit, as Fault\(kind='abort', at=1"):
        commit()
    assert look(log) == look(log, TopicPartition(SAMPLES, 0)) == ""
    assert log.positions("g", [EVENTS]) == {EVENTS_0: 0}
    commit()
    assert look(log) == "ab"
    assert log.positions("g", [EVENTS]) == {EVENTS_0: 1}


def test_unknown_fails_though_everything_is_there() -> None:
    log = MemoryLog(faults=[Fault("unknown", at=0)])
    with (
        pytest.raises(LogError, match=r"the group's positions say"),
        log.transaction("g") as transaction,
    ):
        transaction.append([Append(EVENTS, b"a")])
        transaction.advance({EVENTS_0: 0}, {EVENTS_0: 1})
    assert look(log) == "a"
    assert log.positions("g", [EVENTS]) == {EVENTS_0: 1}


def test_a_fault_strikes_append_too_and_all_of_what_it_appends() -> None:
    log = MemoryLog(faults=[Fault("abort", at=1)])
    with pytest.raises(LogError, match="abort"):
        log.append([Append(EVENTS, b"a"), Append(EVENTS, b"b")])
    feed(log, "c")
    assert look(log) == "c"


@pytest.mark.parametrize(("by", "seen"), [(1, "abbc"), (3, "abbbbc")])
def test_duplicate(by: int, seen: str) -> None:
    log = MemoryLog(faults=[Fault("duplicate", at=1, by=by)])
    feed(log, "abc")
    assert look(log) == seen


@pytest.mark.parametrize(("by", "seen"), [(1, "acbdef"), (3, "acdebf"), (9, "acdef")])
def test_reorder(by: int, seen: str) -> None:
    log = MemoryLog(faults=[Fault("reorder", at=1, by=by)], partitions=2)
    feed(log, "ab")
    feed(log, "zz", partition=1)  # the records of another partition do not count
    feed(log, "cdef")
    assert look(log) == seen
    log.resume()
    assert sorted(look(log)) == list("abcdef")


def test_two_that_are_reordered_pass_each_other() -> None:
    log = MemoryLog(faults=[Fault("reorder", at=0, by=2), Fault("reorder", at=1)])
    feed(log, "abcd")
    assert look(log) == "cbad"


def test_delay() -> None:
    log = MemoryLog(faults=[Fault("delay", at=1, by=2)])
    feed(log, "abc")
    assert [look(log), look(log), look(log)] == ["ac", "ac", "acb"]
    feed(log, "d")
    assert look(log) == "acbd"


def test_pause_hides_all_that_follows_and_ends_by_itself() -> None:
    log = MemoryLog(faults=[Fault("pause", at=1, by=2)], partitions=2)
    feed(log, "abc")
    feed(log, "z", partition=1)
    assert [look(log), look(log, TopicPartition(EVENTS, 1)), look(log)] == ["a", "z", "a"]
    assert log.ends([EVENTS])[EVENTS_0] == 3
    assert look(log) == "abc"


def test_a_pause_without_end_is_ended_by_resume_and_wakes_who_waits() -> None:
    log = MemoryLog(faults=[Fault("pause", at=0, by=math.inf)])
    feed(log, "ab")
    assert {look(log) for _ in range(50)} == {""}
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(log.read, {EVENTS_0: 0}, 9, 60.0)
        log.resume()
        assert [record.value for record in reading.result()] == [b"a", b"b"]


def test_resume_lets_in_what_is_held_back_and_wakes_who_waits() -> None:
    log = MemoryLog(faults=[Fault("delay", at=0, by=math.inf)])
    feed(log, "a")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(log.read, {EVENTS_0: 0}, 9, 60.0)
        log.resume()
        assert [record.value for record in reading.result()] == [b"a"]


def test_a_record_is_chosen_by_its_number_in_its_topic_or_by_what_it_is() -> None:
    faults = [
        Fault("duplicate", at=1, topic=SAMPLES),
        Fault("duplicate", at=lambda record: record.value == b"c"),
    ]
    log = MemoryLog(faults=faults)
    log.append([Append(EVENTS, b"a"), Append(SAMPLES, b"s"), Append(EVENTS, b"b")])
    log.append([Append(SAMPLES, b"t"), Append(EVENTS, b"c"), Append(EVENTS, b"c")])
    assert look(log) == "abccc"  # once: the first c only
    assert look(log, TopicPartition(SAMPLES, 0)) == "stt"


def test_several_faults_may_strike_one_record() -> None:
    log = MemoryLog(faults=[Fault("duplicate", at=0), Fault("pause", at=0), Fault("unknown", at=0)])
    with pytest.raises(LogError):
        feed(log, "a")
    assert [look(log), look(log)] == ["", "aa"]


def test_a_fault_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no fault 'vanish': choose one of abort, unknown"):
        Fault("vanish", at=0)  # type: ignore[arg-type]
