"""What visitors meet, in figures: rates, latency, clicks, and how far from the best they were."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter, deque
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.visitor import Visit

_LATEST = 500  # visits that are "now" at most, and as many at the start
_LATENCIES = 5_000


class Report:
    """Told of every visit by any thread; figures can be read at any time. Memory is bounded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = time.monotonic()
        self._looked_at = 0
        self._first: list[Visit] = []
        self._latest: deque[Visit] = deque(maxlen=_LATEST)
        self._answered: deque[float] = deque(maxlen=_LATENCIES)
        self._latency_ms: deque[float] = deque(maxlen=_LATENCIES)
        self.counts: Counter[str] = Counter()
        self.last_error: str | None = None

    def visited(self, visit: Visit, latency_ms: float) -> None:
        """An answer came, and was looked at."""
        with self._lock:
            self.counts["requests"] += 1
            self.counts["impressions"] += visit.shown
            self.counts["clicks"] += visit.clicks
            self._latency_ms.append(latency_ms)
            self._answered.append(time.monotonic())
            if visit.shown:
                self._looked_at += 1
                self._latest.append(visit)
                if len(self._first) < _LATEST:
                    self._first.append(visit)

    def counted(self, what: str, number: int = 1) -> None:
        """Something happened that only its number tells of."""
        with self._lock:
            self.counts[what] += number

    def failed(self, error: Exception) -> None:
        """The service did not do what it was asked."""
        with self._lock:
            self.counts["errors"] += 1
            self.last_error = str(error)

    def figures(self) -> dict[str, float]:
        """What is known by now; a figure that nothing is known of is left out.

        `ctr` and `ctr_at_start` are clicks over impressions of the latest and of the first
        lists: a quarter of all, 500 at most. `expected_ctr` and `best_ctr` are the truth's for
        the latest lists and for the best that could have been shown, and `regret` is the share
        of the best that is missing. `expected_buys_per_request` and
        `expected_watched_s_per_request` are of the latest lists, too.
        """
        with self._lock:
            window = max(1, min(_LATEST, self._looked_at // 4))
            latest, first = list(self._latest)[-window:], self._first[:window]
            latencies, answered = sorted(self._latency_ms), list(self._answered)
            figures: dict[str, float] = dict(self.counts)
        figures["elapsed_s"] = time.monotonic() - self._begun
        recent = [t for t in answered if t > time.monotonic() - 5.0]
        figures["requests_per_s"] = len(recent) / min(5.0, max(figures["elapsed_s"], 1e-9))
        if len(latencies) > 1:
            figures["latency_ms_p50"] = statistics.median(latencies)
            figures["latency_ms_p99"] = latencies[int(0.99 * (len(latencies) - 1))]
        if latest:
            shown = sum(v.shown for v in latest)
            figures["ctr"] = sum(v.clicks for v in latest) / shown
            figures["ctr_at_start"] = sum(v.clicks for v in first) / sum(v.shown for v in first)
            figures["expected_ctr"] = sum(v.expected for v in latest) / shown
            for name in ("expected_buys", "expected_watched_s"):
                per_request = statistics.fmean(getattr(v, name) for v in latest)
                figures[f"{name}_per_request"] = per_request
            figures["expected_ctr_at_start"] = sum(v.expected for v in first) / sum(
                v.shown for v in first
            )
        known = [v for v in latest if v.best is not None]
        if known:
            best = sum(v.best or 0.0 for v in known)
            figures["best_ctr"] = best / sum(v.shown for v in known)
            figures["regret"] = 1 - sum(v.expected for v in known) / best
        return figures


def line(figures: dict[str, Any]) -> str:
    """The figures that matter while it runs, in one line."""
    parts = [f"{figures['requests_per_s']:.1f} requests/s"]
    if "latency_ms_p50" in figures:
        p50, p99 = figures["latency_ms_p50"], figures["latency_ms_p99"]
        parts.append(f"p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    if "ctr" in figures:
        parts.append(f"CTR {figures['ctr']:.1%} (at the start {figures['ctr_at_start']:.1%})")
    if "best_ctr" in figures:
        parts.append(f"best {figures['best_ctr']:.1%}, regret {figures['regret']:.0%}")
    if figures.get("errors"):
        parts.append(f"[red]{figures['errors']:.0f} errors[/]")
    return "  ".join(parts)


def show(figures: dict[str, Any], last_error: str | None, console: Console) -> None:
    """The summary as a table."""
    table = Table("figure", "value", title="visitors")
    for name, value in figures.items():
        shown = f"{value:.2%}" if "ctr" in name or name == "regret" else f"{value:,.4g}"
        table.add_row(name, shown)
    console.print(table)
    if last_error is not None:
        console.print(f"The last error was: {last_error}", highlight=False, markup=False)
