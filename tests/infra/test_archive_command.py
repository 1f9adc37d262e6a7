"""`headrace archive`: the days, the verdict, and the compaction, as a user asks for them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.home import Home
from infra.recipe import load_recipe
from infra.wiring import archiver
from streaming.archive import Archive
from streaming.errors import ConfigError
from streaming.events import Event, encode_event
from streaming.log import EVENTS
from streaming.open_log import open_log

DAY = "2025-11-20"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home whose events of two days were archived in three goes."""
    home = Home(tmp_path / "home")
    home.make()
    log = open_log(home.log_url)
    for n in range(3):
        at = datetime(2025, 11, 20, 12, tzinfo=UTC)
        for hours in (n, 24 + n):
            event = Event("click", "u", "i", f"e{hours}", at + timedelta(hours=hours))
            log.append([encode_event(event)])
        at_work = archiver(load_recipe("movielens"), home, log)
        while at_work.turn():
            pass
        at_work.write()
    log.close()
    return home


def ask(home: Home, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["archive", *arguments, "--home", str(home.path)])
    if isinstance(result.exception, Exception):
        raise result.exception
    return result.exit_code, result.stdout


def test_list_shows_the_days(home: Home) -> None:
    code, text = ask(home, "list", "--json")
    first, second = map(json.loads, text.splitlines())
    assert code == 0
    assert (first["topic"], first["day"], first["rows"], first["files"]) == (EVENTS, DAY, 3, 3)
    assert second["rows"] == 3
    assert DAY in ask(home, "list")[1]
    assert DAY not in ask(home, "list", "--limit", "1")[1]


def test_verify_is_content_with_a_sound_archive_and_not_with_another(home: Home) -> None:
    assert ask(home, "verify")[0] == 0
    part = Archive(home.archive).parts(EVENTS, DAY)[1]
    part.path.unlink()
    code, text = ask(home, "verify")
    assert code == 1
    assert "cuts/archive" in text


def test_compact_makes_one_file_of_a_day(home: Home) -> None:
    ask(home, "compact", DAY)
    archive = Archive(home.archive)
    (part,) = archive.parts(EVENTS, DAY)
    assert pq.read_metadata(part.path).num_rows == 3
    assert len(archive.parts(EVENTS, "2025-11-21")) == 3
    assert ask(home, "verify")[0] == 0


def test_a_day_or_an_archive_that_is_not_there_is_named(home: Home, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="day = '2031-01-01' is not in the archive"):
        ask(home, "compact", "2031-01-01")
    with pytest.raises(ConfigError, match="elsewhere/archive is not there: start with"):
        ask(Home(tmp_path / "elsewhere"), "list")
