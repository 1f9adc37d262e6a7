"""`headrace logs`: what all processes of a home have written, merged by time, for people."""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from infra.home import Home
from infra.log_option import HomeOption
from streaming.errors import ConfigError

Line = dict[str, Any]  # as infra.logs writes it
Level = Literal["debug", "info", "warning", "error"]
_LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3, "critical": 4}
_COLOURS = {"debug": "dim", "info": "green", "warning": "yellow", "error": "bold red"}
_SHOWN_APART = frozenset({"at", "level", "event", "process", "pid", "logger", "exception"})
_LOOK_S = 0.2


def logs(  # noqa: PLR0913 - one option each
    home: HomeOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    process: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this process: run, joiner, aggregator, trainer, trainer-1 (a rank),"
            " serve-8001 ... May be given again."
        ),
    ] = None,
    level: Annotated[Level, typer.Option(help="From this level on.")] = "info",
    request: Annotated[
        str | None,
        typer.Option(help="Only of this request: the X-Request-Id of an answer, or its beginning."),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(help="Only of this version: MODEL/LINEAGE/NUMBER, or its end."),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="The newest so many; 0 for all.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="The lines as they are stored.")] = False,
) -> None:
    """Show what all processes of a home have logged, the newest last.

    `headrace logs --follow` watches a running system; `headrace logs --level warning` tells what
    went wrong. An answer with status 500 names its request: `headrace logs --request ID` has the
    traceback. `headrace logs --version 2f1c/41` tells who published, applied or refused a version.

    Lines lie in HOME/logs as JSON, one an event. Versions come ten a second, so each is told only
    where the recipe says `[logs] level = "debug"`; snapshots always are.
    """
    place = Home(home or Path(".headrace"))
    wanted = Wanted(frozenset(process or ()), _LEVELS[level], request, version)
    console = Console(highlight=False, soft_wrap=True)

    def show(lines: Iterable[Line]) -> None:
        for line in lines:
            if as_json:
                typer.echo(msgspec.json.encode(line).decode())
            else:
                console.print(shown(line))

    with closing(LogFiles(place.path / "logs")) as files:
        show(newest(files.read(wanted), limit))
        if follow:
            _follow(lambda: show(newest(files.read(wanted), 0)))


def _follow(show: Callable[[], None]) -> None:
    try:
        while True:
            time.sleep(_LOOK_S)
            show()
    except KeyboardInterrupt:
        pass


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines are; of no `processes`, all are."""

    processes: frozenset[str] = frozenset()
    level: int = 0
    request: str | None = None
    version: str | None = None

    def __call__(self, line: Line) -> bool:
        name = line.get("version", "")
        return (
            (not self.processes or line.get("process") in self.processes)
            and _LEVELS.get(line.get("level", ""), 4) >= self.level
            and (self.request is None or line.get("request_id", "").startswith(self.request))
            and (self.version is None or f"/{name}".endswith(f"/{self.version}"))
        )


class LogFiles:
    """The files of a directory, also those that are yet to come, read on from where it stopped.

    Raises:
        ConfigError: there is no such directory.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise ConfigError(
                f"there are no logs in {directory}: start with `headrace run`, or name the home of"
                " the run with --home"
            )
        self._directory = directory
        self._open: dict[Path, _Reading] = {}
        self._begun = False

    def read(self, wanted: Callable[[Line], bool] = lambda _: True) -> Iterator[Line]:
        """What came since the last call, file after file."""
        if not self._begun:  # later, what is put aside has been read under its old name
            self._begun = True
            for path in sorted(self._directory.glob("*.log.*"), reverse=True):
                with closing(_Reading(path)) as old:
                    yield from filter(wanted, old.lines())
        for path in sorted(self._directory.glob("*.log")):
            yield from filter(wanted, self._lines(path))

    def close(self) -> None:
        """Closes what it has open."""
        for reading in self._open.values():
            reading.close()

    def _lines(self, path: Path) -> Iterator[Line]:
        reading = self._open.get(path)
        if reading is not None:
            yield from reading.lines()
            if reading.is_current:
                return
            reading.close()
        try:
            self._open[path] = _Reading(path)
        except FileNotFoundError:  # it was just put aside, and its successor is yet to come
            self._open.pop(path, None)
        else:
            yield from self._open[path].lines()


class _Reading:
    """A file that somebody writes, and may put aside for another."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._process = path.name.partition(".log")[0]
        self._begun = b""  # a line whose end is not written yet
        self._at = ""
        self.close = self._file.close

    @property
    def is_current(self) -> bool:
        """Whether the file still has its name."""
        try:
            return self._path.stat().st_ino == os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            return False

    def lines(self) -> Iterator[Line]:
        """The whole lines that were written since the last call."""
        for part in self._file:
            self._begun += part
            if not part.endswith(b"\n"):
                return
            whole, self._begun = self._begun, b""
            yield self._parsed(whole)

    def _parsed(self, text: bytes) -> Line:
        try:
            line: Line = msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.DecodeError:  # not ours: what a dying interpreter leaves, say
            event = text.decode(errors="replace").rstrip("\n")
            line = {"at": self._at, "level": "error", "event": event, "process": self._process}
        self._at = str(line.get("at", self._at))
        return line


def newest(lines: Iterable[Line], limit: int) -> list[Line]:
    """The newest so many, or all, the newest last."""
    placed = ((_at(line), place, line) for place, line in enumerate(lines))
    found = heapq.nlargest(limit, placed) if limit else sorted(placed, reverse=True)
    return [line for _, _, line in reversed(found)]


def _at(line: Line) -> str:
    return str(line.get("at", ""))


def shown(line: Line) -> Text:
    """A line for people: time, level, process, what happened, ids, and below it a traceback."""
    level = str(line.get("level", ""))
    text = Text(_plain(_at(line)[:23].replace("T", " ")), style="dim")
    text.append(f" {level:7}", style=_COLOURS.get(level, "bold red"))
    text.append(f" {_plain(line.get('process', '')):11} ", style="cyan")
    text.append(_plain(line.get("event", "")))
    for name, value in line.items():
        if name not in _SHOWN_APART:
            text.append(f" {name}={_plain(value)}", style="dim")
    if "exception" in line:
        frames = str(line["exception"]).split("\n")
        text.append("".join(f"\n    {_plain(frame)}" for frame in frames), style="dim")
    return text


def _plain(value: Any) -> str:
    """Without what would move a terminal's cursor or colour what follows."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value)
    )
