"""The second stage in one run: people are shown lists and react, and the ranker learns of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks._service import Service, service

MOVIES = 9_125
CLICKED = [str(n) for n in (1, 2, 3, 5, 6, 7)]  # shown, these are clicked
OTHERS = [str(n) for n in (10, 11, 12, 16, 17, 18)]
VISITS = 110
RECIPE = {
    "replay.limit": MOVIES + 500,
    "models.mmoe.dense_learning_rate": 0.02,  # it is to learn from little
    "models.mmoe.options.table.optimiser.learning_rate": 0.5,
    "recommend.ranker_from": 1_000,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("second-stage") / "home"


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[Service]:
    """A system in which some lists have been shown to people."""
    with service(home, RECIPE) as started:
        started.wait_until_ready()
        started.wait_for(started.caught_up)
        assert ranked(started)["ranker"] is None  # ratings show nothing to anybody
        for number in range(VISITS):
            assert started.post_events(visit(number))[0] == 202
        started.wait_for(lambda: ranked(started)["ranker"] is not None)
        started.wait_for(started.caught_up)
        yield started


def visit(number: int) -> list[dict[str, Any]]:
    """A list of both kinds, and what came of it; each visit is a minute after the one before."""
    begun = datetime.now(UTC) - timedelta(hours=2) + timedelta(minutes=number)
    about = {"user_id": f"guest{number % 7}", "request_id": f"visit-{number}", "scenario": "home"}
    shown = [item for pair in zip(CLICKED, OTHERS, strict=True) for item in pair]
    events = [
        {"kind": "impression", "item_id": item, "position": place, "at": begun.isoformat(), **about}
        for place, item in enumerate(shown)
    ]
    later = (begun + timedelta(seconds=5)).isoformat()
    return events + [{"kind": "click", "item_id": item, "at": later, **about} for item in CLICKED]


def ranked(running: Service) -> dict[str, Any]:
    question = {
        "user_id": "guest1", "scenario": "home", "item_ids": OTHERS + CLICKED, "explain": True,
        "shown": False,
    }  # fmt: skip
    status, body = running.request("POST", "/v1/rank", json.dumps(question).encode())
    assert status == 200, body
    answer: dict[str, Any] = json.loads(body)
    return answer


def order(answer: dict[str, Any]) -> list[str]:
    return [one["item_id"] for one in answer["items"]]


def tasks(answer: dict[str, Any], task: str) -> dict[str, float]:
    return {one["item_id"]: one["why"]["tasks"][task] for one in answer["items"] if one["why"]}


def fusion(home: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "infra.cli", "fusion", *arguments, "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False,
                          env={**os.environ, "COLUMNS": "200"})  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_it_has_learnt_from_impressions_what_is_clicked(running: Service) -> None:
    status = running.get("/v1/status")
    assert status["beside"]["mmoe"]["metrics"]["samples"] >= 1_000
    answer = ranked(running)
    assert answer["ranker"].startswith("mmoe/")
    clicks = tasks(answer, "click")
    assert min(clicks[item] for item in CLICKED) > max(clicks[item] for item in OTHERS)
    assert set(order(answer)[: len(CLICKED)]) == set(CLICKED)


def test_weights_change_the_order_without_a_restart(running: Service, home: Path) -> None:
    before = running.get("/v1/status")["restarts"]
    fusion(home, "set", "click=-1", "--how", "sum")
    running.wait_for(lambda: ranked(running)["fusion"]["weights"] == {"click": -1.0})
    assert set(order(ranked(running))[: len(OTHERS)]) == set(OTHERS)
    fusion(home, "reset")
    running.wait_for(lambda: set(order(ranked(running))[: len(CLICKED)]) == set(CLICKED))
    assert running.get("/v1/status")["restarts"] == before
