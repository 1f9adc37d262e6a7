"""Verification: the archive against itself and against the log, by the places of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streaming.archive import ARCHIVED, Archive, Part, conform, offsets_in, unified
from streaming.archive_writer import Rows
from streaming.archiver import ArchiveStep
from streaming.log import NOBODY, Log, Positions, TopicPartition

_PLACE = ("log_offset", "log_row")
_TURN = 256  # records at a time


@dataclass
class Verdict:
    """What was found of one topic.

    `compared` rows were held against the log, which begins after some, where it is trimmed.
    `missing` are in the log and not in the archive; `wrong` are there, but not as in the log, or
    not in the log at all; `repeated` are there more than once.
    """

    topic: str
    rows: int = 0
    compared: int = 0
    missing: int = 0
    wrong: int = 0
    repeated: int = 0

    @property
    def good(self) -> bool:
        return not (self.missing or self.wrong or self.repeated)


def verify(
    archive: Archive,
    log: Log,
    until: Positions,
    step: ArchiveStep,
    report: Callable[[int, int], None] = lambda *_: None,
) -> list[Verdict]:
    """Reads every row, and every record that the log still has before `until`, and compares them.

    `until` are the positions of the archiver's newest cut, and `step` is a new one. `report` is
    told how many of how many records are compared. Where the log is trimmed, a row that a new
    step takes for the first of its event may be a repeat of one before; it is not missed.
    """
    verdicts = {topic: Verdict(topic) for topic in ARCHIVED}
    starts = log.positions(NOBODY, ARCHIVED)
    total = sum(max(0, end - starts.get(place, 0)) for place, end in until.items())
    done = 0
    for place, end in sorted(until.items()):
        verdict = verdicts[place.topic]
        parts = _parts(archive, place)
        start = starts.get(place, 0)
        _count(_read(parts, 0, start), verdict)
        for first, last, expected in _expected(log, place, start, end, step):
            found = _read(parts, first, last)
            _count(found, verdict)
            _compare(expected, found, verdict, trimmed=start > 0)
            report(done + last - start, total)
        done += max(0, end - start)
    return list(verdicts.values())


def _expected(
    log: Log, place: TopicPartition, start: int, end: int, step: ArchiveStep
) -> Iterator[tuple[int, int, list[Rows]]]:
    """What the records of a partition make, piece by piece: (first offset, end, rows)."""
    while start < end:
        records = [r for r in log.read({place: start}, _TURN, timeout_s=0) if r.offset < end]
        after = records[-1].offset + 1 if records else end
        yield start, after, step.on_batch(records) if records else []
        start = after


def _parts(archive: Archive, place: TopicPartition) -> list[Part]:
    """The files of a partition, each with the range of offsets that it has rows of."""
    parts = [p for day in archive.names(place.topic) for p in archive.parts(place.topic, day)]
    ranges = ((p, offsets_in(pq.read_metadata(p.path))) for p in parts)
    return [
        part._replace(start=low, end=high)
        for part, (low, high) in ranges
        if part.partition == place.partition
    ]


def _read(parts: Sequence[Part], start: int, end: int) -> pa.Table:
    """The archived rows of a range of offsets, in log order."""
    tables = []
    for part in parts:
        if part.start < end and start < part.end:
            filters = [("log_offset", ">=", start), ("log_offset", "<", end)]
            tables.append(pq.read_table(part.path, filters=filters, partitioning=None))
    if not tables:
        return pa.table({name: pa.array([], pa.int64()) for name in _PLACE})
    schema = unified([t.schema for t in tables], parts[0].path.parents[1])
    return _in_order(pa.concat_tables(conform(t, schema) for t in tables))


def _count(found: pa.Table, verdict: Verdict) -> None:
    offsets, rows = (found[name].to_numpy() for name in _PLACE)
    verdict.rows += len(found)
    if len(found):
        verdict.repeated += int(((np.diff(offsets) == 0) & (np.diff(rows) == 0)).sum())


def _compare(made: Sequence[Rows], found: pa.Table, verdict: Verdict, *, trimmed: bool) -> None:
    tables = [pa.Table.from_batches([rows.rows]) for rows in made if rows.rows.num_rows]
    expected = (
        pa.concat_tables(tables, promote_options="permissive") if tables else found.slice(0, 0)
    )
    verdict.compared += len(expected)
    if len(expected) == len(found) and _in_order(expected).equals(conform(found, expected.schema)):
        return
    there, known = (
        set(zip(*(t[n].to_pylist() for n in _PLACE), strict=True)) for t in (found, expected)
    )
    verdict.missing += 0 if trimmed else len(known - there)
    verdict.wrong += len(there - known)
    both = there & known
    for place in both:
        one, other = (_row(t, place) for t in (expected, found))
        verdict.wrong += not one.equals(conform(other, one.schema))


def _row(table: pa.Table, place: tuple[int, int]) -> pa.Table:
    offset, row = place
    mask = pc.and_(pc.equal(table["log_offset"], offset), pc.equal(table["log_row"], row))
    return table.filter(mask).slice(0, 1)


def _in_order(table: pa.Table) -> pa.Table:
    return table.sort_by([(name, "ascending") for name in _PLACE])
