"""What was served meets its labels: in every slice, each impression once."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks._samples import as_joined
from features.behaviour import Behaviour, BehaviourConfig
from serving.experiments import Arm, Experiment, arm_of
from serving.sample_watch import PATIENCE_S, Joined
from serving.served_watch import QualityConfig, ServedWatch
from streaming.events import EventRules, encode_event, parse_event
from streaming.ids import stable_id
from streaming.impressions import ImpressionsConfig, Label
from streaming.joiner import Joiner, JoinerConfig
from streaming.log import EVENTS, SAMPLES, Record
from streaming.metrics import Metrics, parse
from streaming.samples import sample_schema
from trainers.versions import Version

LABELS = {"click": Label(600), "watch": Label(3_600, after="click", graded=True)}
SCHEMA = sample_schema(LABELS)
NOW_US = 1_700_000_000_000_000
EXPERIMENT = Experiment({"a": Arm(), "b": Arm()})


def user_in(arm: str) -> int:
    return next(user for user in range(1_000) if arm_of("titles", EXPERIMENT, user) == arm)


def samples(*rows: dict[str, Any], schema: pa.Schema = SCHEMA) -> Joined:
    """Samples; one is of a window that has ended if its click is 0."""
    made = [
        {
            "user_id": 1, "item_id": number, "at": 0, "logged_us": 0, "request_id": 7,
            "kind": "click" if row.get("label_click", row.get("label_watch")) else "impression",
            "negative_rate": 0.25, "served_score": 0.2,
            **row,
        }
        for number, row in enumerate(rows)
    ]  # fmt: skip
    return as_joined(pa.RecordBatch.from_pylist(made, schema=schema))


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(metrics: Metrics, clock: Clock) -> ServedWatch:
    config = QualityConfig(generation=10, generations=2)
    return ServedWatch(LABELS, {"titles": EXPERIMENT}, config, metrics, clock)


def told(watch: ServedWatch) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(row["slice"], row["of"], row["label"]): row for row in watch.figures()}


def test_an_impression_counts_in_all_slices_it_is_in(
    watch: ServedWatch, constant_version: Callable[..., Version]
) -> None:
    info = constant_version(12).info
    watch.know(info)
    of_it = {"served_version": stable_id(info.name)}
    watch.take(
        samples(
            {"user_id": user_in("a"), "position": 0, "scenario": "home", "label_click": 1.0},
            {"user_id": user_in("a"), "position": 12, "scenario": "home", "label_click": 0.0},
            {"user_id": user_in("b"), "position": 3, "label_click": 0.0, **of_it},
            {"label_click": 1.0, "request_id": None},  # nobody was answered
            {"label_click": 1.0, "negative_rate": None},  # it was not shown
            {"position": 3, "user_id": user_in("b")},  # nothing is known yet
        )
    )
    known = {key: row["known"] for key, row in told(watch).items()}
    assert known == pytest.approx(
        {
            ("all", "", "click"): 9.0,  # a negative stands for four
            ("position", "0", "click"): 1.0,
            ("position", "3", "click"): 4.0,
            ("position", "10+", "click"): 4.0,
            ("scenario", "home", "click"): 5.0,
            ("scenario", "other", "click"): 4.0,
            ("arm", "titles/a", "click"): 5.0,
            ("arm", "titles/b", "click"): 4.0,
            ("version", "two_tower/a/10", "click"): 4.0,
        },
        rel=1e-3,  # what is a little older has faded a little
    )
    everything = told(watch)["all", "", "click"]
    assert everything["ctr"]["value"] == pytest.approx(1 / 9, rel=1e-3)
    assert everything["calibration"]["value"] == pytest.approx(0.2 * 9, rel=1e-3)
    assert everything["auc"]["value"] == pytest.approx(0.5)
    assert everything["ctr"]["low"] < 1 / 9 < everything["ctr"]["high"]


def test_generations_take_the_places_of_the_oldest(
    watch: ServedWatch, constant_version: Callable[..., Version]
) -> None:
    infos = [constant_version(number).info for number in (5, 9, 15, 25)]
    for info in infos[:3]:
        watch.know(info)
    for info in infos:
        name = {"served_version": stable_id(info.name)}
        watch.take(samples({"label_click": 0.0, **name}))
    versions = {of: row["known"] for (kind, of, _), row in told(watch).items() if kind == "version"}
    assert versions == pytest.approx({"two_tower/a/0": 8.0, "two_tower/a/10": 4.0}, rel=1e-3)
    watch.know(infos[3])  # whose impressions were not known of
    versions = {of: row["known"] for (kind, of, _), row in told(watch).items() if kind == "version"}
    assert versions == pytest.approx({"two_tower/a/10": 4.0}, rel=1e-3)
    watch.take(samples({"label_click": 0.0, "served_version": stable_id(infos[0].name)}))
    assert ("version", "two_tower/a/0", "click") not in told(watch)


def test_a_graded_label_has_a_mean_and_nothing_else(watch: ServedWatch) -> None:
    half = {"label_watch": 0.5, "at": 1}
    watch.take(samples(half, {"label_watch": 0.0, "at": 2}))
    row = told(watch)["all", "", "watch"]
    assert row["ctr"]["value"] == pytest.approx(0.1, rel=1e-3)
    assert row["auc"] is row["normalised_entropy"] is row["calibration"] is row["coec"] is None


def test_the_experiments_count_what_has_no_score_too(metrics: Metrics) -> None:
    watch = ServedWatch(LABELS, {"titles": EXPERIMENT}, QualityConfig(enabled=False), metrics)
    assert watch.patience_s() == PATIENCE_S
    a, b, no = user_in("a"), user_in("b"), {"served_score": None}
    watch.take(
        samples(
            {"user_id": a, "label_click": 1.0, **no},
            {"user_id": a, "label_click": 0.0, **no},  # stands for four
            {"user_id": a, "label_watch": 0.5, **no},
            {"user_id": b, "label_click": 0.0, **no},
            {"user_id": b, "label_click": 0.0, "kind": "impression", "request_id": None},
        )
    )
    assert watch.experiments()["titles"] == {
        "a": {"click": {"known": 5.0, "mean": 0.2}},  # no window of `watch` has ended yet
        "b": {"click": {"known": 4.0, "mean": 0.0}},
    }
    watch.take(samples({"user_id": b, "label_watch": 0.0, **no}))
    assert watch.experiments()["titles"]["a"]["watch"] == {"known": 1.0, "mean": 0.5}
    assert watch.figures() == []
    found = {(s.name, *sorted(s.labels.values())): s.value for s in exposed(metrics)}
    assert found["headrace_arm_label_total", "a", "titles", "watch"] == 0.5
    assert found["headrace_arm_label_known_total", "a", "click", "titles"] == 5.0


def exposed(metrics: Metrics) -> Any:
    return parse(metrics.exposition()[0].decode())


def test_only_answers_of_the_experiments_scenarios_count(metrics: Metrics) -> None:
    at_home = Experiment(EXPERIMENT.arms, scenarios=("home",))
    watch = ServedWatch(LABELS, {"titles": at_home}, QualityConfig(), metrics)
    for scenario in ("home", "cart", None):
        watch.take(samples({"user_id": user_in("a"), "label_click": 0.0, "scenario": scenario}))
    assert watch.experiments()["titles"]["a"]["click"]["known"] == 4.0


def test_without_experiments_or_quality_nobody_waits_for_samples(metrics: Metrics) -> None:
    off = ServedWatch(LABELS, {}, QualityConfig(enabled=False), metrics)
    assert off.patience_s() is None
    assert ServedWatch(LABELS, {}, QualityConfig(), metrics).patience_s() == PATIENCE_S


def test_prometheus_is_told_now_and_then_and_of_no_version(
    watch: ServedWatch, metrics: Metrics, clock: Clock, constant_version: Callable[..., Version]
) -> None:
    info = constant_version(1).info
    watch.know(info)
    shown = {"position": 0, "served_version": stable_id(info.name)}
    clicked = samples({**shown, "label_click": 1.0}, {**shown, "label_click": 0.0})
    watch.take(clicked)
    assert not [s for s in exposed(metrics) if s.name.startswith("headrace_served")]
    clock.now_s = 2.0
    watch.take(samples())
    found = {
        tuple(s.labels[n] for n in ("figure", "label", "slice", "of", "bound")): s.value
        for s in exposed(metrics)
        if s.name == "headrace_served_figure"
    }
    assert found["ctr", "click", "all", "", "value"] == pytest.approx(0.2, rel=1e-3)
    assert found["calibration", "click", "position", "0", "low"] < 1
    assert "version" not in {slice_ for _, _, slice_, _, _ in found}
    known = [s for s in exposed(metrics) if s.name == "headrace_served_known_total"]
    assert {(s.labels["slice"], s.value) for s in known} == {
        ("all", 5.0), ("position", 5.0), ("scenario", 5.0), ("arm", 5.0),
    }  # fmt: skip


@pytest.mark.parametrize(
    "odd",
    [
        {"served_score": float("nan")},
        {"served_score": None},
        {"served_score": 1e30},
        {"served_version": 99},
        {"position": None, "scenario": None},
        {"position": 2**31 - 1},
        {},
    ],
    ids=str,
)
def test_what_is_odd_ends_nothing(watch: ServedWatch, odd: dict[str, Any]) -> None:
    watch.take(samples({"label_click": 0.0, **odd}, {"label_click": 1.0, **odd}))
    watch.take(samples({**odd}))  # no label
    watch.take(samples())
    for row in watch.figures():
        assert row["known"] > 0


def test_samples_of_other_labels_are_passed_over(watch: ServedWatch) -> None:
    other = sample_schema(["wish"])
    watch.take(samples({"label_wish": 1.0}, {"label_wish": 0.0}, schema=other))
    watch.take(samples({}, schema=sample_schema([])))
    assert watch.figures() == []


def test_a_huge_batch_is_as_many_small_ones(metrics: Metrics) -> None:
    huge, small = (ServedWatch(LABELS, {}, QualityConfig(), metrics) for _ in range(2))
    rows = samples(*({"label_click": float(n % 5 == 0), "at": n // 9} for n in range(20_000)))
    huge.take(rows)
    for start in range(0, rows.rows.num_rows, 250):
        small.take(as_joined(rows.rows.slice(start, 250)))
    of_huge, of_small = told(huge)["all", "", "click"], told(small)["all", "", "click"]
    assert of_huge["known"] == pytest.approx(of_small["known"], rel=0.1)  # other orders
    assert of_huge["ctr"]["value"] == pytest.approx(1 / 17, rel=0.02)
    assert of_small["ctr"]["value"] == pytest.approx(1 / 17, rel=0.02)


def test_what_the_joiner_makes_of_impressions_counts_once_each(metrics: Metrics) -> None:
    """Real events through a real joiner: clicks in time, clicks that come late, and none at all,
    of a service whose scores are twice the truth.
    """
    rng = np.random.default_rng(0)
    minute_us, shown, in_time, promised = 60_000_000, 3_000, 0, 0.0
    events: list[tuple[int, dict[str, Any]]] = []
    for number in range(shown):
        at_us, score = NOW_US + number * 1_000_000, float(rng.uniform(0.1, 0.9))
        ids = {"user_id": f"u{number % 40}", "item_id": f"i{number % 9}", "request_id": f"{number}"}
        promised += score
        said = {"score": score, "version": "two_tower/a/7"}
        shown_as = {"kind": "impression", "position": number % 3, "attributes": said}
        events.append((at_us, {**ids, **shown_as}))
        if rng.random() < score / 2:
            late = rng.random() < 0.3  # its window has ended, but it is remembered
            after_us = int(rng.integers(9 * minute_us)) + 15 * minute_us * late
            events.append((at_us + after_us, {**ids, "kind": "click"}))
            in_time += not late
    end = {"kind": "impression", "user_id": "u", "item_id": "i", "request_id": "the last"}
    events.append((NOW_US + 1_000_000 * shown + 60 * minute_us, end))
    rules, labels = EventRules(), {"click": Label(600)}
    config = JoinerConfig(impressions=ImpressionsConfig(labels))
    joiner = Joiner(config, rules, Behaviour(BehaviourConfig()))
    watch = ServedWatch(labels, {}, QualityConfig(half_life=10**9), metrics)
    records = [
        encoded({**event, "at": at_us / 1e6}, at_us, rules)
        for at_us, event in sorted(events, key=lambda one: one[0])
    ]
    for start in range(0, len(records), 500):
        for output in joiner.on_batch(records[start : start + 500]):
            watch.take(Joined(Record(SAMPLES, 0, 0, output.key, output.value, 0)))
    row = told(watch)["all", "", "click"]
    assert row["known"] == pytest.approx(shown, abs=0.1)
    assert row["ctr"]["value"] == pytest.approx(in_time / shown, abs=1e-4)
    assert row["calibration"]["value"] == pytest.approx(promised / in_time, rel=1e-4)
    assert row["auc"]["low"] > 0.55


def encoded(event: dict[str, Any], at_us: int, rules: EventRules) -> Record:
    event["at"] = datetime.fromtimestamp(event["at"], UTC).isoformat()
    append = encode_event(parse_event(json.dumps(event).encode(), rules, at_us))
    return Record(EVENTS, 0, at_us - NOW_US, append.key, append.value, at_us)
