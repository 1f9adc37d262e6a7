"""The benchmarks of retrieval on small slices: who takes part, and when a model is how old."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import ader, retrieval, staleness
from benchmarks._streams import DATA, Learner, Stream, progressive, samples_of, steps
from features.batch import Jagged, Samples, Users, read_samples
from streaming.ids import stable_id
from streaming.sources.registry import open_source
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


def samples_at(at_us: list[int]) -> Samples:
    nobody = Users(
        np.arange(len(at_us)),
        Jagged.of(np.empty(0, np.int64), np.zeros(len(at_us), np.int64)),
        np.empty(0, np.float32),
    )
    ids = np.arange(len(at_us))
    ones = np.ones(len(at_us), np.float32)
    return Samples(nobody, ids, ones, ones > 0, np.array(at_us))


def test_an_old_model_has_the_steps_that_were_over_at_its_last_update() -> None:
    s = 1_000_000
    #                       step 0         step 1          step 2          step 3
    samples = samples_at([1 * s, 9 * s, 11 * s, 19 * s, 21 * s, 39 * s, 41 * s, 45 * s])
    asked = np.arange(8)
    fresh = staleness.before_step(samples, asked, 0, step_size=2)
    assert fresh.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    # Updates at 10 s, 20 s, 30 s and 40 s; that at 30 s has not the step that is over at 39 s.
    old = staleness.before_step(samples, asked, 10, step_size=2)
    assert old.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    older = staleness.before_step(samples, asked, 20, step_size=2)
    assert older.tolist() == [0, 0, 0, 0, 2, 2, 3, 3]
    assert staleness.before_step(samples, asked, 60, step_size=2).tolist() == [0] * 8


def test_a_delay_of_nothing_is_test_then_train_and_a_day_is_older() -> None:
    data = DATA["ml-latest-small"]
    rows = samples_of(open_source("ml-latest-small"), data, 11_000)
    config = staleness.Config(share=1.0, step_size=32)
    found = staleness.recalls(Learner(SMALL), rows, data, config)
    assert set(found) == {"0s", "1s", "1min", "1h", "1d"}
    given = Stream("movies", data, list(steps(rows, config.step_size)))
    tested = progressive(given, Learner(SMALL))
    assert found["0s"] == pytest.approx(tested.recall(50))


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
