"""The routes of the dashboard: what they pass on, what they refuse, what they say of themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from starlette.types import ASGIApp

from benchmarks._monitor import HELD, SERIES, StillMonitor
from features.catalog import Catalog
from serving.http import monitor_schemas
from serving.http.api import ApiConfig, ApiKey, Service, create_app
from serving.http.dashboard import PAGE_FILES
from serving.metrics import ServingMetrics
from serving.recommender import OnlineFeatures, Recommender
from serving.replica import Replica
from streaming.events import EventRules
from streaming.file_log import FileLog
from streaming.metrics import Metrics

Connect = Callable[[ASGIApp], httpx.Client]
MODELS: dict[str, type[BaseModel]] = {
    "": monitor_schemas.Overview,
    "/series?names=loss,events_per_s": monitor_schemas.Series,
    "/stream": monitor_schemas.Stream,
    "/neighbours?item_id=318": monitor_schemas.Neighbours,
    "/interactions?user_id=ada": monitor_schemas.Interactions,
    "/quality": monitor_schemas.Quality,
    "/drift": monitor_schemas.Drift,
    "/gate": monitor_schemas.GateNow,
    "/dead-letters": monitor_schemas.DeadLetters,
}


@pytest.fixture
def monitor() -> StillMonitor:
    return StillMonitor(alerts=[HELD])


@pytest.fixture
def service(
    log: FileLog, catalog: Catalog, online_features: OnlineFeatures, monitor: StillMonitor
) -> Service:
    return Service(
        log=log,
        rules=EventRules(),
        recommender=Recommender(Replica(), catalog, online_features),
        catalog=catalog,
        metrics=ServingMetrics(Metrics()),
        status=dict,
        not_ready=lambda: None,
        monitor=monitor,
    )


@pytest.fixture
def client(service: Service, connect: Connect) -> Iterator[httpx.Client]:
    with connect(create_app(service, ApiConfig())) as made:
        yield made


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("path", MODELS)
def test_answers_have_the_shape_that_is_described(
    client: httpx.Client, monitor: StillMonitor, path: str, empty: bool
) -> None:
    monitor.empty = empty
    response = client.get(f"/v1/monitor{path}")
    assert response.status_code == 200, response.text
    found = MODELS[path].model_validate_json(response.content, strict=True)
    beside = response.json().keys() - found.model_dump().keys()
    assert beside == set()


def test_what_is_not_finite_is_null(client: httpx.Client, monitor: StillMonitor) -> None:
    loss = client.get("/v1/monitor/series?names=loss").json()["series"]["loss"]
    assert loss[40] is None
    assert sum(value is None for value in loss) == 1
    monitor.empty = True
    assert client.get("/v1/monitor").json()["freshness"][0]["p50_s"] is None


def test_only_what_is_asked_for_comes_and_all_is_declared(client: httpx.Client) -> None:
    found = client.get("/v1/monitor/series?names=ctr,,no_such&window_s=60").json()
    assert list(found["series"]) == ["ctr"]
    assert len(found["t"]) == len(found["series"]["ctr"]) == 30
    assert {one["name"] for one in found["declared"]} == set(SERIES)
    assert client.get("/v1/monitor/series").json()["series"] == {}


def test_steps_come_after_those_that_are_known(client: httpx.Client) -> None:
    found = client.get("/v1/monitor/stream?after=57").json()
    assert [step["seq"] for step in found["steps"]] == [58, 59, 60]
    assert found["next"] == 60


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/neighbours?item_id=no/such", "the served model does not know the item 'no/such'"),
        ("/interactions?user_id=nobody", "nothing is known of the user 'nobody'"),
    ],
)
def test_what_is_not_known_is_said(client: httpx.Client, path: str, sentence: str) -> None:
    response = client.get(f"/v1/monitor{path}")
    assert response.status_code == 404
    assert response.json()["error"].startswith(sentence)


@pytest.mark.parametrize(
    "path",
    ["/neighbours", "/neighbours?item_id=", "/interactions", "/series?window_s=0",
     "/series?window_s=nan", "/stream?after=-1", "/stream?after=x", "/dead-letters?limit=0",
     f"/series?names={'x' * 1_001}"],
)  # fmt: skip
def test_what_does_not_fit_is_refused(client: httpx.Client, path: str) -> None:
    assert client.get(f"/v1/monitor{path}").status_code == 422


@pytest.mark.parametrize("path", MODELS)
def test_a_process_without_a_monitor_says_where_one_is(
    service: Service, connect: Connect, path: str
) -> None:
    with connect(create_app(replace(service, monitor=None), ApiConfig())) as client:
        response = client.get(f"/v1/monitor{path}")
        assert response.status_code == 404
        assert "`headrace run`" in response.json()["error"]
        assert client.get("/dashboard").status_code == 200


def test_the_page_needs_no_key_and_what_it_shows_does(service: Service, connect: Connect) -> None:
    keys = {"ops": ApiKey(hashlib.sha256(b"right").hexdigest(), "read")}
    with connect(create_app(service, ApiConfig(api_keys=keys, open_paths=()))) as client:
        for path in PAGE_FILES:
            assert client.get(path).status_code == 200, path
        assert client.get("/web/playground.js").status_code == 401
        for path in MODELS:
            assert client.get(f"/v1/monitor{path}").status_code == 401
            allowed = client.get(f"/v1/monitor{path}", headers={"X-Api-Key": "right"})
            assert allowed.status_code == 200


def test_the_page_runs_its_own_files_only(client: httpx.Client) -> None:
    page = client.get("/dashboard")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    files = {path: client.get(path).text for path in PAGE_FILES}
    assert {"/dashboard", "/web/dashboard.css", "/web/dashboard.js"} <= files.keys()
    for path, text in files.items():
        without_names = text.replace("http://www.w3.org/2000/svg", "")
        assert "//cdn" not in without_names
        assert 'src="http' not in without_names, path
        assert "innerHTML" not in text, path
        assert "<style" not in text, path


def test_the_routes_describe_themselves(client: httpx.Client) -> None:
    found = client.get("/openapi.json").json()
    for path, model in MODELS.items():
        told: dict[str, Any] = found["paths"][f"/v1/monitor{path.split('?')[0]}"]["get"]
        shown = told["responses"]["200"]["content"]["application/json"]["schema"]
        assert shown["$ref"].endswith(f"/{model.__name__}")
        assert "404" in told["responses"]


def test_a_runbook_is_shown_or_it_is_said_where_it_is(client: httpx.Client) -> None:
    missing = client.get("/dashboard/runbooks/no-such-page")
    assert missing.status_code == 404
    assert "docs/runbooks/no-such-page.md" in missing.json()["error"]
    assert client.get("/dashboard/runbooks/..%2f..%2fREADME").status_code in (404, 422)
    assert client.get("/dashboard/runbooks/README.md").status_code == 422
