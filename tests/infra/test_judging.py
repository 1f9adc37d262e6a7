"""What a run judges of what was served, wired as it is; other replicas leave it to the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from features.definitions import SAMPLE_FEATURES
from infra.home import Home
from infra.recipe import Recipe
from infra.serving import Serving, _not_judging
from infra.wiring import catalog_tail, version_store
from streaming.ids import stable_id
from streaming.log import Log
from streaming.metrics import Metrics, parse
from streaming.open_log import open_log
from streaming.samples import encode_samples, sample_schema
from trainers.trainer import Trainer, TrainerConfig

RECIPE = Recipe(source="none", trainer=TrainerConfig(options={"width": 4, "hidden": 4}))
# Without a rest.
RECIPE = replace(RECIPE, quality=replace(RECIPE.quality, tell_every_s=1e-9, share=1e9))
SCHEMA = sample_schema(["click"], pa.schema(SAMPLE_FEATURES))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.make()
    return made


@pytest.fixture
def log(home: Home) -> Iterator[Log]:
    with closing(open_log(home.log_url)) as opened:
        yield opened


def append(log: Log, *rows: dict[str, Any]) -> None:
    whole = {"user_id": 1, "at": 1_000_000, "kind": "impression", "logged_us": 10}
    batch = pa.RecordBatch.from_pylist([{**whole, **row} for row in rows], schema=SCHEMA)
    log.append([encode_samples(batch)])


def followed(recipe: Recipe, home: Home, log: Log, metrics: Metrics) -> Serving:
    """A replica that answers with a version that has learnt one liked item."""
    log_file = home.log_file("run")
    serving = Serving(recipe, home, log, catalog_tail(recipe, home, log), log_file, metrics)
    trainer = Trainer(recipe.trainer, "lineage")
    append(log, {"item_id": 7, "reward": 1.0, "label_liked": True})
    (record,) = log.read(dict.fromkeys(log.positions("trainer", ["samples"]), 0), 1, 0)
    trainer.on_batch([record])
    log.append(version_store(recipe, home).execute(trainer.on_time(0)))
    serving._own.follower.turn(timeout_s=0)
    assert serving.replica.info is not None
    return serving


def test_samples_meet_the_versions_that_were_served(home: Home, log: Log) -> None:
    metrics = Metrics()
    serving = followed(RECIPE, home, log, metrics)
    serving._samples.turn(timeout_s=0)  # up to here
    info = serving.replica.info
    assert info is not None
    shown = {
        "request_id": 5, "negative_rate": 1.0, "served_score": 0.25, "position": 0,
        "served_version": stable_id(info.name),
    }  # fmt: skip
    append(
        log,
        {**shown, "item_id": 7, "kind": "click", "label_click": 1.0},
        {**shown, "item_id": 8, "label_click": 0.0},
        {"item_id": 7, "reward": 1.0, "label_liked": True, "logged_us": 20},
    )
    serving._samples.turn(timeout_s=0)
    rows = {(row["slice"], row["of"]): row for row in serving.served.figures()}
    assert rows["version", "two_tower/lineage/0"]["known"] == pytest.approx(2, abs=0.01)
    live = serving.live.figures()["live"]
    assert (live["recall@50"], live["tested"]) == (1.0, 2.0)  # the first before it was served
    assert {"served_score", "history.length"} <= {
        feature["feature"] for feature in serving.drift.figures()["features"]
    }
    names = {sample.name for sample in parse(metrics.exposition()[0].decode())}
    assert {"headrace_served_figure", "headrace_progressive_figure"} <= names


def test_another_replica_judges_nothing(home: Home, log: Log) -> None:
    metrics = Metrics()
    serving = followed(_not_judging(RECIPE), home, log, metrics)
    append(log, {"item_id": 7, "reward": 1.0, "label_liked": True, "logged_us": 20})
    serving._samples.turn(timeout_s=0)
    assert serving.served.figures() == serving.drift.figures()["features"] == []
    assert serving.live.figures()["live"]["tested"] == 0
    assert serving.status()["experiments"] == {}
