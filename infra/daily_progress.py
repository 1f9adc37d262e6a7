"""What `headrace daily` shows: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_LOOK_EVERY_S = 0.25
_LINE_EVERY_S = 5.0


class DailyReporter:
    """Told how many rows of a day are done; `metrics` are asked for only when they are shown. What
    it says begins with `name`.
    """

    def __init__(
        self,
        days: Mapping[str, int],
        metrics: Callable[[], Mapping[str, float]],
        console: Console,
        name: str = "",
    ) -> None:
        self._days = days
        self._name = name
        self._metrics = metrics
        self._console = console
        self._bar = Progress(
            TextColumn("[bold]daily[/] {task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=0, figures="")
        self._begun = time.monotonic()
        self._day = ""
        self._before = 0  # rows of the days before this one
        self._done = 0
        self._look_due = 0.0
        self._line_due = self._begun + _LINE_EVERY_S

    def __enter__(self) -> DailyReporter:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def day(self, day: str) -> None:
        """A day begins."""
        self._before += self._done
        self._day, self._done = day, 0
        number = list(self._days).index(day) + 1
        self._bar.reset(
            self._task,
            total=self._days[day],
            description=f"{self._name} {day} ({number:,} of {len(self._days):,})".lstrip(),
        )

    def update(self, done: int) -> None:
        """So many rows of the day are done."""
        self._done = done
        now = time.monotonic()
        if now < self._look_due:
            return
        self._look_due = now + _LOOK_EVERY_S
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, figures=self._figures())
        elif now >= self._line_due:
            self._line_due = now + _LINE_EVERY_S
            self.say(f"daily {self._day} {done:,}/{self._days[self._day]:,}  {self._figures()}")

    @property
    def rows(self) -> int:
        """How many rows were done since the beginning."""
        return self._before + self._done

    @property
    def seconds(self) -> float:
        """The time since the beginning."""
        return max(time.monotonic() - self._begun, 1e-9)

    def say(self, text: str) -> None:
        """A line that stays."""
        named = f"{self._name}: {text}" if self._name else text
        self._console.print(named, highlight=False, soft_wrap=True)

    def _figures(self) -> str:
        rate = f"{self.rows / self.seconds:,.0f} samples/s"
        return "  ".join([rate, quality_text(self._metrics())]).rstrip()


def quality_text(metrics: Mapping[str, float]) -> str:
    """Of a retriever the recall at the largest k, and that of popularity; of a ranker the AUC of
    each task; nothing before there is any.

    >>> quality_text({"recall@10": 0.1, "recall@50": 0.25, "popularity_recall@50": 0.125})
    'recall@50 0.250 (popularity 0.125)'
    >>> quality_text({"auc[click]": 0.65, "gauc[click]": 0.6, "auc[buy]": 0.75})
    'AUC of click 0.650, AUC of buy 0.750'
    """
    tasks = {name[4:-1]: auc for name, auc in metrics.items() if name.startswith("auc[")}
    if tasks:
        return ", ".join(f"AUC of {task} {auc:.3f}" for task, auc in tasks.items())
    ks = [int(name.removeprefix("recall@")) for name in metrics if name.startswith("recall@")]
    if not ks:
        return ""
    best = f"recall@{max(ks)}"
    return f"{best} {metrics[best]:.3f} (popularity {metrics[f'popularity_{best}']:.3f})"
