"""The log over Kafka: for several machines, and for producers in any language.

Offsets of a partition grow, and are not contiguous: a transaction ends with a marker, which has
an offset too and is no record. What decides between two processes of one group is what stands in
the log: `advance` compares the committed positions and the commit sets them, and between the two
nobody else can have moved them, for the transactional id belongs to the group and its partitions,
and a new producer of an id ends the one before.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from streaming.errors import Fenced, LogError
from streaming.in_use import InUse
from streaming.kafka_client import (
    Cluster,
    Offset,
    Place,
    Unreachable,
    murmur2,
)
from streaming.kafka_membership import KafkaMembership
from streaming.kafka_reader import Reader
from streaming.kafka_writer import Writer
from streaming.log import Append, Positions, Record, TopicPartition

CHECK_S = 2.0  # a reader that finds nothing looks this often whether the broker is still there
LOOK_BACK = (2, 64, 4_096)  # offsets before an end in which the last record is looked for
READERS_KEPT = 4
ATTEMPTS = 2
TAKEN_OVER_WAIT_S = (0.05, 0.25)


class KafkaLog:
    """`Log` at `kafka://host:port[,host:port...][?options]`; its topics must be there."""

    def __init__(self, url: str) -> None:
        self._cluster = Cluster(url)
        self._prefix = self._cluster.url.topic_prefix
        self._counts: dict[str, int] = {}
        self._readers: list[Reader] = []
        self._writers: dict[str, Writer] = {}
        self._writing: dict[str, threading.Lock] = {}
        self._members: dict[str, KafkaMembership] = {}
        self._ends: dict[Place, tuple[int, int]] = {}
        self._single: Any = None
        self._name = uuid.uuid4().hex
        self._in_use = InUse(f"the log {self._cluster.url}")
        self._guard = threading.Lock()  # of the clients that threads share or lend each other

    # -- the Log protocol ------------------------------------------------------------------

    def append(self, records: Sequence[Append]) -> None:
        if not records:
            return
        placed = self._placed(records)
        with self._in_use.using():
            if len(placed) == 1:
                self._send(*placed[0])
            else:
                self._commit(f"append-{self._name}", "", placed, {}, {})

    def read(self, positions: Positions, limit: int, timeout_s: float) -> list[Record]:
        if not positions:
            time.sleep(timeout_s)
            return []
        wanted = {self._known(name): at for name, at in positions.items()}
        deadline = time.monotonic() + timeout_s
        with (
            self._in_use.using(),
            self._cluster.translated(),
            self._reader(wanted, timeout_s) as reader,
        ):
            if not reader.continues(wanted):
                wanted = self._checked(wanted)
            if timeout_s <= 0:
                ends = self._cluster.offsets(wanted, Offset.STABLE)
                return reader.read_all_there_is(wanted, limit, ends)
            while True:
                left_s = max(0.0, deadline - time.monotonic())
                records = reader.read(wanted, limit, min(left_s, CHECK_S))
                if not records:
                    self._still_there(reader, wanted)
                if records or time.monotonic() >= deadline:
                    return records

    @contextmanager
    def transaction(self, group: str) -> Iterator[_KafkaTransaction]:
        with self._in_use.using():
            transaction = _KafkaTransaction(self)
            yield transaction
            self._finish(group, transaction)

    def join(self, group: str, topics: Sequence[str]) -> KafkaMembership:
        """Becomes a member of the consumer group; its transactions carry the membership."""
        for topic in topics:
            self._known(TopicPartition(topic, 0))
        member = KafkaMembership(
            self._cluster, group, topics, left=lambda: self._members.pop(group, None)
        )
        self._members[group] = member
        return member

    def positions(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
        names = self._names(topics)
        with self._in_use.using(), self._cluster.translated():
            found = self._stand(group, names)
        return {name: found[place] for place, name in names.items()}

    def ends(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        names = self._names(topics)
        with self._in_use.using(), self._cluster.translated():
            stable = self._cluster.offsets(names, Offset.STABLE)
            changed = {p: at for p, at in stable.items() if self._ends.get(p, (-1,))[0] < at}
            for place, end in self._visible_ends(changed).items():
                self._ends[place] = (stable[place], end)
        return {name: self._ends[place][1] for place, name in names.items()}

    def partition_of(self, topic: str, key: bytes) -> int:
        """That of Kafka's Java clients, so that producers in other languages agree."""
        count = self._count(topic)
        if count == 0:
            raise self._no_topic(TopicPartition(topic, 0))
        return _hash(key) % count if key else 0

    def close(self) -> None:
        self._in_use.close()
        for reader in self._readers:
            reader.close()
        for writer in self._writers.values():
            writer.close()
        if self._single is not None:
            self._single.close(timeout=1)
        for member in list(self._members.values()):
            member.leave()
        self._cluster.close()

    # -- transactions ----------------------------------------------------------------------

    def _finish(self, group: str, transaction: _KafkaTransaction) -> None:
        if not transaction.start and not transaction.records:
            return
        if not transaction.start:  # nothing says when it may be done again: by nobody else
            self._commit(f"append-{self._name}", "", transaction.records, {}, {})
            return
        # Whoever works for these partitions of the group has this id, and ends its forerunner.
        places = ",".join(f"{topic}/{p}" for topic, p in sorted(transaction.start))
        name = f"{group}:{_hash(places.encode()):08x}"
        end = {self._known(place): at for place, at in transaction.end.items()}
        self._commit(name, group, transaction.records, transaction.start, end)

    def _commit(
        self,
        name: str,
        group: str,
        records: Sequence[tuple[Place, bytes | None, bytes]],
        start: Positions,
        end: Mapping[Place, int],
    ) -> None:
        """Commits as the transactional id `name`; once more where that id was taken over.

        After that, the positions alone decide who comes too late.
        """
        with self._writing.setdefault(name, threading.Lock()):
            for attempt in range(ATTEMPTS):
                if name not in self._writers:
                    self._writers[name] = Writer(self._cluster, f"{self._prefix}{name}")
                try:
                    self._compare(group, start)
                    self._writers[name].commit(records, end, self._membership(group))
                except Fenced:
                    taken_over = self._drop_if_ended(name)
                    if attempt == ATTEMPTS - 1 or not taken_over or not start:
                        raise
                    # Who took over gets the time to finish, and is not disturbed if it did.
                    time.sleep(random.uniform(*TAKEN_OVER_WAIT_S))  # noqa: S311
                    self._compare(group, start)
                except BaseException:
                    self._drop_if_ended(name)
                    raise
                else:
                    if records or self._stand(group, end) == end:
                        return
                    # Some brokers (tansu) say yes to positions alone and keep them only from a
                    # producer that is new.
                    self._writers.pop(name).close()
            raise LogError(f"{self._cluster.url} does not keep the positions of group {group!r}")

    def _drop_if_ended(self, name: str) -> bool:
        """Whether the writer had failed; a new one is made for the next transaction."""
        ended = self._writers[name].ended
        if ended:
            del self._writers[name]
        return ended

    def _compare(self, group: str, start: Positions) -> None:
        if not start:
            return
        places = {name: self._known(name) for name in start}
        committed = self._stand(group, places.values())
        for place, at in start.items():
            if committed[places[place]] != at:
                raise Fenced(
                    f"group {group!r} stands at {committed[places[place]]} in {place.topic}/"
                    f"{place.partition}, not at {at}: another process works for it; stop one of"
                    " the two"
                )

    def _stand(self, group: str, places: Iterable[Place]) -> dict[Place, int]:
        """Where the group stands; where it never was, at the first record that is still there."""
        places = list(places)
        committed = self._cluster.committed(self._prefix + group, places) if places else {}
        never = [place for place in places if place not in committed]
        return {**self._cluster.offsets(never, Offset.FIRST), **committed}

    def _membership(self, group: str) -> Any:
        member = self._members.get(group)
        return self._prefix + group if member is None else member.metadata()

    def _send(self, place: Place, key: bytes | None, value: bytes) -> None:
        with self._guard:
            if self._single is None:
                self._single = self._cluster.producer()
        with self._cluster.translated():
            sent = self._single.send(place.topic, value, key, partition=place.partition)
            sent.get(timeout=self._cluster.patience_s)

    # -- places ----------------------------------------------------------------------------

    def _placed(self, records: Iterable[Append]) -> list[tuple[Place, bytes | None, bytes]]:
        placed = []
        for topic, value, key, partition in records:
            if partition is None:
                partition = self.partition_of(topic, key or b"")  # noqa: PLW2901
            placed.append((self._known(TopicPartition(topic, partition)), key, value))
        return placed

    def _known(self, place: TopicPartition) -> Place:
        if not 0 <= place.partition < self._count(place.topic):
            raise self._no_topic(place)
        return Place(self._prefix + place.topic, place.partition)

    def _no_topic(self, place: TopicPartition) -> LogError:
        return LogError(
            f"topic {self._prefix + place.topic!r} has no partition {place.topic}/"
            f"{place.partition} at {self._cluster.url}: `headrace topics` shows what is there, and"
            " with --apply makes what is missing"
        )

    def _count(self, topic: str) -> int:
        """The partitions of a topic; 0 where it does not exist."""
        if topic not in self._counts:
            name = self._prefix + topic
            with self._cluster.translated():
                found = self._cluster.partitions([name])
            if name not in found:
                return 0
            self._counts[topic] = found[name]
        return self._counts[topic]

    def _names(self, topics: Sequence[str]) -> dict[Place, TopicPartition]:
        places = [TopicPartition(t, p) for t in topics for p in range(self._count(t))]
        return {Place(self._prefix + t, p): TopicPartition(t, p) for t, p in places}

    # -- reading ---------------------------------------------------------------------------

    def _still_there(self, reader: Reader, wanted: Mapping[Place, int]) -> None:
        """Now and then: an empty topic and a broker that is away look alike to a consumer."""
        now = time.monotonic()
        if now - reader.checked_s < CHECK_S:
            return
        reader.checked_s = now
        try:
            self._checked(wanted, patience_s=0)
        except Unreachable:
            reader.missed_s = reader.missed_s or now
            if now - reader.missed_s > self._cluster.patience_s:
                raise
        else:
            reader.missed_s = None

    def _checked(
        self, wanted: Mapping[Place, int], patience_s: float | None = None
    ) -> dict[Place, int]:
        """The positions, if the log holds what follows them; 0 is the first that is still there."""
        first = self._cluster.offsets(wanted, Offset.FIRST, patience_s)
        end = self._cluster.offsets(wanted, Offset.LAST, patience_s)
        for place, at in wanted.items():
            if 0 < at < first[place]:
                raise LogError(
                    f"position {at} in {place.topic}/{place.partition} at {self._cluster.url} has"
                    f" fallen out of the topic's retention, which begins at {first[place]}: what"
                    " lay between is lost to this reader; raise retention.ms, and start over with"
                    " another HEADRACE_HOME and topic_prefix"
                )
            if at > end[place]:
                raise LogError(
                    f"position {at} in {place.topic}/{place.partition} at {self._cluster.url} is"
                    f" past its end, {end[place]}: the topic was emptied or made anew; restore it,"
                    " or start over with another HEADRACE_HOME"
                )
        return {place: max(at, first[place]) for place, at in wanted.items()}

    def _visible_ends(self, stable: Mapping[Place, int]) -> dict[Place, int]:
        """One past the last record before each stable end: markers and undone records are none."""
        if not stable:
            return {}
        first = self._cluster.offsets(stable, Offset.FIRST)
        found = {place: first[place] for place, end in stable.items() if end == first[place]}
        for back in (*LOOK_BACK, None):
            left = {place: end for place, end in stable.items() if place not in found}
            if not left:
                break
            start = {
                p: first[p] if back is None else max(first[p], e - back) for p, e in left.items()
            }
            found.update(self._last(start, left))
        return {place: found.get(place, first[place]) for place in stable}

    def _last(
        self,
        start: Mapping[Place, int],
        end: Mapping[Place, int],
    ) -> dict[Place, int]:
        """One past the last record from `start` on, for the places that have one."""
        position = dict(start)
        with self._reader(position, 0) as reader:
            while records := reader.read_all_there_is(position, 4_096, end):
                position.update({self._known(r.place): r.offset + 1 for r in records})
        return {place: at for place, at in position.items() if at != start[place]}

    @contextmanager
    def _reader(self, wanted: Mapping[Place, int], timeout_s: float) -> Iterator[Reader]:
        """A reader for this thread alone: the one that stands there already, if there is one."""
        # A consumer that has waited for news cannot look elsewhere before the wait is over.
        waits = timeout_s > 0
        with self._guard:
            idle = [reader for reader in self._readers if reader.waits == waits]
            there = [reader for reader in idle if reader.continues(wanted)]
            reader = there[0] if there else None
            if reader is None and len(idle) >= READERS_KEPT:
                reader = min(idle, key=lambda one: one.used_s)
            if reader is not None:
                self._readers.remove(reader)
        reader = reader or Reader(self._cluster, waits=waits)
        try:
            yield reader
        finally:
            reader.used_s = time.monotonic()
            with self._guard:
                self._readers.append(reader)


class _KafkaTransaction:
    """What a transaction will do when its block ends well; nothing is sent before."""

    def __init__(self, log: KafkaLog) -> None:
        self._log = log
        self.records: list[tuple[Place, bytes | None, bytes]] = []
        self.start: dict[TopicPartition, int] = {}
        self.end: dict[TopicPartition, int] = {}

    def append(self, records: Sequence[Append]) -> None:
        self.records += self._log._placed(records)

    def advance(self, start: Positions, end: Positions) -> None:
        for place, at in end.items():
            self._log._known(place)
            self.start.setdefault(place, start.get(place, 0))
            self.end[place] = at


@lru_cache(maxsize=65_536)
def _hash(data: bytes) -> int:
    return int(murmur2(data)) & 0x7FFFFFFF
