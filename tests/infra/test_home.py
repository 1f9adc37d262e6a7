"""The home: one run at a time, and nothing removed that is not Headrace's."""

from __future__ import annotations

import subprocess
import sys
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


def test_a_second_run_is_kept_out_and_a_dead_one_is_not(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.make()
    hold = (
        "import sys, pathlib; from infra.home import Home\n"
        "with Home(pathlib.Path(sys.argv[1])).locked(): print('held', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"process {other.pid}"), home.locked():
            pass
        other.kill()
    with home.locked():
        pass


def test_a_file_in_place_of_the_home_is_named(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.touch()
    with pytest.raises(ConfigError, match="HEADRACE_HOME"):
        Home(place).make()
