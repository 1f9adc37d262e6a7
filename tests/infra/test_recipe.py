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
        ("[models.mind]\nmood = 1", "models.mind.mood is not a setting"),
        ("[models.mind.options]\nwidht = 8", "models.mind.options.widht is not"),
        ("[models.mine]\nmodel = 'our'", "model = 'our': known are"),
        ("[models.two_tower]", "two models are called two_tower"),
        ("[models.'a/b']", "models.'a/b': a name begins with a letter"),
        ("learning = 'daily'\n[archive]\nenabled = false", "[archive] enabled = false keeps none"),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(tmp_path: Path, toml: str, named: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(file))
    assert named in str(caught.value)


def test_models_beside_take_over_what_they_do_not_say(tmp_path: Path) -> None:
    file = tmp_path / "several.toml"
    file.write_text(
        "[trainer]\nrefresh = 7\noptions = {history = 5, table.optimiser.learning_rate = 0.5}\n"
        "[models.mind]\nrefresh = 9\n"
        "[models.wide.options]\nwidth = 128\ntable.birth_scale = 0.1\n"
        "[models.other]\nmodel = 'mind'\noptions = {interests = 2}\n"
    )
    trainers = load_recipe(str(file)).trainers
    assert list(trainers) == ["trainer", "trainer-mind", "trainer-wide", "trainer-other"]
    told = {role: (one.called, one.model, one.refresh) for role, one in trainers.items()}
    assert told == {
        "trainer": ("two_tower", "two_tower", 7),
        "trainer-mind": ("mind", "mind", 9),
        "trainer-wide": ("wide", "two_tower", 7),
        "trainer-other": ("other", "mind", 7),
    }
    table = {"optimiser": {"learning_rate": 0.5}, "birth_scale": 0.1}
    assert trainers["trainer-mind"].options == {}
    assert trainers["trainer-wide"].options == {"history": 5, "width": 128, "table": table}
    assert trainers["trainer-other"].options == {"interests": 2}


def test_by_day_there_are_the_same_models(tmp_path: Path) -> None:
    file = tmp_path / "daily.toml"
    file.write_text("learning = 'daily'\n[models.mind]\n")
    assert list(load_recipe(str(file)).trainers) == ["trainer", "trainer-mind"]


def test_a_ranker_finds_nothing_by_itself(tmp_path: Path) -> None:
    file = tmp_path / "ranker.toml"
    file.write_text("[trainer]\nmodel = 'mmoe'\n")
    with pytest.raises(ConfigError, match=r"train it beside a retriever, in \[models\.mmoe\]"):
        load_recipe(str(file))
