"""The HTTP interface: events in, answers out, and the playground page."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, PositiveInt
from starlette.requests import ClientDisconnect

from features.catalog import Catalog, CatalogItem
from serving.answers import Answer, Recommendation, Wanted
from serving.ingestion import (
    BadBody,
    BodyTooLarge,
    Desk,
    EventsAnswer,
    LinesAnswer,
    LineTaker,
    Unpacker,
    take_list,
)
from serving.metrics import ServingMetrics
from serving.recommender import Recommender
from serving.times import time_text
from streaming.errors import HeadraceError, LogFull
from streaming.events import EventRules
from streaming.log import Log

logger = logging.getLogger(__name__)
WEB = Path(__file__).parent / "web"
# The page needs nothing but its own files and this interface.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'none'"
)
NDJSON_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")

UserId = Annotated[str, Query(min_length=1, max_length=256, description="The user's id.")]
Count = Annotated[int, Query(ge=1, le=500, description="How many items at most.")]


@dataclass(frozen=True)
class ApiConfig:
    """Where to listen, and how much a request may bring.

    A `host` other than a loopback address opens the service to the network. Bodies are measured
    unpacked. NDJSON has a limit of its own, for it is taken in batches of `max_events`.
    """

    host: str = "127.0.0.1"
    max_body_bytes: PositiveInt = 1_048_576
    max_events: PositiveInt = 1_000
    max_ndjson_bytes: PositiveInt = 67_108_864


class Item(BaseModel):
    """An item of the catalog."""

    item_id: str
    title: str | None
    attributes: dict[str, Any]


class ScoredItem(Item):
    """An item of an answer; `source` is the model that proposed it, or `popular`, `hot`,
    `interests`, `new` or `content`.

    `score` is the part of the user's actions to come that is expected to fall on it, or of similar
    items how alike they are.
    """

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


@dataclass(frozen=True, slots=True)
class Service:
    """What the interface stands on; handed in by the composition root.

    `status` says how the whole system does; `not_ready` why it cannot answer yet, or None;
    `answered` is told of every answer to a user.
    """

    log: Log
    rules: EventRules
    recommender: Recommender
    catalog: Catalog
    metrics: ServingMetrics
    status: Callable[[], dict[str, Any]]
    not_ready: Callable[[], str | None]
    answered: Callable[[Answer], None] = lambda _answer: None


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
        answer = service.recommender.recommend(Wanted(user_id, k))
        service.answered(answer)
        return _shown(answer, service.metrics, user_id)

    @app.get("/v1/items/{item_id:path}/similar")
    def similar(item_id: str, k: Count = 10) -> RecommendAnswer:
        """The items nearest to an item in the model's space."""
        return _shown(service.recommender.similar(item_id, k), service.metrics, None)

    @app.get("/v1/items")
    def items(search: str = "", limit: Count = 10) -> ItemsAnswer:
        """Items by the words of their title; what is popular for an empty search."""
        return ItemsAnswer(items=[_item(i) for i in service.catalog.search(search[:200], limit)])

    desk = Desk(service.log, service.rules, service.metrics)

    @app.post(
        "/v1/events",
        status_code=202,
        response_model=EventsAnswer | LinesAnswer,
        responses={
            400: {}, 413: {}, 415: {}, 503: {}, 507: {},
            422: {"model": EventsAnswer | LinesAnswer},
        },
        openapi_extra={"requestBody": {"required": True, "content": {
            "application/json": {
                "schema": {"oneOf": [{"type": "object"}, {"type": "array"}]},
                "example": {"kind": "rate", "user_id": "u1", "item_id": "318", "value": 5},
            },
            "application/x-ndjson": {"schema": {"type": "string"}},
        }}},
    )  # fmt: skip
    async def events(request: Request) -> Response:
        """Takes one event, a list, or lines; answers what was accepted, and what was not and why.

        Lines (`application/x-ndjson`) are taken as they come, so that there may be many. Any body
        may be gzip.
        """
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("gzip", "identity", ""):
            return _error(415, f"Content-Encoding {encoding!r}: send gzip, or nothing packed")
        try:
            if _media_type(request) in NDJSON_TYPES:
                return await _take_lines(request, desk, config)
            sent = await _json_body(request, config)
        except ClientDisconnect:
            return _error(400, "the body ended early")  # nobody is there to read it
        if isinstance(sent, Response):
            return sent
        listed = sent if isinstance(sent, list) else [sent]
        if len(listed) > config.max_events:
            return _error(413, f"{len(listed)} events: {config.max_events} at most in one request")
        answer = await run_in_threadpool(take_list, desk, listed)
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
        status = service.status()
        for group, lag in (status.get("lag") or {}).items():
            service.metrics.lag.labels(group).set(lag)
        for view, figures in (status.get("features") or {}).items():
            for quantile, name in (("0.5", "age_p50_s"), ("0.99", "age_p99_s")):
                if name in figures:
                    service.metrics.features_age.labels(view, quantile).set(figures[name])
        for entity, known in (("item", service.catalog.items), ("user", service.catalog.users)):
            refused = known.beyond + sum(field.refused for field in known.fields())
            service.metrics.refused.labels(entity).set(refused)
        text, content_type = service.metrics.exposition()
        return Response(text, media_type=content_type)

    @app.get("/", include_in_schema=False)
    def playground() -> FileResponse:
        return FileResponse(WEB / "index.html", headers={"Content-Security-Policy": _PAGE_POLICY})

    app.mount("/web", StaticFiles(directory=WEB))
    return app


