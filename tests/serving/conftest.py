"""Builders that the serving tests share: versions, a catalog, features in memory, a client."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from features.aggregator import AggregatorConfig
from features.behaviour import BehaviourConfig
from features.catalog import Catalog
from features.definitions import View
from serving.http.api_config import ApiConfig
from serving.http.connections import guarded
from serving.recommender import OnlineFeatures, RecommendConfig
from streaming.events import EventRules, encode_event, parse_event
from streaming.file_log import FileLog
from streaming.ids import stable_id, stable_ids
from streaming.log import EVENTS, Record
from trainers.arrays import matrix_column, tensors_table
from trainers.models import create
from trainers.versions import Version, VersionInfo

OPTIONS = {"width": 4, "hidden": 4}
TABLES = ("user", "item", "token")
NOW_US = 1_700_000_000_000_000
Rows = dict[tuple[str, int], dict[str, Any]]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


# Versions


@pytest.fixture(scope="session")
def constant_version() -> Callable[..., Version]:
    """A version whose every number is `value`: rows and vectors of `ids`, and all of the dense."""

    def make(
        number: int,
        lineage: str = "a",
        *,
        snapshot: bool = False,
        watermark_us: int | None = None,
        ids: Sequence[int] = (1, 2, 3),
        value: float | None = None,
    ) -> Version:
        filled = float(number if value is None else value)
        matrix = np.full((len(ids), OPTIONS["width"]), filled, np.float32)
        state = create("two_tower", OPTIONS).state_dict()
        return Version(
            _info(number, lineage, snapshot, number if watermark_us is None else watermark_us),
            {
                **{f"table-{name}": _rows(ids, matrix) for name in TABLES},
                "vectors": _rows(ids, matrix),
                "dense": tensors_table({k: torch.full_like(v, filled) for k, v in state.items()}),
            },
        )

    return make


@pytest.fixture(scope="session")
def random_version() -> Callable[..., Version]:
    """A snapshot of a model with random weights, and a random unit vector for each of `ids`."""

    def make(ids: Sequence[int], number: int = 0, seed: int = 0) -> Version:
        rng = np.random.default_rng(seed)
        model = create("two_tower", {**OPTIONS, "seed": seed})
        vectors = rng.normal(size=(len(ids), OPTIONS["width"])).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rows = rng.normal(size=(len(ids), OPTIONS["width"])).astype(np.float32)
        none = np.empty((0, OPTIONS["width"]), np.float32)
        return Version(
            _info(number, "a", True, NOW_US),
            {
                "table-user": _rows([], none),
                "table-item": _rows(ids, rows),
                "table-token": _rows([], none),
                "vectors": _rows(ids, vectors),
                "dense": tensors_table(model.state_dict()),
            },
        )

    return make


def _info(number: int, lineage: str, snapshot: bool, watermark_us: int | None) -> VersionInfo:
    return VersionInfo(
        model="two_tower",
        lineage=lineage,
        number=number,
        base=None if snapshot else number - 1,
        watermark_us=watermark_us,
        learnt_logged_us=NOW_US,
        step=number,
        options=dict(OPTIONS),
        metrics={"recall@10": 0.5},
    )


def _rows(ids: Sequence[int], matrix: np.ndarray[Any, np.dtype[np.float32]]) -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.int64()), "row": matrix_column(matrix)})


# What else the recommender stands on


@pytest.fixture(scope="session")
def item_names() -> list[str]:
    """The 30 items of the catalog, the most popular first; from the tenth on none was liked."""
    return [f"i{number}" for number in range(30)]


@pytest.fixture(scope="session")
def item_ids(item_names: list[str]) -> list[int]:
    return [int(i) for i in stable_ids(item_names)]


@pytest.fixture(scope="session")
def catalog(item_names: list[str]) -> Catalog:
    """30 items, of which the first ten were liked, the first one most often."""
    events: list[dict[str, Any]] = [
        {"kind": "item", "item_id": name, "attributes": {"title": f"Title {name}", "year": 1999}}
        for name in item_names
    ]
    for place, name in enumerate(item_names[:10]):
        events += [
            {"kind": "like", "user_id": f"fan{fan}", "item_id": name} for fan in range(10 - place)
        ]
    rules = EventRules()
    records = []
    for offset, event in enumerate(events):
        append = encode_event(parse_event(json.dumps(event).encode(), rules, NOW_US))
        records.append(Record(EVENTS, 0, offset, append.key, append.value, NOW_US))
    filled = Catalog(rules, BehaviourConfig(), AggregatorConfig())
    filled.on_batch(records)
    return filled


class MemoryFeatures:
    """`OnlineFeatures` over a dictionary from view and key to features."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    is_local = True

    def read(self, view: View, keys: Sequence[int]) -> list[dict[str, Any]]:
        return [{**view.defaults, **self._rows.get((view.name, key), {})} for key in keys]


@pytest.fixture
def feature_rows() -> Rows:
    return {}


@pytest.fixture
def online_features(feature_rows: Rows) -> OnlineFeatures:
    return MemoryFeatures(feature_rows)


@pytest.fixture
def know(feature_rows: Rows) -> Callable[..., None]:
    """Gives a user a history of items that all pleased."""

    def remember(user: str, items: Sequence[str], newest_us: int = NOW_US) -> None:
        feature_rows["user_history", stable_id(user)] = {
            "items": stable_ids(items).tolist(),
            "rewards": [1.0] * len(items),
            "kinds": [1] * len(items),
            "at_us": [newest_us] * len(items),
            "scenarios": [-1] * len(items),
            "sessions": [-1] * len(items),
            "values": [float("nan")] * len(items),
            "newest_us": newest_us,
        }

    return remember


# The log and the client


@pytest.fixture
def log(tmp_path: Path) -> Iterator[FileLog]:
    opened = FileLog(tmp_path / "log.db")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def patient() -> Callable[..., RecommendConfig]:
    """How answers are made where nothing may be late because the machine is busy."""

    def make(**changes: Any) -> RecommendConfig:
        hour_ms = 3.6e6
        return RecommendConfig(
            within_ms=hour_ms,
            features_within_ms=hour_ms,
            source_within_ms=hour_ms,
            ranker_within_ms=hour_ms,
            **changes,
        )

    return make


class AsgiTransport(httpx.BaseTransport):
    """Lets a plain `httpx.Client` talk to an ASGI application, in one event loop of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._transport = httpx.ASGITransport(app)
        self._runner = asyncio.Runner()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        return self._runner.run(self._answer(request))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        response = await self._transport.handle_async_request(request)
        body = await response.aread()
        return httpx.Response(response.status_code, headers=response.headers, content=body)

    def close(self) -> None:
        self._runner.close()


@pytest.fixture(scope="session")
def connect() -> Callable[[ASGIApp], httpx.Client]:
    """A client of an application; an exception inside the application comes through."""

    def make(app: ASGIApp) -> httpx.Client:
        return httpx.Client(transport=AsgiTransport(app), base_url="http://headrace.test")

    return make


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[int]]:
    """Runs an application on a port of its own, as the service does; gives the port."""

    @contextmanager
    def run(app: ASGIApp, config: ApiConfig | None = None) -> Iterator[int]:
        protocol = guarded(HttpToolsProtocol, config or ApiConfig())
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            quiet: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off"}
            server = uvicorn.Server(uvicorn.Config(app, http=protocol, **quiet))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            while not server.started:
                time.sleep(0.01)
            try:
                yield int(listening.getsockname()[1])
            finally:
                server.should_exit = True
                thread.join()

    return run
