"""Writes the archive: rows are held back, then land as one file for each partition and day."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streaming.archive import (
    ARCHIVED,
    DAY_US,
    Archive,
    ArchiveConfig,
    conform,
    day_name,
    day_number,
    offsets_in,
    part_name,
    unified,
)
from streaming.compaction import compact
from streaming.disk import make_durable, retire, sweep, translated
from streaming.errors import ArtefactError
from streaming.log import Positions, TopicPartition

logger = logging.getLogger(__name__)
_WORTH_IT = 1_000  # rows for which a dictionary pays


class Rows(NamedTuple):
    """Rows that the records of a partition from `start` up to `end` have given, in log order.

    They have `at`, `log_partition`, `log_offset` and `log_row`, and no two the same place.
    """

    place: TopicPartition
    start: int
    end: int
    rows: pa.RecordBatch


class _New(NamedTuple):
    """A file that was `made` aside and is to be at `path`."""

    made: Path
    path: Path
    place: TopicPartition
    day: int
    end: int


class ArchiveWriter:
    """The one writer of an archive. Rows may be kept again after a crash; they land once."""

    def __init__(self, archive: Archive, config: ArchiveConfig | None = None) -> None:
        self.archive = archive
        self._config = config or ArchiveConfig()
        self._held: dict[tuple[TopicPartition, int], list[pa.RecordBatch]] = {}
        self._ranges: dict[TopicPartition, tuple[int, int]] = {}
        self._ends: dict[tuple[TopicPartition, int], int] = {}  # of the days that were looked at
        self._files: Counter[tuple[TopicPartition, int]] = Counter()
        self._newest: dict[str, int] = {}  # day, by topic
        self._changed: set[Path] = set()  # directories that are not durable yet
        self.rows = 0
        self.size = 0
        self._named: Counter[TopicPartition] = Counter()  # the largest end in a name
        for topic in ARCHIVED:
            for name in archive.names(topic):
                self._newest[topic] = day_number(name)
                for part in archive.parts(topic, name):
                    place = TopicPartition(topic, part.partition)
                    self._named[place] = max(part.end, self._named[place])
                    self._files[place, day_number(name)] += 1

    @property
    def due(self) -> bool:
        """Whether enough rows wait that they should be written at once."""
        return self.rows >= self._config.rows or self.size >= self._config.megabytes << 20

    def check_log(self, ends: Positions) -> None:
        """Makes sure that it is the log which the archive was made from, as far as can be told.

        Raises:
            ArtefactError: the archive has rows from where the log has not been yet.
        """
        for place, end in self._named.items():
            if end > ends.get(place, 0):
                raise ArtefactError(
                    f"the archive {self.archive.path} has {place.topic}/{place.partition} up to"
                    f" {end}, but the log ends at {ends.get(place, 0)}: it is another log; move"
                    " the archive away and start again"
                )

    def keep(self, outputs: Sequence[Rows]) -> list[Any]:
        """Holds rows back until `flush`."""
        for place, start, end, rows in outputs:
            first, _ = self._ranges.get(place, (start, end))
            self._ranges[place] = first, end
            for day, some in split_by_day(rows):
                self._held.setdefault((place, day), []).append(some)
            self.rows += rows.num_rows
            self.size += rows.nbytes
        return []

    def flush(self) -> None:
        """Writes what is held back; when it returns, all of it is durable.

        Raises:
            DiskFull: there is no space; what was not written is still held back.
            ArtefactError: it cannot be written for another reason.
        """
        with self.archive.locked("write") as aside, translated(self.archive.path):
            shutil.rmtree(aside)
            aside.mkdir()
            new = [part for key in sorted(self._held) if (part := self._write(*key, aside))]
            make_durable({part.made for part in new})
            for part in new:
                self._land(part)
            make_durable(self._changed)
        self._changed.clear()
        self._held.clear()
        self._ranges.clear()
        self.rows = self.size = 0
        self._expire()

    def compact(self, newest_us: Mapping[str, int]) -> None:
        """Compacts the days that lie in too many files, and that the topics have left behind:
        event time has come to `newest_us` in each.
        """
        closed_after_us = int(self._config.closed_after_h * 3_600_000_000)
        for place, day in [k for k, files in self._files.items() if files > self._config.files]:
            if (day + 1) * DAY_US <= newest_us.get(place.topic, 0) - closed_after_us:
                self._files[place, day] = 1
                try:
                    compact(self.archive, place.topic, day_name(day))
                except ArtefactError as error:  # it can be read as it is
                    logger.warning("%s", error)

    def _write(self, place: TopicPartition, day: int, aside: Path) -> _New | None:
        if self._expired(place.topic, day):
            return None
        start, end = self._ranges[place]
        written = self._written(place, day)
        directory = self.archive.directory(place.topic, day_name(day))
        batches = self._held[place, day]
        schema = unified([b.schema for b in batches], directory)
        table = pa.concat_tables(conform(batch, schema) for batch in batches)
        if table["log_offset"][0].as_py() < written:  # made again after a crash
            table = table.filter(pc.greater_equal(table["log_offset"], written))
        if len(table) == 0:
            return None
        name = part_name(place.partition, max(start, written), end)
        made = aside / f"{place.topic}-{day}-{name}"
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", use_dictionary=len(table) >= _WORTH_IT)
        made.write_bytes(sink.getvalue())
        return _New(made, directory / name, place, day, end)

    def _written(self, place: TopicPartition, day: int) -> int:
        """One past the largest offset that a day has of a partition."""
        if (place, day) not in self._ends:
            ends = [
                offsets_in(pq.read_metadata(part.path))[1]
                for part in self.archive.parts(place.topic, day_name(day))
                if part.partition == place.partition
            ]
            self._ends[place, day] = max(ends, default=0)
        return self._ends[place, day]

    def _land(self, part: _New) -> None:
        directory = part.path.parent
        directory.mkdir(parents=True, exist_ok=True)
        part.made.rename(part.path)
        self._changed |= {directory, directory.parent, directory.parent.parent}
        self._ends[part.place, part.day] = part.end
        self._files[part.place, part.day] += 1
        topic = part.place.topic
        self._newest[topic] = max(part.day, self._newest.get(topic, part.day))

    def _expired(self, topic: str, day: int) -> bool:
        kept = self._config.days
        return bool(kept) and day <= self._newest.get(topic, day) - kept

    def _expire(self) -> None:
        # Somebody may be compacting for long: then the next time will do.
        with suppress(BlockingIOError), self.archive.locked("compact", wait=False) as aside:
            sweep(aside)
            for topic in ARCHIVED if self._config.days else ():
                for name in self.archive.names(topic):
                    if self._expired(topic, day_number(name)):
                        retire(self.archive.directory(topic, name), aside)


def split_by_day(rows: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of each day, their order kept."""
    days = rows["at"].cast(pa.int64()).to_numpy() // DAY_US
    if len(days) == 0:
        return
    if (days[1:] < days[:-1]).any():
        order = np.argsort(days, kind="stable")
        rows, days = rows.take(pa.array(order)), days[order]
    starts = [0, *(np.flatnonzero(np.diff(days)) + 1).tolist(), len(days)]
    for start, end in pairwise(starts):
        yield int(days[start]), rows.slice(start, end - start)
