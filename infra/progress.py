"""What `headrace run` shows: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_LINE_EVERY_S = 5.0


class Reporter:
    """Told the status several times a second; decides what is worth showing."""

    def __init__(self, url: str, home: Path, console: Console | None = None) -> None:
        self._url = url
        self._home = home
        self._console = console or Console()
        self._bar = Progress(
            TextColumn("[bold]replay[/]"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("replay", total=None, visible=False, figures="")
        self._begun = time.monotonic()
        self._ready = False
        self._finished = False
        self._line_due = 0.0

    def __enter__(self) -> Reporter:
        self._say(f"Headrace keeps its state in {self._home}")
        self._say("Starting the log, the server and the Ray actors (some seconds) ...")
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def update(self, status: dict[str, Any]) -> None:
        """Takes what `/v1/status` answers."""
        if status["ready"] and not self._ready:
            self._ready = True
            self._say(f"[bold green]Answering[/] at {self._url} - open it and rate a movie.")
            if status["served_version"] is None:
                self._say("What is popular is the answer until `headrace daily` has learnt a day.")
        replay = status["replay"]
        if not self._ready or self._finished or replay is None:
            return
        figures = f"{status['events_per_s']:,.0f} events/s  {_figures(status)}"
        self._bar.update(
            self._task, visible=True, completed=replay["done"], total=replay["total"],
            figures=figures,
        )  # fmt: skip
        if status["caught_up"]:
            self._finished = True
            self._bar.update(self._task, visible=False)
            self._say_caught_up(status)
        elif not self._console.is_terminal and time.monotonic() > self._line_due:
            self._line_due = time.monotonic() + _LINE_EVERY_S
            self._say(f"replay {replay['done']:,}/{replay['total']:,}  {figures}")

    def _say_caught_up(self, status: dict[str, Any]) -> None:
        seconds = time.monotonic() - self._begun
        daily = status["learning"] == "daily"
        done = "in the archive" if daily else "learnt"
        all_done = f"All {status['replay']['total']:,} events are {done} after {seconds:.0f} s"
        self._say(f"{all_done}: {_figures(status)}")
        if daily:
            self._say("`headrace daily` learns them, in another terminal - Ctrl-C stops.")
        else:
            self._say(f"From here on events change the answers at {self._url} - Ctrl-C stops.")

    def stopping(self) -> None:
        self._bar.stop()
        self._say("Stopping: every step finishes its turn and saves a cut ...")

    def stopped(self, cleanly: bool) -> None:
        if cleanly:
            self._say("Stopped. `headrace run` goes on from here, `headrace status` tells where.")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def _figures(status: dict[str, Any]) -> str:
    parts = [(status["replay"]["at"] or "")[:10]]
    metrics = status["metrics"] or {}
    if "recall@50" in metrics:
        recent = metrics.get("recent_recall@50", 0.0)
        popular = metrics.get("recent_popularity_recall@50", 0.0)
        parts.append(f"recall@50 {recent:.3f} (popularity {popular:.3f})")
    return "  ".join(parts)
