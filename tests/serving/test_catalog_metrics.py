"""What the catalog refused, as Prometheus is told of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx
from starlette.types import ASGIApp

from features.aggregator import AggregatorConfig
from features.attributes import AttributesConfig
from features.behaviour import BehaviourConfig
from features.catalog import Catalog, CatalogConfig
from serving.http.api import ApiConfig, Service, create_app
from serving.metrics import ServingMetrics
from serving.recommender import OnlineFeatures, Recommender
from serving.replica import Replica
from streaming.events import EventRules
from streaming.file_log import FileLog
from streaming.log import EVENTS, Record
from streaming.metrics import Metrics

NOW_US = 1_700_000_000_000_000
METRIC = "headrace_catalog_values_refused"


def told(events: Sequence[dict[str, Any]]) -> list[Record]:
    return [
        Record(EVENTS, 0, n, None, json.dumps(event).encode(), NOW_US)
        for n, event in enumerate(events)
    ]


def test_refused_values_are_counted_by_entity(
    log: FileLog, online_features: OnlineFeatures, connect: Callable[[ASGIApp], httpx.Client]
) -> None:
    config = CatalogConfig(items=AttributesConfig(fields=2))
    catalog = Catalog(EventRules(), BehaviourConfig(), AggregatorConfig(), None, config)
    metrics = ServingMetrics(Metrics())
    service = Service(
        log, EventRules(), Recommender(Replica(), catalog, online_features), catalog, metrics,
        dict, lambda: None,
    )  # fmt: skip

    def refused(client: httpx.Client) -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        found = (line.split(" ") for line in lines if line.startswith(METRIC))
        return {name: float(value) for name, value in found}

    items, users = f'{METRIC}{{entity="item"}}', f'{METRIC}{{entity="user"}}'
    with connect(create_app(service, ApiConfig())) as client:
        assert refused(client) == {items: 0, users: 0}
        catalog.on_batch(
            told(
                [
                    {"kind": "item", "item_id": "i1", "attributes": {"year": 1999, "genre": "a"}},
                    {"kind": "item", "item_id": "i2", "attributes": {"year": "old", "more": 1}},
                    {"kind": "item", "item_id": "i3", "attributes": {"year": "new"}},
                    {"kind": "user", "user_id": "u1", "attributes": {"age": 40}},
                    {"kind": "user", "user_id": "u2", "attributes": {"age": "young"}},
                ]
            )
        )
        assert refused(client) == {items: 3, users: 1}
