"""`headrace replay` as a user runs it: in a process of its own, on a log that others may use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from infra.cli import app
from infra.recipe import load_recipe
from infra.replay import joiner_lag, show_sources
from streaming.decode import decode_events
from streaming.errors import ConfigError, HeadraceError
from streaming.events import EventRules
from streaming.file_log import FileLog
from streaming.log import EVENTS, TopicPartition
from streaming.sources.registry import SOURCES

EVENTS_0 = TopicPartition(EVENTS, 0)


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "infra.cli", "replay", *arguments],
        env={**environment, "HEADRACE_HOME": str(home), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(home: Path, *arguments: str) -> tuple[int, str]:
    process = start(home, *arguments)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def log(home: Path) -> Iterator[FileLog]:
    log = FileLog(home / "log.db")
    yield log
    log.close()


def ids(log: FileLog) -> list[str]:
    records = log.read({EVENTS_0: 0}, 1_000_000, 0)
    found: list[str] = decode_events(records, EventRules()).events["event_id"].to_pylist()
    return found


def test_a_source_lands_in_the_log_of_the_home_once(home: Path) -> None:
    code, output = run(home, "ml-latest-small", "--limit", "12000")
    assert code == 0
    assert "12,000 of 12,000 events of ml-latest-small lie in the log" in output
    code, output = run(home, "ml-latest-small", "--limit", "12000")
    assert code == 0
    assert "12,000 events of ml-latest-small lie in the log already" in output
    log = FileLog(home / "log.db")
    found = ids(log)
    assert len(found) == len(set(found)) == 12_000
    assert joiner_lag(log) == log.ends([EVENTS])[EVENTS_0] == 12
    log.close()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_clean_and_the_same_command_goes_on(
    home: Path, log: FileLog, how: signal.Signals
) -> None:
    process = start(home, "open-bandit", "--rate", "20000")
    assert log.read({EVENTS_0: 2}, 1, timeout_s=60)
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Stopped; the same command goes on from here." in output
    before = ids(log)
    assert 0 < len(before) < 60_784
    code, output = run(home, "open-bandit")
    assert code == 0
    assert f"going on after {len(before):,} events" in output
    after = ids(log)
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 60_784


def test_it_replays_into_a_log_that_is_named(tmp_path: Path, home: Path) -> None:
    url = (tmp_path / "elsewhere.db").as_uri()
    code, _ = run(home, "open-bandit", "--limit", "100", "--close-after", "60", "--log", url)
    assert code == 0
    log = FileLog(tmp_path / "elsewhere.db")
    found = ids(log)
    log.close()
    assert len(found) == 101
    assert found[-1] == "tick/open-bandit/100/0/1574554005946166"
    assert not home.exists()


def test_a_shifted_replay_happens_now(home: Path, log: FileLog) -> None:
    before_us = time.time_ns() // 1000
    code, _ = run(home, "open-bandit", "--limit", "50", "--speed", "1000", "--shift-to-now")
    assert code == 0
    records = log.read({EVENTS_0: 0}, 1_000, 0)
    times = decode_events(records, EventRules()).events["at"].to_pylist()
    assert before_us / 1e6 <= times[0].timestamp() <= times[-1].timestamp() <= time.time()


def test_what_cannot_be_is_one_sentence(home: Path) -> None:
    code, output = run(home)
    assert code == 1
    assert output.startswith("headrace: replay needs a SOURCE: `headrace replay --list` shows them")
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("ml-20m",), "source = 'ml-20m': there is none of that name; known are ml-latest-small"),
        (("ml-1m",), "source 'ml-1m' needs data that is not shipped"),
        (("ml-1m", "--data", "/nowhere"), "in /nowhere/ml-1m, and movies.dat is not there"),
        (("open-bandit", "--shift-to-now"), "replay.shift_to_now needs replay.speed"),
        (("open-bandit", "--log", "carrier-pigeon://x"), "log = 'carrier-pigeon://x'"),
    ],
)
def test_what_is_wrong_is_named(home: Path, arguments: tuple[str, ...], sentence: str) -> None:
    unset = {"HEADRACE_DATA": None, "HEADRACE_LOG": None}
    command = ["replay", *arguments, "--home", str(home)]
    error = CliRunner().invoke(app, command, env=unset).exception
    assert isinstance(error, HeadraceError)
    assert sentence in str(error)


def test_the_list_shows_every_source_and_where_its_data_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ml-1m").mkdir()
    for name in ("movies.dat", "users.dat", "ratings.dat"):
        (tmp_path / "ml-1m" / name).touch()
    console = Console(width=400, record=True, force_terminal=False)
    show_sources(tmp_path, console)
    lines = console.export_text().splitlines()
    for name, info in SOURCES.items():
        (line,) = [line for line in lines if f"│ {name} " in line]
        assert info.terms in line
    assert any("ml-1m" in line and str(tmp_path / "ml-1m") in line for line in lines)
    assert any("trivago" in line and "missing: events.parquet" in line for line in lines)
    assert any("open-bandit" in line and "shipped" in line for line in lines)


def test_a_recipe_names_any_source(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('source = "trivago"\ndata = "/data"\n')
    loaded = load_recipe(str(recipe))
    assert (loaded.source, loaded.data) == ("trivago", "/data")
    recipe.write_text('source = "trivia"\n')
    with pytest.raises(ConfigError, match="source = 'trivia': there is none of that name"):
        load_recipe(str(recipe))
