"""What `headrace archive` does: lists the days, holds them against the log, compacts them."""

from __future__ import annotations

import dataclasses

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from infra.home import Home
from streaming.archive import ARCHIVED, Archive, Day
from streaming.archive_check import Verdict, verify
from streaming.archiver import GROUP, ArchiveStep
from streaming.compaction import compact
from streaming.cuts import CutDirectory
from streaming.errors import ConfigError
from streaming.log import Log


def open_archive(home: Home) -> Archive:
    """The archive of a home.

    Raises:
        ConfigError: nothing has been archived there.
    """
    if not home.archive.is_dir():
        raise ConfigError(
            f"{home.archive} is not there: start with `headrace run`, and leave [archive] enabled"
        )
    return Archive(home.archive)


def days(archive: Archive) -> list[Day]:
    """Every day of every topic."""
    return [day for topic in ARCHIVED for day in archive.days(topic)]


def json_days(found: list[Day]) -> list[dict[str, object]]:
    """The days in plain values."""
    return [dataclasses.asdict(day) for day in found]


def show_days(found: list[Day], console: Console, limit: int) -> None:
    """Prints the newest days of each topic, and the sums of all."""
    table = Table("topic", "day", "rows", "files", "bytes", "offsets", title="Archived")
    for topic in ARCHIVED:
        of_topic = [day for day in found if day.topic == topic]
        if len(of_topic) > limit:
            table.add_row(topic, f"... {len(of_topic) - limit:,} before")
        for day in of_topic[-limit:]:
            low, high = day.offsets
            sums = (f"{n:,}" for n in (day.rows, day.files, day.size))
            table.add_row(topic, day.day, *sums, f"{low:,} to {high - 1:,}")
        totals = (sum(getattr(d, name) for d in of_topic) for name in ("rows", "files", "size"))
        table.add_row(topic, f"{len(of_topic):,} days", *(f"{n:,}" for n in totals), "")
        table.add_section()
    console.print(table)


def verify_archive(home: Home, log: Log, step: ArchiveStep, console: Console) -> list[Verdict]:
    """Holds the archive against the log, up to the archiver's newest cut."""
    archive = open_archive(home)
    _, until = CutDirectory(home.cuts(GROUP)).newest()
    columns = (TextColumn("verify"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("verify", total=None)
        return verify(
            archive,
            log,
            until,
            step,
            lambda done, total: progress.update(task, completed=done, total=total),
        )


def show_verdicts(verdicts: list[Verdict], console: Console) -> None:
    """Prints what was found; a column for each way to be wrong."""
    table = Table("topic", "rows", "held against the log", "missing", "wrong", "repeated")
    for v in verdicts:
        sums = (v.rows, v.compared, v.missing, v.wrong, v.repeated)
        table.add_row(v.topic, *(f"{n:,}" for n in sums))
    console.print(table)
    if all(v.good for v in verdicts):
        console.print("Every row is there once, and as the log has it.")
        return
    console.print(
        "Mend it from a copy; or, while the log still has the records of the days in question,"
        " stop the system, delete those days and cuts/archive, and start again."
    )


def compact_days(archive: Archive, day: str | None, console: Console) -> int:
    """Compacts one day or all; returns of how many topics' days files became fewer."""
    wanted = [(t, name) for t in ARCHIVED for name in archive.names(t) if day in (None, name)]
    if day is not None and not wanted:
        raise ConfigError(f"day = {day!r} is not in the archive; `headrace archive list` shows all")
    columns = (TextColumn("compact"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        return sum(compact(archive, *one) for one in progress.track(wanted))
