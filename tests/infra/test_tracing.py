"""Traces, as a collector gets them: over HTTP, in the form of OTLP."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from infra.recipe import load_recipe
from infra.spans import Spans
from infra.tracing import TracingConfig, open_tracing
from serving.answers import Answer
from serving.parts import Outcome
from serving.request import REQUEST_ID
from streaming.errors import ConfigError
from streaming.log import EVENTS, SAMPLES, Append, Record
from streaming.loop import Turn, Unobserved
from trainers.versions import Version, VersionInfo

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Takes what exporters post to it."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, request: ExportTraceServiceRequest) -> None:
        for one in request.resource_spans:
            self.resources.append({a.key: a.value.string_value for a in one.resource.attributes})
            self.spans += [span for scope in one.scope_spans for span in scope.spans]

    def named(self, name: str) -> Any:
        (span,) = [span for span in self.spans if span.name == name]
        return span


def told(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


@pytest.fixture
def make(collector: Collector) -> Iterator[Callable[..., Spans]]:
    made = []

    def make(process: str = "trainer", sample: float = 1.0) -> Spans:
        made.append(Spans(collector.url, sample, process))
        return made[-1]

    yield make
    for one in made:
        one._provider.shutdown()


async def app(scope: Any, receive: Any, send: Any) -> None:
    REQUEST_ID.set("5e1f")
    scope["route"] = type("Route", (), {"path": scope["path"]})
    status = 500 if scope["path"] == "/broken" else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def ask(app: Any, path: str, **headers: str) -> int:
    async def get() -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://headrace") as client:
            return (await client.get(path, headers=headers)).status_code

    return asyncio.run(get())


def info(number: int, base: int | None = None) -> VersionInfo:
    return VersionInfo("two_tower", "2f1c", number, base, None, None, 7, {}, {})


def turn(records: list[Record], outputs: list[Any]) -> Turn:
    return Turn(None, records, outputs, 1_000.5, 0.0, 0.25, 0.125, 0.125)


def test_a_request_is_a_span_with_its_parts(collector: Collector, make: Any) -> None:
    spans = make("serve-8001")
    noted: list[Any] = []
    part = spans.told(lambda *all_: noted.append(all_))

    async def answering(scope: Any, receive: Any, send: Any) -> None:
        part("features", Outcome.LATE, 0.01)
        answer = Answer("5e1f", [], info(41), degraded=["features"])
        spans.answered(answer)
        await app(scope, receive, send)

    traceparent = f"00-{TRACE}-{SPAN}-01"
    assert ask(spans.requests(answering), "/v1/recommend", traceparent=traceparent) == 200
    spans.flush()
    assert noted == [("features", Outcome.LATE, 0.01)]
    request, features = collector.named("GET /v1/recommend"), collector.named("features")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, SPAN)
    assert (features.trace_id, features.parent_span_id) == (request.trace_id, request.span_id)
    assert features.end_time_unix_nano - features.start_time_unix_nano == pytest.approx(
        1e7, rel=0.1
    )
    assert told(features) == {"headrace.outcome": "late"}
    attributes = told(request)
    assert attributes.pop("headrace.degraded").values[0].string_value == "features"
    assert attributes == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/v1/recommend",
        "headrace.request_id": "5e1f",
        "headrace.version": "two_tower/2f1c/41",
    }
    assert collector.resources[0]["service.name"] == "headrace"
    assert collector.resources[0]["headrace.process"] == "serve-8001"


def test_a_request_that_fails_is_an_error(collector: Collector, make: Any) -> None:
    spans = make()
    assert ask(spans.requests(app), "/broken") == 500
    spans.flush()
    assert collector.named("GET /broken").status.code == 2


def test_lots_are_drawn_and_the_callers_counts(collector: Collector, make: Any) -> None:
    spans = make(sample=0.0)
    ask(spans.requests(app), "/v1/recommend")
    ask(spans.requests(app), "/v1/recommend", traceparent=f"00-{TRACE}-{SPAN}-00")
    ask(spans.requests(app), "/v1/recommend", traceparent="no such thing")
    spans.loop(Unobserved()).turned(turn([], [Append(SAMPLES, b"batch"), Version(info(1), {})]))
    spans.applied(lambda *_: None)(info(1), 0.1)
    spans.flush()
    assert collector.spans == []
    ask(spans.requests(app), "/v1/recommend", traceparent=f"00-{TRACE}-{SPAN}-01")
    spans.flush()
    assert len(collector.spans) == 1


def test_an_event_is_followed_from_the_joiner_to_every_replica(
    collector: Collector, make: Any
) -> None:
    joiner, trainer = make("joiner"), make("trainer")
    event = Record(EVENTS, 0, 5, None, b"{}", 10**15)
    sample = Record(SAMPLES, 0, 3, None, b"a micro-batch", 10**15)
    joiner.loop(Unobserved()).turned(turn([event], [Append(SAMPLES, b"a micro-batch")]))
    versions = [Version(info(200, 199), {}), Version(info(200), {})]  # a delta, and a snapshot
    trainer.loop(Unobserved()).turned(turn([sample], versions))
    joiner.flush()
    trainer.flush()
    for name in ("serve-8001", "serve-8002"):
        replica = make(name)
        replica.applied(lambda *_: None)(info(200, 199), 0.1)
        replica.flush()

    join, learn, publish = (collector.named(name) for name in ("join", "learn", "publish"))
    assert (learn.trace_id, learn.parent_span_id) == (join.trace_id, join.span_id)
    assert [(link.trace_id, link.span_id) for link in publish.links] == [
        (join.trace_id, join.span_id)
    ]
    assert publish.parent_span_id == join.parent_span_id == b""
    applied = [span for span in collector.spans if span.name == "apply"]
    assert len(applied) == 2
    for span in applied:
        assert (span.trace_id, span.parent_span_id) == (publish.trace_id, publish.span_id)
        assert told(span)["headrace.version"] == "two_tower/2f1c/200"
    assert told(join) == {"headrace.records": 1, "headrace.bytes": 13}
    assert (join.start_time_unix_nano, join.end_time_unix_nano) == (10**12, 1_000_500_000_000)


def test_all_processes_draw_the_same_lots(collector: Collector, make: Any) -> None:
    joiner, trainer = make("joiner", 0.5), make("trainer", 0.5)
    for number in range(100):
        value = b"%d" % number
        joiner.loop(Unobserved()).turned(turn([], [Append(SAMPLES, value)]))
        sample = Record(SAMPLES, 0, number, None, value, 10**15)
        trainer.loop(Unobserved()).turned(turn([sample], []))
    joiner.flush()
    trainer.flush()
    joined = {span.trace_id for span in collector.spans if span.name == "join"}
    learnt = {span.trace_id for span in collector.spans if span.name == "learn"}
    assert joined == learnt
    assert 25 < len(joined) < 75


def test_it_is_off_by_default_and_costs_no_import() -> None:
    assert open_tracing(load_recipe("movielens").tracing, "run") is None
    code = (
        "import sys, infra.recipe, infra.wiring;"
        "print([m for m in sys.modules if m.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "infra.spans", None)
    with pytest.raises(ConfigError, match=r"pip install 'headrace\[tracing\]'"):
        open_tracing(TracingConfig(enabled=True), "run")


def test_a_recipe_says_where(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[tracing]\nenabled = true\nendpoint = "collector:4318"\n')
    with pytest.raises(ConfigError, match="write http://host:4318"):
        load_recipe(str(recipe))
    recipe.write_text("[tracing]\nsample = 2\n")
    with pytest.raises(ConfigError, match="sample"):
        load_recipe(str(recipe))
