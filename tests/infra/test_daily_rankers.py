"""`headrace daily` with a ranker beside the retriever: each learns the days, in its own name."""

from __future__ import annotations

import io
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from infra.daily import DailyTraining
from infra.daily_days import Choice
from infra.daily_run import learn_days
from infra.home import Home, daily_group
from infra.recipe import Recipe, load_recipe
from infra.status import status
from infra.wiring import archiver, joiner_loop
from streaming.cuts import CutDirectory
from streaming.events import encode_events
from streaming.log import VERSIONS, TopicPartition
from streaming.open_log import open_log
from streaming.sources.population import PopulationConfig
from streaming.sources.world import World, WorldConfig
from trainers.versions import VersionInfo, read_announcement

RANKER = "trainer-mmoe_esmm"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """That of the planted world, with models that are small."""
    of_world = load_recipe("world")
    options = {"fields": ["user_id", "item_id"], "crossed": [], "width": 4, "expert": 4, "tower": 4}
    ranker = of_world.models["mmoe_esmm"]
    return replace(
        of_world,
        learning="daily",
        trainer=replace(of_world.trainer, options={"width": 4, "hidden": 4}),
        models={"mmoe_esmm": {**ranker, "options": {**ranker["options"], **options}}},
    )


@pytest.fixture(scope="module")
def template(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose archive has what 400 people were shown in two days."""
    home = Home(tmp_path_factory.mktemp("template") / "home")
    home.make()
    log = open_log(home.log_url)
    world = World(WorldConfig(days=2, population=PopulationConfig(users=400, items=60)))
    log.append([encode_events(world.batch(0, world.total))])
    joiner = joiner_loop(recipe, home, log)
    while joiner.turn():
        pass
    at_work = archiver(recipe, home, log)
    while at_work.turn():
        pass
    at_work.write()
    log.close()
    return home.path


def learnt(recipe: Recipe, home: Home, choice: Choice = Choice()) -> str:  # noqa: B008
    """What it says."""
    log, told = open_log(home.log_url), io.StringIO()
    try:
        learn_days(recipe, home, log, choice, Console(file=told, width=200))
    finally:
        log.close()
    return told.getvalue()


def announced(home: Home) -> list[VersionInfo]:
    log = open_log(home.log_url)
    records = log.read({TopicPartition(VERSIONS, 0): 0}, 10_000, timeout_s=0)
    log.close()
    return [read_announcement(record) for record in records]


def test_every_model_of_the_recipe_learns_each_day_once(
    recipe: Recipe, template: Path, tmp_path: Path
) -> None:
    at_once, by_turns = (
        Home(Path(shutil.copytree(template, tmp_path / name))) for name in ("one", "two")
    )
    text = learnt(recipe, at_once)
    first, second = (CutDirectory(at_once.cuts(daily_group(role))) for role in recipe.trainers)
    assert "two_tower: 2 days learnt up to 2025-01-07" in text
    assert "mmoe_esmm: 2 days learnt up to 2025-01-07" in text
    assert "mmoe_esmm: AUC of click 0." in text
    assert learnt(recipe, at_once).count("are learnt: nothing to do.") == 2
    assert [info.model for info in announced(at_once) if info.base is None] == [
        *["two_tower"] * 2, *["mmoe_esmm"] * 2,
    ]  # fmt: skip
    # By turns of both models it comes to the same.
    for day in ("2025-01-06", "2025-01-07"):
        learnt(recipe, by_turns, Choice(day, day))
    ranker = second.newest()[0]
    again = CutDirectory(by_turns.cuts(daily_group(RANKER))).newest()[0]
    assert ranker is not None
    assert again is not None
    assert ranker.meta["samples"] > 500
    assert first.newest_meta()["samples"] != ranker.meta["samples"]  # type: ignore[index]
    for name, table in ranker.shards.items():
        assert table.equals(again.shards[name]), name
    at_once.note_learning("daily", {r: c.called for r, c in recipe.trainers.items()})
    log = open_log(at_once.log_url)
    told = status(log, at_once)
    log.close()
    assert told["daily_beside"]["mmoe_esmm"]["samples"] == ranker.meta["samples"]
    assert told["beside"]["mmoe_esmm"]["step"] == ranker.meta["steps"]


def test_a_ranker_goes_on_after_it_died(recipe: Recipe, template: Path, tmp_path: Path) -> None:
    home, other = (
        Home(Path(shutil.copytree(template, tmp_path / name))) for name in ("one", "two")
    )
    learnt(recipe, other)

    class Died(BaseException):
        pass

    steps = 0

    def die(number: int) -> None:
        nonlocal steps
        steps += number == 1
        if steps == 40 or number == 3:
            raise Died

    often = replace(recipe, trainer_loop=replace(recipe.trainer_loop, cut_every_s=1e-6))
    for _ in range(3):
        log = open_log(home.log_url)
        with pytest.raises(Died):
            training = DailyTraining(often, home, log, RANKER, reached=die)
            for day in ("2025-01-06", "2025-01-07"):
                training.learn(day, threading.Event())
        log.close()
    learnt(recipe, home)
    one, two = (CutDirectory(h.cuts(daily_group(RANKER))).newest()[0] for h in (home, other))
    assert one is not None
    assert two is not None
    assert all(table.equals(two.shards[name]) for name, table in one.shards.items())
    whole = [i for i in announced(home) if i.base is None and i.model == "mmoe_esmm"]
    assert len(whole) == 2