async def _json_body(request: Request, config: ApiConfig) -> Any:
    """The body parsed, or the response that refuses it; never more than the limit is held."""
    body = bytearray()
    unpacker = Unpacker(_is_packed(request), config.max_body_bytes)
    try:
        async for chunk in request.stream():
            for piece in unpacker.feed(chunk):
                body += piece
        for piece in unpacker.finish():
            body += piece
    except (BodyTooLarge, BadBody) as error:
        return _error(413 if isinstance(error, BodyTooLarge) else 400, str(error))
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        return _error(
            400,
            f"the body is not JSON ({error}): send one event or a list of events, or one event a"
            " line with Content-Type: application/x-ndjson",
        )


async def _take_lines(request: Request, desk: Desk, config: ApiConfig) -> Response:
    """Takes the lines of a body as they come; memory holds one batch of them."""
    unpacker = Unpacker(_is_packed(request), config.max_ndjson_bytes)
    taker = LineTaker(desk, config.max_events, unpacker)
    try:
        async for chunk in request.stream():
            await run_in_threadpool(taker.feed, chunk)
        answer = await run_in_threadpool(taker.finish)
    except HeadraceError as error:
        status, headers = _status_of(error)
        answer = taker.answer.model_copy(update={"error": str(error)})
        return JSONResponse(answer.model_dump(), status, headers)
    status = 202 if answer.accepted_count or not answer.rejected_count else 422
    return JSONResponse(answer.model_dump(exclude_none=True), status)


def _is_packed(request: Request) -> bool:
    return request.headers.get("content-encoding", "").strip().lower() == "gzip"


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _status_of(error: HeadraceError) -> tuple[int, dict[str, str]]:
    """What an error is in HTTP, and when it makes sense to come again."""
    if isinstance(error, BodyTooLarge):
        return 413, {}
    if isinstance(error, BadBody):
        return 400, {}
    logger.error("%s", error)
    if isinstance(error, LogFull):
        return 507, {"Retry-After": "60"}  # somebody has to free some space
    return 503, {"Retry-After": "2"}


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
        **_item(r.item).model_dump(), score=r.score, source=r.source, statistics=dict(r.statistics)
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
        status, headers = _status_of(error)
        return JSONResponse({"error": str(error)}, status, headers)


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
