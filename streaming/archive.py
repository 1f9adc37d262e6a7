"""The archive: events and samples in Parquet, one directory a day, for daily learning and people.

    archive/events/day=2026-11-22/00000-00000000000000000000-00000000000000000512.parquet
    archive/samples/day=2026-11-22/...

A file is named after the partition and the range of offsets that it came from, the end left out;
one that was compacted, after the first that it is made of. Every row keeps its place in the log:
it is named by `log_partition`, `log_offset` and `log_row`, and their order is the one in which it
was learnt. They are what makes a row land once: of a day, a partition's rows up to the largest
offset are there already, and a writer that makes them again after a crash leaves them out. A file
is written aside, fsynced and renamed, and never changes.

The day is that of the event time, UTC. Any reader of hive-partitioned Parquet can read it:

    SELECT kind, count(*) FROM 'archive/events/*/*.parquet' WHERE day = '2026-11-22' GROUP BY kind
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from streaming.errors import ArtefactError
from streaming.log import EVENTS, SAMPLES

ARCHIVED = (EVENTS, SAMPLES)
DAY_US = 86_400_000_000
_EPOCH = date(1970, 1, 1).toordinal()
_NAME = re.compile(r"(\d{5})-(\d{20})-(\d{20})\.parquet")
_AT_ONCE = 16_384  # rows in a batch of `read`


@dataclass(frozen=True)
class ArchiveConfig:
    """Rows are held back until a file is worth it, and learnt again from the log after a crash.

    They are written when `rows` or `megabytes` of them wait, or `seconds` after the last time. A
    turn reads `limit` records at most; after one that had less to read there is a pause. A day is
    compacted once the stream is `closed_after_h` past its end and a partition has more than
    `files` in it. Days older than the newest `days` are dropped; 0 keeps all.
    """

    enabled: bool = True
    rows: PositiveInt = 250_000
    megabytes: PositiveInt = 64
    seconds: PositiveFloat = 60.0
    limit: PositiveInt = 256
    turn_every_s: PositiveFloat = 0.5
    closed_after_h: PositiveFloat = 1.0
    files: PositiveInt = 8
    days: NonNegativeInt = 0


class Part(NamedTuple):
    """One file: rows of a partition's records from `start` up to `end`, the end left out."""

    path: Path
    partition: int
    start: int
    end: int

    @property
    def order(self) -> tuple[int, int]:
        return self.partition, self.start


@dataclass(frozen=True, slots=True)
class Day:
    """What one day of a topic holds; `offsets` are from the lowest to one past the highest."""

    topic: str
    day: str
    rows: int
    files: int
    size: int
    offsets: tuple[int, int]


