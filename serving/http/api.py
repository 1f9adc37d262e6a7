"""The HTTP interface: events in, answers out, and the playground page."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi import Path as PathField
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from features.attributes import Attributes
from features.catalog import Catalog
from serving.answers import Answer, BadQuestion, Wanted
from serving.http.answer_json import answer_json, encoded, item_fields, ranked_json, user_json
from serving.http.api_config import ApiConfig, ApiKey, GateConfig
from serving.http.bodies import Unpacker, chunks, is_packed, parsed, parsed_query, read_body
from serving.http.dashboard import PAGE_FILES, Monitor, show_dashboard
from serving.http.gate import Gate
from serving.http.guard import Guard, Observed
from serving.http.ingestion import Desk, LineTaker, take_list
from serving.http.openapi import described, errors, events_body, question_body, question_query
from serving.http.refusals import BadBody, BodyTooLarge, Invalid, Refusal, misfit, retry_after
from serving.http.schemas import (
    Alive,
    Count,
    EventsAnswer,
    Id,
    ItemsAnswer,
    LinesAnswer,
    NotReady,
    RankAnswer,
    RankQuestion,
    Ready,
    RecommendAnswer,
    RecommendQuery,
    RecommendQuestion,
    TargetGroup,
    UserAnswer,
)
from serving.http.shortcut import Shortcut
from serving.metrics import ServingMetrics
from serving.recommender import Recommender
from streaming.errors import Backpressure, HeadraceError, LogFull
from streaming.events import EventRules
from streaming.log import Log

__all__ = ["ApiConfig", "ApiKey", "GateConfig", "Service", "create_app"]
logger = logging.getLogger(__name__)
WEB = Path(__file__).parents[1] / "web"
# The page needs nothing but its own files and this interface.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'none'"
)
Write = Callable[..., bytes]  # an answer as JSON
NDJSON_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")


@dataclass(frozen=True, slots=True)
class Service:
    """What the interface stands on; handed in by the composition root.

    `status` says how the whole system does; `not_ready` why it cannot answer yet, or None, and so
    does each of the `checks`; `answered` is told of every answer that a user is shown, and says
    whether its impressions will be in the log. `replica_name` names this process among others that
    answer. `targets` are all processes that tell figures, as Prometheus discovers them, and `look`
    sets what this process tells of the log when it is asked. `monitor` watches the whole system,
    where one does.
    """

    log: Log
    rules: EventRules
    recommender: Recommender
    catalog: Catalog
    metrics: ServingMetrics
    status: Callable[[], dict[str, Any]]
    not_ready: Callable[[], str | None]
    answered: Callable[[Answer], bool] = lambda _answer: False
    replica_name: str = ""
    checks: Sequence[Callable[[], str | None]] = ()
    targets: Callable[[], list[dict[str, Any]]] = list
    look: Callable[[], None] = lambda: None
    monitor: Monitor | None = None


def create_app(
    service: Service, config: ApiConfig, clock: Callable[[], float] = time.monotonic
) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(
        title="Headrace",
        description="A recommender that learns from every event as it comes.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    _answer_questions(app, service, Gate("answers", config.answers, service.metrics), config)
    _take_events(app, service, Gate("events", config.events, service.metrics), config)
    _tell_of_the_system(app, service)
    show_dashboard(app, service.monitor, _PAGE_POLICY)
    _serve_the_page(app)
    _answer_errors(app)
    app.openapi = described(app.openapi, config)  # type: ignore[method-assign]
    # The last one added stands first.
    most_asked = next(r for r in app.routes if isinstance(r, APIRoute) and r.name == "recommend")
    app.add_middleware(Shortcut, route=most_asked, refused=_refused)
    shown_to_all = replace(config, open_paths=(*config.open_paths, *PAGE_FILES))
    app.add_middleware(Guard, config=shown_to_all, clock=clock)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "X-Api-Key", "Content-Type", "Content-Encoding"),
            expose_headers=("X-Request-Id", "X-Headrace-Replica", "Retry-After"),
        )
    app.add_middleware(Observed, metrics=service.metrics, replica=service.replica_name)
    return app


# -- questions -----------------------------------------------------------------------------


def _answer_questions(app: FastAPI, service: Service, gate: Gate, config: ApiConfig) -> None:
    recommender, catalog = service.recommender, service.catalog

    def told(answer: Answer, write: Write, wanted: Wanted | None = None) -> Response:
        for one in answer.items:
            service.metrics.answers.labels(one.source).inc()
        logged = wanted is not None and wanted.shown and service.answered(answer)
        explain = wanted is not None and wanted.explain
        body = write(answer, explain=explain, logged=logged)
        return _json(body, {"X-Request-Id": answer.request_id})

    def recommended(wanted: Wanted) -> Response:
        return told(recommender.recommend(wanted), answer_json, wanted)

    @app.get(
        "/v1/recommend", response_model=RecommendAnswer, responses=errors(422, 429, 503),
        operation_id="recommend", openapi_extra=question_query(RecommendQuery),
    )  # fmt: skip
    async def recommend(request: Request) -> Response:
        """The items for a user now; recent popularity for one who is not known."""
        gate.check()
        asked = parsed_query(RecommendQuery, request.query_params)
        filters: dict[str, list[str]] = {}
        for one in asked.filter:
            field, _, value = one.partition(":")
            filters.setdefault(field, []).append(value)
        wanted = Wanted(
            asked.user_id, asked.k, asked.scenario, asked.query, filters,
            explain=asked.explain, shown=asked.shown,
        )  # fmt: skip
        # Titles and attributes are many: to look through them takes longer.
        here = not (recommender.waits or asked.query or filters)
        return await gate.run(lambda: recommended(wanted), here=here)

    @app.post(
        "/v1/recommend", response_model=RecommendAnswer, operation_id="recommend_in_context",
        responses=errors(400, 408, 413, 415, 422, 429, 503),
        openapi_extra=question_body(RecommendQuestion),
    )  # fmt: skip
    async def recommend_in_context(request: Request) -> Response:
        """The same with all that can be said of what is wanted."""
        gate.check()
        body = await read_body(request, config.max_body_bytes)

        def work() -> Response:
            asked = parsed(RecommendQuestion, body)
            filters = {
                field: [values] if isinstance(values, str) else values
                for field, values in asked.filters.items()
            }
            return recommended(
                Wanted(asked.user_id, asked.k, asked.scenario, asked.query, filters,
                       asked.exclude, asked.seen, asked.explain, asked.shown)
            )  # fmt: skip

        return await gate.run(work)

    @app.post(
        "/v1/rank", response_model=RankAnswer, operation_id="rank",
        responses=errors(400, 408, 413, 415, 422, 429, 503),
        openapi_extra=question_body(RankQuestion),
    )  # fmt: skip
    async def rank(request: Request) -> Response:
        """The given items in the order that suits a user, best first."""
        gate.check()
        body = await read_body(request, config.max_body_bytes)

        def work() -> Response:
            asked = parsed(RankQuestion, body)
            items = list(dict.fromkeys(asked.item_ids))
            wanted = Wanted(
                asked.user_id, len(items), asked.scenario, asked.query,
                explain=asked.explain, shown=asked.shown,
            )  # fmt: skip
            return told(recommender.rank(wanted, items), ranked_json, wanted)

        return await gate.run(work)

    @app.get(
        "/v1/items/{item_id:path}/similar", response_model=RecommendAnswer,
        responses=errors(404, 422, 429, 503), operation_id="similar",
    )  # fmt: skip
    async def similar(item_id: str, k: Count = 10) -> Response:
        """The items nearest to an item in the model's space."""
        return await gate.run(lambda: told(recommender.similar(item_id, k), answer_json))

    @app.get(
        "/v1/users/{user_id:path}", response_model=UserAnswer, operation_id="user",
        responses=errors(404, 422, 429, 503),
    )  # fmt: skip
    async def user(user_id: Annotated[Id, PathField()]) -> Response:
        """What is known of a user."""

        def work() -> Response:
            known = recommender.known(user_id)
            if not known.is_known:
                sentence = f"nothing is known of the user {user_id!r}: no event names that id yet"
                return _error(404, sentence)
            return _json(user_json(known))

        return await gate.run(work)

    @app.get(
        "/v1/items", response_model=ItemsAnswer, responses=errors(422, 429, 503),
        operation_id="items",
    )  # fmt: skip
    async def items(search: str = "", limit: Count = 10) -> Response:
        """Items by the words of their title; what is popular for an empty search."""

        def work() -> Response:
            found = catalog.search(search[:200], limit)
            return _json(encoded({"items": [item_fields(item) for item in found]}))

        return await gate.run(work)


