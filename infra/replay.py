"""`headrace replay`: a source's events into a log, beside a system that runs or for one to come."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from infra.signals import stopped_by_signals
from streaming.errors import SourceError
from streaming.log import EVENTS, Log
from streaming.sources.registry import SOURCES
from streaming.sources.replay import Replay, ReplayConfig, ReplayProgress
from streaming.sources.source import Source, SourceInfo

_LOOK_EVERY_S = 0.25
_LINE_EVERY_S = 5.0


def replay(log: Log, source: Source, config: ReplayConfig, console: Console) -> ReplayProgress:
    """Replays until the end, Ctrl-C or a polite kill; returns how far it came.

    It waits for nobody: the log keeps what the joiner has not read yet.
    """
    work = Replay(log, source, lambda: 0, config)
    before = work.progress
    if before.done >= before.total:
        console.print(
            f"{before.total:,} events of {source.name} lie in the log already: nothing to do.",
            highlight=False,
        )
        return before
    if before.done:
        console.print(f"{source.name}: going on after {before.done:,} events.", highlight=False)
    begun = time.monotonic()
    stopping = threading.Event()
    with stopped_by_signals(stopping), ThreadPoolExecutor(1) as thread:
        running = thread.submit(work.run, stopping)
        try:
            _show(work, running, log, console)
        finally:
            stopping.set()
        running.result()
    _sum_up(source.name, before, work.progress, time.monotonic() - begun, console)
    return work.progress


def joiner_lag(log: Log) -> int:
    """How many records of `events` wait for the joiner."""
    read = sum(log.positions("joiner", [EVENTS]).values())
    return sum(log.ends([EVENTS]).values()) - read


def _show(work: Replay, running: Future[None], log: Log, console: Console) -> None:
    """A live bar on a terminal, a line now and then elsewhere."""
    bar = Progress(
        TextColumn("[bold]replay[/]"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    task = bar.add_task("replay", total=work.progress.total, figures="")
    rate = _Rate(work.progress.done)
    line_due = time.monotonic() + _LINE_EVERY_S
    with bar if console.is_terminal else nullcontext():
        while not _finished(running, _LOOK_EVERY_S):
            now = work.progress
            figures = f"{rate.update(now.done):,.0f} events/s  {_time_text(now.at_us)}"
            figures += f"  joiner {joiner_lag(log):,} records behind"
            bar.update(task, completed=now.done, total=now.total, figures=figures)
            if not console.is_terminal and time.monotonic() > line_due:
                line_due = time.monotonic() + _LINE_EVERY_S
                console.print(
                    f"replay {now.done:,}/{now.total:,}  {figures}", highlight=False, soft_wrap=True
                )


def _finished(running: Future[None], timeout_s: float) -> bool:
    try:
        running.exception(timeout_s)
    except TimeoutError:
        return False
    return True


class _Rate:
    """Events per second over the last looks."""

    def __init__(self, done: int) -> None:
        self._looks = [(time.monotonic(), done)]

    def update(self, done: int) -> float:
        self._looks = [*self._looks[-8:], (time.monotonic(), done)]
        (since, before), (now, after) = self._looks[0], self._looks[-1]
        return (after - before) / max(now - since, 1e-9)


def _sum_up(
    name: str, before: ReplayProgress, after: ReplayProgress, seconds: float, console: Console
) -> None:
    new = after.done - before.done
    console.print(
        f"{after.done:,} of {after.total:,} events of {name} lie in the log, {new:,} of them new,"
        f" {new / max(seconds, 1e-9):,.0f} events/s; event time {_time_text(after.at_us)}.",
        highlight=False,
        soft_wrap=True,
    )
    if after.done < after.total:
        console.print("Stopped; the same command goes on from here.", highlight=False)


def _time_text(at_us: int | None) -> str:
    if at_us is None:
        return "-"
    return f"{datetime.fromtimestamp(at_us // 1_000_000, UTC):%Y-%m-%d %H:%M:%S}"


def show_sources(data: Path | None, console: Console) -> None:
    """A table of all sources, and where the files of each are or should be."""
    table = Table("source", "what", "events", "users", "items", "time", "terms")
    table.add_column("files", overflow="fold")
    for info in SOURCES.values():
        counts = (f"{n:,}" if n else "-" for n in (info.events, info.users, info.items))
        table.add_row(
            f"[bold]{info.name}[/]", info.about, *counts, info.span, info.terms, _place(info, data)
        )
    console.print(table)
    if data is None:
        console.print("DIR is what --data or HEADRACE_DATA names.", highlight=False)


def _place(info: SourceInfo, data: Path | None) -> str:
    if not info.files:
        return "none: it is made up"
    try:
        directory = info.directory(data)
    except SourceError:
        files = " ".join(info.files).replace("|", " or ")
        return f"[yellow]missing:[/] {files} in {data or 'DIR'}/{info.folder}"
    return "[green]shipped[/]" if directory == info.directory_shipped else f"[green]{directory}[/]"