class Archive:
    """Reads an archive while it is written and compacted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self, topic: str, until_us: int | None = None) -> list[str]:
        """The days of a topic in order; with `until_us` those that have ended by then."""
        names = sorted(p.name.removeprefix("day=") for p in (self.path / topic).glob("day=*"))
        return [n for n in names if until_us is None or (day_number(n) + 1) * DAY_US <= until_us]

    def days(self, topic: str, until_us: int | None = None) -> list[Day]:
        """Every day that has rows, with how much; reads the footer of each file."""
        found = [self._day(topic, name) for name in self.names(topic, until_us)]
        return [day for day in found if day.rows]

    def parts(self, topic: str, day: str) -> list[Part]:
        """The files of a day in log order."""
        directory = self.directory(topic, day)
        found = (part_at(directory / name) for name in _listed(directory))
        return sorted((part for part in found if part), key=lambda part: part.order)

    def read(self, topic: str, day: str) -> pa.RecordBatchReader:
        """The rows of a day by partition, and in log order within it; all days have any column
        that one of its files has, null where it was not known yet.

        Every row once, and unharmed by a compaction that comes while it is read.

        Raises:
            ArtefactError: a file is damaged, or a column has changed its type within the day.
        """
        files = self._open(topic, day)
        schema = unified([f.schema_arrow for f in files], self.directory(topic, day))

        def batches() -> Iterator[pa.RecordBatch]:
            for file in files:
                for batch in file.iter_batches(_AT_ONCE):
                    yield from conform(batch, schema).to_batches()
                file.close(force=True)

        return pa.RecordBatchReader.from_batches(schema, batches())

    def dataset(self, topic: str) -> ds.Dataset:
        """All days as one dataset with the columns of all files, and `day`.

        Its files are opened when it is scanned: one that was compacted meanwhile is gone, and
        the scan raises FileNotFoundError; ask for the dataset again.
        """
        root = self.path / topic
        paths = [p.path for name in self.names(topic) for p in self.parts(topic, name)]
        schema = unified([pq.read_schema(path) for path in paths], root)
        schema = schema.append(pa.field("day", pa.string()))
        return ds.dataset(
            [str(path) for path in paths],
            schema=schema,
            format="parquet",
            partition_base_dir=str(root),
            partitioning=ds.partitioning(pa.schema([("day", pa.string())]), flavor="hive"),
        )

    def directory(self, topic: str, day: str) -> Path:
        return self.path / topic / f"day={day}"

    @contextmanager
    def locked(self, what: str, *, wait: bool = True) -> Iterator[Path]:
        """Keeps others from `what`; gives a directory for half-made things, emptied by its owner.

        The kernel lets go for the dead.

        Raises:
            BlockingIOError: another has it, and it was not to be waited for.
        """
        aside = self.path / ".aside" / what
        aside.mkdir(parents=True, exist_ok=True)
        with (aside.parent / f"{what}.lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield aside

    def _day(self, topic: str, day: str) -> Day:
        files = self._open(topic, day)
        ranges = [offsets_in(file.metadata) for file in files]
        low, high = zip(*ranges, strict=True) if ranges else ((0,), (0,))
        rows = sum(file.metadata.num_rows for file in files)
        for file in files:
            file.close(force=True)
        size = sum(p.path.stat().st_size for p in self.parts(topic, day) if p.path.exists())
        return Day(topic, day, rows, len(files), size, (min(low), max(high)))

    def _open(self, topic: str, day: str) -> list[pq.ParquetFile]:
        """Opens all files of a day before any is read: then they may go, and are still there."""
        while True:
            with ExitStack() as stack:
                try:
                    files = [
                        stack.enter_context(pq.ParquetFile(pa.OSFile(str(part.path))))
                        for part in self.parts(topic, day)
                    ]
                except FileNotFoundError:  # compacted between the listing and the opening
                    continue
                except pa.ArrowInvalid as error:
                    raise ArtefactError(
                        f"a file in {self.directory(topic, day)} is damaged ({error}): restore it"
                        " from a copy"
                    ) from error
                stack.pop_all()
                return files


def _listed(directory: Path) -> list[str]:
    """The names in a directory that may be exchanged, and the old one emptied, at any moment."""
    while True:
        try:
            descriptor = os.open(directory, os.O_RDONLY)
        except FileNotFoundError:
            return []
        try:
            names = os.listdir(descriptor)  # noqa: PTH208 - pathlib lists no descriptors
            if os.path.samestat(os.fstat(descriptor), directory.stat()):
                return names
        except FileNotFoundError:
            return []  # it has expired
        finally:
            os.close(descriptor)


def part_at(path: Path) -> Part | None:
    """What the name of a file says; None for a name that is not the archive's."""
    match = _NAME.fullmatch(path.name)
    return Part(path, *map(int, match.groups())) if match else None


def offsets_in(file: pq.FileMetaData) -> tuple[int, int]:
    """The range of offsets of a file's rows, the end left out."""
    columns = [
        group.column(c)
        for group in map(file.row_group, range(file.num_row_groups))
        for c in range(group.num_columns)
        if group.column(c).path_in_schema == "log_offset"
    ]
    low = min((column.statistics.min for column in columns), default=0)
    return low, max((column.statistics.max + 1 for column in columns), default=0)


def part_name(partition: int, start: int, end: int) -> str:
    return f"{partition:05d}-{start:020d}-{end:020d}.parquet"


def day_number(day: str) -> int:
    """Days since 1970.

    >>> day_number("1970-01-02")
    1
    """
    return date.fromisoformat(day).toordinal() - _EPOCH


def day_name(number: int) -> str:
    """The day that begins so many days after 1970."""
    return date.fromordinal(_EPOCH + number).isoformat()


def unified(schemas: Sequence[pa.Schema], where: Path) -> pa.Schema:
    """One schema with every column; columns may come and go over time, types may only widen.

    Raises:
        ArtefactError: a column has types that do not go together.
    """
    if not schemas:
        return pa.schema([])
    try:
        return pa.unify_schemas(
            [s.remove_metadata() for s in schemas], promote_options="permissive"
        )
    except pa.ArrowException as error:
        raise ArtefactError(
            f"the files in {where} do not go together ({error}): a column has changed its type;"
            " read the files apart, or move the older ones away"
        ) from error


def conform(rows: pa.RecordBatch | pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows with the columns and types of the schema, null where they had none."""
    table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
    if table.schema.equals(schema):
        return table
    known = set(table.column_names)
    columns = [
        table[f.name].cast(f.type) if f.name in known else pa.nulls(len(table), f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)
