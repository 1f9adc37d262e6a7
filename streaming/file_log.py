"""The embedded log: one SQLite file in WAL mode, shared by the processes of one machine.

One table holds one partition, its rowid the offset. `synchronous=FULL` makes every commit wait
for the disk, so that a committed record survives kill -9 and power loss. A reader that waits
watches the time of the WAL file, which costs a fiftieth of a query, and never waits for a writer.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import xxhash

from streaming.errors import Fenced, LogError, LogFull
from streaming.in_use import InUse
from streaming.log import TOPICS, Append, Positions, Record, TopicPartition, WholeMembership

POLL_S = 0.004
# Where file times are coarse, two commits within one tick can look like one.
LOOK_AGAIN_S = 0.05
LOCK_WAIT_S = 30.0


class FileLog:
    """`Log` on a SQLite file.

    `partitions` counts for topics that do not exist yet: one number for all of them, or a number
    by topic, and 1 for a topic that is not named.
    """

    def __init__(
        self,
        path: Path,
        *,
        partitions: int | Mapping[str, int] = 1,
        topics: Sequence[str] = TOPICS,
    ) -> None:
        self._path = path
        self._wal = path.with_name(f"{path.name}-wal")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._connections_lock = threading.Lock()
        self._in_use = InUse(f"the log {path}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LogError(f"the log {path} cannot be made: {error.strerror}") from error
        named = partitions if isinstance(partitions, Mapping) else dict.fromkeys(topics, partitions)
        with self._translated():
            self._create({topic: named.get(topic, 1) for topic in topics})
            rows = self._connection.execute("SELECT name, partitions FROM topics").fetchall()
        self._partitions: dict[str, int] = dict(rows)

    # -- the Log protocol ------------------------------------------------------------------

    def append(self, records: Sequence[Append]) -> None:
        with self._exclusive() as connection:
            self._insert(connection, records)

    def read(self, positions: Positions, limit: int, timeout_s: float) -> list[Record]:
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self._write_mark()
            records = self._look(positions, limit)
            if records or time.monotonic() >= deadline:
                return records
            self._await_write(seen, deadline)

    @contextmanager
    def transaction(self, group: str) -> Iterator[_FileTransaction]:
        with self._exclusive() as connection:
            yield _FileTransaction(self, connection, group)

    def join(self, group: str, topics: Sequence[str]) -> WholeMembership:  # noqa: ARG002
        """One process reads everything; a second one of the group would be `Fenced`."""
        return WholeMembership(frozenset(self._places(topics)))

    def positions(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
        with self._translated():
            rows = self._connection.execute(
                "SELECT topic, partition, position FROM positions WHERE consumer = ?", (group,)
            )
            known = {TopicPartition(topic, partition): at for topic, partition, at in rows}
        return {place: known.get(place, 0) for place in self._places(topics)}

    def ends(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        with self._translated():
            return {place: self._end(place) for place in self._places(topics)}

    def partition_of(self, topic: str, key: bytes) -> int:
        count = self._partitions.get(topic, 0)
        if count == 0:
            raise LogError(f"topic {topic!r} does not exist in {self._path}")
        return xxhash.xxh3_64_intdigest(key) % count if key else 0

    def close(self) -> None:
        self._in_use.close()  # SQLite crashes if a connection is closed under its user
        with self._connections_lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
        self._local = threading.local()

    # -- how it is done --------------------------------------------------------------------

    def _create(self, topics: Mapping[str, int]) -> None:
        """Makes those that are not there, each with its number of partitions."""
        with self._exclusive() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS topics (name TEXT PRIMARY KEY, partitions INTEGER)"
            )
            connection.execute(
                "CREATE TABLE IF NOT EXISTS positions (consumer TEXT, topic TEXT,"
                " partition INTEGER, position INTEGER, PRIMARY KEY (consumer, topic, partition))"
            )
            connection.executemany("INSERT OR IGNORE INTO topics VALUES (?, ?)", topics.items())
            for topic, count in connection.execute("SELECT * FROM topics").fetchall():
                for partition in range(count):
                    connection.execute(
                        f"CREATE TABLE IF NOT EXISTS {_table(topic, partition)} (position INTEGER"
                        " PRIMARY KEY, key BLOB, value BLOB NOT NULL, logged_us INTEGER NOT NULL)"
                    )

    def _look(self, positions: Positions, limit: int) -> list[Record]:
        share = max(1, limit // max(1, len(positions)))
        records: list[Record] = []
        with self._snapshot() as connection:
            for place, position in positions.items():
                rows = connection.execute(
                    f"SELECT position, key, value, logged_us FROM {_table(*self._known(place))}"  # noqa: S608
                    " WHERE position >= ? ORDER BY position LIMIT ?",
                    (position, share),
                )
                records += [Record(*place, *row) for row in rows]
        return records

    def _write_mark(self) -> tuple[int, int]:
        """Something that changes whenever anybody commits: the time and size of the WAL file."""
        try:
            found = self._wal.stat()
        except FileNotFoundError:  # nothing is in it
            return 0, 0
        return found.st_mtime_ns, found.st_size

    def _await_write(self, seen: tuple[int, int], deadline: float) -> None:
        """Returns when somebody may have committed since `seen`, or it is time to look again."""
        until = min(deadline, time.monotonic() + LOOK_AGAIN_S)
        while self._write_mark() == seen and time.monotonic() < until:
            time.sleep(POLL_S)

    def _insert(self, connection: sqlite3.Connection, records: Iterable[Append]) -> None:
        now_us = time.time_ns() // 1000
        by_place: dict[TopicPartition, list[Append]] = {}
        for record in records:
            by_place.setdefault(self._place(record), []).append(record)
        for place, batch in by_place.items():
            start = self._end(place)
            connection.executemany(
                f"INSERT INTO {_table(*place)} VALUES (?, ?, ?, ?)",  # noqa: S608
                ((start + i, r.key, r.value, now_us) for i, r in enumerate(batch)),
            )

    def _end(self, place: TopicPartition) -> int:
        row = self._connection.execute(
            f"SELECT max(position) FROM {_table(*self._known(place))}"  # noqa: S608
        ).fetchone()
        return 0 if row[0] is None else int(row[0]) + 1

    def _place(self, record: Append) -> TopicPartition:
        partition = record.partition
        if partition is None:
            partition = self.partition_of(record.topic, record.key or b"")
        return self._known(TopicPartition(record.topic, partition))

    def _places(self, topics: Sequence[str]) -> list[TopicPartition]:
        return [TopicPartition(t, p) for t in topics for p in range(self._partitions.get(t, 0))]

    def _known(self, place: TopicPartition) -> TopicPartition:
        if not 0 <= place.partition < self._partitions.get(place.topic, 0):
            raise LogError(f"{place.topic}/{place.partition} does not exist in {self._path}")
        return place

    @property
    def _connection(self) -> sqlite3.Connection:
        """This thread's own connection: SQLite transactions belong to a connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(
                self._path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False
            )
            _use_wal(connection)
            connection.execute("PRAGMA synchronous = FULL")
            self._local.connection = connection
            with self._connections_lock:
                self._connections.append(connection)
        return connection

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """One read transaction: every query in it sees the same commits, whole."""
        with self._translated():
            connection = self._connection
            if connection.in_transaction:  # a reader inside its own transaction
                yield connection
                return
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("COMMIT")

    @contextmanager
    def _exclusive(self) -> Iterator[sqlite3.Connection]:
        """One write transaction; commits at the end, undoes everything on an exception."""
        with self._translated():
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's errors as the log's own."""
        try:
            with self._in_use.using():
                yield
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise LogFull(
                    f"no space is left for the log {self._path}: free some disk space and start"
                    " again, nothing that was accepted is lost"
                ) from error
            raise LogError(f"the log {self._path} cannot be used: {error}") from error
        except sqlite3.DatabaseError as error:
            raise LogError(
                f"the log {self._path} is damaged or is not a log ({error}): restore it from a"
                " copy, or move it away to start an empty one"
            ) from error


class _FileTransaction:
    """`Transaction` inside an open SQLite transaction."""

    def __init__(self, log: FileLog, connection: sqlite3.Connection, group: str) -> None:
        self._log = log
        self._connection = connection
        self._group = group

    def append(self, records: Sequence[Append]) -> None:
        self._log._insert(self._connection, records)

    def advance(self, start: Positions, end: Positions) -> None:
        topics = sorted({place.topic for place in end})
        committed = self._log.positions(self._group, topics)
        for place, position in end.items():
            self._log._known(place)
            if committed[place] != start.get(place, 0):
                raise Fenced(
                    f"group {self._group!r} stands at {committed[place]} in {place.topic}/"
                    f"{place.partition}, not at {start.get(place, 0)}: another process works for"
                    " it; stop one of the two"
                )
            self._connection.execute(
                "INSERT INTO positions VALUES (?, ?, ?, ?) ON CONFLICT (consumer, topic,"
                " partition) DO UPDATE SET position = excluded.position",
                (self._group, place.topic, place.partition, position),
            )


def _use_wal(connection: sqlite3.Connection) -> None:
    """Changing to WAL needs the file alone, and is the one thing SQLite does not wait for."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
        else:
            return


def _table(topic: str, partition: int) -> str:
    """The quoted table name; topics come from the recipe, so they are checked, not trusted."""
    if not topic.replace("-", "").replace("_", "").isalnum():
        raise LogError(f"topic = {topic!r}: use letters, digits, '-' and '_' only")
    return f'"{topic}/{partition}"'
