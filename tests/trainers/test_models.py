"""The model zoo by name: what a recipe may say, and the sentence it gets if it may not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from streaming.errors import ConfigError
from trainers import models
from trainers.models import about, create
from trainers.models.two_tower import TwoTower


def test_a_model_is_made_from_its_name_and_options() -> None:
    model = create("two_tower", {"width": 8, "history": 3})
    assert isinstance(model, TwoTower)
    assert model.config == TwoTower.Config(width=8, history=3)
    assert model.width == 8


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("two_towers", {}, ["'two_towers'", "known are", "two_tower"]),
        ("", {}, ["''", "known are"]),
        ("two_tower", {"widht": 8}, ["trainer.options.widht", "known are", "width"]),
        ("two_tower", {"width": "wide"}, ["trainer.options.width", "'wide'", "integer"]),
        ("two_tower", {"temperature": [1]}, ["trainer.options.temperature", "[1]", "number"]),
        ("two_tower", {"width": None}, ["trainer.options.width", "None"]),
    ],
)
def test_what_cannot_be_made_is_named(name: str, options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        create(name, options)
    sentence = str(refused.value)
    assert all(part in sentence for part in parts), sentence
    assert "\n" not in sentence


def test_making_a_model_leaves_the_callers_random_numbers_and_options_alone() -> None:
    options = {"width": 8}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    create("two_tower", options)
    assert torch.equal(torch.rand(3), expected)
    assert options == {"width": 8}


# Models of other packages


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a package that names its module `tastes` for the model "tastes"."""
    info = tmp_path / "tastes-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tastes\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[headrace.models]\ntastes = tastes\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(models, "_REGISTRY", dict(models._REGISTRY))
    monkeypatch.setattr(models, "_FAMILIES", dict(models._FAMILIES))
    monkeypatch.delitem(sys.modules, "tastes", raising=False)
    return tmp_path


def test_a_model_of_an_installed_package_is_found_by_its_name(install: Path) -> None:
    (install / "tastes.py").write_text(
        '"""Likes what it likes. Doe, Roe and Poe-Lee, *On Taste*,\nNOWHERE 1999."""\n'
        "from trainers.models import register\n"
        "from trainers.models.two_tower import TwoTower\n"
        '@register("tastes", family="whims")\n'
        "class Tastes(TwoTower): ...\n"
    )
    assert create("tastes", {"width": 8}).width == 8
    assert {"tastes", "two_tower"} <= set(models.names())
    told = about("tastes")
    assert told[:4] == (
        *("tastes", "whims", "Likes what it likes"),
        "Doe, Roe and Poe-Lee, *On Taste*, NOWHERE 1999",
    )
    assert (told.reads, told.origin) == (TwoTower.reads, "tastes")


def test_one_whose_module_cannot_be_imported_is_named_with_the_reason(install: Path) -> None:
    (install / "tastes.py").write_text("raise RuntimeError('out of taste')\n")
    with pytest.raises(ConfigError, match="'tastes': its module tastes .*: out of taste"):
        create("tastes", {})
    assert create("two_tower", {}).width == 64  # others are made all the same
