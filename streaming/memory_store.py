"""What lies in a log in memory, and the faults that befall it on the way in."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from streaming.errors import ConfigError, Fenced, LogError
from streaming.log import EVENTS, Append, Record, TopicPartition

Kind = Literal["abort", "unknown", "duplicate", "reorder", "delay", "pause"]
Placed = Sequence[tuple[TopicPartition, Append]]


@dataclass(frozen=True)
class Fault:
    """What goes wrong, once, with one record on its way into the log.

    It strikes the record number `at` of all that were appended to `topic` (from 0, those of
    aborted transactions among them), or the first of which `at` is true.

    * abort: what it was appended with fails with `LogError`, and nothing of it is in the log;
    * unknown: that fails with `LogError` too, yet all of it is in the log;
    * duplicate: it lies in the log `by` times more, as a producer that retries may leave it;
    * reorder: it takes its place behind the next `by` records of its partition;
    * delay: the next `by` reads of its partition come before it takes its place, at the end;
    * pause: the next `by` reads of its partition see nothing from it on.

    `by = math.inf` lasts until `MemoryLog.resume`.
    """

    kind: Kind
    at: int | Callable[[Append], bool]
    topic: str = EVENTS
    by: float = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            known = ", ".join(get_args(Kind))
            raise ConfigError(f"there is no fault {self.kind!r}: choose one of {known}")

    def strikes(self, record: Append, number: int) -> bool:
        """Whether this is the chosen record; it is the `number`-th of its topic."""
        if record.topic != self.topic:
            return False
        return self.at(record) if callable(self.at) else self.at == number


@dataclass
class _Held:
    """A record that is held back until so many records, or reads, have gone before it."""

    record: Append
    behind: Literal["records", "reads"]
    left: float


@dataclass
class _Partition:
    """`end` is one past the last record, and `free` the next offset to be given out."""

    records: list[Record] = field(default_factory=list)
    first: int = 0
    end: int = 0
    free: int = 0
    held: list[_Held] = field(default_factory=list)
    hidden_from: float = math.inf
    hidden_reads: float = 0

    def index(self, offset: int) -> int:
        """Where in `records` those from `offset` on begin."""
        return bisect_left(self.records, offset, key=lambda record: record.offset)


class Store:
    """What the clients of a name share; `changed` guards it, and tells of every commit."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.gaps = False
        self.faults: list[Fault] = []
        self.changed = threading.Condition()
        self.topics: dict[str, int] = {}
        self.partitions: dict[TopicPartition, _Partition] = {}
        # Of each group, what every member has of it.
        self.members: dict[str, dict[object, frozenset[TopicPartition]]] = {}
        self._positions: dict[tuple[str, TopicPartition], int] = {}
        self._appended: dict[str, int] = {}

    def add_topic(self, topic: str, partitions: int) -> None:
        if topic not in self.topics:
            self.topics[topic] = partitions
            places = (TopicPartition(topic, n) for n in range(partitions))
            self.partitions.update((place, _Partition()) for place in places)

    def position(self, group: str, place: TopicPartition) -> int:
        return self._positions.get((group, place), self.partitions[place].first)

    def check_position(self, group: str, place: TopicPartition, start: int) -> None:
        stands = self.position(group, place)
        if stands != start:
            raise fenced(group, place, stands, start)

    def look(self, place: TopicPartition, offset: int, limit: int) -> list[Record]:
        partition = self.partitions[place]
        if 0 < offset < partition.first:  # 0 is the first, wherever that is
            raise LogError(
                f"{place.topic}/{place.partition} of {self.name} begins at {partition.first} and"
                f" {offset} was asked for: its records were trimmed, start from a later position"
            )
        begin = partition.index(offset)
        end = begin + limit
        if partition.hidden_from < math.inf:
            end = min(end, partition.index(int(partition.hidden_from)))
        return partition.records[begin:end]

    def commit(self, placed: Placed, moves: Mapping[tuple[str, TopicPartition], int]) -> None:
        """Appends records and moves groups: all or nothing, as far as the faults allow."""
        struck = [(place, record, self._strike(record)) for place, record in placed]
        faults = {fault.kind: fault for *_, of_record in struck for fault in of_record}
        if "abort" in faults:
            raise LogError(
                f"{self.name} undid a commit, as {faults['abort']} asks for: nothing of it is in"
                " the log, commit it again"
            )
        for place, record, of_record in struck:
            self._put(place, record, {fault.kind: fault.by for fault in of_record})
        if self.gaps:
            for place in {place for place, _ in placed}:
                self.partitions[place].free += 1
        self._positions.update(moves)
        self.changed.notify_all()
        if "unknown" in faults:
            raise LogError(
                f"{self.name} left a commit unanswered, as {faults['unknown']} asks for: whether"
                " it is in the log, the group's positions say"
            )

    def count_read(self, places: Iterable[TopicPartition]) -> None:
        """Brings the partitions one read nearer to the end of pauses and delays."""
        for place in places:
            partition = self.partitions[place]
            if partition.hidden_reads <= 0:
                partition.hidden_from = math.inf
            partition.hidden_reads -= 1
            if partition.held:
                self._let_in(place, "reads")

    def resume(self) -> None:
        for place, partition in self.partitions.items():
            partition.hidden_from = math.inf
            held, partition.held = partition.held, []
            for waiting in held:
                self._lay(place, waiting.record)
        self.changed.notify_all()

    def _strike(self, record: Append) -> list[Fault]:
        """The faults that strike this record; each does it once."""
        number = self._appended.get(record.topic, 0)
        self._appended[record.topic] = number + 1
        now = [fault for fault in self.faults if fault.strikes(record, number)]
        for fault in now:
            self.faults.remove(fault)
        return now

    def _put(self, place: TopicPartition, record: Append, by: Mapping[Kind, float]) -> None:
        partition = self.partitions[place]
        if "reorder" in by:
            partition.held.append(_Held(record, "records", by["reorder"]))
            return
        if "delay" in by:
            partition.held.append(_Held(record, "reads", by["delay"] + 1))
            return
        if "pause" in by:
            partition.hidden_from = min(partition.hidden_from, partition.free)
            partition.hidden_reads = by["pause"]
        for _ in range(1 + int(by.get("duplicate", 0))):
            self._lay(place, record)

    def _lay(self, place: TopicPartition, record: Append) -> None:
        partition = self.partitions[place]
        now_us = time.time_ns() // 1000
        partition.records.append(Record(*place, partition.free, record.key, record.value, now_us))
        partition.free += 1
        partition.end = partition.free
        if partition.held:
            self._let_in(place, "records")

    def _let_in(self, place: TopicPartition, behind: Literal["records", "reads"]) -> None:
        """One more record or read has gone before the held records; the next may be due."""
        partition = self.partitions[place]
        for waiting in partition.held:
            waiting.left -= waiting.behind == behind
        due = [waiting for waiting in partition.held if waiting.left <= 0]
        partition.held = [waiting for waiting in partition.held if waiting.left > 0]
        for waiting in due:
            self._lay(place, waiting.record)


def fenced(group: str, place: TopicPartition, stands: int, start: int) -> Fenced:
    return Fenced(
        f"group {group!r} stands at {stands} in {place.topic}/{place.partition}, not at {start}:"
        " another process works for it; stop one of the two"
    )
