"""The served model is tested on what users liked, against a plain account."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks._samples import as_joined
from features.batch import read_users
from features.definitions import SAMPLE_FEATURES
from serving.live_watch import LiveWatch
from serving.replica import Replica
from serving.sample_watch import Joined
from serving.served_watch import QualityConfig
from streaming.metrics import Metrics, parse
from streaming.samples import sample_schema
from trainers.versions import Version

ITEMS = list(range(10, 40))
SCHEMA = sample_schema(["click"], pa.schema(SAMPLE_FEATURES))
LEARNT_US = 1_000


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def replica(random_version: Callable[..., Version]) -> Replica:
    version = random_version(ITEMS, seed=3)
    made = Replica()
    made.take(Version(replace(version.info, learnt_logged_us=LEARNT_US), version.shards))
    return made


@pytest.fixture
def watch(replica: Replica, metrics: Metrics, clock: Clock) -> LiveWatch:
    return LiveWatch(replica, QualityConfig(tested_half_life=10**9), metrics, k=5, clock=clock)


def samples(*rows: dict[str, Any], schema: pa.Schema = SCHEMA) -> Joined:
    whole = {
        "user_id": 1, "item_id": ITEMS[0], "at": 0, "kind": "like", "logged_us": LEARNT_US + 1,
        "reward": 1.0, "label_liked": True,
    }  # fmt: skip
    made = []
    for row in rows:
        items = row.get("history", [])
        made.append({**whole, "history_rewards": [1.0] * len(items), **row})
    return as_joined(pa.RecordBatch.from_pylist(made, schema=schema))


def liked(rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
    """Some of items that the model does not know, some with the item in the history, twice."""
    return [
        {
            "user_id": int(rng.integers(1, 5)),
            "item_id": int(rng.choice([*ITEMS, 99])),
            "history": [int(item) for item in rng.choice([*ITEMS, 98], rng.integers(0, 12))],
        }
        for _ in range(count)
    ]


def plain_recall(replica: Replica, rows: list[dict[str, Any]], k: int) -> float:
    hits = 0
    with replica.reading() as served:
        assert served is not None
        vectors, _ = served.vectors(np.array(ITEMS))
        users = read_users(samples(*rows).rows)
        for row, asked in zip(rows, served.ask(users), strict=True):
            scores = dict(zip(ITEMS, asked.scores_of(vectors).tolist(), strict=True))
            shown = [i for i in ITEMS if i not in row["history"] or i == row["item_id"]]
            if row["item_id"] in scores:
                own = scores[row["item_id"]]
                before = sum(scores[i] >= own for i in shown if i != row["item_id"])
                hits += before < k
    return hits / len(rows)


def recall(watch: LiveWatch) -> float | None:
    return watch.figures()["live"]["recall@5"]


def test_recall_is_that_of_a_plain_account(
    watch: LiveWatch, replica: Replica, metrics: Metrics
) -> None:
    rows = liked(np.random.default_rng(0), 60)
    other = [{**row, "label_liked": False} for row in liked(np.random.default_rng(1), 60)]
    watch.take(samples(*other, *rows))
    expected = plain_recall(replica, rows, 5)
    assert 0 < expected < 1
    live = watch.figures()["live"]
    assert live["recall@5"] == pytest.approx(expected)
    assert live["tested"] == 60
    assert live["low"] < expected < live["high"]  # type: ignore[operator]
    told = {(s.name, *s.labels.values()): s.value for s in parse(metrics.exposition()[0].decode())}
    assert told["headrace_progressive_figure", "recall@5", "live"] == pytest.approx(expected)


def test_what_the_version_may_have_learnt_is_no_test(watch: LiveWatch) -> None:
    watch.take(samples(*({"logged_us": LEARNT_US} for _ in range(9)), {"item_id": 99}))
    assert recall(watch) == 0.0
    assert watch.figures()["live"]["tested"] == 1


def test_it_rests_so_that_it_takes_no_more_than_its_share(
    replica: Replica, metrics: Metrics
) -> None:
    times = iter([0.0, 1.0])  # the first test takes a second
    watch = LiveWatch(
        replica, QualityConfig(share=0.1, tested=7), metrics, clock=lambda: next(times, now[0])
    )
    now = [10.9]
    rows = samples(*liked(np.random.default_rng(0), 20))
    watch.take(rows)
    watch.take(rows)
    assert watch.figures()["live"]["tested"] == 7
    now = [11.1]
    watch.take(rows)
    assert watch.figures()["live"]["tested"] == 14


def test_beside_it_stands_what_the_newest_version_says_of_itself(
    watch: LiveWatch, metrics: Metrics, random_version: Callable[..., Version]
) -> None:
    nothing = {"recall@5": None}
    assert watch.figures() == {
        "live": {**nothing, "low": None, "high": None, "tested": 0.0},
        "candidate": nothing,
        "popularity": nothing,
    }
    info = random_version(ITEMS).info
    said = {"recent_recall@5": 0.4, "recent_popularity_recall@5": 0.1}
    watch.know(replace(info, metrics=said))
    assert watch.figures()["candidate"] == {"recall@5": 0.4}
    assert watch.figures()["popularity"] == {"recall@5": 0.1}
    told = {(s.name, *s.labels.values()): s.value for s in parse(metrics.exposition()[0].decode())}
    assert told["headrace_progressive_figure", "recall@5", "popularity"] == 0.1
    watch.know(info)  # has no such figure
    assert watch.figures()["candidate"] == nothing


def test_without_a_version_or_liked_samples_nothing_is_said(
    watch: LiveWatch, metrics: Metrics
) -> None:
    LiveWatch(Replica(), QualityConfig(), metrics).take(samples({}))
    watch.take(samples())
    watch.take(samples({"user_id": None, "reward": None, "label_liked": None}))
    watch.take(samples({}, schema=sample_schema([])))  # without any feature
    assert watch.figures()["live"]["tested"] == 1


def test_samples_of_another_release_are_told_of_once(
    watch: LiveWatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = sample_schema([], pa.schema([pa.field("history", pa.list_(pa.string()))]))
    for _ in range(2):
        watch.take(samples({"history": ["a"]}, schema=other))
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 1
    assert "history as" in told[0]
