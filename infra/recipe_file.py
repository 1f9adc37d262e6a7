"""Recipe files: where they lie, and what stands in them before it is given a meaning."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from streaming.errors import ConfigError
from streaming.events import EventRules
from streaming.settings import fill

RECIPES = Path(__file__).parent / "recipes"


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """What a TOML file says, or the shipped one of that name.

    Raises:
        ConfigError: there is none, or it is not TOML.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = RECIPES / f"{name_or_path}.toml"
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        shipped = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise ConfigError(
            f"recipe {name_or_path!r} is not there: give a .toml file, or one of: {shipped}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not TOML: {error}") from None


def load_rules(name_or_path: str) -> EventRules:
    """A recipe's rules for events alone, without the models and all they import.

    Raises:
        ConfigError: as `read_recipe`, or a rule does not fit.
    """
    return fill(EventRules, read_recipe(name_or_path).get("events", {}), "events")