# -- events --------------------------------------------------------------------------------


def _take_events(app: FastAPI, service: Service, gate: Gate, config: ApiConfig) -> None:
    desk = Desk(service.log, service.rules, service.metrics)

    @app.post(
        "/v1/events", status_code=202, response_model=EventsAnswer | LinesAnswer,
        operation_id="events", openapi_extra=events_body(service.rules),
        responses={
            **errors(400, 408, 413, 415, 429, 503, 507, also=LinesAnswer),
            422: {"description": "No event was accepted.", "model": EventsAnswer | LinesAnswer},
        },
    )  # fmt: skip
    async def events(request: Request) -> Response:
        """Takes one event, a list, or lines; answers what was accepted, and what was not and why.

        Lines (`application/x-ndjson`) are taken as they come, so that there may be many. Any body
        may be gzip. What was accepted is durable. An event that is sent again with the same
        `event_id` counts once.
        """
        gate.check()
        if _media_type(request) in NDJSON_TYPES:
            unpacker = Unpacker(is_packed(request), config.max_ndjson_bytes)
            taker = LineTaker(desk, config.max_events, unpacker)
            return await _take_lines(request, taker, gate, config)
        body = await read_body(request, config.max_body_bytes)
        return await gate.run(lambda: _take_json(desk, body, config.max_events))


