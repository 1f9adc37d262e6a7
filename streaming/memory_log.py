"""The log in memory: for tests of Steps, and of what they do when the log misbehaves.

It keeps every promise of `Log` but one, for it dies with the process. Which others it breaks is
told to it as a list of `Fault`s: each strikes one chosen record, once, the same in every run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import xxhash

from streaming.errors import LogError
from streaming.log import TOPICS, Append, Positions, Record, TopicPartition
from streaming.memory_store import Fault, Placed, Store, fenced

__all__ = ["Fault", "MemoryLog"]


class MemoryLog:
    """`Log` in this process; clients of one `name` share it, and without a name it is private.

    `partitions` counts for topics that do not exist yet. With `gaps`, every commit leaves an
    offset unused in each partition that it touched, as Kafka's transactions do.

    >>> log = MemoryLog(faults=[Fault("duplicate", at=1)])
    >>> log.append([Append("events", b"a"), Append("events", b"b")])
    >>> start = log.positions("readers", ["events"])
    >>> [record.value for record in log.read(start, limit=9, timeout_s=0)]
    [b'a', b'b', b'b']
    """

    def __init__(
        self,
        name: str = "",
        *,
        partitions: int = 1,
        topics: Sequence[str] = TOPICS,
        faults: Sequence[Fault] = (),
        gaps: bool = False,
    ) -> None:
        with _stores_lock:
            store = Store(f"memory://{name}")
            self._store = _stores.setdefault(name, store) if name else store
        self._closed = False
        with self._opened() as store:
            store.gaps |= gaps
            store.faults += faults
            for topic in topics:
                store.add_topic(topic, partitions)

    # -- the Log protocol ------------------------------------------------------------------

    def append(self, records: Sequence[Append]) -> None:
        placed = self._placed(records)
        with self._opened() as store:
            store.commit(placed, {})

    def read(self, positions: Positions, limit: int, timeout_s: float) -> list[Record]:
        wanted = [(self._known(place), at) for place, at in positions.items()]
        share = max(1, limit // max(1, len(wanted)))
        deadline = time.monotonic() + timeout_s
        with self._opened() as store:
            store.count_read(place for place, _ in wanted)
            while True:
                records = [
                    record for place, at in wanted for record in store.look(place, at, share)
                ]
                left_s = deadline - time.monotonic()
                if records or left_s <= 0:
                    return records
                store.changed.wait(left_s)
                self._check_open()

    @contextmanager
    def transaction(self, group: str) -> Iterator[_MemoryTransaction]:
        self._check_open()
        transaction = _MemoryTransaction(self, group)
        yield transaction
        with self._opened() as store:
            for place, start in transaction.starts.items():
                store.check_position(group, place, start)
            moves = {(group, place): end for place, end in transaction.ends.items()}
            store.commit(transaction.placed, moves)

    def join(self, group: str, topics: Sequence[str]) -> MemoryMembership:
        """The members of a group in this process share the partitions evenly."""
        with self._opened() as store:
            return MemoryMembership(store, group, self._places(topics))

    def positions(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
        with self._opened() as store:
            return {place: store.position(group, place) for place in self._places(topics)}

    def ends(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        with self._opened() as store:
            return {place: store.partitions[place].end for place in self._places(topics)}

    def partition_of(self, topic: str, key: bytes) -> int:
        count = self._store.topics.get(topic)
        if count is None:
            raise LogError(f"topic {topic!r} does not exist in {self._store.name}")
        return xxhash.xxh3_64_intdigest(key) % count if key else 0

    def close(self) -> None:
        with self._store.changed:
            self._closed = True
            self._store.changed.notify_all()

    # -- what only this log can do ---------------------------------------------------------

    def resume(self) -> None:
        """Ends every pause, and lets in the records that are held back."""
        with self._opened() as store:
            store.resume()

    def trim(self, place: TopicPartition, before: int) -> None:
        """Forgets the records of a partition before an offset, as retention does in Kafka."""
        with self._opened() as store:
            partition = store.partitions[self._known(place)]
            del partition.records[: partition.index(before)]
            partition.first = max(partition.first, min(before, partition.end))

    # -- how it is done --------------------------------------------------------------------

    @contextmanager
    def _opened(self) -> Iterator[Store]:
        """The store, alone with it."""
        with self._store.changed:
            self._check_open()
            yield self._store

    def _check_open(self) -> None:
        if self._closed:
            raise LogError(f"the log {self._store.name} is closed: open it again to use it")

    def _placed(self, records: Sequence[Append]) -> Placed:
        return [(self._place(record), record) for record in records]

    def _place(self, record: Append) -> TopicPartition:
        partition = record.partition
        if partition is None:
            partition = self.partition_of(record.topic, record.key or b"")
        return self._known(TopicPartition(record.topic, partition))

    def _places(self, topics: Sequence[str]) -> list[TopicPartition]:
        counts = self._store.topics
        return [TopicPartition(t, p) for t in topics for p in range(counts.get(t, 0))]

    def _known(self, place: TopicPartition) -> TopicPartition:
        if place not in self._store.partitions:
            raise LogError(f"{place.topic}/{place.partition} does not exist in {self._store.name}")
        return place


class _MemoryTransaction:
    """`Transaction` that keeps everything to itself until it ends."""

    def __init__(self, log: MemoryLog, group: str) -> None:
        self._log = log
        self._group = group
        self.placed: list[tuple[TopicPartition, Append]] = []
        self.starts: dict[TopicPartition, int] = {}
        self.ends: dict[TopicPartition, int] = {}

    def append(self, records: Sequence[Append]) -> None:
        self.placed += self._log._placed(records)

    def advance(self, start: Positions, end: Positions) -> None:
        with self._log._opened() as store:
            for place, position in end.items():
                self._log._known(place)
                begin = start.get(place, 0)
                if place not in self.ends:
                    store.check_position(self._group, place, begin)
                    self.starts[place] = begin
                elif begin != self.ends[place]:
                    raise fenced(self._group, place, self.ends[place], begin)
                self.ends[place] = position


class MemoryMembership:
    """`Membership` among threads: a partition moves on once its owner has asked, or has left."""

    def __init__(self, store: Store, group: str, places: Sequence[TopicPartition]) -> None:
        self._changed = store.changed
        self._places = places
        self._me = object()
        self._members = store.members.setdefault(group, {})
        self._members[self._me] = frozenset()

    def assigned(self) -> frozenset[TopicPartition]:
        with self._changed:
            everybody = list(self._members)
            fair = self._places[everybody.index(self._me) :: len(everybody)]
            taken = (mine for member, mine in self._members.items() if member is not self._me)
            self._members[self._me] = frozenset(fair).difference(*taken)
            return self._members[self._me]

    def leave(self) -> None:
        with self._changed:
            del self._members[self._me]


_stores: dict[str, Store] = {}
_stores_lock = threading.Lock()
