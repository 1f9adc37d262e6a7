"""What a run shows when its output is a file: plain lines, the address first, the figures last."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from infra.progress import Reporter


def status(
    done: int, *, ready: bool = True, caught_up: bool = False, learning: str = "realtime"
) -> dict[str, Any]:
    return {
        "learning": learning,
        "served_version": "two_tower/a/0" if learning == "realtime" else None,
        "ready": ready,
        "caught_up": caught_up,
        "events_per_s": 1_234.0,
        "metrics": {"recall@50": 0.2, "recent_recall@50": 0.25, "recent_popularity_recall@50": 0.1},
        "replay": {
            "done": done,
            "total": 100,
            "at": "2003-05-11T00:00:00Z",
            "finished": done == 100,
        },
    }


def told(*statuses: dict[str, Any]) -> list[str]:
    """The lines that a reporter prints for these statuses."""
    out = io.StringIO()
    with Reporter("http://127.0.0.1:1", Path("/somewhere"), Console(file=out)) as reporter:
        for one in statuses:
            reporter.update(one)
    return out.getvalue().splitlines()


def test_nothing_is_claimed_before_it_can_answer() -> None:
    assert not any("http" in line for line in told(status(0, ready=False)))


def test_progress_names_rate_date_and_recall() -> None:
    line = next(line for line in told(status(50)) if line.startswith("replay"))
    for part in ("50/100", "1,234 events/s", "2003-05-11", "0.250", "0.100"):
        assert part in line


def test_the_end_is_told_once() -> None:
    lines = told(status(50), status(100, caught_up=True), status(100, caught_up=True))
    assert sum("are learnt" in line for line in lines) == 1


def test_by_day_it_says_who_learns_and_what_answers_until_then() -> None:
    lines = told(status(50, learning="daily"), status(100, learning="daily", caught_up=True))
    assert sum("popular is the answer until `headrace daily`" in line for line in lines) == 1
    assert any("100 events are in the archive after" in line for line in lines)
    assert any("`headrace daily` learns them" in line for line in lines)
    assert not any("are learnt" in line for line in lines)
    assert not any("popular is the answer" in line for line in told(status(50)))


def test_a_finished_replay_is_not_learnt_before_it_is_served() -> None:
    assert not any("are learnt" in line for line in told(status(100)))
