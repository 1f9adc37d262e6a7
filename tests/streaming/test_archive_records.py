"""The archive read as records: the very ones that were archived, whatever files they lie in."""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming.archive import Archive, ArchiveConfig, day_name
from streaming.archive_records import ArchivedRecord, ArchivedSamples, place_of
from streaming.archive_writer import split_by_day
from streaming.archiver import Archiver, ArchiveStep
from streaming.compaction import compact
from streaming.errors import ArtefactCorrupt
from streaming.events import EventRules
from streaming.log import SAMPLES, Record, TopicPartition
from streaming.memory_log import MemoryLog
from streaming.samples import decode_samples, encode_samples, sample_schema

PARTITIONS = 2
START = datetime(2025, 3, 1, tzinfo=UTC)
FEATURES = pa.schema({"history": pa.list_(pa.int64()), "age": pa.float32()})
PLACES = [TopicPartition(SAMPLES, p) for p in range(PARTITIONS)]


def some_samples(rng: random.Random, day: float, label: str) -> pa.RecordBatch:
    """Rows around a day, some of them of the one before."""
    rows = [
        {
            "user_id": rng.randrange(9),
            "item_id": rng.randrange(99),
            "at": START + timedelta(days=day, hours=-rng.expovariate(1 / 4)),
            "kind": "click",
            "history": [rng.randrange(99) for _ in range(rng.randrange(4))],
            "age": rng.randrange(99) / 4,
            "reward": rng.random(),
            "logged_us": rng.randrange(1_000_000),
            f"label_{label}": 1.0,
        }
        for _ in range(rng.randrange(1, 6))
    ]
    return pa.RecordBatch.from_pylist(rows, schema=sample_schema([label], FEATURES))


@pytest.fixture
def log() -> Iterator[MemoryLog]:
    """Four days in two partitions, with unused offsets as in Kafka."""
    rng = random.Random(5)
    log = MemoryLog(partitions=PARTITIONS, gaps=True)
    for n in range(120):
        batch = some_samples(rng, 0.5 + n / 30, rng.choice(["click", "buy"]))
        log.append([encode_samples(batch)._replace(partition=rng.randrange(PARTITIONS))])
    yield log
    log.close()


def archived(log: MemoryLog, home: Path, rows: int = 20) -> Archive:
    """What the archiver makes of all that is in the log, in many files."""
    archive = Archive(home / "archive")
    config = ArchiveConfig(rows=rows, limit=8, seconds=1e9, files=10_000)
    archiver = Archiver(
        log, archive, lambda s: ArchiveStep(EventRules(), 9, s), home / "cuts", config
    )
    while archiver.turn():
        pass
    archiver.write()
    return archive


@pytest.fixture
def archive(log: MemoryLog, tmp_path: Path) -> Archive:
    return archived(log, tmp_path)


def expected(log: MemoryLog) -> dict[str, list[tuple[int, int, list[Any]]]]:
    """For each day, what every record has of it: (partition, offset, rows)."""
    found: dict[str, list[tuple[int, int, list[Any]]]] = defaultdict(list)
    for record in sorted(everything(log), key=lambda r: (r.partition, r.offset)):
        for day, rows in split_by_day(decode_samples(record)):
            found[day_name(day)].append((record.partition, record.offset, rows.to_pylist()))
    return dict(sorted(found.items()))


def everything(log: MemoryLog) -> list[Record]:
    return [r for place in PLACES for r in log.read({place: 0}, 10_000, timeout_s=0)]


def read(samples: ArchivedSamples, day: str) -> list[tuple[int, int, list[Any]]]:
    return [shown(found) for found in samples.records(day, {})]


def shown(found: ArchivedRecord) -> tuple[int, int, list[Any]]:
    """A record without the labels of its neighbours, which it does not know."""
    rows = decode_samples(found.record).to_pylist()
    labels = {n for row in rows for n, value in row.items() if n[:6] != "label_" or value == 1.0}
    known = [{n: v for n, v in row.items() if n in labels or n == "label_liked"} for row in rows]
    return found.record.partition, found.record.offset, known


def test_a_day_is_read_as_the_records_that_the_log_has_of_it(
    log: MemoryLog, archive: Archive
) -> None:
    samples = ArchivedSamples(archive)
    days = expected(log)
    assert len(days) >= 4
    assert samples.days() == list(days)
    for day, records in days.items():
        assert read(samples, day) == records
        assert samples.rows(day, {}) == sum(len(rows) for _, _, rows in records)
        assert [f.rows for f in samples.records(day, {})] == [len(r) for _, _, r in records]


