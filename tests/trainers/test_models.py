"""The model zoo by name: what a recipe may say, and the sentence it gets if it may not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from streaming.errors import ConfigError
from trainers.models import create
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
