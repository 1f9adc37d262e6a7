"""Metrics of every task and scenario."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from trainers.metrics import AUC, Calibration, Outcomes, outcomes
from trainers.sliced_metrics import Metric, Scenarios, SlicedMetrics, merged

NAMES = ["home", "search", "cart", None]


def make() -> Sequence[Metric]:
    return [AUC(256), Calibration()]


def stream(scenarios: Scenarios, count: int = 400, seed: int = 0) -> Outcomes:
    rng = np.random.default_rng(seed)
    p = rng.random(count)
    names = [NAMES[i] for i in rng.integers(len(NAMES), size=count)]
    codes = scenarios.encode(pa.array(names, pa.string()))
    return outcomes(p, rng.random(count) < p, scenarios=codes)


def test_scenarios_join_as_they_come_until_there_is_no_room() -> None:
    scenarios = Scenarios(["cart"], most=2)
    column = pa.array(["all", "home", None, "search", "home", "cart", "other"], pa.string())
    assert scenarios.encode(column).tolist() == [0, 2, 0, 0, 2, 1, 0]
    assert scenarios.names == ["other", "cart", "home"]
    assert scenarios.encode(pa.array([None, None], pa.string())).tolist() == [0, 0]
    assert scenarios.encode(pa.array([], pa.string())).tolist() == []


def test_a_closed_set_of_scenarios_takes_no_other() -> None:
    scenarios = Scenarios(["home"], most=1)
    assert scenarios.encode(pa.array(["search", "home"])).tolist() == [0, 1]


def test_every_slice_is_what_its_metric_says_of_its_samples() -> None:
    sliced = SlicedMetrics(["click", "buy"], Scenarios(most=2), make)
    rows = stream(sliced.scenarios)
    for piece in np.split(rows, [7, 100]):
        sliced.update("click", piece)
    figures = sliced.get()
    assert len(sliced.scenarios.names) == 3
    slices = {
        f"click,{name}": rows["scenario"] == i for i, name in enumerate(sliced.scenarios.names)
    }
    slices["click"] = np.ones(len(rows), bool)
    for labels, chosen in slices.items():
        alone = AUC(256)
        alone.update(rows[chosen])
        assert figures[f"auc[{labels}]"] == alone.get()["auc"]
        assert figures[f"recent_auc[{labels}]"] == alone.get()["recent_auc"]
    assert not [name for name in figures if "buy" in name]


def test_figures_come_with_their_labels() -> None:
    sliced = SlicedMetrics(["click"], Scenarios(["home"]), make)
    sliced.update("click", outcomes([0.2, 0.4], [0, 1], scenarios=[1, 1]))
    found = {(f.metric, f.task, f.scenario): f.value for f in sliced.figures()}
    assert found["auc", "click", "all"] == found["auc", "click", "home"] == 1.0
    assert found["calibration", "click", "home"] == pytest.approx(0.6)


def test_a_task_that_was_not_declared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'like'.*'click'"):
        SlicedMetrics(["click"]).update("like", outcomes([0.5], [1]))


def test_a_loaded_state_goes_on_bit_for_bit() -> None:
    unbroken = SlicedMetrics(["click", "a/b"], Scenarios(most=2), make)
    rows = stream(unbroken.scenarios)
    for task in ("click", "a/b"):
        unbroken.update(task, rows[:150])
    loaded = SlicedMetrics(["click", "a/b"], Scenarios(most=2), make)
    loaded.load(unbroken.state())
    for sliced in (unbroken, loaded):
        sliced.update("a/b", stream(sliced.scenarios, seed=1))
    mine, theirs = unbroken.state(), loaded.state()
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert loaded.get() == unbroken.get()


def test_a_state_of_other_tasks_and_scenarios_keeps_what_is_still_there() -> None:
    saved = SlicedMetrics(["click", "buy"], Scenarios(["home"]), make)
    for task in ("click", "buy"):
        saved.update(task, outcomes([0.2, 0.4], [0, 1], scenarios=[1, 1]))
    loaded = SlicedMetrics(["click", "like"], Scenarios(["search"]), make)
    loaded.load(saved.state())
    assert loaded.scenarios.names == ["other", "home", "search"]
    assert {f.task for f in loaded.figures()} == {"click"}
    assert loaded.get()["auc[click,home]"] == 1.0


def test_sums_of_ranks_make_the_figures_of_the_whole() -> None:
    # Each rank met the scenarios in another order.
    whole = SlicedMetrics(["click"], Scenarios(), make)
    ranks = [SlicedMetrics(["click"], Scenarios(), make) for _ in range(2)]
    for i, rank in enumerate(ranks):
        whole.update("click", stream(whole.scenarios, seed=i))
        rank.update("click", stream(rank.scenarios, seed=i))
    told = merged(rank.sums() for rank in ranks)
    figures = {(f.metric, f.scenario): f.value for f in whole.figures(told)}
    for figure in whole.figures():
        if not figure.metric.startswith("recent_"):
            assert figures[figure.metric, figure.scenario] == pytest.approx(figure.value)


def test_the_past_of_other_ranks_is_absorbed_by_name() -> None:
    heir = SlicedMetrics(["click"], Scenarios(["search", "home"]), make)
    gone = SlicedMetrics(["click"], Scenarios(["home", "search"]), make)
    gone.update("click", outcomes([0.2, 0.4], [0, 1], scenarios=[1, 1]))
    heir.absorb(gone.sums())
    assert heir.get() == gone.get()
    assert "auc[click,home]" in heir.get()


def test_scenarios_may_be_watched_by_less() -> None:
    sliced = SlicedMetrics(["click"], Scenarios(), make, of_scenario=lambda: [Calibration()])
    sliced.update("click", stream(sliced.scenarios))
    found = sliced.get()
    assert {"auc[click]", "calibration[click]", "calibration[click,home]"} <= found.keys()
    assert "auc[click,home]" not in found
    loaded = SlicedMetrics(["click"], Scenarios(), make, of_scenario=lambda: [Calibration()])
    loaded.load(sliced.state())
    assert loaded.get() == found