def test_records_lie_across_batches_as_they_do_within_one(
    log: MemoryLog, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.archive_records._ROWS_AT_ONCE", 3)
    for day, records in expected(log).items():
        assert read(ArchivedSamples(archive), day) == records


def test_files_from_before_a_feature_was_declared_are_read_without_it(
    log: MemoryLog, archive: Archive
) -> None:
    samples = ArchivedSamples(archive)
    day = samples.days()[0]
    for part in archive.parts(SAMPLES, day):
        table = pq.read_table(part.path)
        pq.write_table(table.drop_columns("age"), part.path)
    before = [
        (*place, [{n: v for n, v in row.items() if n != "age"} for row in rows])
        for *place, rows in expected(log)[day]
    ]
    assert read(samples, day) == before


def test_from_any_position_on_only_the_rest_is_read(archive: Archive) -> None:
    samples = ArchivedSamples(archive)
    day = samples.days()[1]
    positions: dict[TopicPartition, int] = {}
    whole = list(samples.records(day, {}))
    for n, (record, _, place) in enumerate(whole):
        assert list(samples.records(day, positions)) == whole[n:]
        assert samples.rows(day, positions) == sum(found.rows for found in whole[n:])
        assert place == place_of(day, record.partition)
        positions[place] = record.offset + 1
    assert list(samples.records(day, positions)) == []
    assert samples.rows(day, positions) == 0


def test_compaction_before_or_during_the_reading_changes_no_record(
    log: MemoryLog, archive: Archive
) -> None:
    samples = ArchivedSamples(archive)
    for day, records in expected(log).items():
        reading = samples.records(day, {})
        first = shown(next(reading))
        assert compact(archive, SAMPLES, day)
        assert [first, *map(shown, reading)] == records
        assert read(samples, day) == records


def test_rows_that_come_late_lie_behind_the_positions(log: MemoryLog, tmp_path: Path) -> None:
    samples = ArchivedSamples(archived(log, tmp_path))
    day = samples.days()[0]
    positions = {f.place: f.record.offset + 1 for f in samples.records(day, {})}
    late = some_samples(random.Random(1), 0.6, "buy")
    log.append([encode_samples(late)._replace(partition=1)])
    archived(log, tmp_path)
    (found,) = samples.records(day, positions)
    assert samples.rows(day, positions) == found.rows == late.num_rows
    assert decode_samples(found.record).select(late.schema.names).equals(late)
    assert found.place == place_of(day, 1)


def test_days_that_have_not_ended_are_told_apart(archive: Archive) -> None:
    samples = ArchivedSamples(archive)
    noon = datetime.fromisoformat(samples.days()[2]).replace(tzinfo=UTC, hour=12)
    assert samples.days(int(noon.timestamp() * 1e6)) == samples.days()[:2]


def test_no_day_of_a_whole_archive_lacks_anything(log: MemoryLog, archive: Archive) -> None:
    assert ArchivedSamples(archive).missing(log, {}) == {}


def test_a_day_that_was_lost_is_found_by_what_the_log_still_has(
    log: MemoryLog, archive: Archive
) -> None:
    samples = ArchivedSamples(archive)
    lost = samples.days()[2]
    for part in archive.parts(SAMPLES, lost):
        if part.partition == 0:
            part.path.unlink()
    ((day, record),) = samples.missing(log, {}).items()
    assert day == lost
    offsets = [offset for partition, offset, _ in expected(log)[lost] if partition == 0]
    assert record.partition == 0
    assert record.offset in offsets
    assert samples.missing(log, {place_of(lost, 0): max(offsets) + 1}) == {}


def test_what_the_log_has_forgotten_is_not_missed(log: MemoryLog, archive: Archive) -> None:
    samples = ArchivedSamples(archive)
    shutil.rmtree(archive.directory(SAMPLES, samples.days()[1]))
    assert samples.missing(log, {})
    for place, end in log.ends([SAMPLES]).items():
        log.trim(place, end)
    assert samples.missing(log, {}) == {}


def test_what_is_of_days_that_have_expired_is_not_missed(log: MemoryLog, tmp_path: Path) -> None:
    rng = random.Random(2)
    archive = archived(log, tmp_path)
    for day in (0.6, 4.0):  # the first comes late, in a file over which no other lies
        log.append([encode_samples(some_samples(rng, day, "buy"))._replace(partition=0)])
        archived(log, tmp_path)
    samples = ArchivedSamples(archive)
    first, second, *_ = samples.days()
    for name in (first, second):
        shutil.rmtree(archive.directory(SAMPLES, name))
    assert samples.missing(log, {}) == {}


@pytest.mark.parametrize("how", ["cut off", "empty", "no footer", "flipped", "other columns"])
def test_a_damaged_file_is_named(archive: Archive, how: str) -> None:
    day = archive.names(SAMPLES)[1]
    path = archive.parts(SAMPLES, day)[1].path
    data = bytearray(path.read_bytes())
    if how == "other columns":
        pq.write_table(pq.read_table(path, partitioning=None).drop(["item_id"]), path)
    elif how == "flipped":
        data[4:200] = bytes(196)  # the first pages
        path.write_bytes(data)
    else:
        path.write_bytes(data[: {"cut off": -9, "empty": 0, "no footer": 200}[how]])
    with pytest.raises(ArtefactCorrupt, match="is damaged or holds no samples") as caught:
        list(ArchivedSamples(archive).records(day, {}))
    assert str(path) in str(caught.value)
    assert "cuts/archive" in str(caught.value)
