"""What the joiners of a process tell: what came of events and impressions, and how soon."""

from __future__ import annotations

from collections import Counter as Counts
from weakref import WeakKeyDictionary

import pyarrow as pa

from streaming.join_kernels import COUNTED
from streaming.joiner import Joiner
from streaming.log import SAMPLES
from streaming.loop import Turn
from streaming.loop_metrics import LoopMetrics, observe_age, some
from streaming.metrics import Metrics

_EVERY_S = 1.0  # to add up all that was counted takes as long as a few events do
_LIVE_WITHIN_S = 3_600.0  # between an event and its record; a replay of the past has older ones

Key = tuple[str, ...]  # a family of counters, and its labels


class JoinerMetrics(LoopMetrics):
    """The observer of all partitions' joiners in this process.

    What they have counted before this process took them on, others have told.
    """

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(metrics, "joiner")
        self._counters = {
            "events": metrics.counter(
                "headrace_events_total",
                "Events that the joiner read from the log: taken, repeated or rejected.",
                ["outcome"],
            ),
            "rejected": metrics.counter(
                "headrace_events_rejected_total",
                "Events that went to dead-letters, by the field that was wrong; `event` is all.",
                ["reason"],
            ),
            "impressions": metrics.counter(
                "headrace_joiner_impressions_total",
                "What came of impressions: labels that became known, and what did not fit.",
                ["outcome"],
            ),
            "late": metrics.counter(
                "headrace_joiner_late_events_total", "Events later than the joiner waits for."
            ),
        }
        self._open = metrics.gauge(
            "headrace_joiner_impressions_open", "Impressions that may still be answered."
        ).labels()
        self._watermark = metrics.gauge(
            "headrace_joiner_watermark_timestamp_seconds",
            "Event time of the partition that is furthest behind, as a Unix time.",
        ).labels()
        self._window = metrics.gauge(
            "headrace_joiner_window_seconds", "How long a label may come after its impression.",
            ["label"],
        )  # fmt: skip
        self._logged, self._joined = metrics.freshness("logged"), metrics.freshness("joined")
        self._due_s = 0.0
        # A partition that is lost takes its joiner along.
        self._told: WeakKeyDictionary[Joiner, Counts[Key]] = WeakKeyDictionary()

    def begun(self, step: Joiner) -> None:
        self._told[step] = _counts(step)
        for label, told in step.config.impressions.labels.items():
            self._window.labels(label).set(told.window_s)
        self._tell_of_all()

    def turned(self, turn: Turn) -> None:
        super().turned(turn)
        if turn.records:
            self._tell_of_hops(turn)
        if turn.done_s >= self._due_s:
            self._due_s = turn.done_s + _EVERY_S
            for step in list(self._told):
                self._count(step)
            self._tell_of_all()

    def _tell_of_hops(self, turn: Turn) -> None:
        dealt_with = turn.step.dealt_with
        at_us = some(dealt_with.events["at"].view(pa.int64()).to_numpy()).tolist()
        logged_us = some(dealt_with.logged_us).tolist()
        joined = any(output.topic == SAMPLES for output in turn.outputs)
        for at, logged in zip(at_us, logged_us, strict=True):
            ahead_s = (logged - at) / 1e6
            if ahead_s < _LIVE_WITHIN_S:
                self._logged.observe(max(0.0, ahead_s))
            if joined:
                observe_age(self._joined, logged, turn.done_s)

    def _count(self, step: Joiner) -> None:
        """Tells what was counted since the last time."""
        counts = _counts(step)
        for (family, *labels), new in (counts - self._told[step]).items():
            self._counters[family].labels(*labels).inc(new)
        self._told[step] = counts

    def _tell_of_all(self) -> None:
        """What is so now, of all partitions."""
        self._open.set(sum(step.open_impressions for step in self._told))
        times = [step.newest_us for step in self._told if step.newest_us]
        if times:
            self._watermark.set(min(times) / 1e6)


def _counts(step: Joiner) -> Counts[Key]:
    """All that a joiner has counted so far."""
    counts, rejected = step.counts, step.intake.rejected
    found: dict[Key, int] = {
        ("events", "taken"): step.intake.accepted,
        ("events", "repeated"): counts["repeated_events"],
        ("events", "rejected"): rejected.total(),
        ("late",): counts["late_events"],
    }
    found |= {("rejected", field): n for field, n in rejected.items()}
    found |= {("impressions", outcome): counts[outcome] for outcome in COUNTED}
    return Counts(found)
