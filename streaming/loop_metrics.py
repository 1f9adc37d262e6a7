"""What every loop tells: records and turns, where its time goes, and that it still turns."""

from __future__ import annotations

from typing import Any, Protocol

from streaming.loop import Turn
from streaming.metrics import Histogram, Metrics

_TOLD_OF = 8
_DAY_S = 86_400.0


class LoopMetrics:
    """The observer of the loops of one group in this process; those of a step extend it."""

    def __init__(self, metrics: Metrics, group: str) -> None:
        self._records = metrics.counter(
            "headrace_loop_records_total", "Records that a loop has dealt with.", ["group"]
        ).labels(group)
        self._turns = metrics.counter(
            "headrace_loop_turns_total", "Turns of a loop, most of them without records.", ["group"]
        ).labels(group)
        seconds = metrics.counter(
            "headrace_loop_seconds_total",
            "Where the time of a loop went; reading waits for records.",
            ["group", "part"],
        )
        self._read = seconds.labels(group, "read")
        self._step = seconds.labels(group, "step")
        self._execute = seconds.labels(group, "execute")
        self._commit = seconds.labels(group, "commit")
        self._cut = seconds.labels(group, "cut")
        self._last = metrics.gauge(
            "headrace_loop_last_turn_timestamp_seconds",
            "When a loop has last committed a turn, as a Unix time.",
            ["group"],
        ).labels(group)

    def begun(self, step: Any) -> None:
        """As `LoopObserver.begun`."""

    def turned(self, turn: Turn) -> None:
        """As `LoopObserver.turned`."""
        if turn.records:
            self._records.inc(len(turn.records))
        self._turns.inc()
        self._read.inc(turn.read_s)
        self._step.inc(turn.step_s)
        self._execute.inc(turn.execute_s)
        self._commit.inc(turn.commit_s)
        self._last.set(turn.done_s)

    def cut(self, seconds: float) -> None:
        """As `LoopObserver.cut`."""
        self._cut.inc(seconds)


class Sliceable(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, places: slice, /) -> Any: ...


def some(ordered: Sliceable) -> Any:
    """At most 8 of them, evenly chosen, the first always: a turn of many is told of by these."""
    return ordered[:: -(-len(ordered) // _TOLD_OF) or 1]


def observe_age(hop: Histogram, logged_us: int, now_s: float) -> None:
    """Takes note of how long something has been in the log, unless that is more than a day: then it
    is an old one that is dealt with again, and says nothing of how fresh answers are.
    """
    age_s = now_s - logged_us / 1e6
    if age_s < _DAY_S:
        hop.observe(age_s)
