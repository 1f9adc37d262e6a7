"""The spans of a process: requests and their parts, and the way of an event into answers.

A request's trace is its caller's (`traceparent`), or its own. The way of an event needs no header
to be passed on: trace and root span have ids that are made of what every process knows.

    trace of a micro-batch, of its bytes:   join (joiner) - learn (trainer)
    trace of a version, of its name:        publish (trainer) - apply (each replica)

`publish` has links to the micro-batches that the version has learnt, and a request's span names
the version that answered. All processes draw the same lots, for these are made of the ids, too.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import xxhash
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving.answers import Answer
from serving.parts import Outcome, Told
from serving.request import REQUEST_ID
from streaming.log import SAMPLES, Append
from streaming.loop import LoopObserver, Turn
from trainers.versions import Version, VersionInfo

_SEND_EVERY_MS = 1_000.0
_MOST_LINKS = 32
Applied = Callable[[VersionInfo, float], None]


class Spans:
    """Sends the spans of this process to a collector, in the background, a second late."""

    def __init__(self, endpoint: str, sample: float, process: str) -> None:
        self._lots = TraceIdRatioBased(sample)
        self._ids = _Ids()
        resource = Resource.create(
            {
                "service.name": "headrace",
                "service.instance.id": f"{process}-{os.getpid()}",
                "headrace.process": process,
            }
        )
        self._provider = TracerProvider(ParentBased(self._lots), resource, id_generator=self._ids)
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=_SEND_EVERY_MS)
        )
        self._tracer = self._provider.get_tracer("headrace")
        self._learnt: deque[SpanContext] = deque(maxlen=_MOST_LINKS)

    def flush(self) -> None:
        """Sends what waits."""
        self._provider.force_flush()

    # -- requests --------------------------------------------------------------------------

    def requests(self, app: Any) -> Any:
        """The ASGI app, with a span for each request."""
        propagator = TraceContextTextMapPropagator()

        async def traced(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            sent = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
            method = scope["method"]
            with self._tracer.start_as_current_span(
                method, propagator.extract(sent), SpanKind.SERVER
            ) as span:

                async def noted(message: Any) -> None:
                    if message["type"] == "http.response.start":
                        status = message["status"]
                        span.set_attribute("http.response.status_code", status)
                        if status >= 500:
                            span.set_status(Status(StatusCode.ERROR))
                    await send(message)

                await app(scope, receive, noted)
                if span.is_recording():
                    route = getattr(scope.get("route"), "path", "other")
                    span.update_name(f"{method} {route}")
                    span.set_attributes(
                        {
                            "http.request.method": method,
                            "http.route": route,
                            "headrace.request_id": REQUEST_ID.get() or "",
                        }
                    )

        return traced

    def told(self, told: Told) -> Told:
        """Also makes a span of each part of an answer."""

        def both(part: str, outcome: Outcome, seconds: float) -> None:
            told(part, outcome, seconds)
            if trace.get_current_span().is_recording():
                self._span(part, time.time() - seconds, time.time(), {"headrace.outcome": outcome})

        return both

    def answered(self, answer: Answer) -> None:
        """Says at the request's span which version answered it, and without which parts."""
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attribute("headrace.version", answer.version.name if answer.version else "")
            span.set_attribute("headrace.degraded", list(answer.degraded))

    # -- the way of an event ---------------------------------------------------------------

    def applied(self, applied: Applied) -> Applied:
        """Also makes a span of a version that is laid over the replica."""

        def both(info: VersionInfo, seconds: float) -> None:
            applied(info, seconds)
            parent = self._place(info.name.encode())
            if parent.trace_flags.sampled:
                self._span("apply", time.time() - seconds, time.time(), _of(info), parent)

        return both

    def loop(self, inner: LoopObserver) -> LoopObserver:
        """Also makes spans of what a joiner or a trainer does in a turn."""
        return _TracedLoop(inner, self._turned)

    def _turned(self, turn: Turn) -> None:
        begun_s = turn.done_s - turn.step_s - turn.execute_s - turn.commit_s
        for record in turn.records:
            if record.topic == SAMPLES and (place := self._place(record.value)).trace_flags.sampled:
                told = {"headrace.partition": record.partition, "headrace.offset": record.offset}
                self._span("learn", begun_s, turn.done_s, told, place)
                self._learnt.append(place)
        for output in turn.outputs:
            if isinstance(output, Append) and output.topic == SAMPLES:
                told = {"headrace.records": len(turn.records), "headrace.bytes": len(output.value)}
                self._root("join", self._place(output.value), begun_s, turn.done_s, told)
            elif isinstance(output, Version) and not output.info.artefact.endswith(".whole"):
                links = [Link(place) for place in self._learnt]
                self._learnt.clear()
                place = self._place(output.info.name.encode())
                self._root("publish", place, begun_s, turn.done_s, _of(output.info), links)

    def _place(self, name: bytes) -> SpanContext:
        """The root span of what goes by that name in every process, and whether it was drawn."""
        digest = xxhash.xxh3_128_intdigest(name) or 1
        lot = self._lots.should_sample(None, digest, "")
        drawn = lot.decision is Decision.RECORD_AND_SAMPLE
        flags = TraceFlags(TraceFlags.SAMPLED if drawn else TraceFlags.DEFAULT)
        return SpanContext(digest, digest >> 64 or 1, is_remote=True, trace_flags=flags)

    def _root(
        self,
        name: str,
        place: SpanContext,
        begun_s: float,
        ended_s: float,
        told: dict[str, Any],
        links: list[Link] | None = None,
    ) -> None:
        if place.trace_flags.sampled:
            with self._ids.given(place):
                self._span(name, begun_s, ended_s, told, trace.INVALID_SPAN_CONTEXT, links)

    def _span(
        self,
        name: str,
        begun_s: float,
        ended_s: float,
        told: dict[str, Any],
        parent: SpanContext | None = None,
        links: list[Link] | None = None,
    ) -> None:
        """A span that is over; by default a child of the one that is current."""
        context = (
            None if parent is None else trace.set_span_in_context(trace.NonRecordingSpan(parent))
        )
        span = self._tracer.start_span(
            name, context, attributes=told, links=links, start_time=int(begun_s * 1e9)
        )
        span.end(int(ended_s * 1e9))


class _TracedLoop:
    """An observer that tells another, and then `turned`."""

    def __init__(self, inner: LoopObserver, turned: Callable[[Turn], None]) -> None:
        self.begun = inner.begun
        self.cut = inner.cut
        self._inner = inner
        self._turned = turned

    def turned(self, turn: Turn) -> None:
        self._inner.turned(turn)
        self._turned(turn)


class _Ids(IdGenerator):
    """Random ids, but for a root span whose ids are given."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()
        self._given = threading.local()

    @contextmanager
    def given(self, place: SpanContext) -> Iterator[None]:
        """Inside the block, what begins is that span."""
        self._given.place = place
        try:
            yield
        finally:
            self._given.place = None

    def generate_trace_id(self) -> int:
        place: SpanContext | None = getattr(self._given, "place", None)
        return self._random.generate_trace_id() if place is None else place.trace_id

    def generate_span_id(self) -> int:
        place: SpanContext | None = getattr(self._given, "place", None)
        return self._random.generate_span_id() if place is None else place.span_id


def _of(info: VersionInfo) -> dict[str, Any]:
    return {"headrace.version": info.name, "headrace.held": info.held or ""}
