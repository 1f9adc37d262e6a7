"""The HTTP interface: events in, answers out, and the playground page."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field, PositiveInt

from features.catalog import Catalog, CatalogItem
from serving.metrics import ServingMetrics
from serving.recommender import Answer, Recommendation, Recommender
from streaming.errors import EventRejected, HeadraceError, LogFull
from streaming.events import EventRules, encode_event, microseconds, parse_event
from streaming.log import Log

logger = logging.getLogger(__name__)
WEB = Path(__file__).parent / "web"
# The page needs nothing but its own files and this interface.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'none'"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

UserId = Annotated[str, Query(min_length=1, max_length=256, description="The user's id.")]
Count = Annotated[int, Query(ge=1, le=500, description="How many items at most.")]


@dataclass(frozen=True)
class ApiConfig:
    """Where to listen, and how much a request may bring.

    A `host` other than a loopback address opens the service to the network.
    """

    host: str = "127.0.0.1"
    max_body_bytes: PositiveInt = 1_048_576
    max_events: PositiveInt = 1_000


class Item(BaseModel):
    """An item of the catalog."""

    item_id: str
    title: str | None
    attributes: dict[str, Any]


class ScoredItem(Item):
    """An item of an answer; `source` is the model that proposed it, or `popular`."""

    score: float
    source: str
    statistics: dict[str, Any]


class ItemsAnswer(BaseModel):
    items: list[Item]


class RecommendAnswer(BaseModel):
    """`watermark` is the newest event time that the served version has learnt.

    `features_at` is the event time of the newest of the user's `known_actions`.
    """

    request_id: str
    user_id: str | None = None
    items: list[ScoredItem]
    version: str | None
    watermark: str | None
    known_actions: int
    features_at: str | None


class AcceptedEvent(BaseModel):
    event_id: str
    at: str


class RejectedEvent(BaseModel):
    """`index` is the event's place in the list that was sent, 0 for a single event."""

    index: int
    field: str
    value: str
    reason: str


class EventsAnswer(BaseModel):
    accepted: list[AcceptedEvent] = Field(default_factory=list)
    rejected: list[RejectedEvent] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Service:
    """What the interface stands on; handed in by the composition root.

    `status` says how the whole system does; `not_ready` why it cannot answer yet, or None.
    """

    log: Log
    rules: EventRules
    recommender: Recommender
    catalog: Catalog
    metrics: ServingMetrics
    status: Callable[[], dict[str, Any]]
    not_ready: Callable[[], str | None]


def create_app(service: Service, config: ApiConfig) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(
        title="Headrace",
        description="A recommender that learns from every event as it comes.",
        docs_url=None,
        redoc_url=None,
    )
    app.middleware("http")(_observed(service.metrics))
    _handle_errors(app)

    @app.get("/v1/recommend")
    def recommend(user_id: UserId, k: Count = 10) -> RecommendAnswer:
        """The items for a user now; recent popularity for one who is not known."""
        answer = service.recommender.recommend(user_id, k)
        return _shown(answer, service.metrics, user_id)

    @app.get("/v1/items/{item_id:path}/similar")
    def similar(item_id: str, k: Count = 10) -> RecommendAnswer:
        """The items nearest to an item in the model's space."""
        return _shown(service.recommender.similar(item_id, k), service.metrics, None)

    @app.get("/v1/items")
    def items(search: str = "", limit: Count = 10) -> ItemsAnswer:
        """Items by the words of their title; what is popular for an empty search."""
        return ItemsAnswer(items=[_item(i) for i in service.catalog.search(search[:200], limit)])

    @app.post(
        "/v1/events",
        status_code=202,
        responses={413: {}, 422: {"model": EventsAnswer}},
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {
            "schema": {"oneOf": [{"type": "object"}, {"type": "array"}]},
            "example": {"kind": "rate", "user_id": "u1", "item_id": "318", "value": 5},
        }}}},
    )  # fmt: skip
    async def events(request: Request) -> Response:
        """Takes one event or a list; answers what was accepted, and what was not and why."""
        sent = await _json_body(request, config)
        if isinstance(sent, Response):
            return sent
        listed = sent if isinstance(sent, list) else [sent]
        if len(listed) > config.max_events:
            return _error(413, f"{len(listed)} events: {config.max_events} at most in one request")
        answer = await run_in_threadpool(_append, service, listed)
        status = 202 if answer.accepted or not listed else 422
        return JSONResponse(answer.model_dump(), status)

    @app.get("/v1/status")
    def status() -> dict[str, Any]:
        """Progress, lag, versions and figures of the whole system."""
        return service.status()

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {}})
    def readyz() -> Response:
        """The process can answer; if not, why."""
        reason = service.not_ready()
        if reason is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "reason": reason}, 503)

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        """For Prometheus."""
        for group, lag in (service.status().get("lag") or {}).items():
            service.metrics.lag.labels(group).set(lag)
        text, content_type = service.metrics.exposition()
        return Response(text, media_type=content_type)

    @app.get("/", include_in_schema=False)
    def playground() -> FileResponse:
        return FileResponse(WEB / "index.html", headers={"Content-Security-Policy": _PAGE_POLICY})

    app.mount("/web", StaticFiles(directory=WEB))
    return app


