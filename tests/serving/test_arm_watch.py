"""The arm watch: labels by the arm of the user, impressions that were left out counted again."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from serving.arm_watch import ArmWatch
from serving.experiments import Arm, Experiment, arm_of
from serving.metrics import ServingMetrics
from streaming.samples import sample_schema

SCHEMA = sample_schema(["click", "watch"])
EXPERIMENT = Experiment({"a": Arm(), "b": Arm()})


def user_in(arm: str) -> int:
    return next(user for user in range(1_000) if arm_of("titles", EXPERIMENT, user) == arm)


def samples(*rows: dict[str, Any]) -> pa.RecordBatch:
    whole = {
        "item_id": 1, "at": 0, "kind": "impression", "logged_us": 0,
        "request_id": 7, "negative_rate": 0.25,
    }  # fmt: skip
    return pa.RecordBatch.from_pylist([{**whole, **row} for row in rows], schema=SCHEMA)


@pytest.fixture
def metrics() -> ServingMetrics:
    return ServingMetrics()


def test_labels_are_counted_in_the_arm_of_their_user(metrics: ServingMetrics) -> None:
    watch = ArmWatch({"titles": EXPERIMENT}, metrics)
    assert watch.is_waiting()
    a, b = user_in("a"), user_in("b")
    watch.take(
        samples(
            {"user_id": a, "label_click": 1.0},
            {"user_id": a, "label_click": 0.0},  # stands for four
            {"user_id": a, "label_watch": 0.5},
            {"user_id": b, "label_click": 0.0},
            {"user_id": b, "label_click": 1.0, "request_id": None},  # nobody was answered
            {"user_id": b, "label_click": 1.0, "negative_rate": None},  # it was not shown
        )
    )
    watch.take(samples({"user_id": b, "label_click": 1.0}))
    assert watch.figures() == {
        "titles": {
            "a": {"click": {"known": 5.0, "mean": 0.2}, "watch": {"known": 1.0, "mean": 0.5}},
            "b": {"click": {"known": 5.0, "mean": 0.2}},
        }
    }
    labels = {"experiment": "titles", "arm": "a", "label": "watch"}
    value = metrics.registry.get_sample_value
    assert value("headrace_arm_label_total", labels) == 0.5
    assert value("headrace_arm_label_known_total", labels) == 1.0


def test_only_answers_of_the_experiments_scenarios_count(metrics: ServingMetrics) -> None:
    at_home = Experiment(EXPERIMENT.arms, scenarios=("home",))
    watch = ArmWatch({"titles": at_home}, metrics)
    for scenario in ("home", "cart", None):
        watch.take(samples({"user_id": user_in("a"), "label_click": 1.0, "scenario": scenario}))
    assert watch.figures()["titles"]["a"]["click"]["known"] == 1.0


def test_without_experiments_nobody_waits_for_samples(metrics: ServingMetrics) -> None:
    assert not ArmWatch({}, metrics).is_waiting()
