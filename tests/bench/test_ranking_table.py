"""The benchmark of ranking on a short stream: who takes part, and what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import ranking


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results and the picture go, for one test."""
    monkeypatch.setattr(ranking, "RESULTS", tmp_path / "ranking.json")
    monkeypatch.setattr(ranking, "PICTURES", tmp_path)
    return tmp_path


def quiet(_line: str) -> None:
    pass


def test_every_ranker_and_every_way_to_deal_with_positions_take_part() -> None:
    everyone = ranking.everyone()
    assert {"mmoe", "mmoe+feature", "mmoe+pal"} <= set(everyone)
    assert "two_tower" not in everyone
    assert not [name for name in everyone if name.startswith("claims.")]


def test_a_short_run_gives_figures_and_leaves_the_results_alone(kept: Path) -> None:
    config = ranking.Config(("mmoe", "mmoe+feature"), samples=2_000)
    found = ranking.run(quiet, config)
    for name in config.models:
        assert 0 < found[f"world.{name}.auc[click]"] < 1
        assert 0 <= found[f"world.{name}.relevance"] <= 1
        assert found[f"world.{name}.samples_per_s"] > 0
        assert found[f"world.{name}.us_per_candidate"] > 0
    assert found["world.mmoe.auc[click]"] != found["world.mmoe+feature.auc[click]"]
    assert not list(kept.iterdir())


def test_what_is_found_is_added_to_what_was_found_before(kept: Path) -> None:
    row = {"gauc[click]": 0.6, "gauc[buy]": 0.7}
    ranking.keep("mmoe", row)
    ranking.keep("omoe", row)
    assert json.loads((kept / "ranking.json").read_text()) == {"world": {"mmoe": row, "omoe": row}}
    assert "omoe" in (kept / "ranking.svg").read_text()
