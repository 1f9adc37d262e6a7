"""The benchmarks of retrieval on small slices: who takes part, and what is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import ader, retrieval
from benchmarks._streams import Learner
from features.batch import read_samples
from streaming.ids import stable_id
from trainers import models
from trainers.negatives import NegativesConfig
from trainers.trainer import TrainerConfig

SMALL = TrainerConfig(
    options={"width": 8, "hidden": 16, "table": {"optimiser": {"learning_rate": 0.5}}},
    negatives=NegativesConfig(uniform=64),
)


def quiet(_line: str) -> None:
    pass


def test_every_model_of_ours_and_the_others_take_part() -> None:
    everyone = retrieval.everyone()
    assert {"popular", "item_knn", "als", "bpr", "recbole_sasrec", "two_tower"} <= set(everyone)
    assert not [name for name in everyone if name.startswith("claims.")]
    assert all(hasattr(models.find(name, {})[0], "query") for name in retrieval.retrievers())


def test_a_slice_gives_figures_and_leaves_the_results_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "RESULTS", tmp_path / "retrieval.json")
    taking_part = ("popular", "item_knn", "two_tower")
    config = retrieval.Config(taking_part, ("ml-latest-small",), 11_000, 1.0)
    found = retrieval.run(quiet, config)
    for name in taking_part:
        assert 0 < found[f"ml-latest-small.{name}.recall@50"] < 1
        assert found[f"ml-latest-small.{name}.samples_per_s"] > 0
    assert "ml-latest-small.two_tower.recall@50_over_popular" in found
    assert not (tmp_path / "retrieval.json").exists()


def test_the_whole_run_is_kept_by_source_and_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "RESULTS", tmp_path / "retrieval.json")
    monkeypatch.setattr(retrieval, "PICTURES", tmp_path)
    config = retrieval.Config(("popular",), ("ml-latest-small",), 11_000)
    monkeypatch.setattr(retrieval, "Config", lambda: config)
    figures = retrieval.run(quiet)
    kept = json.loads((tmp_path / "retrieval.json").read_text())
    recall = kept["ml-latest-small"]["popular"]["recall@50"]
    assert recall == figures["ml-latest-small.popular.recall@50"]


def test_each_is_compared_with_popularity_and_our_best_with_each_of_the_others() -> None:
    found = {"popular": 0.1, "als": 0.2, "item_knn": 0.0, "two_tower": 0.3, "stamp": 0.4}
    rows = {name: {"recall@50": recall} for name, recall in found.items()}
    assert retrieval.compared(rows) == pytest.approx({
        "als.recall@50_over_popular": 2,
        "item_knn.recall@50_over_popular": 0,  # and nobody is so many times as good as it
        "two_tower.recall@50_over_popular": 3,
        "stamp.recall@50_over_popular": 4,
        "best.recall@50_over_popular": 4,
        "best.recall@50_over_als": 2,
    })  # fmt: skip
    assert not retrieval.compared({"als": {"recall@50": 0.2}})


def test_models_that_are_told_more_than_others_are_there_and_can_be_told() -> None:
    for name in {*retrieval.SETTINGS, *retrieval.DENSE_LEARNING_RATES}:
        assert name in retrieval.retrievers()
        assert isinstance(retrieval.ranker(name, retrieval.Config()), Learner)


def test_a_click_in_a_shop_session_pleased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_DATA", str(tmp_path))
    clicks = {"period": [0, 0, 0], "session": [1, 1, 2], "item": [10, 11, 10]}
    pq.write_table(pa.table(clicks), tmp_path / "diginetica.parquet")
    given = retrieval.stream_of("diginetica", retrieval.Config())
    assert [reward for step in given.steps for reward in step.samples.rewards] == [1.0] * 3


CLICKS = {
    "period": [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2],
    "session": [1, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5],
    "item": [10, 11, 12, 10, 11, 10, 99, 12, 12, 98, 11, 99, 98],
}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three periods of a shop."""
    monkeypatch.setenv("HEADRACE_DATA", str(tmp_path))
    pq.write_table(pa.table(CLICKS), tmp_path / "diginetica.parquet")


def test_a_period_is_asked_for_its_next_clicks_on_what_came_up_before(shop: None) -> None:
    (learnt, asked), (also, after) = ader.periods(2)
    items = {number: stable_id(str(number)) for number in CLICKS["item"]}
    assert read_samples(learnt).item_ids.tolist() == [items[n] for n in (10, 11, 12, 10, 11)]
    # Of session 3 the click on 99 is left out; of session 4 one click is left, and that is none.
    assert asked.item_ids.tolist() == [items[12], items[12]]
    history = asked.users.history
    assert history.lengths.tolist() == [1, 2]
    assert history.values.tolist() == [items[10], items[10], items[12]]
    assert len(read_samples(also).item_ids) == 6
    assert after.item_ids.tolist() == [items[98]]


def test_the_protocol_runs_with_any_model_and_says_what_it_costs(shop: None) -> None:
    found = ader.run(quiet, ader.Config(trainer=SMALL, periods=2, step_size=2))
    assert set(found) == {"recall@20_of_2", "mrr@20_of_2", "learning_s", "clicks_per_s"}
    assert found["recall@20_of_2"] == 100.0  # there are not more than 20 items
    assert 0 < found["mrr@20_of_2"] <= 100.0
