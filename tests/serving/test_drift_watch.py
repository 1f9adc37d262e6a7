"""What of samples is watched for drift, new ids, and the rates of labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks._samples import as_joined
from features.definitions import SAMPLE_FEATURES
from serving.drift import DriftConfig
from serving.drift_watch import DriftWatch, columns
from serving.sample_watch import Joined
from streaming.metrics import Metrics, parse
from streaming.samples import sample_schema

SCHEMA = sample_schema(["click"], pa.schema(SAMPLE_FEATURES))
CONFIG = DriftConfig(
    rows_per_s=1_000_000, first=500, reference=20_000, now=1_000, enough=2_000, look_every=200
)


class Clock:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def samples(rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> Joined:
    whole = {"user_id": 1, "item_id": 2, "at": 10_000_000, "kind": "impression", "logged_us": 0}
    return as_joined(pa.RecordBatch.from_pylist([{**whole, **row} for row in rows], schema=schema))


def usual(rng: np.random.Generator, count: int, **changes: Any) -> Joined:
    rows = []
    for _ in range(count):
        length = int(rng.integers(0, 5))
        rows.append(
            {
                "user_id": int(rng.integers(50)),
                "item_id": int(rng.integers(50)),
                "scenario": str(rng.choice(["home", "cart"])),
                "position": int(rng.integers(10)),
                "history": rng.integers(0, 9, length).tolist(),
                "history_rewards": [1.0] * length,
                "history_at_us": rng.integers(1, 10_000_000, length).tolist(),
                "served_score": float(rng.random()),
                "label_click": float(rng.random() < 0.2),
                "negative_rate": 1.0,
            }
            | {name: make(rng) for name, make in changes.items()}
        )
    return samples(rows)


def test_columns_are_told_as_numbers_and_values() -> None:
    rows = samples(
        [
            {"history": [7, 8], "history_rewards": [0.5, 1.0], "history_at_us": [1, 4_000_000],
             "history_kinds": [2, 3], "position": 4, "scenario": "home", "label_click": 1.0},
            {"history": [], "served_score": 0.25, "reward": 0.5},
            {"history": None, "history_rewards": None, "served_score": float("nan")},
        ]
    )  # fmt: skip
    found = {name: (kind, values.tolist()) for name, kind, values in columns(rows.rows)}
    nan = pytest.approx(np.nan, nan_ok=True)
    assert found["history.length"] == ("number", [2.0, 0.0, 0.0])
    assert found["history"] == ("value", [8, -1, -1])
    assert found["history_kinds"] == ("value", [3, -1, -1])
    assert found["history_rewards"] == ("number", [1.0, nan, nan])
    assert found["history_age_s"] == ("number", [6.0, nan, nan])
    assert found["position"] == ("value", [4, -1, -1])
    assert found["served_score"] == ("number", [nan, 0.25, nan])
    assert found["reward"] == ("number", [nan, 0.5, nan])
    assert found["label_click"] == ("number", [1.0])
    assert found["scenario"][0] == "value"
    assert found["scenario"][1][1:] == [-1, -1]
    sliced = {name: values.tolist() for name, _, values in columns(rows.rows.slice(1))}
    assert sliced["history"] == [-1, -1]


def test_one_skewed_feature_drifts_and_no_other(metrics: Metrics, clock: Clock) -> None:
    watch, rng = DriftWatch(CONFIG, metrics, clock), np.random.default_rng(0)
    for _ in range(25):
        watch.take(usual(rng, 250))
    assert not [f for f in watch.figures()["features"] if f["active"]]
    clock.now_s += 5
    for _ in range(7):
        watch.take(usual(rng, 250, served_score=lambda rng: float(rng.random() ** 8)))
    drifting = [f for f in watch.figures()["features"] if f["active"]]
    assert [(f["feature"], f["since"]) for f in drifting] == [("served_score", clock.now_s)]
    clock.now_s += 5
    watch.take(usual(rng, 10))
    told = {(s.name, *s.labels.values()): s.value for s in parse(metrics.exposition()[0].decode())}
    assert told["headrace_drift_active", "served_score"] == 1
    assert told["headrace_drift_active", "history.length"] == 0
    assert told["headrace_drift_psi", "served_score"] > 0.25


def test_a_label_that_turns_drifts_and_its_rate_is_told(metrics: Metrics, clock: Clock) -> None:
    watch, rng = DriftWatch(CONFIG, metrics, clock), np.random.default_rng(0)
    for _ in range(25):
        watch.take(usual(rng, 250))
        clock.now_s += 5
    assert watch.figures()["label_rates"]["click"] == pytest.approx(0.2, abs=0.03)
    for _ in range(12):
        watch.take(usual(rng, 250, label_click=lambda rng: float(rng.random() < 0.8)))
        clock.now_s += 30
    assert watch.figures()["label_rates"]["click"] == pytest.approx(0.8, abs=0.05)
    assert [f["feature"] for f in watch.figures()["features"] if f["active"]] == ["label_click"]


def test_negatives_count_for_all_that_they_stand_for(metrics: Metrics, clock: Clock) -> None:
    watch = DriftWatch(CONFIG, metrics, clock)
    watch.take(samples([{"label_click": y, "negative_rate": 0.25} for y in (1.0, 0.0)]))
    assert watch.figures()["label_rates"] == {"click": pytest.approx(0.2)}


def test_new_ids_are_counted_once_a_minute(metrics: Metrics, clock: Clock) -> None:
    watch = DriftWatch(CONFIG, metrics, clock)
    next_user = 0
    for _ in range(300):  # two new users a second, the items are ever the same
        clock.now_s += 1
        users = [next_user, next_user + 1, 0]
        next_user += 2
        watch.take(samples([{"user_id": user} for user in users]))
    assert watch.figures()["new_ids"] == {
        "user": pytest.approx(120, rel=0.03),
        "item": pytest.approx(0, abs=1),
    }


def test_of_a_quick_stream_some_samples_are_looked_at(metrics: Metrics, clock: Clock) -> None:
    watch = DriftWatch(DriftConfig(rows_per_s=100, first=150), metrics, clock)
    rng = np.random.default_rng(0)
    watch.take(usual(rng, 1_000))
    assert not watch.figures()["features"][0]["edges"]  # 100 are too few
    watch.take(usual(rng, 1_000))  # at the same moment
    assert not watch.figures()["features"][0]["edges"]
    clock.now_s += 1
    watch.take(usual(rng, 1_000))
    assert watch.figures()["features"][0]["edges"]


def test_what_is_odd_ends_nothing(metrics: Metrics, clock: Clock) -> None:
    watch = DriftWatch(CONFIG, metrics, clock)
    bare = sample_schema([])
    watch.take(samples([]))
    watch.take(samples([{"user_id": None}]))  # declares an item
    watch.take(samples([{}], schema=bare))
    other = sample_schema(["buy"], pa.schema([pa.field("price", pa.float64())]))
    watch.take(samples([{"price": float("inf")}, {"price": None}], schema=other))
    watch.take(samples([{"served_score": float("nan"), "label_click": None}] * 5_000))
    names = {f["feature"] for f in watch.figures()["features"]}
    assert {"price", "scenario", "history.length"} <= names
    assert DriftWatch(DriftConfig(enabled=False), Metrics(), clock).patience_s() is None
