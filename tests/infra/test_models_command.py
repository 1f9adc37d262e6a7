"""`headrace models`: what it lists is what a recipe can name, with what was last measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import benchmarks
from infra.cli import app
from streaming.errors import ConfigError
from trainers import models
from trainers.models import find


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["models", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a benchmark keeps its figures, for one test; nothing is there."""
    monkeypatch.setattr(benchmarks, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def test_every_model_is_listed_with_what_it_says_of_itself(results: Path) -> None:
    told = json.loads(shown("--json"))
    assert [one["name"] for one in told] == models.names()
    (tower,) = [one for one in told if one["name"] == "two_tower"]
    assert tower == {
        "name": "two_tower",
        "family": "retrieval",
        "summary": "Sampling-bias-corrected two-tower retrieval",
        "paper": "Yi et al., *Sampling-Bias-Corrected Neural Modeling for Large Corpus Item"
        " Recommendations*, RecSys 2019",
        "reads": ["user_id", "item_id", "item_tokens", "history", "history_rewards"],
        "origin": "trainers.models.two_tower",
        "figures": {},
    }


def test_the_figure_is_that_of_the_last_benchmark(results: Path) -> None:
    assert ".240" not in shown()
    found = {"recall@50": 0.2404, "samples_per_s": 12_000.0}
    (results / "retrieval.json").write_text(
        json.dumps({"ml-1m": {"popular": {"recall@50": 0.164}, "two_tower": found}})
    )
    assert "ml-1m" in shown()
    assert "0.240" in shown()
    assert "0.164" not in shown()
    assert json.loads(shown("two_tower", "--json"))["figures"] == {"ml-1m": found}
    assert "samples_per_s" in shown("two_tower")


def test_of_a_ranker_the_figure_is_that_of_its_own_benchmark(results: Path) -> None:
    found = {"gauc[click]": 0.6789}
    (results / "ranking.json").write_text(json.dumps({"world": {"mmoe": found}}))
    assert "world 0.679" in shown()
    assert json.loads(shown("mmoe", "--json"))["figures"] == {"world": found}


def test_every_option_of_one_model_is_shown_by_its_name_in_a_recipe(results: Path) -> None:
    told: dict[str, Any] = json.loads(shown("two_tower", "--json"))
    assert told["options"]["width"] == 64
    assert told["options"]["table.optimiser.learning_rate"] == 0.05
    assert all(option in shown("two_tower") for option in told["options"])
    nested: dict[str, Any] = {}
    for option, default in told["options"].items():
        *tables, last = option.split(".")
        place = nested
        for table in tables:
            place = place.setdefault(table, {})
        place[last] = default
    _, config = find("two_tower", nested)  # what is shown can be set
    assert config == find("two_tower", {})[1]


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="'three_tower': known are .*two_tower"):
        shown("three_tower")
