"""The home: one run and one trainer at a time, and nothing removed that is not Headrace's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.home import Home
from streaming.errors import ConfigError


def test_clearing_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.make()
    (tmp_path / "log.db").touch()
    (tmp_path / "cuts" / "trainer").mkdir(parents=True)
    (tmp_path / "thesis.tex").write_text("mine")
    home.clear()
    assert not home.exists
    assert not (tmp_path / "cuts").exists()
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@contextmanager
def another(home: Home, lock: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds a lock of the home; killed at the end, if it still lives."""
    hold = (
        "import sys, pathlib; from infra.home import Home\n"
        f"with Home(pathlib.Path(sys.argv[1])).{lock}: print('held', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(home.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        try:
            yield other
        finally:
            other.kill()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path)
    made.make()
    return made


def test_a_second_run_is_kept_out_and_a_dead_one_is_not(home: Home) -> None:
    with another(home, "locked()") as other:
        sentence = rf"^headrace run \(process {other.pid}\) runs in {home.path}: stop it"
        with pytest.raises(ConfigError, match=sentence), home.locked():
            pass
    with home.locked():
        pass


def test_a_second_trainer_is_kept_out_and_told_what_the_first_one_is(home: Home) -> None:
    with another(home, "locked_for_training('headrace daily')") as other:
        sentence = (
            rf"^headrace daily \(process {other.pid}\) learns in {home.path}, .*: stop it, or"
        )
        with pytest.raises(ConfigError, match=sentence), home.locked_for_training("headrace run"):
            pass
        with home.locked():  # a run without a trainer
            pass
    with home.locked_for_training("headrace run"):
        pass


def test_nothing_is_cleared_under_a_trainer(home: Home) -> None:
    (home.path / "log.db").touch()
    with another(home, "locked_for_training('headrace daily')"):
        with pytest.raises(ConfigError, match="headrace daily .* learns in"):
            home.clear()
        assert home.exists
    home.clear()
    assert not home.exists


def test_how_it_learns_is_remembered_until_it_is_cleared(home: Home) -> None:
    assert home.learning == "realtime"
    home.note_learning("daily", {"trainer": "two_tower", "trainer-mind": "mind"})
    assert Home(home.path).learning == "daily"
    assert list(Home(home.path).models.items()) == [
        ("trainer", "two_tower"),
        ("trainer-mind", "mind"),
    ]
    home.clear()
    assert home.learning == "realtime"


def test_a_file_in_place_of_the_home_is_named(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.touch()
    with pytest.raises(ConfigError, match="HEADRACE_HOME"):
        Home(place).make()
