"""Models side by side in one run: each learns and is served, and users are answered by arms."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks._service import Service, service
from infra.home import Home
from infra.targets import targets

ROLES = ("trainer", "trainer-sasrec", "trainer-hotter")
BOTH, HOT = "two_tower and sasrec", "hotter"
RECIPE = {
    "models": {},
    "replay.limit": 13_000,
    "models.sasrec.dense_learning_rate": 0.001,
    "models.hotter.options.temperature": 0.2,
    "recommend.models": {"two_tower": 1.0, "sasrec": 1.0},
    "recommend.cold_start.model_trust": 0.01,
    "recommend.experiments.which.arms.both.weight": 1.0,
    "recommend.experiments.which.arms.hot.changes.models.hotter": 1.0,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("side-by-side") / "home"


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[Service]:
    with service(home, RECIPE) as started:
        started.wait_until_ready()
        started.wait_for(started.caught_up)
        yield started


def answers(running: Service, count: int = 12) -> dict[str, list[dict[str, Any]]]:
    """By arm, what users get of whom one like is known."""
    users = [f"u{number}" for number in range(count)]
    likes = [{"kind": "like", "user_id": user, "item_id": "318"} for user in users]
    assert running.post_events(likes)[0] == 202
    found: dict[str, list[dict[str, Any]]] = {}
    for user in users:
        path = f"/v1/recommend?user_id={user}&k=10&explain=true"
        running.wait_for(lambda path=path: running.get(path)["known_actions"] >= 1)
        answer = running.get(path)
        found.setdefault(answer["arms"]["which"], []).append(answer)
    return found


def test_each_learns_the_whole_stream_and_is_served(running: Service, home: Path) -> None:
    status = running.get("/v1/status")
    assert list(status["beside"]) == ["sasrec", "hotter"]
    steps = {status["newest_version"]["step"], *(b["step"] for b in status["beside"].values())}
    assert len(steps) == 1
    assert {status["lag"][role] for role in ROLES} == {0}
    assert status["served_beside"] == {n: one["name"] for n, one in status["beside"].items()}
    for model, one in status["beside"].items():
        assert one["name"].startswith(f"{model}/")
        assert one["metrics"]["samples"] == status["metrics"]["samples"]
    assert set(ROLES) <= {target.process for target in targets(Home(home))}


def test_users_are_answered_by_the_models_of_their_arms(running: Service) -> None:
    found = answers(running)
    assert set(found) == {"both", "hot"}
    said = {
        arm: {source for one in given for item in one["items"] for source in item["why"]["shares"]}
        for arm, given in found.items()
    }
    assert {"two_tower", "sasrec"} <= said["both"]
    assert "hotter" not in said["both"]
    assert "hotter" in said["hot"]
    assert said["hot"].isdisjoint({"two_tower", "sasrec"})
    models = {
        arm: {one["version"].partition("/")[0] for one in given} for arm, given in found.items()
    }
    assert models == {"both": {"two_tower"}, "hot": {"hotter"}}


def test_a_trainer_dies_and_only_its_model_starts_again(running: Service, home: Path) -> None:
    def lineages() -> dict[str, str]:
        status = running.get("/v1/status")
        names = [status["newest_version"]["name"], *status["served_beside"].values()]
        return {name.split("/")[0]: name.split("/")[1] for name in names}

    before = lineages()
    log = (home / "logs" / "trainer-sasrec.log").read_text()
    os.kill(int(re.findall(r"the trainer-sasrec is process (\d+)", log)[-1]), signal.SIGKILL)
    running.wait_for(lambda: lineages()["sasrec"] != before["sasrec"])
    after = lineages()
    assert {name for name in after if after[name] != before[name]} == {"sasrec"}
    assert running.post_events({"kind": "like", "user_id": "late", "item_id": "1"})[0] == 202
    running.wait_for(running.caught_up)
    status = running.get("/v1/status")
    assert status["restarts"] == {**dict.fromkeys(status["restarts"], 0), "trainer-sasrec": 1}
    assert status["beside"]["sasrec"]["metrics"]["samples"] == status["metrics"]["samples"]
