"""Kill -9 the archiver at any moment: the archive has the rows of one that was never killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streaming import archive_writer, compaction
from streaming.archive import ARCHIVED, Archive, ArchiveConfig
from streaming.archive_check import verify
from streaming.archiver import Archiver, ArchiveStep
from streaming.arrow_record import encode_batch
from streaming.cuts import CutDirectory
from streaming.events import Event, EventRules, encode_event, encode_events, event_batch
from streaming.file_log import FileLog
from streaming.log import EVENTS, SAMPLES, Append

PARTITIONS = 2
RECORDS = 140
REMEMBERED = 40
KILLS = 12
START = datetime(2025, 3, 1, tzinfo=UTC)
# Files come thick and fast, and days are compacted while others are written.
CONFIG = ArchiveConfig(rows=25, limit=16, seconds=1e9, files=2, closed_after_h=1)
PROCESSES = multiprocessing.get_context("forkserver")
pytestmark = pytest.mark.usefixtures("processes")


def some_events(rng: random.Random, count: int, progress: float) -> list[Event]:
    """Out of order around a time that moves on by six days; some are repeats of others."""
    return [
        Event(
            kind="click",
            user_id="u",
            item_id="i",
            event_id=f"e{rng.randrange(600)}",
            at=START + timedelta(hours=144 * progress + rng.expovariate(1 / 20)),
        )
        for _ in range(count)
    ]


def some_samples(rng: random.Random, progress: float) -> pa.RecordBatch:
    at_us = int((START + timedelta(hours=144 * progress)).timestamp() * 1e6)
    labels = {f"label_{rng.randrange(3)}": np.ones(4, np.float32)}
    hours = [at_us + rng.randrange(30) * 3_600_000_000 for _ in range(4)]
    times = pa.array(hours, pa.timestamp("us", "UTC"))
    return pa.record_batch({"item_id": np.arange(4), "at": times, **labels})


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose log holds all forms of records, good ones and others, in two partitions."""
    home = tmp_path_factory.mktemp("template") / "home"
    rng = random.Random(3)
    records = []
    for n in range(RECORDS):
        progress, partition = n / RECORDS, rng.randrange(PARTITIONS)
        records += [
            [encode_event(some_events(rng, 1, progress)[0])],
            [encode_events(event_batch(some_events(rng, 5, progress)))],
            [Append(EVENTS, b"{nonsense}"), encode_event(some_events(rng, 1, progress)[0])],
            [Append(SAMPLES, encode_batch(some_samples(rng, progress)))],
        ][rng.randrange(4)]
        records[-1] = records[-1]._replace(partition=partition)
    log = open_log(home)
    log.append(records)
    log.close()
    return home


@pytest.fixture
def home(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "home"))


def open_log(home: Path) -> FileLog:
    return FileLog(home / "log.db", partitions=PARTITIONS)


def open_archiver(home: Path, log: FileLog, **options: Any) -> Archiver:
    return Archiver(
        log,
        Archive(home / "archive"),
        lambda state: ArchiveStep(EventRules(), REMEMBERED, state),
        home / "cuts",
        CONFIG,
        **options,
    )


def live(home: Path, point: int, times: int, calls: int = 0) -> None:
    """Archives to the end, or dies when it gets to `point` of the loop for the `times`th time.

    With `calls` it dies right before so many calls that change the disk are done.
    """
    met = 0

    def die(number: int) -> None:
        nonlocal met
        met += number == point
        if met == times:
            os._exit(9)

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls -= 1
            if calls == 0:
                os._exit(9)
            return call(*arguments, **options)

        return wrapped

    if calls:
        for owner, names in (
            (Path, ("rename", "mkdir", "write_bytes")),
            (os, ("fsync", "link")),
            (shutil, ("rmtree",)),
            (archive_writer, ("make_durable",)),
            (compaction, ("exchange", "make_durable")),
        ):
            for name in names:
                setattr(owner, name, counted(getattr(owner, name)))
    log = open_log(home)
    archiver = open_archiver(home, log, reached=die)
    while archiver.turn():
        pass
    archiver.write()
    log.close()


def exit_of(*arguments: Any) -> int | None:
    child = PROCESSES.Process(target=live, args=arguments)
    child.start()
    child.join(60)
    return child.exitcode


def contents(home: Path) -> dict[str, pa.Table]:
    """The rows of every day, in log order."""
    archive = Archive(home / "archive")
    found = {}
    for topic in ARCHIVED:
        for day in archive.names(topic):
            rows = archive.read(topic, day).read_all()
            found[f"{topic}/{day}"] = rows.select(sorted(rows.column_names))
    return found


@pytest.fixture(scope="module")
def undisturbed(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    home = Path(shutil.copytree(template, tmp_path_factory.mktemp("undisturbed") / "home"))
    assert exit_of(home, -1, 1) == 0
    expected = contents(home)
    assert len(expected) > 10
    assert sum(map(len, expected.values())) > 240
    return expected


def finished(home: Path) -> dict[str, pa.Table]:
    """What is there after a last process that nobody kills; the log agrees."""
    assert exit_of(home, -1, 1) == 0
    log = open_log(home)
    _, until = CutDirectory(home / "cuts").newest()
    assert until == log.ends(ARCHIVED)
    step = ArchiveStep(EventRules(), REMEMBERED)
    assert all(verdict.good for verdict in verify(Archive(home / "archive"), log, until, step))
    log.close()
    return contents(home)


@pytest.mark.parametrize("point", range(7))
def test_dying_at_any_number_changes_no_row(
    home: Path, undisturbed: dict[str, pa.Table], point: int
) -> None:
    rng = random.Random(point)
    often = 3 if 1 <= point <= 4 else 1
    for number, times in [(4, rng.randint(2, 6)), *((point, rng.randint(1, often)),) * 3]:
        assert exit_of(home, number, times) == 9
    assert finished(home) == undisturbed


@pytest.mark.parametrize("seed", range(5))
def test_dying_before_any_change_of_the_disk_changes_no_row(
    home: Path, undisturbed: dict[str, pa.Table], seed: int
) -> None:
    rng = random.Random(seed)
    deaths = [exit_of(home, -1, 1, rng.randint(5, 120)) for _ in range(6)]
    assert deaths.count(9) >= 3
    assert finished(home) == undisturbed


def test_without_its_cuts_it_reads_everything_again_and_adds_no_row(
    home: Path, undisturbed: dict[str, pa.Table]
) -> None:
    assert exit_of(home, 4, 9) == 9
    assert exit_of(home, -1, 1) == 0
    shutil.rmtree(home / "cuts")
    assert finished(home) == undisturbed


def test_kills_at_random_moments_change_no_row(
    template: Path, undisturbed: dict[str, pa.Table], tmp_path: Path
) -> None:
    moments = random.Random(1)
    left, longest_s = KILLS, 0.3
    for number in count():
        home = Path(shutil.copytree(template, tmp_path / f"home-{number}"))
        killed = 0
        while killed < left:
            begun = time.monotonic()
            process = PROCESSES.Process(target=live, args=(home, -1, 1))
            process.start()
            process.join(moments.uniform(0.0, longest_s))
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            if process.exitcode == 0:  # it came to the end: the next home's may die earlier
                longest_s = min(longest_s, time.monotonic() - begun)
                break
            killed += 1
        assert finished(home) == undisturbed
        left -= killed
        if not left:
            break
