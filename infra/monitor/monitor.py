"""The monitor of `headrace run`: it asks every process, keeps what they say, and watches it."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import PositiveFloat

from features.catalog import Catalog
from infra.monitor.alerts import ALERTS, Active, Watch
from infra.monitor.announced import Announced
from infra.monitor.expressions import Expression, Increase, Key, Last, Quantile, Rate
from infra.monitor.history import History
from infra.monitor.pictures import Pictures
from infra.monitor.scrape import UP, Scraper
from infra.monitor.series import HOPS, SERIES, Floor, Series
from infra.monitor.stream import Stream
from infra.targets import Target
from serving.recommender import Recommender
from serving.replica import Replica
from streaming.dead_letters import Filed, Letters
from streaming.errors import LogError
from streaming.events import EventRules
from streaming.log import Log
from streaming.metrics import Metrics
from trainers.version_store import VersionStore

logger = logging.getLogger(__name__)
Shape = dict[str, Any]
RUN = "run"  # the process that the monitor is part of, as a target
_FLOORS: Sequence[Floor] = ("streaming", "features", "trainers", "serving")
_RECENT_S = 300.0
_EXCERPT = 500  # bytes
_PROCESS = ("process", "rank", "instance")
_UP = Last(UP, _PROCESS, {}, "max")
_CPU = Rate("process_cpu_seconds_total", _PROCESS, {}, 10.0)
_MEMORY = Last("process_resident_memory_bytes", _PROCESS, {}, "max")
_STARTED = Last("process_start_time_seconds", _PROCESS, {}, "max")
_FRESHNESS = "headrace_freshness_seconds"
_PERCENTS = {p: Quantile(_FRESHNESS, ("hop",), {}, _RECENT_S, p / 100) for p in (50, 90, 99)}
_OBSERVED = Increase(f"{_FRESHNESS}_count", ("hop",), {}, _RECENT_S)


@dataclass(frozen=True)
class MonitorConfig:
    """Every `period_s` all processes are asked, which have `timeout_s` to answer; what they say is
    kept for `history_s`. Alerts take `patience` times as long as they are meant to.
    """

    enabled: bool = True
    period_s: PositiveFloat = 2.0
    timeout_s: PositiveFloat = 1.0
    history_s: PositiveFloat = 3_600.0
    patience: PositiveFloat = 1.0


@dataclass(frozen=True)
class Watched:
    """What a monitor watches, and who can tell it.

    `expected` names the processes (and their ranks) that ought to live, `exposition` is what this
    process itself tells, `replay_left` says how many events of a source are still to be replayed.
    """

    log: Log
    rules: EventRules
    catalog: Catalog
    replica: Replica
    recommender: Recommender
    store: VersionStore
    metrics: Metrics
    exposition: Callable[[], bytes]
    targets: Callable[[], Sequence[Target]]
    expected: Sequence[tuple[str, int]]
    status: Callable[[], Shape]
    pinned: Callable[[], str | None]
    gate_mode: str
    replay_left: Callable[[], int] = lambda: 0
    quality: Callable[[], Shape] = lambda: {"rows": [], "progressive": {}}
    drift: Callable[[], Shape] = lambda: {"features": [], "new_ids": {}, "label_rates": {}}
    series: Sequence[Series] = field(default=SERIES)


class Monitor:
    """What the page /dashboard shows: see `serving.http.dashboard.Monitor`."""

    def __init__(self, watched: Watched, config: MonitorConfig | None = None) -> None:
        self._watched = watched
        self._config = config or MonitorConfig()
        slots = max(2, round(self._config.history_s / self._config.period_s))
        self._history = History(slots)
        asked: list[Expression] = [_UP, _CPU, _MEMORY, _STARTED, _OBSERVED, *_PERCENTS.values()]
        asked += [one.expression for one in watched.series]
        asked += [alert.condition for alert in ALERTS]
        wanted = {selection for expression in asked for selection in expression.selections()}
        own = RUN, watched.exposition
        self._scraper = Scraper(self._history, wanted, own, self._config.timeout_s)
        self._kept = [one for one in watched.series if one.is_kept]
        self._values = np.full((len(self._kept), slots), np.nan)
        self._watch = Watch(scale=self._config.patience)
        self._active: list[Active] = []
        self._told = _Told(watched.metrics, watched.expected)
        self._announced = Announced(watched.log, watched.replica.model)
        self._stream = Stream(watched.log, watched.rules, watched.catalog)
        self._pictures = Pictures(
            watched.replica, watched.catalog, watched.recommender, watched.store
        )
        self._lock = threading.Lock()  # of the history and all that is made of it

    # -- watching ------------------------------------------------------------------------------

    def run(self, stopping: threading.Event) -> None:
        """Watches until told to stop."""
        due = time.monotonic()
        while not stopping.wait(max(0.0, due - time.monotonic())):
            begun = time.thread_time()
            try:
                self.turn(time.time())
            except Exception:  # who watches must not end what he watches
                logger.exception("the monitor did not see what is at %d", time.time())
            self._told.took(time.thread_time() - begun)
            due = max(due + self._config.period_s, time.monotonic())
        self._scraper.close()

    def turn(self, at: float) -> None:
        """Asks all processes, as of a Unix time, and looks at what they say."""
        self._told.replay_left(self._watched.replay_left())
        told = self._scraper.read(self._watched.targets())
        with self._lock:
            self._announced.turn()
            self._scraper.take(told, at)
            slot = (self._history.moments - 1) % self._history.slots
            for row, series in enumerate(self._kept):
                value = series.expression.value(self._history).get((), np.nan)
                self._values[row, slot] = series.factor * value
            self._active = self._watch.turn(self._history)
        self._told.alerts(self._active)

    # -- telling -------------------------------------------------------------------------------

    def overview(self) -> Shape:
        """`Overview`: what stands now."""
        info = self._watched.replica.info
        with self._lock:
            return {
                "at": self._history.now,
                "period_s": self._config.period_s,
                "history_s": self._config.history_s,
                "status": self._watched.status(),
                "alerts": [_alert(one) for one in self._active],
                "processes": self._processes(),
                "freshness": self._freshness(),
                "floors": {floor: self._figures(floor) for floor in _FLOORS},
                "versions": self._announced.versions(
                    None if info is None else info.name, self._watched.pinned()
                ),
            }

    def series(self, names: Sequence[str], window_s: float) -> Shape:
        """`Series`: these of the declared ones."""
        with self._lock:
            times = self._history.times
            count = int(np.sum(times > times[-1] - window_s)) if len(times) else 0
            slots = self._history.newest(count)
            return {
                "t": times[len(times) - count :].tolist(),
                "series": {
                    one.name: self._values[row, slots].tolist()  # NaN is null in JSON
                    for row, one in enumerate(self._kept)
                    if one.name in names
                },
                "declared": [
                    {"name": o.name, "title": o.title, "unit": o.unit, "floor": o.floor}
                    for o in self._kept
                ],
            }

    def stream(self, after: int) -> Shape:
        """`Stream`: what happened after the step `after`."""
        return self._stream.steps(after)

    def neighbours(self, item_id: str) -> Shape | None:
        """`Neighbours`; None if the model does not know the item."""
        return self._pictures.neighbours(item_id)

    def interactions(self, user_id: str) -> Shape | None:
        """`Interactions`; None if nothing is known of the user."""
        return self._pictures.interactions(user_id)

    def quality(self) -> Shape:
        """`Quality`: what was served, judged by the labels that came."""
        return self._watched.quality()

    def drift(self) -> Shape:
        """`Drift`."""
        return self._watched.drift()

    def gate(self) -> Shape:
        """`GateNow`."""
        with self._lock:
            return self._announced.gate(self._watched.gate_mode)

    def dead_letters(self, limit: int) -> Shape:
        """`DeadLetters`: the newest, newest first."""
        newest: list[tuple[int, int, int, Filed]] = []
        waiting = 0
        try:
            for filed in Letters(self._watched.log).waiting():
                waiting += 1
                heapq.heappush(newest, (filed.logged_us, filed.partition, filed.offset, filed))
                if len(newest) > limit:
                    heapq.heappop(newest)
        except LogError:  # some went while they were read: those that were are shown
            pass
        return {"waiting": waiting, "letters": [_letter(one) for *_, one in sorted(newest)[::-1]]}

    # -- parts of the overview -----------------------------------------------------------------

    def _processes(self) -> list[Shape]:
        up, cpu, memory, started = (
            expression.value(self._history) for expression in (_UP, _CPU, _MEMORY, _STARTED)
        )
        found = [
            {
                "process": process, "rank": rank, "address": address, "up": value == 1,
                "cpu_cores": cpu.get(key) if key in memory else None,
                "memory_bytes": memory.get(key), "started": started.get(key),
            }
            for key, value in up.items()
            for process, rank, address in [key]
        ]  # fmt: skip
        there = {(one["process"], one["rank"]) for one in found}
        return found + [
            {
                "process": process, "rank": str(rank), "address": "", "up": False,
                "cpu_cores": None, "memory_bytes": None, "started": None,
            }
            for process, rank in self._watched.expected
            if (process, str(rank)) not in there
        ]  # fmt: skip

    def _freshness(self) -> list[Shape]:
        quantiles = {
            f"p{percent}_s": expression.value(self._history)
            for percent, expression in _PERCENTS.items()
        }
        observed = _OBSERVED.value(self._history)
        return [
            {
                "hop": hop,
                **{name: values.get((hop,)) for name, values in quantiles.items()},
                "count": observed.get((hop,)),
            }
            for hop in HOPS
        ]

    def _figures(self, floor: Floor) -> list[Shape]:
        figures = []
        for one in self._watched.series:
            if one.floor != floor:
                continue
            values = one.expression.value(self._history)
            if one.is_kept:
                values.setdefault((), np.nan)
            figures += [_figure(one, key, value) for key, value in sorted(values.items())]
        return figures


class _Told:
    """What the monitor itself tells Prometheus."""

    def __init__(self, metrics: Metrics, expected: Sequence[tuple[str, int]]) -> None:
        self._active = metrics.gauge(
            "headrace_alert_active", "Whether the built-in monitor finds it so.", ["alert"]
        )
        self._replay = metrics.gauge(
            "headrace_replay_waiting_events", "Events of the source that are still to be replayed."
        ).labels()
        self._seconds = metrics.counter(
            "headrace_monitor_cpu_seconds_total", "Time that the built-in monitor's thread worked."
        ).labels()
        for alert in ALERTS:
            self._active.labels(alert.name).set(0)
        ought = metrics.gauge(
            "headrace_process_expected", "Processes that ought to live.", ["process", "rank"]
        )
        for process, rank in expected:
            ought.labels(process, str(rank)).set(1)

    def replay_left(self, events: int) -> None:
        self._replay.set(events)

    def took(self, seconds: float) -> None:
        self._seconds.inc(seconds)

    def alerts(self, active: Sequence[Active]) -> None:
        names = {one.alert.name for one in active}
        for alert in ALERTS:
            self._active.labels(alert.name).set(alert.name in names)


def _alert(active: Active) -> Shape:
    return {
        "name": active.alert.name,
        "severity": active.alert.severity,
        "since": active.since,
        "sentence": active.sentence,
        "runbook": active.alert.runbook,
    }


def _figure(series: Series, key: Key, value: float) -> Shape:
    return {
        "name": ".".join([series.name, *key]),
        "title": " ".join([series.title, *key]),
        "unit": series.unit,
        "value": series.factor * value,
    }


def _letter(filed: Filed) -> Shape:
    letter = filed.letter
    field_ = f"{letter.field}: " if letter.field != "record" else ""
    return {
        "topic": letter.topic or letter.source or "",
        "partition": letter.partition or 0,
        "offset": letter.offset or letter.line or 0,
        "at": filed.logged_us / 1e6,
        "reason": f"{field_}{letter.reason}",
        "excerpt": letter.record[:_EXCERPT].decode("utf-8", "replace"),
    }
