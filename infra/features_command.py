"""`headrace features`: what the feature store should hold, as a plan to read before it is done."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from infra.log_option import HomeOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from features.store import FeastStore
    from features.store.feast_store import Change

features = typer.Typer(
    no_args_is_help=True,
    help="""The feature store: what `features/definitions.py` declares, and what the registry holds.

    `headrace run` applies what is new by itself. A recipe's `[features]` says where the newest
    values are kept: `online = "sqlite"` in the home, or `online = "redis://host:6379/0"`.""",
)
RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe: the name of a shipped one, or a .toml file.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@features.command()
def plan(
    recipe: RecipeArgument = "movielens", home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Show what `apply` would do to the registry, by Feast's own comparison."""
    changes = _store(recipe, home).plan()
    if as_json:
        typer.echo(json.dumps({"changes": [asdict(change) for change in changes]}))
    else:
        show_changes(changes, _console(), "would be done")


@features.command()
def apply(
    recipe: RecipeArgument = "movielens", home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Do what `plan` shows; take over a registry that another version of Feast wrote.

    Nothing is removed. Stop `headrace run` in this home first.
    """
    from infra.home import Home

    place = Home(home or Path(".headrace"))
    place.make()
    with place.locked():
        changes = _store(recipe, home).apply(take_over=True)
    if as_json:
        typer.echo(json.dumps({"changes": [asdict(change) for change in changes]}))
    else:
        show_changes(changes, _console(), "done")


@features.command()
def refill(recipe: RecipeArgument = "movielens", home: HomeOption = None) -> None:
    """Fill the online store from the offline one, after Redis or `online.db` was lost.

    Rows that are newer there stay. Stop `headrace run` in this home first.
    """
    from infra.home import Home

    with Home(home or Path(".headrace")).locked():
        store = _store(recipe, home)
        store.apply()
        store.refill()
    _console().print("The online store answers what the offline store knows.")


@features.command(name="list")
def list_features(
    recipe: RecipeArgument = "movielens", home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """List every feature that is declared, and how fresh its view is."""
    from features.definitions import VIEWS, default_text, lifetime_text, type_name
    from features.freshness import saved_freshness
    from infra.home import Home

    applied = _store(recipe, home).applied()
    fresh = saved_freshness(Home(home or Path(".headrace")).features)
    found: list[dict[str, Any]] = [
        {
            "view": view.name,
            "entity": view.key,
            "lives": lifetime_text(view),
            "stored": view.stored,
            "version": applied.get(view.name),
            "freshness": fresh.get(view.name),
            "features": [
                {
                    "name": feature.name,
                    "type": type_name(feature.type),
                    "default": default_text(feature),
                    "used": list(feature.used),
                    "sample": feature.sample,
                    "meaning": feature.meaning,
                }
                for feature in view.features
            ],
        }
        for view in VIEWS
    ]
    if as_json:
        typer.echo(json.dumps({"views": found}))
    else:
        show_features(found, _console())


def show_changes(changes: Sequence[Change], console: Console, when: str) -> None:
    """Prints a plan for people."""
    if not changes:
        console.print("The feature store is what features/definitions.py declares.")
        return
    table = Table("", "what", "name", "detail", title=f"What {when}")
    for change in changes:
        action = "no longer declared" if change.action == "remove" else change.action
        table.add_row(action, change.kind, change.name, change.detail)
    console.print(table)
    if any(change.action == "remove" for change in changes):
        console.print("What is no longer declared stays where it is.", highlight=False)


def show_features(views: Sequence[dict[str, Any]], console: Console) -> None:
    """Prints the features for people."""
    table = Table("view", "feature", "type", "used in", "default", "meaning", title="Features")
    for view in views:
        table.add_section()
        name = f"{view['view']} ({_state(view)})"
        for feature in view["features"]:
            used = ", ".join(feature["used"])
            told = (feature["type"], used, feature["default"], feature["meaning"])
            table.add_row(name, feature["name"], *told)
            name = ""
    console.print(table)
    for view in (one for one in views if one["stored"]):
        line = f"{view['view']}: keyed by {view['entity']}, lives {view['lives']}"
        fresh = view["freshness"]
        if fresh is not None and "age_p99_s" in fresh:
            line += f"; from the log to the store {fresh['age_p99_s']:.3f} s at p99"
        console.print(line, highlight=False)


def _state(view: dict[str, Any]) -> str:
    if not view["stored"]:
        return "in samples only"
    return "not applied" if view["version"] is None else f"version {view['version']}"


def _store(recipe: str, home: Path | None) -> FeastStore:
    from features.store import FeastStore
    from infra.home import Home
    from infra.recipe import load_recipe

    return FeastStore(Home(home or Path(".headrace")).features, load_recipe(recipe).features)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 160)
