"""The archive read again as a log: a day's rows as the records, and so the steps, they came from.

Of a day and a partition the archive only ever grows behind its largest offset, as a partition of
the log does. So each is a `TopicPartition` here, `samples/day=2026-11-22` and the partition, with
the offsets of the log; where a record has rows of two days, each day has its part of it, under the
same offset. A reader's positions tell exactly what it has read, however late rows came, and in
whichever files they lie by now.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streaming.archive import Archive, Part, day_name, offsets_in
from streaming.archive_writer import split_by_day
from streaming.errors import ArtefactCorrupt
from streaming.log import NOBODY, SAMPLES, Log, Positions, Record, TopicPartition
from streaming.samples import (
    decode_samples,
    encode_samples,
    features_in,
    labels_in,
    sample_schema,
)

_ROWS_AT_ONCE = 16_384
_RECORDS_AT_ONCE = 256


class _File(NamedTuple):
    """An open file of a day, with the range of offsets that it has rows of."""

    part: Part
    parquet: pq.ParquetFile
    start: int
    end: int


class ArchivedRecord(NamedTuple):
    """A record, how many rows it has, and the place whose position is past it when it is done."""

    record: Record
    rows: int
    place: TopicPartition


class ArchivedSamples:
    """Reads the samples of an archive, day by day, as records.

    Every method raises `ArtefactCorrupt`, which names the file, if one is damaged.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    @property
    def path(self) -> Path:
        return self._archive.path

    def days(self, until_us: int | None = None) -> list[str]:
        """The days with samples in order; with `until_us` those that have ended by then."""
        names = self._archive.names(SAMPLES, until_us)
        return [day for day in names if self._archive.parts(SAMPLES, day)]

    def rows(self, day: str, positions: Positions) -> int:
        """How many rows of a day lie behind the positions."""
        with self._opened(day) as files:
            return sum(
                _rows_behind(file, positions.get(place_of(day, file.part.partition), 0))
                for file in files
            )

    def records(self, day: str, positions: Positions) -> Iterator[ArchivedRecord]:
        """The records of a day behind the positions, by partition and offset.

        Each has the rows of this day that its record in the log has, with the labels of that time
        and null ones of its neighbours'. `logged_us` is when the newest of its events was logged.
        """
        with self._opened(day) as files:
            for file in files:
                place = place_of(day, file.part.partition)
                yield from _records(file, place, positions.get(place, 0))

    def missing(self, log: Log, positions: Positions) -> dict[str, Record]:
        """Of each day that lacks some: a record behind the positions that only the log has.

        That is how a lost file shows in the others' footers, where none of them lies over it and
        the log has not forgotten its records; `streaming.archive_check` compares every row. Days
        before the first are not missed, for days expire.
        """
        found: dict[str, Record] = {}
        first = min(self.days(), default="")
        starts = log.positions(NOBODY, [SAMPLES])
        for place, start, end in self._gaps():
            for record in _between(log, place, max(start, starts.get(place, 0)), end):
                for number, _ in split_by_day(decode_samples(record)):
                    day = day_name(number)
                    read = positions.get(place_of(day, record.partition), 0)
                    if day >= first and record.offset >= read:
                        found.setdefault(day, record)
        return dict(sorted(found.items()))

    def _gaps(self) -> Iterator[tuple[TopicPartition, int, int]]:
        """Ranges of offsets between those of the files, the end left out."""
        ranges = defaultdict(list)
        for day in self.days():
            with self._opened(day) as files:
                for file in files:
                    ranges[file.part.partition].append((file.start, file.end))
        for partition, some in ranges.items():
            end = min(some)[0]
            for start, after in sorted(some):
                if start > end:
                    yield TopicPartition(SAMPLES, partition), end, start
                end = max(end, after)

    @contextmanager
    def _opened(self, day: str) -> Iterator[list[_File]]:
        """All files of a day, before any is read: then they may be compacted meanwhile."""
        while True:
            with ExitStack() as stack:
                try:
                    files = [_open(part, stack) for part in self._archive.parts(SAMPLES, day)]
                except FileNotFoundError:  # compacted between the listing and the opening
                    continue
                yield files
                return


def place_of(day: str, partition: int) -> TopicPartition:
    """Where a reader keeps its position in a day's rows from a partition of `samples`.

    >>> place_of("2026-11-22", 0)
    TopicPartition(topic='samples/day=2026-11-22', partition=0)
    """
    return TopicPartition(f"{SAMPLES}/day={day}", partition)


def _open(part: Part, stack: ExitStack) -> _File:
    with _damage_named(part):
        file = pq.ParquetFile(pa.OSFile(str(part.path)), page_checksum_verification=True)
        stack.callback(file.close, force=True)
        return _File(part, file, *offsets_in(file.metadata))


@contextmanager
def _damage_named(part: Part) -> Iterator[None]:
    """The errors of Arrow as one sentence that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ArtefactCorrupt(
            f"{part.path} is damaged or holds no samples ({error}): restore it from a copy; or,"
            " while the log still has its records, stop the system, delete that day and"
            " cuts/archive, and start again"
        ) from error


def _rows_behind(file: _File, position: int) -> int:
    if position <= file.start:
        return int(file.parquet.metadata.num_rows)
    if position >= file.end:
        return 0
    with _damage_named(file.part):
        offsets = file.parquet.read(["log_offset"])["log_offset"].to_numpy()
    return int((offsets >= position).sum())


def _records(file: _File, place: TopicPartition, position: int) -> Iterator[ArchivedRecord]:
    if position >= file.end:
        return
    found = pa.schema([f for f in file.parquet.schema_arrow if not f.name.startswith("log_")])
    schema = sample_schema(labels_in(found), features_in(found))
    for offset, rows in _by_offset(_batches(file)):
        if offset >= position:
            with _damage_named(file.part):
                arrays = [rows[f.name].cast(f.type) for f in schema]
                samples = pa.RecordBatch.from_arrays(arrays, schema=schema)
                samples.validate(full=True)
            logged_us = pc.max(samples["logged_us"]).as_py()
            value = encode_samples(samples).value
            record = Record(SAMPLES, place.partition, offset, None, value, logged_us)
            yield ArchivedRecord(record, samples.num_rows, place)


def _batches(file: _File) -> Iterator[pa.RecordBatch]:
    batches = file.parquet.iter_batches(_ROWS_AT_ONCE)
    while True:
        with _damage_named(file.part):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _by_offset(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of each offset; what may go on in the next batch waits for it."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        rows = pa.concat_batches([*held, batch])
        offsets = rows["log_offset"].to_numpy()
        starts = np.flatnonzero(np.diff(offsets, prepend=-1)).tolist()
        for start, end in pairwise(starts):
            yield int(offsets[start]), rows.slice(start, end - start)
        held = [rows.slice(starts[-1])] if starts else []
    for rest in held:
        yield int(rest["log_offset"][0].as_py()), rest


def _between(log: Log, place: TopicPartition, start: int, end: int) -> Iterator[Record]:
    """What the log has of a range of offsets."""
    while start < end:
        records = log.read({place: start}, _RECORDS_AT_ONCE, timeout_s=0)
        yield from (record for record in records if record.offset < end)
        start = records[-1].offset + 1 if records else end
