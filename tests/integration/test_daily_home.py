"""A home that learns by day: `headrace run` without a trainer, and `headrace daily` beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks._service import Service, service

MOVIES = 9_125
REPLAYED = 9_500  # all movies, and ratings of some days
RECIPE = {
    "learning": "daily",
    "replay.limit": REPLAYED,
    "archive.enabled": True,
    "archive.seconds": 0.5,
    "trainer.options.width": 8,
    "trainer.options.hidden": 16,
    "trainer.negatives.uniform": 32,
}


def headrace(home: Path, *arguments: str) -> subprocess.Popen[str]:
    """A command of its own process; its output is read when it ends."""
    environment = {**os.environ, "HEADRACE_HOME": str(home), "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-m", "infra.cli", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def output_of(process: subprocess.Popen[str]) -> str:
    try:
        output, _ = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


@contextmanager
def events_coming_in(running: Service) -> Iterator[list[str]]:
    """Ratings of a day long ago, one request after another; gives the ids of those accepted."""
    accepted: list[str] = []
    ended = threading.Event()

    def send() -> None:
        with closing(Service(running.port, running.process, running.output)) as sender:
            while not ended.wait(0.01):
                rating = {
                    "event_id": f"rating-{len(accepted)}", "kind": "rate", "value": 5,
                    "user_id": "ada", "item_id": "318", "at": "1996-07-01T12:00:00Z",
                }  # fmt: skip
                status, answer = sender.post_events(rating)
                assert status == 202, answer
                accepted.append(answer["accepted"][0])

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield accepted
    finally:
        ended.set()
        thread.join()


@pytest.mark.timeout(300)  # a start of the whole system and two of `headrace daily`
def test_versions_of_daily_learning_are_served_beside_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    recipe = str(tmp_path / "home.toml")
    with service(home, RECIPE) as running:
        running.wait_until_ready()
        answer = running.get("/v1/recommend?user_id=ada&k=3")
        assert (answer["version"], answer["known_actions"]) == (None, 0)
        running.wait_for(running.caught_up)
        before = running.get("/v1/status")
        assert before["replay"]["done"] == REPLAYED
        assert before["lag"].keys() == {"joiner", "aggregator", "catalog", "archive"}
        assert (before["served_version"], before["daily"]) == (None, None)
        assert archived_samples(home) == REPLAYED

        with events_coming_in(running) as accepted:
            running.wait_for(lambda: len(accepted) > 0)
            first = output_of(headrace(home, "daily", recipe))
            more = len(accepted)
            running.wait_for(lambda: len(accepted) > more)
        assert "days learnt" in first
        served = served_version(running)
        assert served is not None
        assert served in first
        answer = running.get("/v1/recommend?user_id=ada&k=3")
        assert answer["version"] == served
        assert [item["source"] for item in answer["items"]] == ["two_tower"] * 3

        running.wait_for(running.caught_up)
        assert archived_samples(home) == REPLAYED + len(accepted)
        assert "1 day learnt up to 1996-07-01" in output_of(headrace(home, "daily", recipe))
        running.wait_for(lambda: served_version(running) != served)
        status = running.get("/v1/status")
        assert status["daily"]["samples"] == REPLAYED - MOVIES + len(accepted)  # each event once
        assert (status["daily"]["begun"], status["restarts"]) == (None, before["restarts"])
        assert status["watermark"] == status["daily"]["watermark"] == "1996-07-01T12:00:00.000000Z"
        assert running.stop() == 0

    text = output_of(headrace(home, "status"))
    assert f"{status['daily']['samples']:,} samples learnt in" in text
    assert status["served_version"] in text


def served_version(running: Service) -> str | None:
    """What is served, once that is the newest."""
    running.wait_for(lambda: (s := running.get("/v1/status"))["served_version"] == s["version"])
    name: str | None = running.get("/v1/status")["served_version"]
    return name


def archived_samples(home: Path) -> int:
    lines = output_of(headrace(home, "archive", "list", "--json")).splitlines()
    days: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return sum(day["rows"] for day in days if day["topic"] == "samples")