def _take_json(desk: Desk, body: bytes, most: int) -> Response:
    """One event, or a list of at most `most`."""
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadBody(
            f"the body is not JSON ({error}): send one event or a list of events, or one event a"
            " line with Content-Type: application/x-ndjson"
        ) from None
    listed = sent if isinstance(sent, list) else [sent]
    if len(listed) > most:
        raise BodyTooLarge(f"{len(listed)} events: {most} at most in one request")
    answer = take_list(desk, listed)
    return JSONResponse(answer.model_dump(), 202 if answer.accepted or not listed else 422)


async def _take_lines(
    request: Request, taker: LineTaker, gate: Gate, config: ApiConfig
) -> Response:
    """Takes the lines of a body as they come; memory holds one batch of them.

    The gate may turn away the first of them. The rest waits for its turn, and so does who sends it.
    """
    begun = False
    try:
        async for chunk in chunks(request, config.max_ndjson_bytes):
            await gate.run(partial(taker.feed, chunk), begun=begun)
            begun = True
        answer = await gate.run(taker.finish, begun=begun)
    except HeadraceError as error:
        answer = taker.answer.model_copy(update={"error": str(error)})
        return JSONResponse(answer.model_dump(), _status_of(error), _headers_of(error))
    status = 202 if answer.accepted_count or not answer.rejected_count else 422
    return JSONResponse(answer.model_dump(exclude_none=True), status)


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


# -- the system ----------------------------------------------------------------------------


