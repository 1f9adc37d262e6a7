"""Reading ahead: the same records in the same order as without, only sooner."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from streaming.errors import LogError
from streaming.log import SAMPLES, Append, Positions, Record, TopicPartition
from streaming.memory_log import MemoryLog
from streaming.read_ahead import ReadAhead

ONE, OTHER = TopicPartition(SAMPLES, 0), TopicPartition(SAMPLES, 1)


class Gated(MemoryLog):
    """A log in which a read can be held up when it has found its records."""

    def __init__(self) -> None:
        super().__init__(partitions=2)
        self.gate, self.found = threading.Event(), threading.Event()
        self.gate.set()

    def read(self, positions: Positions, limit: int, timeout_s: float) -> list[Record]:
        records = super().read(positions, limit, timeout_s)
        if records:
            self.found.set()
        assert self.gate.wait(30)
        return records


@pytest.fixture
def log() -> Gated:
    return Gated()


@pytest.fixture
def ahead(log: Gated) -> Iterator[ReadAhead]:
    reading = ReadAhead(log, ahead=4, idle_s=0.01)
    yield reading
    log.gate.set()
    reading.close()


def fill(log: MemoryLog, count: int, partition: int = 0, start: int = 0) -> None:
    values = (b"%d" % number for number in range(start, start + count))
    log.append([Append(SAMPLES, value, None, partition) for value in values])


def take(ahead: ReadAhead, positions: dict[TopicPartition, int], count: int) -> list[Record]:
    """So many records from positions on, which then stand behind them; waits for them."""
    taken: list[Record] = []
    pause = threading.Event()
    while len(taken) < count:
        records = ahead.take(positions, count - len(taken))
        positions.update({r.place: r.offset + 1 for r in records})
        taken += records
        pause.wait(0.001)
    return taken


def offsets(records: list[Record]) -> list[int]:
    return [record.offset for record in records]


def test_every_record_comes_once_and_in_order(log: Gated, ahead: ReadAhead) -> None:
    fill(log, 30)
    positions = {ONE: 0}
    assert [r.value for r in take(ahead, positions, 30)] == [b"%d" % n for n in range(30)]
    assert ahead.take(positions, 5) == []
    fill(log, 3, start=30)
    assert offsets(take(ahead, positions, 3)) == [30, 31, 32]


def test_partitions_that_are_read_together(log: Gated, ahead: ReadAhead) -> None:
    fill(log, 9)
    fill(log, 6, partition=1)
    records = take(ahead, {ONE: 2, OTHER: 0}, 13)
    assert offsets([r for r in records if r.place == ONE]) == [*range(2, 9)]
    assert offsets([r for r in records if r.place == OTHER]) == [*range(6)]


def test_taking_does_not_wait_and_takes_no_more_than_it_may(log: Gated, ahead: ReadAhead) -> None:
    log.gate.clear()
    fill(log, 4)
    assert ahead.take({ONE: 0}, 3) == []
    log.gate.set()
    assert offsets(take(ahead, {ONE: 0}, 1)) == [0]
    assert len(ahead.take({ONE: 1}, 2)) <= 2


def test_no_more_is_read_than_there_is_room_for(log: Gated, ahead: ReadAhead) -> None:
    fill(log, 100)
    positions = {ONE: 0}
    taken = take(ahead, positions, 1)
    log.trim(ONE, before=100)  # what still comes was read before
    with pytest.raises(LogError, match="were trimmed"):
        while True:
            taken += take(ahead, positions, 1)
    assert len(taken) <= 2 * 4


def test_records_that_were_taken_and_not_used_come_again(log: Gated, ahead: ReadAhead) -> None:
    fill(log, 10)
    assert offsets(take(ahead, {ONE: 0}, 6)) == [*range(6)]
    assert offsets(take(ahead, {ONE: 2}, 8)) == [*range(2, 10)]
    assert offsets(take(ahead, {ONE: 0}, 2)) == [0, 1]


def test_partitions_may_come_and_go(log: Gated, ahead: ReadAhead) -> None:
    """As in a replay, in which one partition is at its end before the others."""
    fill(log, 3)
    fill(log, 3, partition=1)
    take(ahead, {ONE: 0, OTHER: 0}, 6)
    assert {r.place for r in take(ahead, {OTHER: 0}, 3)} == {OTHER}
    assert ahead.take({}, 9) == []
    fill(log, 1, start=3)
    assert ahead.take({}, 9) == []
    assert offsets(take(ahead, {ONE: 3, OTHER: 3}, 1)) == [3]


def test_what_was_read_from_elsewhere_is_dropped(log: Gated, ahead: ReadAhead) -> None:
    fill(log, 9)
    log.gate.clear()
    assert ahead.take({ONE: 5}, 9) == []
    assert log.found.wait(30)  # it has found those from 5 on, and brings them late
    assert ahead.take({ONE: 0}, 9) == []
    log.gate.set()
    assert offsets(take(ahead, {ONE: 0}, 9)) == [*range(9)]


def test_who_takes_is_told_that_the_log_cannot_be_read(log: Gated, ahead: ReadAhead) -> None:
    fill(log, 2)
    positions = {ONE: 0}
    take(ahead, positions, 2)
    log.close()
    with pytest.raises(LogError, match="is closed"):
        take(ahead, positions, 1)
    with pytest.raises(LogError, match="is closed"):
        ahead.take({ONE: 0}, 1)


@pytest.mark.parametrize("begun", [False, True])
def test_closing_ends_the_thread(begun: bool, log: Gated) -> None:
    before = threading.active_count()
    ahead = ReadAhead(log, idle_s=0.01)
    fill(log, 100)
    if begun:
        take(ahead, {ONE: 0}, 5)
    ahead.close()
    ahead.close()
    assert threading.active_count() == before
