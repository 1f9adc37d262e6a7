"""`headrace ingest`: somebody's file into the log, with a bar, and a table of what was refused."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Shown

from streaming.errors import ConfigError
from streaming.events import EventRules
from streaming.log import Log
from streaming.sources.ingestion import Checked, LogSink, RowCheck, Tally
from streaming.sources.mapping import EventMapping, MappingConfig, Refused
from streaming.sources.tabular import Chunk, Table, TableConfig, open_table

_REASONS_SHOWN = 10
_EVENTS_SHOWN = 3
_HOPELESS = 100  # so many rows, all refused, say that it is the mapping that is wrong


@dataclass(frozen=True)
class IngestConfig:
    """How a file is read and what its columns mean; `name` is its name in ids and dead letters.

    A `dry` run checks everything and appends nothing; one that is `strict` stops at the first
    chunk with a refused row, before it is appended. One where nothing but refusals comes at first
    stops too, unless told to `keep_going`. With `again`, what was dealt with earlier is sent once
    more.
    """

    table: TableConfig = field(default_factory=TableConfig)
    mapping: MappingConfig = field(default_factory=MappingConfig)
    name: str | None = None
    batch: int = 2_000
    dry: bool = False
    strict: bool = False
    again: bool = False
    keep_going: bool = False


class Sink(Protocol):
    """Where checked rows go; may know how far an earlier run came, and keep what was refused."""

    keeps_refused: bool

    def resume(self, table: Table) -> int: ...

    def take(self, chunk: Chunk, checked: Checked) -> list[Refused]:
        """Returns once the rows are durable, with what was refused on the far side."""
        ...


MakeSink = Callable[[str, str], Sink]  # from the name and the identity of a file


class DrySink:
    """Shows the first events as they would be, and keeps nothing."""

    keeps_refused = False

    def __init__(self, console: Console) -> None:
        self._console = console
        self._left = _EVENTS_SHOWN

    def resume(self, table: Table) -> int:  # noqa: ARG002 - it remembers nothing
        return 0

    def take(self, chunk: Chunk, checked: Checked) -> list[Refused]:  # noqa: ARG002
        for event in checked.events.slice(0, self._left).to_pylist():
            self._left -= 1
            present = {name: value for name, value in event.items() if value is not None}
            self._console.print(msgspec.json.encode(present).decode(), markup=False, soft_wrap=True)
        return []


def log_sink(log: Log) -> MakeSink:
    """Rows go into this log."""
    return lambda name, identity: LogSink(log, name, identity)


def url_sink(url: str) -> MakeSink:
    """Rows go to the service at this address."""
    from infra.http_sink import HttpSink

    sink = HttpSink(url)
    return lambda *_: sink


def ingest(
    path: str, config: IngestConfig, rules: EventRules, make_sink: MakeSink, console: Console
) -> bool:
    """Takes the file; tells what became of it; returns whether every row was accepted.

    Raises:
        SourceError: the file cannot be read to its end; what came before is in the log.
        ConfigError: a column is not there, or the file is not what it was.
    """
    with open_table(path, config.table) as table:
        name = config.name or (Path(path).name if path != "-" else f"stdin-{secrets.token_hex(4)}")
        mapping = EventMapping(config.mapping, table.name, table.columns)
        _hold_against(mapping, config.mapping, rules)
        meaning = msgspec.json.encode(config.mapping, order="sorted").decode()
        sink = make_sink(name, f"{name}\n{table.head}\n{meaning}")
        passed_over = 0 if config.again else sink.resume(table)
        run = _Run(table, RowCheck(mapping, rules, name), sink, config, console)
        begun = time.monotonic()
        try:
            run.go(mapping.wanted)
        finally:
            _summary(console, run, mapping.ignored, passed_over, time.monotonic() - begun)
        return run.tally.refused == 0 and table.unfinished is None


def _hold_against(mapping: EventMapping, config: MappingConfig, rules: EventRules) -> None:
    """Finds out before the first row that no row could keep the rules."""
    kind = config.constants.get("kind")
    if kind is None:
        return
    if kind not in rules.all_kinds:
        raise ConfigError(f"--set kind={kind}: the recipe knows only {', '.join(rules.kinds)}")
    for name in rules.all_kinds[kind]:
        if not (name in mapping.columns or name in config.constants):
            raise ConfigError(
                f"kind {kind!r} must have {name}, and no column gives it: add --map {name}=COLUMN"
                f" (not used are {', '.join(mapping.ignored) or 'none'})"
            )


class _Run:
    """One pass over a table, with a bar."""

    def __init__(
        self, table: Table, check: RowCheck, sink: Sink, config: IngestConfig, console: Console
    ) -> None:
        self.table = table
        self.tally = Tally()
        self.stopped: str | None = None
        self._check = check
        self.sink = sink
        self.config = config
        self._console = console

    def go(self, wanted: list[str]) -> None:
        with self._bar() as show:
            for chunk in self.table.chunks(self.config.batch, wanted):
                checked = self._check.check(chunk, time.time_ns() // 1000)
                if reason := self._too_bad(checked):
                    self.tally.count(0, checked.refused)
                    self.stopped = f"stopped, and these rows were not appended: {reason}"
                    return
                refused = self.sink.take(chunk, checked)
                accepted = checked.events.num_rows - len(refused)
                self.tally.count(accepted, [*checked.refused, *refused])
                show()

    def _too_bad(self, checked: Checked) -> str | None:
        if self.config.strict and checked.refused:
            return f"line {checked.refused[0].line} was refused (--strict)"
        nothing_good = self.tally.accepted == 0 and checked.events.num_rows == 0
        if nothing_good and not self.config.keep_going and len(checked.refused) >= _HOPELESS:
            return "not one of the first is an event, look at --map and --set (or --keep-going)"
        return None

    @contextmanager
    def _bar(self) -> Iterator[Callable[[], None]]:
        bar = Progress(
            TextColumn("[bold]ingest[/]"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        task = bar.add_task("ingest", total=None, figures="")
        begun = time.monotonic()

        def show() -> None:
            seconds = time.monotonic() - begun
            rows = self.tally.accepted + self.tally.refused
            figures = (
                f"{self.tally.accepted:,} accepted  {self.tally.refused:,} refused"
                f"  {rows / max(seconds, 1e-9):,.0f} rows/s"
            )
            part = self.table.fraction()
            total = None if part is None else 1.0
            bar.update(task, completed=part or 0, total=total, figures=figures)

        with bar:
            yield show


def _summary(
    console: Console, run: _Run, ignored: list[str], passed_over: int, took_s: float
) -> None:
    tally, name, dry = run.tally, run.table.name, run.config.dry
    rows = tally.accepted + tally.refused

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    if passed_over:
        say(
            f"{escape(name)}: {passed_over:,} lines were dealt with by an earlier run"
            f"{'' if rows else ', and there is nothing new'}"
        )
    if ignored:
        say(f"columns that are not used: {escape(', '.join(ignored[:20]))}")
    verb = "would be accepted" if dry else "accepted"
    rate = f", {rows / took_s:,.0f} rows/s" if rows >= 1_000 and took_s > 0 else ""
    say(f"{tally.accepted:,} {verb}, {tally.refused:,} refused in {took_s:.1f} s{rate}")
    if run.stopped:
        say(run.stopped)
    if run.table.unfinished is not None:
        say(
            f"the row that begins on line {run.table.unfinished} of {escape(name)} does not end"
            " (the file is cut off, or a quote is not closed): it was not taken, run the same"
            " command when it is whole"
        )
    if tally.refused:
        console.print(_reasons(tally))
        if run.sink.keeps_refused and not run.stopped:
            say("They are kept: `headrace dead-letters` lists, explains and re-drives them.")


def _reasons(tally: Tally) -> Shown:
    table = Shown(title="What was refused, and why")
    table.add_column("rows", justify="right")
    for column in ("field", "reason", "for example"):
        table.add_column(column, overflow="fold")
    for (name, reason), count in tally.reasons.most_common(_REASONS_SHOWN):
        example = tally.examples[name, reason]
        table.add_row(
            f"{count:,}",
            escape(name),
            escape(reason),
            escape(f"line {example.line}: {_printable(example.value)}\n{_printable(example.raw)}"),
        )
    if (others := len(tally.reasons) - _REASONS_SHOWN) > 0:
        table.caption = f"and {others:,} more reasons"
    return table


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def pairs(given: list[str], option: str) -> dict[str, str]:
    """What was given as NAME=VALUE, any number of times.

    Raises:
        ConfigError: there is no `=`, or one name is given twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"{option} {text!r}: write it as NAME=VALUE")
        if name in found:
            raise ConfigError(f"{option} {text!r}: {name} is given twice")
        found[name] = value
    return found
