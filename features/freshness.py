"""How fresh the feature store is: for each view, the time from the log to the push."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

REMEMBERED = 1_000  # pushes of a view that its percentiles are of
_FILE = "freshness.json"


@dataclass
class _Pushed:
    rows: int = 0
    pushes: int = 0
    newest_event_us: int = 0
    pushed_us: int = 0
    ages_us: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


class Freshness:
    """What was pushed, counted by view since the process began.

    An age is that of the oldest event that a push tells of: from its arrival in the log until the
    online store answers with it.

    >>> freshness = Freshness()
    >>> for waited_us in (100_000, 300_000):
    ...     freshness.observe("item_statistics", 5, 9, arrived_us=0, now_us=waited_us)
    >>> freshness.figures()["item_statistics"]["age_p50_s"]
    0.2
    """

    def __init__(self) -> None:
        self._views: dict[str, _Pushed] = {}

    def observe(
        self, view: str, rows: int, newest_event_us: int, *, arrived_us: int | None, now_us: int
    ) -> None:
        """Takes note of a push that is done; times are µs since 1970."""
        pushed = self._views.setdefault(view, _Pushed())
        pushed.rows += rows
        pushed.pushes += 1
        pushed.newest_event_us = max(pushed.newest_event_us, newest_event_us)
        pushed.pushed_us = now_us
        if arrived_us is not None:
            pushed.ages_us.append(now_us - arrived_us)

    def figures(self) -> dict[str, dict[str, Any]]:
        """By view: counts, times in µs since 1970, and ages in s over the last 1,000 pushes."""
        return {
            view: {
                "rows": pushed.rows,
                "pushes": pushed.pushes,
                "newest_event_us": pushed.newest_event_us,
                "pushed_us": pushed.pushed_us,
                **{
                    f"age_p{q}_s": float(np.percentile(pushed.ages_us, q)) / 1e6
                    for q in (50, 99)
                    if pushed.ages_us
                },
            }
            for view, pushed in self._views.items()
        }

    def save(self, root: Path) -> None:
        """Leaves the figures where other processes read them; whole or not at all."""
        aside = root / f".{_FILE}"
        aside.write_text(json.dumps(self.figures()))
        aside.rename(root / _FILE)


def saved_freshness(root: Path) -> dict[str, dict[str, Any]]:
    """The figures that the process which pushes saved last; empty before its first cut."""
    try:
        figures: dict[str, dict[str, Any]] = json.loads((root / _FILE).read_text())
    except FileNotFoundError:
        return {}
    return figures
