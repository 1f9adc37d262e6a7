"""`headrace status`: what it says of a home that learns by day."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.home import Home
from streaming.artefact import Artefact
from streaming.cuts import CutDirectory
from streaming.log import EVENTS, Append
from streaming.open_log import open_log


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.make()
    made.note_learning("daily", {})
    log = open_log(made.log_url)
    log.append([Append(EVENTS, b"{}")])
    log.close()
    return made


def shown(home: Home, *options: str) -> str:
    result = CliRunner().invoke(app, ["status", "--home", str(home.path), *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_by_day_it_is_the_archive_that_something_waits_for(home: Home) -> None:
    found = json.loads(shown(home, "--json"))
    assert found["learning"] == "daily"
    assert found["lag"] == {"joiner": 1, "aggregator": 1, "catalog": 1, "archive": 1}
    assert found["daily"] is None
    text = shown(home)
    assert "events, samples" in text
    assert "trainer" not in text


def test_what_daily_has_learnt_is_that_of_its_newest_cut(home: Home) -> None:
    state = {"steps": 1_200, "samples": 34_000, "watermark_us": 1_740_873_600_000_000}
    cuts = CutDirectory(home.cuts("daily"))
    cuts.save({}, Artefact({**state, "daily": {"begun": "2025-03-02"}}, {}))
    assert "34,000 samples learnt in 1,200 steps" in shown(home)
    assert "2025-03-02 is begun" in shown(home)
    cuts.save({}, Artefact({**state, "steps": 1_300, "daily": {"begun": None}}, {}))
    assert json.loads(shown(home, "--json"))["daily"] == {
        "steps": 1_300,
        "samples": 34_000,
        "begun": None,
        "watermark": "2025-03-02T00:00:00.000000Z",
    }
    assert "is begun" not in shown(home)
