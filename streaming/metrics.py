"""What a process tells Prometheus: families of figures, declared beside what they measure.

Every process has one `Metrics`, and each component a small class, in the module that it measures or
the one beside it, whose constructor declares what it tells. Names and units follow Prometheus'
conventions: `headrace_` first, seconds and bytes, `_total` for what only grows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar, cast

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    start_http_server,
)
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

__all__ = ["Closed", "Counter", "Gauge", "Histogram", "Metrics", "Sample", "Totals", "parse"]
OTHER = "other"  # where all go that find no room
FRESHNESS_S = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0)
M = TypeVar("M", Counter, Gauge, Histogram)
T = TypeVar("T")
disable_created_metrics()  # type: ignore[no-untyped-call]  # when each figure began is of no use, and is a third of all there are


class Sample(NamedTuple):
    """One number of an exposition."""

    name: str
    labels: Mapping[str, str]
    value: float


class Closed(Generic[M]):
    """The figures of a family with labels, of which there are at most `most`.

    What comes after them is counted under `other`: ids that somebody sends must not become figures
    without end.

    >>> family = Metrics().counter("headrace_doors_total", "Doors.", ["colour"], most=1)
    >>> family.labels("red").inc()
    >>> family.labels("blue") is family.labels("other")
    True
    """

    def __init__(self, family: M, most: int) -> None:
        self.family: M = family
        self._most = most
        self._children: dict[tuple[str, ...], M] = {}
        self._lock = threading.Lock()

    def labels(self, *values: str) -> M:
        """The figure with these values of the labels, or the one of all others."""
        found = self._children.get(values)
        return found if found is not None else self._new(values)

    def _new(self, values: tuple[str, ...]) -> M:
        with self._lock:
            if len(self._children) >= self._most and values not in self._children:
                values = (OTHER,) * len(values)
            if values not in self._children:
                self._children[values] = self._child(values)
            return self._children[values]

    def _child(self, values: tuple[str, ...]) -> M:
        return self.family.labels(*values) if values else self.family


class Totals(Collector):
    """Counters of what somebody else counts: they are told the sum so far."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._values: dict[tuple[str, ...], float] = {}

    def set(self, value: float, *labels: str) -> None:
        """The sum so far, of these values of the labels."""
        self._values[labels] = value

    def describe(self) -> Iterable[Metric]:
        return [CounterMetricFamily(self._name, self._text, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, value in list(self._values.items()):
            family.add_metric(labels, value)
        yield family


class Metrics:
    """All that one process tells; with `process` also what it takes of the machine.

    A family that is declared twice is the same family: components of one kind share it.
    """

    def __init__(self, *, process: bool = False) -> None:
        self.registry = CollectorRegistry()
        self._families: dict[str, Any] = {}
        self._lock = threading.Lock()
        if process:
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)

    def counter(
        self, name: str, text: str, labels: Sequence[str] = (), *, most: int = 64
    ) -> Closed[Counter]:
        """What only grows; a family without labels has the one figure `labels()`."""
        return self._once(name, lambda: Closed(Counter(name, text, labels, registry=None), most))

    def gauge(
        self, name: str, text: str, labels: Sequence[str] = (), *, most: int = 64
    ) -> Closed[Gauge]:
        """What is so now."""
        return self._once(name, lambda: Closed(Gauge(name, text, labels, registry=None), most))

    def histogram(
        self,
        name: str,
        text: str,
        buckets: Sequence[float],
        labels: Sequence[str] = (),
        *,
        most: int = 64,
    ) -> Closed[Histogram]:
        """How values are spread over buckets, given by their upper bounds."""

        def make() -> Closed[Histogram]:
            return Closed(Histogram(name, text, labels, buckets=buckets, registry=None), most)

        return self._once(name, make)

    def totals(self, name: str, text: str, labels: Sequence[str] = ()) -> Totals:
        """What only grows and is counted elsewhere."""
        return self._once(name, lambda: Totals(name, text, labels))

    def freshness(self, hop: str) -> Histogram:
        """How long an event has been in the log when a hop on its way into answers is done with it:
        `stored` (features), `joined`, `trained`, `published`, `served`, `answered`. `logged` is the
        one before, from the event's own time to the log.
        """
        return self.histogram(
            "headrace_freshness_seconds",
            "From an event reaching the log until a hop on its way into answers is done with it;"
            " of the hop logged, from the event's own time to the log.",
            FRESHNESS_S,
            ["hop"],
        ).labels(hop)

    def exposition(self) -> tuple[bytes, str]:
        """Everything in the text form of Prometheus, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    @contextmanager
    def served(self, host: str, port: int = 0) -> Iterator[int]:
        """Answers `GET /metrics` at a port as long as the block lasts; 0 chooses one. Yields it."""
        server, thread = start_http_server(port, host, self.registry)
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _once(self, name: str, make: Callable[[], T]) -> T:
        with self._lock:
            if name not in self._families:
                made = make()
                self.registry.register(made.family if isinstance(made, Closed) else made)  # type: ignore[arg-type]
                self._families[name] = made
            return cast(T, self._families[name])


def parse(exposition: str) -> list[Sample]:
    """The numbers of an exposition.

    Raises:
        ValueError: it is none.
    """
    return [
        Sample(one.name, one.labels, one.value)
        for family in text_string_to_metric_families(exposition)
        for one in family.samples
    ]