def _tell_of_the_system(app: FastAPI, service: Service) -> None:
    for entity, known in (("item", service.catalog.items), ("user", service.catalog.users)):
        service.metrics.refused.labels(entity).set_function(partial(_refused_values, known))

    @app.get("/v1/status", responses=errors(422, 429, 503), operation_id="status")
    def status() -> dict[str, Any]:
        """Progress, lag, versions and figures of the whole system."""
        return service.status()

    @app.get("/healthz", response_model=Alive, responses=errors(), operation_id="healthz")
    async def healthz() -> Response:
        """The process lives."""
        return JSONResponse({"status": "ok"})

    @app.get(
        "/readyz", response_model=Ready, operation_id="readyz",
        responses={**errors(), 503: {"description": "It cannot.", "model": NotReady}},
    )  # fmt: skip
    def readyz() -> Response:
        """The process can answer; if not, why."""
        found = [check() for check in (service.not_ready, *service.checks)]
        reasons = [reason for reason in found if reason is not None]
        if not reasons:
            return JSONResponse({"status": "ready"})
        shown = {"status": "not ready", "reason": "; ".join(reasons), "reasons": reasons}
        return JSONResponse(shown, 503)

    @app.get(
        "/metrics", operation_id="metrics", response_class=Response,
        responses={**errors(503), 200: {"description": "The text form of Prometheus.",
                                        "content": {"text/plain": {"schema": {"type": "string"}}}}},
    )  # fmt: skip
    def metrics() -> Response:
        """For Prometheus."""
        service.look()
        text, content_type = service.metrics.exposition()
        return Response(text, media_type=content_type)

    @app.get(
        "/v1/targets", response_model=list[TargetGroup], responses=errors(503),
        operation_id="targets",
    )  # fmt: skip
    def targets() -> Response:
        """All processes that tell figures, for Prometheus' `http_sd_configs`."""
        return JSONResponse(service.targets())


def _refused_values(known: Attributes) -> int:
    return known.beyond + sum(field.refused for field in known.fields())


def _serve_the_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    def playground() -> FileResponse:
        return FileResponse(WEB / "index.html", headers={"Content-Security-Policy": _PAGE_POLICY})

    app.mount("/web", StaticFiles(directory=WEB))


# -- errors --------------------------------------------------------------------------------


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:  # noqa: ARG001
        first = error.errors()[0]
        return _error(422, misfit(first["loc"], first.get("input"), first["msg"]))

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def nowhere(request: Request, error: HTTPException) -> Response:
        sentence = f"{request.method} {request.url.path}: {error.detail}"
        headers = {"Allow": _allowed(app, request)} if error.status_code == 405 else None
        return JSONResponse({"error": sentence}, error.status_code, headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:  # noqa: ARG001
        return _error(400, "the body ended early")  # nobody is there to read it

    @app.exception_handler(HeadraceError)
    async def unable(request: Request, error: HeadraceError) -> Response:  # noqa: ARG001
        return _refused(error)


def _refused(error: HeadraceError) -> Response:
    return JSONResponse({"error": str(error)}, _status_of(error), _headers_of(error))


def _allowed(app: FastAPI, request: Request) -> str:
    """The methods of all routes with this path, for each knows only its own."""
    routes = [r for r in app.routes if r.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({m for route in routes for m in getattr(route, "methods", ())}))


def _status_of(error: HeadraceError) -> int:
    """What an error is in HTTP."""
    if isinstance(error, Refusal):
        return error.status
    if isinstance(error, BadQuestion):
        return Invalid.status
    logger.error("%s", error)
    return 507 if isinstance(error, LogFull) else 503


def _headers_of(error: HeadraceError) -> dict[str, str]:
    """When it makes sense to come again."""
    if isinstance(error, Refusal):
        after_s = error.retry_after_s
        return {} if after_s is None else {"Retry-After": retry_after(after_s)}
    if isinstance(error, BadQuestion):
        return {}
    if isinstance(error, Backpressure):
        return {"Retry-After": retry_after(error.retry_after_s)}
    # Somebody has to free some space.
    return {"Retry-After": "60" if isinstance(error, LogFull) else "2"}


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status)


def _json(body: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(body, headers=headers, media_type="application/json")
