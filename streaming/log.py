"""The log: append-only, partitioned, and the only way from one process to another.

Guarantees every implementation gives:

* a record that `append` or a transaction has returned for survives the death of the process and
  of the machine;
* offsets of a partition grow, and a reader sees a partition in the order of its offsets;
* what a transaction appends and the positions it advances become visible together or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

EVENTS = "events"
SAMPLES = "samples"
DEAD_LETTERS = "dead-letters"
VERSIONS = "versions"
TOPICS = (EVENTS, SAMPLES, DEAD_LETTERS, VERSIONS)

# The group that never commits: it stands at the first record that is still there.
NOBODY = "headrace.nobody"


class TopicPartition(NamedTuple):
    topic: str
    partition: int


# The next offset to read, for each partition: one past the last record that was dealt with.
Positions = Mapping[TopicPartition, int]


class Append(NamedTuple):
    """A record on its way into the log; records of one `key` share a partition, in order.

    Where a `partition` is given, it counts and the key does not.
    """

    topic: str
    value: bytes
    key: bytes | None = None
    partition: int | None = None


class Record(NamedTuple):
    """A record as it lies in the log; `logged_us` is when it was appended (UTC, microseconds)."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    logged_us: int

    @property
    def place(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)


class Transaction(Protocol):
    """Appends and progress that become visible together when the `with` block ends well."""

    def append(self, records: Sequence[Append]) -> None:
        """Adds records to what the transaction will make visible."""
        ...

    def advance(self, start: Positions, end: Positions) -> None:
        """Moves the group from `start`, where it must be, to `end`; else raises `Fenced`."""
        ...


class Membership(Protocol):
    """One process's part in a consumer group."""

    def assigned(self) -> frozenset[TopicPartition]:
        """The partitions that are this process's own now; to be asked between turns.

        Being asked is the sign of life: a member that is not asked for long loses its part.
        """
        ...

    def leave(self) -> None:
        """Hands the partitions back at once; the membership must not be used afterwards."""
        ...


class WholeMembership(NamedTuple):
    """The membership of a process that has everything to itself."""

    places: frozenset[TopicPartition]

    def assigned(self) -> frozenset[TopicPartition]:
        return self.places

    def leave(self) -> None:
        pass


class Log(Protocol):
    """Reads and appends records; one object may be used from several threads."""

    def append(self, records: Sequence[Append]) -> None:
        """Appends all records or none; returns once they are durable."""
        ...

    def read(self, positions: Positions, limit: int, timeout_s: float) -> list[Record]:
        """At most `limit` records from `positions` on, as soon as there is one.

        The partitions share the limit; if there are more of them, each may give one record.

        Waits up to `timeout_s` for the first; an empty list says that none came.
        """
        ...

    def transaction(self, group: str) -> AbstractContextManager[Transaction]:
        """A transaction for the consumer group; an exception inside it undoes everything."""
        ...

    def join(self, group: str, topics: Sequence[str]) -> Membership:
        """Becomes one of the processes that share the partitions of the topics."""
        ...

    def positions(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """Where the group stands in every partition of the topics.

        Where it never was, that is the first record that is still there, or 0.
        """
        ...

    def ends(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """Where a group stands that has read every record of every partition."""
        ...

    def partition_of(self, topic: str, key: bytes) -> int:
        """The partition in which the records of this key lie."""
        ...

    def close(self) -> None:
        """Lets go of files and connections; the log must not be used afterwards."""
        ...