def time_text(at_us: int | None) -> str | None:
    """A time in microseconds as 2026-11-21T10:00:00.000000Z: of fixed width, so it sorts."""
    if at_us is None:
        return None
    return (_EPOCH + timedelta(microseconds=at_us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _append(service: Service, listed: list[Any]) -> EventsAnswer:
    """Checks each event by itself; those that pass are in the log, durably, on return."""
    now_us = time.time_ns() // 1000
    answer = EventsAnswer()
    records = []
    for index, raw in enumerate(listed):
        try:
            if not isinstance(raw, dict):
                raise EventRejected("event", raw, "not a JSON object")
            event = parse_event(json.dumps(raw).encode(), service.rules, now_us)
        except EventRejected as error:
            answer.rejected.append(
                RejectedEvent(
                    index=index, field=error.field, value=error.value, reason=error.reason
                )
            )
            continue
        records.append(encode_event(event))
        at = None if event.at is None else time_text(microseconds(event.at))
        answer.accepted.append(AcceptedEvent(event_id=event.event_id or "", at=at or ""))
    if records:
        service.log.append(records)
    service.metrics.events.labels("accepted").inc(len(answer.accepted))
    service.metrics.events.labels("rejected").inc(len(answer.rejected))
    return answer


async def _json_body(request: Request, config: ApiConfig) -> Any:
    """The body parsed, or the response that refuses it; never more than the limit is held."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > config.max_body_bytes:
            return _error(413, f"the body is over {config.max_body_bytes} bytes: send less at once")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        return _error(400, f"the body is not JSON ({error}): send one event or a list of events")


def _shown(answer: Answer, metrics: ServingMetrics, user_id: str | None) -> RecommendAnswer:
    for recommendation in answer.items:
        metrics.answers.labels(recommendation.source).inc()
    return RecommendAnswer(
        request_id=answer.request_id,
        user_id=user_id,
        items=[_scored(r) for r in answer.items],
        version=None if answer.version is None else answer.version.name,
        watermark=None if answer.version is None else time_text(answer.version.watermark_us),
        known_actions=answer.known_actions,
        features_at=time_text(answer.features_at_us),
    )


def _item(item: CatalogItem) -> Item:
    return Item(item_id=item.item_id, title=item.title, attributes=item.attributes)


def _scored(r: Recommendation) -> ScoredItem:
    return ScoredItem(
        **_item(r.item).model_dump(), score=r.score, source=r.source, statistics=r.statistics
    )


def _error(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:  # noqa: ARG001
        first = error.errors()[0]
        field = str(first["loc"][-1])
        return _error(422, f"{field} = {first.get('input')!r}: {first['msg']}")

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def nowhere(request: Request, error: HTTPException) -> Response:
        return _error(error.status_code, f"{request.method} {request.url.path}: {error.detail}")

    @app.exception_handler(HeadraceError)
    async def unable(request: Request, error: HeadraceError) -> Response:  # noqa: ARG001
        logger.error("%s", error)
        return _error(507 if isinstance(error, LogFull) else 503, str(error))


def _observed(
    metrics: ServingMetrics,
) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    async def observe(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        begun = time.perf_counter()
        response = await call_next(request)
        route = getattr(request.scope.get("route"), "path", "other")
        metrics.requests.labels(route, response.status_code).observe(time.perf_counter() - begun)
        return response

    return observe
