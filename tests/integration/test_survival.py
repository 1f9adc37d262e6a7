"""`headrace run` is killed, stopped, damaged and begun anew: it goes on, nothing counts twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks._service import service
from benchmarks.clicks import time_click

MOVIES = 9_125
REPLAYED = 14_000  # of 109,129 events: all movies and the first ratings
ROLES = ("trainer", "joiner", "aggregator")


def processes_of(home: Path) -> dict[str, int]:
    """The newest process id that each actor has written to its log."""
    found = {}
    for role in ROLES:
        log = (home / "logs" / f"{role}.log").read_text()
        found[role] = int(re.findall(rf"the {role} is process (\d+)", log)[-1])
    return found


def headrace(
    home: Path, *arguments: str, port: int | None = None
) -> subprocess.CompletedProcess[str]:
    """The command, run to its end."""
    environment = {**os.environ, "HEADRACE_HOME": str(home), "HEADRACE_PORT": str(port or 1)}
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *arguments],
        env=environment, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


@pytest.mark.timeout(400)  # four starts of the whole system
def test_it_survives_kills_stops_cleanly_and_goes_on(tmp_path: Path) -> None:
    home = tmp_path / "home"
    cuts = {"trainer_loop.cut_every_s": 1.0, "loop.cut_every_s": 1.0}
    recipe = {"models": {}, "replay.limit": REPLAYED, **cuts}
    with service(home, recipe) as first:
        first.wait_until_ready()
        killed = processes_of(home)
        nicer = {psutil.Process(one).nice() - psutil.Process().nice() for one in killed.values()}
        assert nicer == {5}  # answers come first
        for process in killed.values():
            os.kill(process, signal.SIGKILL)
        first.wait_for(lambda: not killed.items() & processes_of(home).items())
        first.wait_for(first.caught_up)
        status = first.get("/v1/status")
        assert min(status["restarts"].values()) >= 1
        assert status["metrics"]["samples"] == REPLAYED - MOVIES  # every rating once
        assert time_click(first, "survivor", "318")[0] > 0
        first.wait_for(first.caught_up)
        assert first.stop() == 0
        assert "Stopped." in first.output.read_text()

    shown = headrace(home, "status", "--json")
    before = json.loads(shown.stdout)
    assert before["metrics"]["samples"] == REPLAYED - MOVIES + 1
    assert not any(before["lag"].values())
    assert "Where every step stands" in headrace(home, "status").stdout

    with service(home, recipe) as second:
        second.wait_until_ready()
        again = second.get("/v1/status")
        assert again["records"]["events"] == before["records"]["events"]
        second.wait_for(lambda: second.get("/v1/status")["metrics"]["samples"] > 0)
        assert second.get("/v1/status")["metrics"] == before["metrics"]
        assert second.get("/v1/recommend?user_id=survivor")["known_actions"] == 1
        assert second.stop(signal.SIGTERM) == 0
        assert second.output.read_text().count("Stopped.") == 2

    damage_newest_cuts(home / "cuts" / "trainer")
    refused = headrace(home, "run", port=second.port)
    assert refused.returncode == 1
    assert re.match("headrace: trainer: no cut in .*--fresh", refused.stderr.replace("\n", " "))
    assert "Traceback" not in refused.stderr

    with service(home, recipe, "--fresh", "--until-learnt") as third:
        assert third.process.wait(200) == 0  # what was damaged is gone, and so is the survivor
    after = json.loads(headrace(home, "status", "--json").stdout)
    assert after["metrics"]["samples"] == REPLAYED - MOVIES


def damage_newest_cuts(cuts: Path) -> None:
    """Flips a byte in a shard of every cut."""
    for shard in cuts.glob("cut-*/dense.arrow"):
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
