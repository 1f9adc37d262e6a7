"""The archive: every accepted event and every sample row in Parquet by day, once."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from streaming import compaction
from streaming.archive import ARCHIVED, Archive, ArchiveConfig
from streaming.archive_check import Verdict, verify
from streaming.archive_writer import ArchiveWriter, Rows, split_by_day
from streaming.archiver import Archiver, ArchiveStep
from streaming.arrow_record import encode_batch
from streaming.compaction import compact
from streaming.cuts import CutDirectory
from streaming.disk import DiskFull
from streaming.errors import ArtefactCorrupt, ArtefactError
from streaming.events import TICK, Event, EventRules, encode_event, encode_events, event_batch
from streaming.file_log import FileLog
from streaming.log import DEAD_LETTERS, EVENTS, SAMPLES, Append, TopicPartition

NOON = datetime(2025, 11, 20, 12, tzinfo=UTC)
DAYS = ("2025-11-20", "2025-11-21", "2025-11-22")
PARTITIONS = 2


def event(number: int, hours: float = 0, **fields: Any) -> Event:
    at = NOON + timedelta(hours=hours)
    fields = {"kind": "click", "user_id": f"u{number % 7}", "item_id": "i", **fields}
    return Event(event_id=f"e{number}", at=at, **fields)


def arrow(*events: Event, partition: int = 0) -> Append:
    return encode_events(event_batch(events))._replace(partition=partition)


def single(one: Event, partition: int = 0) -> Append:
    return encode_event(one)._replace(partition=partition)


def sample(rows: int, hours: float = 0, partition: int = 0, **columns: Any) -> Append:
    """A micro-batch of numbered rows."""
    at_us = int((NOON + timedelta(hours=hours)).timestamp() * 1e6)
    batch = pa.record_batch(
        {
            "item_id": np.arange(rows),
            "at": pa.array([at_us + n for n in range(rows)], pa.timestamp("us", "UTC")),
            **columns,
        }
    )
    return Append(SAMPLES, encode_batch(batch), partition=partition)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[FileLog]:
    log = FileLog(tmp_path / "log.db", partitions=PARTITIONS)
    yield log
    log.close()


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


@pytest.fixture
def archiver(log: FileLog, archive: Archive, rules: EventRules) -> Callable[..., Archiver]:
    def make(config: ArchiveConfig | None = None, remembered: int = 1_000) -> Archiver:
        cuts = archive.path.with_name("cuts")
        return Archiver(
            log, archive, lambda state: ArchiveStep(rules, remembered, state), cuts, config
        )

    return make


def run_to_the_end(archiver: Archiver) -> None:
    while archiver.turn():
        pass
    archiver.write()


def rows_of(archive: Archive, topic: str) -> pa.Table:
    tables = [archive.read(topic, day).read_all() for day in archive.names(topic)]
    return pa.concat_tables(tables, promote_options="permissive")


def ids_of(archive: Archive, day: str) -> list[str]:
    ids: list[str] = archive.read(EVENTS, day).read_all()["event_id"].to_pylist()
    return ids


def places(table: pa.Table) -> list[tuple[int, int, int]]:
    columns = (table[f"log_{name}"].to_pylist() for name in ("partition", "offset", "row"))
    return list(zip(*columns, strict=True))


def check(archive: Archive, log: FileLog, rules: EventRules) -> list[Verdict]:
    _, until = CutDirectory(archive.path.with_name("cuts")).newest()
    return verify(archive, log, until, ArchiveStep(rules, 1_000))


# What lands, and where


def test_an_event_lands_on_the_day_of_its_time_with_its_place_in_the_log(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    log.append([single(event(0)), arrow(event(1, 11.9), event(2, 12.1)), single(event(3, 36), 1)])
    run_to_the_end(archiver())
    assert archive.names(EVENTS) == list(DAYS)
    assert [ids_of(archive, day) for day in DAYS] == [["e0", "e1"], ["e2"], ["e3"]]
    rows = rows_of(archive, EVENTS)
    assert places(rows) == [(0, 0, 0), (0, 1, 0), (0, 1, 1), (1, 0, 0)]
    logged = [r.logged_us for r in log.read(log.positions("g", [EVENTS]), 9, 0)]
    assert rows["logged_us"].to_pylist() == [logged[0], logged[1], logged[1], logged[2]]


def test_any_reader_of_hive_parquet_sees_the_days(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    log.append([arrow(event(0), event(1), event(2, 24))])
    run_to_the_end(archiver())
    plain = ds.dataset(archive.path / EVENTS, partitioning="hive").to_table()
    assert Counter(plain["day"].to_pylist()) == {DAYS[0]: 2, DAYS[1]: 1}
    own = archive.dataset(EVENTS).to_table(filter=ds.field("day") == DAYS[1])
    assert own["event_id"].to_pylist() == ["e2"]
    assert own["day"].to_pylist() == [DAYS[1]]


def test_refused_events_repeats_and_ticks_are_left_out_and_places_still_fit(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    nonsense = Append(EVENTS, b"{]", partition=0)
    unknown = event(9, kind="unheard-of")
    tick = Event(kind=TICK, event_id="t", at=NOON)
    nameless = Append(EVENTS, b'{"kind":"click","user_id":"u","item_id":"i"}', partition=0)
    log.append([single(event(0)), nonsense, single(event(0)), single(event(1)), nameless])
    log.append([arrow(event(1), unknown, event(2), event(2), tick, event(3))])
    log.append([arrow(unknown, event(4)), arrow(event(4)), single(event(5)), single(tick)])
    run_to_the_end(archiver())
    rows = rows_of(archive, EVENTS).sort_by([("log_offset", "ascending"), ("log_row", "ascending")])
    found = {p[1:]: i for p, i in zip(places(rows), rows["event_id"].to_pylist(), strict=True)}
    assert found == {
        (0, 0): "e0", (3, 0): "e1", (4, 0): "events/0/4", (5, 2): "e2", (5, 5): "e3",
        (6, 1): "e4", (8, 0): "e5",
    }  # fmt: skip


def test_what_is_a_repeat_is_asked_in_each_partition_and_survives_a_restart(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    log.append([single(event(0)), single(event(0), 1)])
    run_to_the_end(archiver())
    log.append([single(event(0)), single(event(1))])
    run_to_the_end(archiver())
    assert places(rows_of(archive, EVENTS)) == [(0, 0, 0), (0, 2, 0), (1, 0, 0)]


def test_the_rows_of_a_sample_keep_their_step_and_their_order(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    log.append([sample(3), sample(2, hours=1), sample(1, partition=1)])
    run_to_the_end(archiver())
    rows = archive.read(SAMPLES, DAYS[0]).read_all()
    assert places(rows) == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (1, 0, 0)]
    assert rows["item_id"].to_pylist() == [0, 1, 2, 0, 1, 0]


def test_a_sample_that_cannot_be_read_is_named(
    log: FileLog, archiver: Callable[..., Archiver]
) -> None:
    log.append([Append(SAMPLES, b"\xff\xff\xff\xffno", partition=1)])
    with pytest.raises(ArtefactCorrupt, match="samples/1 at 0 holds no samples"):
        archiver().turn()


def test_columns_that_come_and_go_are_null_where_they_were_not(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    clicked = pa.array([1.0], pa.float32())
    log.append([sample(1), sample(1, label_click=clicked)])
    run_to_the_end(archiver())
    log.append([sample(1, label_buy=clicked), sample(1, hours=24, label_buy=clicked)])
    run_to_the_end(archiver())
    rows = archive.read(SAMPLES, DAYS[0]).read_all()
    assert rows["label_click"].to_pylist() == [None, 1, None]
    assert rows["label_buy"].to_pylist() == [None, None, 1]
    assert "label_click" not in archive.read(SAMPLES, DAYS[1]).schema.names
    everything = archive.dataset(SAMPLES).to_table()
    assert everything["label_click"].null_count == 3
    assert everything["label_buy"].null_count == 2


def test_files_of_events_from_before_there_were_sessions_are_read_without_one(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver], rules: EventRules
) -> None:
    log.append([arrow(event(0), event(1))])
    run_to_the_end(archiver())
    (old,) = archive.parts(EVENTS, DAYS[0])
    pq.write_table(pq.read_table(old.path, partitioning=None).drop_columns("session_id"), old.path)
    log.append([arrow(event(2, session_id="s"))])
    run_to_the_end(archiver())
    for _ in range(2):
        assert archive.read(EVENTS, DAYS[0]).read_all()["session_id"].to_pylist() == [
            None,
            None,
            "s",
        ]
        assert all(verdict.good for verdict in check(archive, log, rules))
        compact(archive, EVENTS, DAYS[0])


def test_a_column_that_changes_its_type_is_named(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    log.append([sample(1, value=pa.array([1.0]))])
    run_to_the_end(archiver())
    log.append([sample(1, value=pa.array(["one"]))])
    run_to_the_end(archiver())
    with pytest.raises(ArtefactError, match="value.*a column has changed its type"):
        archive.read(SAMPLES, DAYS[0])


def test_an_empty_archive_has_no_days(archive: Archive) -> None:
    assert archive.names(EVENTS) == []
    assert archive.days(EVENTS) == []
    assert archive.read(EVENTS, DAYS[0]).read_all().num_rows == 0
    assert archive.dataset(EVENTS).count_rows() == 0


def test_days_are_told_with_what_they_hold_up_to_a_watermark(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    log.append([arrow(event(0), event(1)), arrow(event(2, 24))])
    run_to_the_end(archiver())
    first, second = archive.days(EVENTS)
    assert (first.day, first.rows, first.files, first.offsets) == (DAYS[0], 2, 1, (0, 1))
    assert (second.day, second.rows) == (DAYS[1], 1)
    assert first.size == sum(p.stat().st_size for p in archive.path.glob(f"events/*{DAYS[0]}/*"))
    midnight_us = int(datetime(2025, 11, 21, tzinfo=UTC).timestamp() * 1e6)
    assert archive.names(EVENTS, until_us=midnight_us - 1) == []
    assert [d.day for d in archive.days(EVENTS, until_us=midnight_us)] == [DAYS[0]]


# When files are written


def test_rows_are_held_back_until_there_are_enough(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    at_work = archiver(ArchiveConfig(rows=5))
    for n in range(9):
        log.append([single(event(n))])
        at_work.turn()
        assert len(archive.parts(EVENTS, DAYS[0])) == (n + 1) // 5


def test_rows_are_held_back_until_they_weigh_enough(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    heavy = sample(1, text=pa.array(["x" * (3 << 18)]))
    at_work = archiver(ArchiveConfig(megabytes=1))
    for files in (0, 1, 1, 2):
        log.append([heavy])
        at_work.turn()
        assert len(archive.parts(SAMPLES, DAYS[0])) == files


def test_rows_are_held_back_no_longer_than_was_asked(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    at_work = archiver(ArchiveConfig(seconds=0.05))
    stopping = threading.Event()
    thread = threading.Thread(target=at_work.run, args=(stopping,))
    thread.start()
    log.append([single(event(0))])
    for _ in range(200):
        if archive.parts(EVENTS, DAYS[0]):
            break
        stopping.wait(0.05)
    assert ids_of(archive, DAYS[0]) == ["e0"]
    log.append([single(event(1))])
    stopping.set()
    thread.join()


def test_a_stop_writes_what_was_read(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    log.append([single(event(0))])
    at_work = archiver()
    at_work.turn()
    assert archive.names(EVENTS) == []
    stopped = threading.Event()
    stopped.set()
    at_work.run(stopped)
    assert ids_of(archive, DAYS[0]) == ["e0"]


def test_many_days_at_once_land_too(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    log.append([arrow(*(event(n, -24 * (n % 40)) for n in range(200)))])
    run_to_the_end(archiver())
    assert len(archive.names(EVENTS)) == 40
    assert all(len(ids_of(archive, day)) == 5 for day in archive.names(EVENTS))


def test_splitting_by_day_keeps_every_row_in_order() -> None:
    rng = np.random.default_rng(0)
    at = rng.integers(-5 * 86_400_000_000, 5 * 86_400_000_000, 1_000)
    batch = pa.record_batch({"at": pa.array(at, pa.timestamp("us", "UTC")), "n": np.arange(1_000)})
    pieces = dict(split_by_day(batch))
    assert sorted(pieces) == sorted(set((at // 86_400_000_000).tolist()))
    for day, piece in pieces.items():
        assert piece["n"].to_pylist() == np.flatnonzero(at // 86_400_000_000 == day).tolist()


# Late rows, retention, compaction


def test_a_late_row_is_one_more_file_of_its_day(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    for n, hours in enumerate((0, 24, 1)):
        log.append([single(event(n, hours))])
        run_to_the_end(archiver())
    assert len(archive.parts(EVENTS, DAYS[0])) == 2
    assert ids_of(archive, DAYS[0]) == ["e0", "e2"]


def test_only_the_newest_days_are_kept_if_so_asked(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    kept = ArchiveConfig(days=2)
    log.append([arrow(event(0), event(1, 24)), sample(1)])
    run_to_the_end(archiver(kept))
    assert archive.names(EVENTS) == list(DAYS[:2])
    log.append([single(event(2, 48)), single(event(3))])
    run_to_the_end(archiver(kept))
    assert archive.names(EVENTS) == list(DAYS[1:])
    assert archive.names(SAMPLES) == [DAYS[0]]  # the newest there is
    log.append([single(event(4))])
    run_to_the_end(archiver(kept))
    assert archive.names(EVENTS) == list(DAYS[1:])


def fill_day(log: FileLog, make: Callable[..., Archiver], files: int) -> None:
    for n in range(files):
        log.append([arrow(*(event(2 * n + p, p / 9), event(1_000 + 2 * n + p)), partition=p)
                    for p in range(PARTITIONS)])  # fmt: skip
        run_to_the_end(make())


def test_a_compacted_day_has_one_file_a_partition_and_the_same_rows(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver], rules: EventRules
) -> None:
    fill_day(log, archiver, 5)
    before = archive.read(EVENTS, DAYS[0]).read_all()
    assert compact(archive, EVENTS, DAYS[0])
    parts = archive.parts(EVENTS, DAYS[0])
    assert [(p.partition, p.start) for p in parts] == [(0, 0), (1, 0)]
    assert archive.days(EVENTS)[0].offsets == (0, 5)
    assert archive.read(EVENTS, DAYS[0]).read_all().equals(before)
    assert pq.ParquetFile(parts[0].path).num_row_groups == 1
    assert not compact(archive, EVENTS, DAYS[0])
    assert all(v.good for v in check(archive, log, rules))
    fill_day(log, archiver, 1)
    run_to_the_end(archiver())
    assert len(archive.parts(EVENTS, DAYS[0])) == 2  # they were all repeats


def test_a_reader_that_had_begun_finishes_on_the_old_files(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    fill_day(log, archiver, 5)
    expected = archive.read(EVENTS, DAYS[0]).read_all()
    reader = archive.read(EVENTS, DAYS[0])
    compact(archive, EVENTS, DAYS[0])
    assert reader.read_all().equals(expected)


def test_what_was_compacted_or_has_expired_is_removed_after_a_while(
    log: FileLog,
    archive: Archive,
    archiver: Callable[..., Archiver],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill_day(log, archiver, 3)
    compact(archive, EVENTS, DAYS[0])
    log.append([single(event(77, 24))])
    run_to_the_end(archiver(ArchiveConfig(days=1)))
    aside = archive.path / ".aside" / "compact"
    assert len(list(aside.iterdir())) == 2
    monkeypatch.setattr("streaming.disk.GRACE_S", 0)
    log.append([single(event(78, 24))])
    run_to_the_end(archiver())
    assert list(aside.iterdir()) == []


def test_columns_that_grew_within_a_day_survive_its_compaction(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    for columns in ({}, {"label_buy": pa.array([1.0], pa.float32())}, {}):
        log.append([sample(1, **columns)])
        run_to_the_end(archiver())
    compact(archive, SAMPLES, DAYS[0])
    rows = archive.read(SAMPLES, DAYS[0]).read_all()
    assert rows["label_buy"].to_pylist() == [None, 1, None]


def test_a_file_that_came_during_a_compaction_is_not_lost(
    log: FileLog,
    archive: Archive,
    archiver: Callable[..., Archiver],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill_day(log, archiver, 2)
    log.append([single(event(77))])
    merge = compaction._merge

    def merge_while_writing(*arguments: Any) -> None:
        merge(*arguments)
        run_to_the_end(archiver())

    monkeypatch.setattr(compaction, "_merge", merge_while_writing)
    assert compact(archive, EVENTS, DAYS[0])
    assert len(archive.parts(EVENTS, DAYS[0])) == 3
    assert Counter(ids_of(archive, DAYS[0]))["e77"] == 1


def test_any_reader_sees_every_day_whole_while_day_after_day_is_compacted(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    days, files = 60, 4
    for n in range(files * PARTITIONS):
        events = (event(days * n + day, -24 * day) for day in range(days))
        log.append([arrow(*events, partition=n % PARTITIONS)])
        run_to_the_end(archiver())
    expected = days * files * PARTITIONS
    stopping = threading.Event()
    seen: Counter[int] = Counter()
    gone = 0

    def read_plainly() -> None:
        nonlocal gone
        while not stopping.is_set():
            try:
                plain = ds.dataset(archive.path / EVENTS, partitioning="hive")
                seen[plain.to_table().num_rows] += 1
            except (OSError, pa.ArrowInvalid):  # exchanged between the listing and the opening
                gone += 1

    def read() -> None:
        while not stopping.is_set():
            assert len(rows_of(archive, EVENTS)) == expected

    threads = [threading.Thread(target=reader) for reader in (read_plainly, read)]
    for thread in threads:
        thread.start()
    for day in archive.names(EVENTS):
        assert compact(archive, EVENTS, day)
    while not seen:
        stopping.wait(0.01)
    stopping.set()
    for thread in threads:
        thread.join()
    assert set(seen) == {expected}


def test_days_that_the_stream_has_left_are_compacted_as_it_goes(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    config = ArchiveConfig(files=3, closed_after_h=2)
    for n in range(5):
        log.append([single(event(n))])
        run_to_the_end(archiver(config))
    log.append([single(event(5, 13.9))])
    run_to_the_end(archiver(config))
    assert len(archive.parts(EVENTS, DAYS[0])) == 5
    log.append([single(event(6, 14.1))])
    run_to_the_end(archiver(config))
    assert len(archive.parts(EVENTS, DAYS[0])) == 1
    assert ids_of(archive, DAYS[0]) == [f"e{n}" for n in range(5)]


# What can go wrong


def test_an_archive_of_another_log_is_refused(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver], tmp_path: Path
) -> None:
    log.append([single(event(n)) for n in range(3)])
    run_to_the_end(archiver())
    other = FileLog(tmp_path / "other.db", partitions=PARTITIONS)
    with pytest.raises(ArtefactError, match="has events/0 up to 3, but the log ends at 0"):
        ArchiveWriter(archive).check_log(other.ends(ARCHIVED))
    other.close()


def test_a_damaged_file_is_named(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    log.append([single(event(0))])
    run_to_the_end(archiver())
    (part,) = archive.parts(EVENTS, DAYS[0])
    part.path.write_bytes(part.path.read_bytes()[:100])
    with pytest.raises(ArtefactError, match="day=2025-11-20 is damaged"):
        archive.read(EVENTS, DAYS[0])


def test_a_full_disk_leaves_nothing_half_written_and_writing_goes_on_when_there_is_room(
    small_disk: Path,
) -> None:
    archive = Archive(small_disk / "archive")
    writer = ArchiveWriter(archive)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (380 << 10))
    noise = np.random.default_rng(0).bytes(30_000)
    kept = 0
    with pytest.raises(DiskFull, match="no space is left for the archive .* free some disk space"):
        for kept in range(1, 100):
            writer.keep([noisy(kept - 1, noise)])
            writer.flush()
    complete = rows_of(archive, EVENTS)
    assert 0 < len(complete) < 2 * kept
    with pytest.raises(DiskFull):
        writer.flush()
    assert rows_of(archive, EVENTS).equals(complete)
    ballast.unlink()
    writer.keep([noisy(kept, noise)])
    writer.flush()
    rows = rows_of(archive, EVENTS).sort_by([("log_offset", "ascending"), ("log_row", "ascending")])
    assert places(rows) == [(0, offset, row) for offset in range(kept + 1) for row in (0, 1)]


def noisy(offset: int, noise: bytes) -> Rows:
    """Two large rows of one record, for two days."""
    at_us = int(NOON.timestamp() * 1e6)
    at = pa.array([at_us, at_us + 86_400_000_000], pa.timestamp("us", "UTC"))
    batch = pa.record_batch(
        {
            "at": at,
            "noise": [noise[offset:], noise[: -1 - offset]],
            "log_partition": pa.array([0, 0], pa.int32()),
            "log_offset": pa.array([offset, offset], pa.int64()),
            "log_row": pa.array([0, 1], pa.int32()),
        }
    )
    return Rows(TopicPartition(EVENTS, 0), offset, offset + 1, batch)


def test_an_archiver_waits_for_room_and_loses_nothing(
    small_disk: Path, log: FileLog, rules: EventRules, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("streaming.archiver._RETRY_S", 0.02)
    archive = Archive(small_disk / "archive")
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (500 << 10))
    texts = [np.random.default_rng(n).bytes(400).hex() for n in range(40)]
    at_work = Archiver(
        log, archive, lambda state: ArchiveStep(rules, 1_000, state), tmp_path / "cuts",
        ArchiveConfig(rows=5, turn_every_s=0.01),
    )  # fmt: skip
    stopping = threading.Event()
    thread = threading.Thread(target=at_work.run, args=(stopping,))
    thread.start()
    for n, text in enumerate(texts):
        log.append([single(event(n, kind="search", query=text))])
    stopping.wait(0.5)
    ballast.unlink()
    for _ in range(200):
        if archive.names(EVENTS) and len(ids_of(archive, DAYS[0])) >= 36:
            break
        stopping.wait(0.05)
    stopping.set()
    thread.join()
    assert ids_of(archive, DAYS[0]) == [f"e{n}" for n in range(40)]


# Verification


@pytest.fixture
def full(log: FileLog, archive: Archive, archiver: Callable[..., Archiver]) -> Archive:
    for n in range(4):
        log.append([arrow(event(2 * n), event(2 * n + 1, 24)), single(event(50 + n), 1), sample(3)])
        run_to_the_end(archiver())
    return archive


def test_a_sound_archive_is_called_sound(full: Archive, log: FileLog, rules: EventRules) -> None:
    assert check(full, log, rules) == [
        Verdict(EVENTS, rows=12, compared=12),
        Verdict(SAMPLES, rows=12, compared=12),
    ]


def test_a_file_that_is_gone_is_missed(full: Archive, log: FileLog, rules: EventRules) -> None:
    full.parts(EVENTS, DAYS[1])[2].path.unlink()
    assert check(full, log, rules)[0] == Verdict(EVENTS, rows=11, compared=12, missing=1)


def test_a_day_that_was_deleted_with_the_cuts_is_made_again(
    full: Archive, log: FileLog, rules: EventRules, archiver: Callable[..., Archiver]
) -> None:
    before = rows_of(full, EVENTS)
    shutil.rmtree(full.directory(EVENTS, DAYS[1]))
    shutil.rmtree(full.path.with_name("cuts"))
    run_to_the_end(archiver())
    assert rows_of(full, EVENTS).equals(before)
    assert all(v.good for v in check(full, log, rules))


def test_rows_that_are_there_twice_are_found(
    full: Archive, log: FileLog, rules: EventRules
) -> None:
    path = full.parts(SAMPLES, DAYS[0])[1].path
    (path.parent / "00000-00000000000000000000-00000000000000000002.parquet").hardlink_to(path)
    verdict = check(full, log, rules)[1]
    assert (verdict.repeated, verdict.missing, verdict.good) == (3, 0, False)


def test_a_row_that_says_something_else_than_the_log_is_found(
    full: Archive, log: FileLog, rules: EventRules
) -> None:
    path = full.parts(EVENTS, DAYS[0])[0].path
    rows = pq.read_table(path, partitioning=None)
    users = rows.schema.get_field_index("user_id")
    pq.write_table(rows.set_column(users, "user_id", pa.array(["somebody else"])), path)
    assert check(full, log, rules)[0] == Verdict(EVENTS, rows=12, compared=12, wrong=1)


def test_dead_letters_are_not_archived(
    log: FileLog, archive: Archive, archiver: Callable[..., Archiver]
) -> None:
    log.append([Append(DEAD_LETTERS, b"{}")])
    run_to_the_end(archiver())
    assert not (archive.path / DEAD_LETTERS).exists()
