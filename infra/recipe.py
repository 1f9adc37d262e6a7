"""Recipes: one TOML file says what runs; each component's own Config says what it may say."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from features.aggregator import AggregatorConfig
from features.behaviour import BehaviourConfig
from serving.api import ApiConfig
from streaming.errors import ConfigError
from streaming.events import EventRules
from streaming.joiner import JoinerConfig
from streaming.loop import LoopConfig
from streaming.settings import fill
from streaming.sources.replay import ReplayConfig
from trainers.trainer import TrainerConfig

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """Everything that `headrace run` needs to know beside where its home is."""

    source: Literal["ml-latest-small", "none"] = "ml-latest-small"
    events: EventRules = field(default_factory=EventRules)
    behaviour: BehaviourConfig = field(default_factory=BehaviourConfig)
    joiner: JoinerConfig = field(default_factory=JoinerConfig)
    aggregator: AggregatorConfig = field(default_factory=AggregatorConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    serving: ApiConfig = field(default_factory=ApiConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    # Few records a turn: a version goes out between turns, and a step takes its time.
    trainer_loop: LoopConfig = field(default_factory=lambda: LoopConfig(limit=2))


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe in a TOML file, or the shipped one of that name.

    Raises:
        ConfigError: there is none, it is not TOML, or a setting is unknown or does not fit.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = RECIPES / f"{name_or_path}.toml"
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        shipped = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise ConfigError(
            f"recipe {name_or_path!r} is not there: give a .toml file, or one of: {shipped}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not TOML: {error}") from None
    return fill(Recipe, table, "")
