"""What `headrace run` is made of, without its actors: refusals, locks, readiness, status."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks._service import free_port
from infra.cli import app
from infra.home import Home
from infra.recipe import Recipe
from infra.run import System
from streaming.archive import ArchiveConfig
from streaming.errors import ConfigError
from streaming.log import SAMPLES, Append
from trainers.trainer import Trainer, TrainerConfig
from trainers.version_store import VersionStore

DAILY = Recipe(source="none", learning="daily")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.make()
    return made


@pytest.fixture
def system(home: Home) -> Iterator[System]:
    made = System(DAILY, home, free_port())
    yield made
    made.log.close()


def test_by_day_there_is_no_trainer_and_nothing_waits_for_one(system: System) -> None:
    system.log.append([Append(SAMPLES, b"") for _ in range(100)])
    status = system.status()
    assert status["learning"] == "daily"
    assert status["lag"] == {"joiner": 0, "aggregator": 0, "catalog": 0, "archive": 100}
    assert status["restarts"].keys() == {"joiner", "aggregator"}
    assert status["daily"] is None
    assert not status["caught_up"]


def test_by_day_it_is_ready_before_the_first_version_but_not_before_a_later_one(
    home: Home, system: System
) -> None:
    assert "first answers" in (system.not_ready() or "")
    system.serving.settle()
    assert system.not_ready() is None
    trainer = Trainer(TrainerConfig(options={"width": 4, "hidden": 4}), "lineage")
    system.log.append(VersionStore(home.versions).execute(trainer.on_time(0)))
    assert "two_tower/lineage/0 is not loaded" in (system.not_ready() or "")


def test_in_realtime_it_is_ready_when_a_version_is_there(home: Home) -> None:
    system = System(Recipe(source="none"), home, free_port())
    assert "no model version" in (system.not_ready() or "")
    assert system.status()["lag"].keys() == {"joiner", "aggregator", "catalog", "trainer"}
    system.log.close()


def test_a_run_settles_though_replicas_are_held_at_an_earlier_version(home: Home) -> None:
    system, stopping = System(Recipe(source="none"), home, free_port()), threading.Event()
    store = VersionStore(home.versions)
    for lineage in ("earlier", "newest"):  # both have learnt all that is there
        trainer = Trainer(TrainerConfig(options={"width": 4, "hidden": 4}), lineage)
        system.log.append(store.execute(trainer.on_time(0)))
    store.pin("two_tower", "two_tower/earlier/0")
    assert not system.status()["caught_up"]
    follower = threading.Thread(target=system.serving.threads()["follower"], args=(stopping,))
    follower.start()
    try:
        deadline = time.monotonic() + 20
        while not (status := system.status())["caught_up"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert status["served_version"] == "two_tower/earlier/0"
        assert status["version"] == "two_tower/newest/0"
        system.log.append([Append(SAMPLES, b"")])  # which nobody has learnt yet
        assert not system.status()["caught_up"]
    finally:
        stopping.set()
        follower.join()
        system.log.close()


def test_an_archive_is_not_to_be_disabled_where_one_learns_from_it() -> None:
    with pytest.raises(ConfigError, match=r"\[archive\] enabled = false keeps none: set it"):
        Recipe(learning="daily", archive=ArchiveConfig(enabled=False))


def ask(home: Home, *arguments: str, recipe: str = "world") -> None:
    """`headrace run` with options that keep it from starting."""
    command = ["run", recipe, "--home", str(home.path), "--port", str(free_port()), *arguments]
    error: Any = CliRunner().invoke(app, command).exception
    raise error


def test_what_a_run_cannot_do_is_one_sentence(home: Home) -> None:
    with pytest.raises(ConfigError, match="--until-learnt needs learning = .*leave the option out"):
        ask(home, "--learning", "daily", "--until-learnt")
    with pytest.raises(ConfigError, match=r"\[archive\] enabled = false keeps none"):
        ask(home, "--learning", "daily", recipe="movielens")
    with home.locked_for_training("headrace daily"):
        with pytest.raises(ConfigError, match="^headrace daily .* learns in .*: stop it, or wait"):
            ask(home)
        (home.path / "log.db").touch()
        with pytest.raises(ConfigError, match="^headrace daily .* learns in"):
            ask(home, "--learning", "daily", "--fresh")
    assert home.exists
    with home.locked(), pytest.raises(ConfigError, match="^headrace run .* runs in .*: stop it"):
        ask(home, "--learning", "daily")
