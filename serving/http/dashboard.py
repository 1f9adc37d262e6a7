"""The page for those who run the system, and the routes of what it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import FastAPI, Query, Response
from fastapi import Path as PathField
from fastapi.responses import FileResponse
from pydantic import BaseModel

from serving.http.answer_json import encoded
from serving.http.monitor_schemas import (
    DeadLetters,
    Drift,
    GateNow,
    Interactions,
    Neighbours,
    Overview,
    Quality,
    Series,
    Stream,
)
from serving.http.openapi import errors
from serving.http.schemas import Count, Id

Shape = dict[str, Any]
Route = TypeVar("Route", bound=Callable[..., Response])
Names = Annotated[str, Query(max_length=1_000, description="Names, with commas between.")]
Window = Annotated[float, Query(gt=0, le=86_400, description="How far back, in seconds.")]
After = Annotated[int, Query(ge=0, le=2**53, description="`next` of the last answer.")]
RunbookName = Annotated[str, PathField(pattern="^[a-z0-9-]{1,80}$")]

WEB = Path(__file__).parents[1] / "web"
# A browser asks for these before anybody could type a key; they say nothing of the system.
PAGE_FILES = ("/dashboard", *(f"/web/{file.name}" for file in sorted(WEB.glob("dashboard*"))))
# Beside the source, and in images built of it; an installed package has none.
_RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"
_NO_MONITOR = (
    "this process watches nobody but itself: ask the address of `headrace run`, which watches all"
    " of them (unless its recipe says monitor.enabled = false)"
)


class Monitor(Protocol):
    """What watches a running system; each method gives plain values in the shape of
    `serving.http.monitor_schemas`, quickly, and may be called from several threads.
    """

    def overview(self) -> Shape:
        """`Overview`: what stands now."""

    def series(self, names: Sequence[str], window_s: float) -> Shape:
        """`Series`: these of the declared ones (unknown names are left out; none for no names),
        and always all that are declared.
        """

    def stream(self, after: int) -> Shape:
        """`Stream`: what happened after the step `after`, oldest first."""

    def neighbours(self, item_id: str) -> Shape | None:
        """`Neighbours`; None if the model does not know the item."""

    def interactions(self, user_id: str) -> Shape | None:
        """`Interactions`; None if nothing is known of the user."""

    def quality(self) -> Shape:
        """`Quality`: what was served, judged by the labels that came."""

    def drift(self) -> Shape:
        """`Drift`."""

    def gate(self) -> Shape:
        """`GateNow`; its history newest first."""

    def dead_letters(self, limit: int) -> Shape:
        """`DeadLetters`: the newest, newest first."""


def show_dashboard(app: FastAPI, monitor: Monitor | None, page_policy: str) -> None:
    """Adds the page at /dashboard and the routes below /v1/monitor.

    Without a monitor these answer 404 and say where one is; the page shows that sentence.
    """
    page_headers = {"Content-Security-Policy": page_policy}

    @app.get("/dashboard", include_in_schema=False)
    def dashboard() -> FileResponse:
        return FileResponse(WEB / "dashboard.html", headers=page_headers)

    @app.get("/dashboard/runbooks/{name}", include_in_schema=False)
    def runbook(name: RunbookName) -> Response:
        file = _RUNBOOKS / f"{name}.md"
        if not file.is_file():
            return _not_found(
                f"the runbook {name} is not installed here: it is docs/runbooks/{name}.md of the"
                " source"
            )
        return Response(file.read_text(), media_type="text/markdown; charset=utf-8")

    def told(ask: Callable[[Monitor], Shape | None], nothing: str = "") -> Response:
        if monitor is None:
            return _not_found(_NO_MONITOR)
        found = ask(monitor)
        return _not_found(nothing) if found is None else _json(found)

    def route(path: str, model: type[BaseModel], name: str) -> Callable[[Route], Route]:
        return app.get(
            f"/v1/monitor{path}", response_model=model, responses=errors(404, 422, 429, 503),
            operation_id=name,
        )  # fmt: skip

    @route("", Overview, "monitor")
    def overview() -> Response:
        """What stands now: alerts, freshness, processes, versions, the figures of each floor."""
        return told(lambda watching: watching.overview())

    @route("/series", Series, "monitor_series")
    def series(names: Names = "", window_s: Window = 3_600.0) -> Response:
        """Figures over time; all of them are declared in every answer."""
        wanted = [name for name in names.split(",") if name]
        return told(lambda watching: watching.series(wanted, window_s))

    @route("/stream", Stream, "monitor_stream")
    def stream(after: After = 0) -> Response:
        """Events becoming answers, the newest few hundred steps of it."""
        return told(lambda watching: watching.stream(after))

    @route("/neighbours", Neighbours, "monitor_neighbours")
    def neighbours(item_id: Id) -> Response:
        """The items nearest to an item in the model's space, now and an hour ago."""
        nothing = f"the served model does not know the item {item_id!r}: nothing was learnt of it"
        return told(lambda watching: watching.neighbours(item_id), nothing)

    @route("/interactions", Interactions, "monitor_interactions")
    def interactions(user_id: Id) -> Response:
        """How the items of a user's history bear on those of the answer."""
        nothing = f"nothing is known of the user {user_id!r}: no event names that id yet"
        return told(lambda watching: watching.interactions(user_id), nothing)

    @route("/quality", Quality, "monitor_quality")
    def quality() -> Response:
        """What was really served, judged by the labels that came."""
        return told(lambda watching: watching.quality())

    @route("/drift", Drift, "monitor_drift")
    def drift() -> Response:
        """How far what is learnt has moved from what it was."""
        return told(lambda watching: watching.drift())

    @route("/gate", GateNow, "monitor_gate")
    def gate() -> Response:
        """Whether a version is held back, why, and what was decided before."""
        return told(lambda watching: watching.gate())

    @route("/dead-letters", DeadLetters, "monitor_dead_letters")
    def dead_letters(limit: Count = 50) -> Response:
        """The newest events that were refused, each with its reason."""
        return told(lambda watching: watching.dead_letters(limit))


def _json(shown: Shape, status: int = 200) -> Response:
    return Response(encoded(shown), status, media_type="application/json")


def _not_found(sentence: str) -> Response:
    return _json({"error": sentence}, 404)
