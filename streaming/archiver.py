"""The archiver: a Step from `events` and `samples` to rows of the archive, and what drives it.

Events are those that the joiner learns from: what it refuses is in `dead-letters`, what it drops
as a repeat is dropped here by the same memory, one for each partition. Ticks are no events.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import PositiveInt

from streaming.archive import ARCHIVED, Archive, ArchiveConfig
from streaming.archive_writer import ArchiveWriter, Rows
from streaming.arrow_record import STREAM_STARTS, read_batch
from streaming.artefact import Artefact
from streaming.disk import DiskFull
from streaming.errors import ArtefactCorrupt
from streaming.events import TICK, EventRules
from streaming.intake import Intake
from streaming.log import EVENTS, Log, Record, TopicPartition
from streaming.loop import Loop, LoopConfig, LoopObserver

logger = logging.getLogger(__name__)
GROUP = "archive"
_RETRY_S = 5.0  # until a full disk is tried again


class ArchiveStep:
    """A Step whose outputs are `Rows`: every accepted event once, and every row of a sample."""

    def __init__(
        self, rules: EventRules, remembered: PositiveInt, state: Artefact | None = None
    ) -> None:
        self._rules = rules
        self._remembered = remembered
        self._intakes: dict[int, Intake] = {}  # by partition: it must not matter how they are read
        self.newest_us: dict[str, int] = {}  # event time, by topic
        if state is not None:
            self.newest_us = dict(state.meta["newest_us"])
            for name, table in state.shards.items():
                self._intake(int(name.removeprefix("intake-"))).restore(table)

    def on_batch(self, records: Sequence[Record]) -> list[Rows]:
        by_place: dict[TopicPartition, list[Record]] = {}
        for record in records:
            by_place.setdefault(record.place, []).append(record)
        outputs = []
        for place, some in by_place.items():
            for rows in self._rows(place, some):
                outputs.append(Rows(place, some[0].offset, some[-1].offset + 1, rows))
                self._note(place.topic, rows)
        return outputs

    def on_time(self, now_us: int) -> list[Rows]:  # noqa: ARG002
        return []

    def snapshot(self) -> Artefact:
        intakes = {f"intake-{p}": intake.snapshot() for p, intake in self._intakes.items()}
        return Artefact({"newest_us": self.newest_us}, intakes)

    def _rows(self, place: TopicPartition, records: Sequence[Record]) -> Iterator[pa.RecordBatch]:
        if place.topic == EVENTS:
            return events_of(records, self._intake(place.partition))
        return map(samples_of, records)

    def _intake(self, partition: int) -> Intake:
        if partition not in self._intakes:
            self._intakes[partition] = Intake(self._rules, self._remembered)
        return self._intakes[partition]

    def _note(self, topic: str, rows: pa.RecordBatch) -> None:
        if rows.num_rows:
            newest = pc.max(rows["at"]).cast(pa.int64()).as_py()
            self.newest_us[topic] = max(newest, self.newest_us.get(topic, newest))


class Archiver:
    """Runs the step in turns that are few and large, for nobody waits for an archive."""

    def __init__(  # noqa: PLR0913 - the wiring of a whole consumer, done once
        self,
        log: Log,
        archive: Archive,
        build: Callable[[Artefact | None], ArchiveStep],
        cuts: Path,
        config: ArchiveConfig | None = None,
        observer: LoopObserver | None = None,
        reached: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._config = config or ArchiveConfig()
        self.archive = archive
        self.writer = ArchiveWriter(archive, self._config)
        ends = log.ends(ARCHIVED)
        self.writer.check_log(ends)
        # A turn that was as large as it can be is followed by the next at once.
        self._full = max(1, self._config.limit // max(1, len(ends)))
        self._loop = Loop(
            log,
            GROUP,
            ARCHIVED,
            build,
            cuts,
            execute=self.writer.keep,
            redo=self._keep_again,
            flush=self.writer.flush,
            config=LoopConfig(limit=self._config.limit, idle_s=0, cut_every_s=self._config.seconds),
            observer=observer,
            reached=reached,
        )

    def run(self, stopping: threading.Event) -> None:
        """Turns until told to stop. A full disk is waited for: only the archive falls behind."""
        while not stopping.is_set():
            try:
                if self.turn() < self._full:
                    stopping.wait(self._config.turn_every_s)
            except DiskFull as error:
                logger.warning("%s", error)
                stopping.wait(_RETRY_S)
        self.turn()  # what came last
        self._loop.cut()

    def turn(self) -> int:
        """Reads once, and writes what is due; returns how many records there were."""
        if self.writer.due:  # still, after a full disk
            self.write()
        count = self._loop.turn()
        if self.writer.due:
            self.write()
        return count

    def _keep_again(self, outputs: Sequence[Rows]) -> list[Any]:
        self.writer.keep(outputs)
        if self.writer.due:  # without a cut there is much to be read again
            self.writer.flush()
        return []

    def write(self) -> None:
        """Writes everything that was read; then compacts the days that the stream has left."""
        self._loop.cut()
        self.writer.compact(self._loop.step.newest_us)


def events_of(records: Iterable[Record], intake: Intake) -> Iterator[pa.RecordBatch]:
    """The events that an intake takes from records of one partition, with their places."""
    for in_arrow, run in groupby(records, lambda r: r.value.startswith(STREAM_STARTS)):
        if in_arrow:
            yield from (_arrow_events(record, intake) for record in run)
        else:
            yield _json_events(list(run), intake)


def samples_of(record: Record) -> pa.RecordBatch:
    """The rows of a micro-batch with their places, whichever columns it has.

    Raises:
        ArtefactCorrupt: only a joiner writes samples, so bytes that are none mean a damaged log.
    """
    try:
        rows = read_batch(record.value)
    except ValueError as error:
        raise ArtefactCorrupt(
            f"{record.topic}/{record.partition} at {record.offset} holds no samples: {error}"
        ) from error
    offsets = np.full(rows.num_rows, record.offset)
    return _placed(rows, record.partition, offsets, np.arange(rows.num_rows))


def _arrow_events(record: Record, intake: Intake) -> pa.RecordBatch:
    repeats_before = intake.repeats
    taken = intake.take([record])
    refused = [r.row for r in taken.rejected if r.row is not None]
    repeats = intake.repeats - repeats_before
    total = taken.events.num_rows + repeats + len(refused)
    rows = np.setdiff1d(np.arange(total), refused)
    if repeats:
        ids = read_batch(record.value)["event_id"].take(pa.array(rows))
        rows = rows[_found(taken.events["event_id"].to_pylist(), ids.to_pylist())]
    offsets = np.full(len(rows), record.offset)
    return _events(taken.events, taken.logged_us, record.partition, offsets, rows)


class _Named(msgspec.Struct):
    event_id: str | None = None


def _json_events(records: Sequence[Record], intake: Intake) -> pa.RecordBatch:
    repeats_before = intake.repeats
    taken = intake.take(records)
    refused = {r.record.offset for r in taken.rejected}
    kept = [r for r in records if r.offset not in refused]
    if intake.repeats > repeats_before:
        ids = [_event_id(record) for record in kept]
        kept = [kept[i] for i in _found(taken.events["event_id"].to_pylist(), ids)]
    offsets = np.array([r.offset for r in kept], np.int64)
    rows = np.zeros(len(kept), np.int64)
    return _events(taken.events, taken.logged_us, records[0].partition, offsets, rows)


def _event_id(record: Record) -> str:
    named = msgspec.json.decode(record.value, type=_Named).event_id
    return named or f"{record.topic}/{record.partition}/{record.offset}"


def _found(taken: Iterable[str], ids: Iterable[str]) -> list[int]:
    """Where each of the ids that were taken stands first among all, both being in order."""
    numbered = enumerate(ids)
    return [next(i for i, candidate in numbered if candidate == one) for one in taken]


def _events(
    events: pa.RecordBatch,
    logged_us: NDArray[np.int64],
    partition: int,
    offsets: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> pa.RecordBatch:
    with_time = events.append_column("logged_us", pa.array(logged_us, pa.int64()))
    placed = _placed(with_time, partition, offsets, rows)
    ticks = pc.equal(placed["kind"], TICK)
    return placed.filter(pc.invert(ticks)) if pc.any(ticks).as_py() else placed


def _placed(
    batch: pa.RecordBatch, partition: int, offsets: NDArray[Any], rows: NDArray[Any]
) -> pa.RecordBatch:
    """A batch with the place of each row in the log."""
    partitions = np.full(batch.num_rows, partition)
    for name, column, kind in (
        ("log_partition", partitions, pa.int32()),
        ("log_offset", offsets, pa.int64()),
        ("log_row", rows, pa.int32()),
    ):
        batch = batch.append_column(pa.field(name, kind, nullable=False), pa.array(column, kind))
    return batch
