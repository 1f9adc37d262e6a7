"""What should not be, each said once: for Prometheus as a rule, and for the monitor within.

A condition that holds for `for_s` is an alert until it has not held for `keep_s`: what comes and
goes is one alert, not many. The times are meant for systems that are scraped every few seconds.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from infra.monitor.expressions import (
    Expression,
    Highest,
    Increase,
    Key,
    Last,
    Moved,
    Quantile,
    Rate,
    scaled,
)
from infra.monitor.history import History
from infra.monitor.series import ANSWERS

logger = logging.getLogger(__name__)
Severity = Literal["critical", "warning"]
RUNBOOKS = "docs/runbooks"
_MINUTES_S, _HOUR_S = 300.0, 3600.0
# The promise: 99 of 100 versions answer within a second of the newest event that they have learnt.
OBJECTIVE_S, BUDGET = "1.0", 0.01
# At this pace the budget of a month is spent in two days (Site Reliability Workbook, chapter 5).
_FAST = 14.4
_PLACE = ("group", "topic", "partition")
_PROCESS = ("process", "rank")
_OURS = {"process": "~.+"}
_TRAINERS = "~trainer.*"  # one for each model
_REPLICA = ("process", "rank", "instance")


@dataclass(frozen=True)
class Alert:
    """`sentence` says what is wrong; in it `{label}` is a label's value, `{value}` that of the
    condition. `runbook` is the page that says what to do.
    """

    name: str
    severity: Severity
    condition: Expression
    sentence: str
    for_s: float = 0.0
    keep_s: float = 30.0

    @property
    def runbook(self) -> str:
        words = re.findall("[A-Z]+(?![a-z])|[A-Z][a-z]+", self.name.removeprefix("Headrace"))
        return f"{RUNBOOKS}/{'-'.join(words).lower()}.md"


@dataclass(frozen=True)
class Recording:
    """What Prometheus computes all the time, under a name of its own."""

    name: str
    expression: Expression


def _slow(over_s: float) -> Expression:
    """The share of versions that came too late with what they had learnt."""
    name, served = "headrace_freshness_seconds", {"hop": "served"}
    every = Rate(f"{name}_count", ("hop",), served, over_s)
    soon = Rate(f"{name}_bucket", ("hop",), {**served, "le": OBJECTIVE_S}, over_s)
    return (every - soon) / every


def _stands(groups: str, by: Key) -> Expression:
    """Records wait for a group that takes none."""
    where = {"group": groups}
    moved = Moved("headrace_group_position_records", by, where, over_s=15)
    return (Last("headrace_group_lag_records", by, where) > 0) & moved.equals(0)


def _increase(name: str, by: Key = (), /, **where: str) -> Increase:
    return Increase(f"headrace_{name}", by, where, _MINUTES_S)


def _share(part: Increase, whole: Increase, above: float, at_least: float) -> Expression:
    """The share of a part in the whole, where it is large, and more than some few."""
    return ((part / whole) > above) & (part > at_least)


_ERRORS = _increase("request_seconds_count", status="~5..")
_REQUESTS = _increase("request_seconds_count")
_SILENT_S = 120.0

RECORDINGS: Sequence[Recording] = (
    *(
        Recording(
            f"headrace:freshness_seconds:p{percent}_5m",
            Quantile("headrace_freshness_seconds", ("hop",), {}, _MINUTES_S, percent / 100),
        )
        for percent in (50, 90, 99)
    ),
    Recording("headrace:freshness_slow:ratio_5m", _slow(_MINUTES_S)),
    Recording("headrace:freshness_slow:ratio_1h", _slow(_HOUR_S)),
    *(
        Recording(
            f"headrace:answer_seconds:p{percent}_5m",
            Quantile("headrace_request_seconds", (), ANSWERS, _MINUTES_S, percent / 100),
        )
        for percent in (50, 99)
    ),
    Recording("headrace:request_errors:ratio_5m", _ERRORS / _REQUESTS),
)

ALERTS: Sequence[Alert] = (
    Alert(
        "HeadraceProcessDown",
        "critical",
        Last("headrace_process_expected", _PROCESS, {}, "max").unless(
            Last("up", _PROCESS, _OURS, "max").equals(1)
        )
        | Last("up", _PROCESS, _OURS, "min").equals(0),
        "{process} (rank {rank}) does not answer: it is gone, or hangs",
        for_s=15,
    ),
    Alert(
        "HeadraceFreshnessSLO",
        "critical",
        # A source that is replayed as fast as it goes is not what the promise is about.
        ((_slow(_HOUR_S) > _FAST * BUDGET) & (_slow(_MINUTES_S) > _FAST * BUDGET)).unless(
            Highest("headrace_replay_waiting_events", (), {}, _MINUTES_S) > 0
        ),
        "of the versions of the last hour a share of {value} answered later than 1 s after the"
        " newest event that they had learnt",
        for_s=30,
    ),
    Alert(
        "HeadraceTrainerFrozen",
        "critical",
        _stands(_TRAINERS, ("group",)),
        "samples wait ({value} records), and the {group} learns none of them",
        for_s=20,
    ),
    Alert(
        "HeadracePartitionStuck",
        "critical",
        _stands("~joiner|aggregator|catalog", _PLACE),
        "partition {partition} of {topic} stands still for the {group}: {value} records wait",
        for_s=20,
    ),
    Alert(
        "HeadracePartitionSilent",
        "warning",
        Moved(
            "headrace_partition_end_records", ("topic", "partition"), {"topic": "events"}, _SILENT_S
        ).equals(0)
        & (
            Moved("headrace_partition_end_records", ("topic",), {"topic": "events"}, _SILENT_S)
            > 50  # enough that a partition would hardly be left out by chance
        ),
        "partition {partition} of {topic} gets nothing while others get much",
        for_s=30,
    ),
    Alert(
        "HeadraceNothingPublished",
        "critical",
        # A process that learns by day publishes when the day ends.
        Moved(
            "headrace_version_published_timestamp_seconds",
            ("process",),
            {"process": _TRAINERS},
            over_s=60,
        ).equals(0)
        & (
            Increase(
                "headrace_trainer_steps_total", ("process",), {"process": _TRAINERS}, over_s=60
            )
            > 0
        ),
        "the {process} learns, and has published nothing for a minute: it cannot write versions",
        for_s=10,
    ),
    Alert(
        "HeadraceVersionHeld",
        "critical",
        Last("headrace_gate_holds", (), {}, "max") > 0,
        "the gate holds new versions back; the last good one goes on answering",
    ),
    Alert(
        "HeadraceMicroBatchesRefused",
        "warning",
        _increase("trainer_refused_total") > 0,
        "the trainer left out {value} micro-batches in five minutes, from which it would have"
        " learnt nonsense",
    ),
    Alert(
        "HeadraceReplicaStuck",
        "critical",
        Last("headrace_replica_behind_seconds", _REPLICA, {}, "max") > 10,
        "the replica at {instance} ({process}) has not applied a version that waits for {value} s",
        for_s=5,
    ),
    Alert(
        "HeadraceFeatureSkew",
        "critical",
        _share(
            _increase("feature_skew_total", ("view",), outcome="different"),
            _increase("feature_skew_total", ("view",)),
            *(0.01, 10),
        ),
        "a share of {value} of the features of {view} that answers were made of is not what"
        " training got for them",
    ),
    Alert(
        "HeadraceDrift",
        "warning",
        Last("headrace_drift_active", ("feature",), {}, "max") > 0,
        "{feature} is not distributed as it was",
    ),
    Alert(
        "HeadraceDeadLetters",
        "warning",
        _share(
            _increase("events_total", outcome="rejected"), _increase("events_total"), *(0.01, 10)
        ),
        "a share of {value} of the events of five minutes was refused",
    ),
    Alert(
        "HeadraceAnswersDegraded",
        "warning",
        _share(
            _increase("answers_degraded_total"),
            _increase("request_seconds_count", **ANSWERS),
            *(0.01, 5),
        ),
        "a share of {value} of the answers of five minutes did without a part",
    ),
    Alert(
        "HeadraceErrors",
        "critical",
        _share(_ERRORS, _REQUESTS, 0.01, 5)
        | _share(_increase("requests_shed_total"), _REQUESTS, 0.05, 20),
        "a share of {value} of the requests of five minutes failed, or was told to come again",
    ),
    Alert(
        "HeadraceQualityDrop",
        "critical",
        Last("headrace_progressive_figure", (), {"figure": "recall@50", "of": "live"}, "max")
        < Last(
            "headrace_progressive_figure", (), {"figure": "recall@50", "of": "popularity"}, "max"
        ),
        "what is served finds less (recall@50 = {value}) than popularity alone would",
        for_s=120,
    ),
)


@dataclass(frozen=True)
class Active:
    """An alert, since when (Unix time), and what there is to say of it."""

    alert: Alert
    since: float
    sentence: str


@dataclass
class _State:
    began_at: float
    held_at: float
    sentence: str
    is_active: bool = False


class Watch:
    """Knows which alerts are active; all their times are `scale` times as long."""

    def __init__(self, alerts: Sequence[Alert] = ALERTS, scale: float = 1.0) -> None:
        self._alerts = alerts
        self._scale = scale
        self._states: dict[tuple[str, Key], _State] = {}

    def turn(self, history: History) -> list[Active]:
        """The alerts as of the newest moment of the history, the critical ones first."""
        for alert in self._alerts:
            self._look(alert, history)
        active = [
            Active(alert, state.began_at, state.sentence)
            for alert in self._alerts
            for (name, _), state in self._states.items()
            if name == alert.name and state.is_active
        ]
        return sorted(active, key=lambda one: one.alert.severity)

    def _look(self, alert: Alert, history: History) -> None:
        now, holds = history.now, alert.condition.value(history, self._scale)
        for key, value in holds.items():
            state = self._states.setdefault((alert.name, key), _State(now, now, ""))
            labels = dict(zip(alert.condition.labels, key, strict=True))
            state.held_at = now
            state.sentence = alert.sentence.format(value=f"{value:.3g}", **labels)
            if not state.is_active and now - state.began_at >= self._wait(alert.for_s):
                state.is_active = True
                logger.warning("alert %s: %s", alert.name, state.sentence)
        for name, key in list(self._states):
            if name == alert.name and key not in holds:
                self._pass(alert, key, now)

    def _pass(self, alert: Alert, key: Key, now: float) -> None:
        """The condition does not hold; if it has not for long enough, the alert ends."""
        state = self._states[alert.name, key]
        if state.is_active and now - state.held_at < self._wait(alert.keep_s):
            return
        del self._states[alert.name, key]
        if state.is_active:
            logger.warning("alert %s ended: %s", alert.name, state.sentence)

    def _wait(self, seconds: float) -> float:
        return scaled(seconds, self._scale)
