"""The crowd: visitors who ask the running service at a rate, and what they do afterwards."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from queue import Empty, Full, Queue
from typing import Any

import numpy as np
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from infra.visitor import LaterEvent, Visitors
from infra.visitor_report import Report, line
from infra.visitor_service import ServiceError, VisitorService
from streaming.sources.world import World

_POSTED_AT_ONCE = 200
_ATTEMPTS = 5
_LINE_EVERY_S = 5.0
_LOOK_S = 0.05


@dataclass(frozen=True)
class VisitorsConfig:
    """`users` visitors send `rate` requests/s together for `duration_s`; 0 is until Ctrl-C.

    What follows a click comes `haste` times sooner than it would: 1 is as in life. `connections`
    requests are on their way at a time; for as many more visitors wait, others give up.
    """

    users: PositiveInt = 200
    rate: PositiveFloat = 10.0
    duration_s: NonNegativeFloat = 0.0
    seed: NonNegativeInt = 0
    haste: PositiveFloat = 60.0
    connections: PositiveInt = 8
    timeout_s: PositiveFloat = 10.0


class Outbox:
    """Events that wait for their time, posted by a thread of its own, some at once.

    An event that was not taken is sent again, with its id, so it counts once.
    """

    def __init__(self, service: VisitorService, report: Report) -> None:
        self._service = service
        self._report = report
        self._lock = threading.Lock()
        self._waiting: list[tuple[float, int, dict[str, Any]]] = []
        self._number = itertools.count()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, events: list[LaterEvent], haste: float) -> None:
        """Takes what happens from now on."""
        now, wall = time.monotonic(), datetime.now(UTC)
        with self._lock:
            for later in events:
                delay_s = later.delay_s / haste
                event = {**later.event, "at": (wall + timedelta(seconds=delay_s)).isoformat()}
                heapq.heappush(self._waiting, (now + delay_s, next(self._number), event))

    def close(self, timeout_s: float) -> None:
        """Sends what is due; what would have come later never happens."""
        self._closing.set()
        self._thread.join(timeout_s)
        self._report.counted("events_not_due", len(self._waiting))

    def _run(self) -> None:
        try:
            self._send()
        finally:
            self._service.close()

    def _send(self) -> None:
        while True:
            closing = self._closing.is_set()  # asked first: what is due by then is still sent
            due = self._due()
            if due:
                self._post(due)
            elif closing:
                return
            else:
                self._closing.wait(_LOOK_S)

    def _due(self) -> list[dict[str, Any]]:
        due: list[dict[str, Any]] = []
        with self._lock:
            now = time.monotonic()
            while self._waiting and self._waiting[0][0] <= now and len(due) < _POSTED_AT_ONCE:
                due.append(heapq.heappop(self._waiting)[2])
        return due

    def _post(self, events: list[dict[str, Any]]) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                answer = self._service.post(events)
            except ServiceError as error:
                self._report.failed(error)
                self._closing.wait(0.1 * 2**attempt)
                continue
            self._report.counted("events", len(answer["accepted"]))
            self._report.counted("events_refused", len(answer["rejected"]))
            return
        self._report.counted("events_lost", len(events))


class Crowd:
    """Runs the visitors against a service until they are told to stop."""

    def __init__(self, world: World, config: VisitorsConfig, service: VisitorService) -> None:
        self._world = world
        self._config = config
        self._service = service
        self._visitors = Visitors(world, config.users, config.seed)
        self.report = Report()
        self._queue: Queue[int] = Queue(2 * config.connections)
        self._stopping = threading.Event()
        self._begun = time.monotonic()

    def run(self, console: Console, stopping: threading.Event) -> None:
        """Sends requests at Poisson times until the duration is over or `stopping` is set."""
        outbox = Outbox(self._service, self.report)
        threads = [
            threading.Thread(target=self._work, args=(outbox,), name=f"visitor-{n}", daemon=True)
            for n in range(self._config.connections)
        ]
        for thread in threads:
            thread.start()
        try:
            self._arrive(console, stopping)
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join(self._config.timeout_s)
            outbox.close(self._config.timeout_s)

    def _arrive(self, console: Console, stopping: threading.Event) -> None:
        rng = np.random.default_rng([self._config.seed, 13])
        due = self._begun
        with _Screen(console, self._config.duration_s) as screen:
            for number in itertools.count():
                due += rng.exponential(1 / self._config.rate)
                while (left_s := due - time.monotonic()) > 0 and not stopping.is_set():
                    stopping.wait(min(left_s, _LOOK_S))
                    screen.update(self.report)
                over = self._config.duration_s and due - self._begun > self._config.duration_s
                if over or stopping.is_set():
                    return
                try:
                    self._queue.put_nowait(number)
                except Full:
                    self.report.counted("gave_up")

    def _work(self, outbox: Outbox) -> None:
        """One of the threads: answers to waiting visitors, until all have had theirs."""
        try:
            while not (self._stopping.is_set() and self._queue.empty()):
                try:
                    self._visit(self._queue.get(timeout=_LOOK_S), outbox)
                except Empty:
                    continue
                except ServiceError as error:
                    self.report.failed(error)
                    self._stopping.wait(_LOOK_S)
        finally:
            self._service.close()

    def _visit(self, number: int, outbox: Outbox) -> None:
        user, place, rng = self._visitors.asks(number)
        scenario = self._world.config.scenarios[place]
        begun = time.perf_counter()
        answer = self._service.recommend(f"u{user}", scenario.length, scenario.name)
        latency_ms = (time.perf_counter() - begun) * 1e3
        # The world goes on where its recorded days end.
        day = self._world.config.days + (time.monotonic() - self._begun) / 86_400
        events, visit = self._visitors.reacts(user, place, day, answer, rng)
        self.report.visited(visit, latency_ms)
        outbox.put(events, self._config.haste)


def wait_until_ready(
    service: VisitorService, console: Console, stopping: threading.Event, timeout_s: float
) -> None:
    """Returns when the service can answer, or `stopping` is set.

    Raises:
        ServiceError: it does not answer at all, or is not ready in time.
    """
    deadline = time.monotonic() + timeout_s
    told = False
    while (reason := service.ready()) is not None and not stopping.is_set():
        if time.monotonic() > deadline:
            raise ServiceError(f"{service.url} is not ready after {timeout_s:g} s: {reason}")
        if not told:
            console.print(f"{service.url} is not ready yet: {reason}", markup=False)
            told = True
        stopping.wait(0.2)
    service.close()


class _Screen:
    """A live line on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, duration_s: float) -> None:
        self._console = console
        self._due = time.monotonic()
        self._begun = time.monotonic()
        self._bar = Progress(
            TextColumn("[bold]visitors[/]"), BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}"), TimeElapsedColumn(),
            console=console, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("visitors", total=duration_s or None, figures="")

    def __enter__(self) -> _Screen:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def update(self, report: Report) -> None:
        now = time.monotonic()
        if now < self._due:
            return
        text = line(report.figures())
        self._bar.update(self._task, completed=now - self._begun, figures=text)
        if self._console.is_terminal:
            self._due = now + 0.25
        else:
            self._console.print(text, highlight=False, soft_wrap=True)
            self._due = now + _LINE_EVERY_S
