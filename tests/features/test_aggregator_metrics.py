"""What the aggregator tells, of a real store."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

from features.aggregator import Aggregator, AggregatorConfig
from features.aggregator_metrics import AggregatorMetrics
from features.behaviour import BehaviourConfig
from features.store import FeastStore
from streaming.events import EventRules
from streaming.file_log import FileLog
from streaming.log import EVENTS, Append
from streaming.loop import Loop
from streaming.metrics import Metrics, parse


def test_it_tells_of_rows_and_of_how_soon_they_are_answered(tmp_path: Path) -> None:
    store, metrics = FeastStore(tmp_path / "features"), Metrics()
    store.apply()
    with closing(FileLog(tmp_path / "log.db")) as log:
        loop = Loop(
            log, "aggregator", [EVENTS],
            lambda state: Aggregator(AggregatorConfig(), EventRules(), BehaviourConfig(), state),
            tmp_path / "cuts", execute=store.push, observer=AggregatorMetrics(metrics),
        )  # fmt: skip
        events = [{"kind": "like", "user_id": user, "item_id": "i"} for user in "uvw"]
        log.append([Append(EVENTS, json.dumps(event).encode()) for event in events])
        assert loop.turn() == 3
        assert loop.turn() == 0
    samples = parse(metrics.exposition()[0].decode())
    told = {(one.name, *one.labels.values()): one.value for one in samples}
    assert told["headrace_features_rows_total", "user_history"] == 3
    assert told["headrace_features_rows_total", "item_statistics"] == 1
    assert told["headrace_features_push_seconds_count",] == 1
    assert told["headrace_freshness_seconds_count", "stored"] == 3
    assert told["headrace_features_age_seconds_count", "user_history"] == 1
    pushed_s = told["headrace_features_push_seconds_sum",]
    assert pushed_s < told["headrace_features_age_seconds_sum", "user_history"] < 60
