"""`headrace features`: plan, apply, list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from features.definitions import VIEWS
from infra.cli import app
from infra.home import Home
from streaming.errors import ConfigError


def told(home: Path, *arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["features", *arguments, "--home", str(home), "--json"])
    if result.exception is not None:
        raise result.exception
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def shown(home: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["features", *arguments, "--home", str(home)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_plan_apply_and_list(tmp_path: Path) -> None:
    home = tmp_path / "home"
    planned = told(home, "plan")["changes"]
    assert not home.exists()
    assert [view["version"] for view in told(home, "list")["views"]] == [None] * len(VIEWS)
    assert told(home, "apply")["changes"] == planned
    stored = {view.name for view in VIEWS if view.stored}
    assert {c["name"] for c in planned if c["kind"] == "feature view"} == stored
    assert told(home, "plan")["changes"] == told(home, "apply")["changes"] == []
    listed = told(home, "list")["views"]
    assert [view["version"] for view in listed] == [1, None, 1]
    assert [f["name"] for view in listed for f in view["features"]] == [
        name for view in VIEWS for name in view.names
    ]


def test_people_read_tables(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert "user_history_push" in shown(home, "plan")
    assert "not applied" in shown(home, "list")
    assert "feature view" in shown(home, "apply")
    assert "is what features/definitions.py declares" in shown(home, "plan")
    assert "keyed by user_id, lives for ever" in shown(home, "list")
    assert "user_passed_over (in samples only)" in shown(home, "list")


def test_apply_is_refused_beside_a_run(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.make()
    with home.locked(), pytest.raises(ConfigError, match="stop it"):
        told(home.path, "apply")


def test_the_online_store_is_the_recipes(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[features]\nonline = "mysql://somewhere"')
    with pytest.raises(ConfigError, match='features.online = "mysql://somewhere" cannot be used'):
        told(tmp_path / "home", "plan", str(recipe))
