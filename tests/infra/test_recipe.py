"""Recipes: what they fill, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from features.behaviour import Scale
from infra.recipe import RECIPES, Recipe, load_recipe
from streaming.errors import ConfigError


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert isinstance(load_recipe(path.stem), Recipe)
    assert load_recipe(str(path)) == load_recipe(path.stem)


def test_a_recipe_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[behaviour.rewards]\nrate = {zero = 1, one = 5}\nbuy = 1\n[loop]\nlimit = 3\n")
    recipe = load_recipe(str(file))
    assert recipe.behaviour.rewards == {"rate": Scale(1.0, 5.0), "buy": 1.0}
    assert recipe.loop.limit == 3
    assert recipe.trainer == Recipe().trainer


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="movielens"):
        load_recipe("moovielens")


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ("= 3", "is not TOML"),
        ("source = 'nowhere'", "source = 'nowhere'"),
        ("[trainer]\nmodel = 'one_tower'", "model = 'one_tower': known are"),
        ("[trainer.options]\nwidht = 8", "trainer.options.widht is not a setting"),
        ("[trainer]\nmood = 1", "trainer.mood is not a setting"),
        ("[trainer.negatives]\nuniform = 'many'", "trainer.negatives.uniform = 'many'"),
        ("[trainer.frequency]\nalpha = 'small'", "trainer.frequency.alpha"),
        ("[replay]\nahead = 1.5", "replay.ahead = 1.5"),
        ("[joiner]\nstep_size = 0", "joiner.step_size = 0"),
        ("flavour = 1", "flavour is not a setting"),
        ("learning = 'weekly'", "learning = 'weekly': Input should be 'realtime' or 'daily'"),
        ("learning = 'daily'\n[archive]\nenabled = false", "[archive] enabled = false keeps none"),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(tmp_path: Path, toml: str, named: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(file))
    assert named in str(caught.value)
