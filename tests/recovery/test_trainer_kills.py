"""Kill -9 the trainer at any moment: it ends with the very bits of one that was never killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from infra.home import Home
from infra.recipe import Recipe, load_recipe
from infra.wiring import joiner_loop, trainer_loop
from serving.follower import Follower
from serving.replica import Replica
from streaming.artefact import MANIFEST
from streaming.cuts import CutDirectory
from streaming.events import encode_events
from streaming.log import SAMPLES, Log
from streaming.loop import LoopConfig
from streaming.open_log import open_log
from streaming.sources.movielens import MovieLens
from trainers.arrays import column_matrix
from trainers.versions import VersionStore

STEPS = 40
KILLS = 10
# Cuts and versions come thick and fast, so that a kill finds the trainer in the midst of one.
RECIPE = replace(
    load_recipe("movielens"),
    joiner=replace(load_recipe("movielens").joiner, step_size=64),
    trainer=replace(load_recipe("movielens").trainer, publish_every_s=0.02, snapshot_every=10),
    trainer_loop=LoopConfig(limit=2, cut_every_s=0.1, idle_s=0.01),
)
# Forked from a process that has imported everything once: a child starts in milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module", autouse=True)
def _preloaded() -> Iterator[None]:
    PROCESSES.set_forkserver_preload(["infra.wiring", "trainers.trainer", "trainers.versions"])
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # else it outlives the tests


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose log holds the samples of all movies and the first ratings."""
    home = Home(tmp_path_factory.mktemp("template") / "home")
    home.make()
    log = open_log(home.log_url)
    source = MovieLens()
    ratings = source.declarations + 64 * STEPS
    log.append([encode_events(source.batch(n, 2_048)) for n in range(0, ratings, 2_048)])
    joiner = joiner_loop(RECIPE, home, log)
    while joiner.turn():
        pass
    log.close()
    return home.path


@pytest.fixture
def home(template: Path, tmp_path: Path) -> Home:
    """A copy of the template: the very same records, with the same times."""
    return Home(Path(shutil.copytree(template, tmp_path / "home")))


def train_to_the_end(path: Path, recipe: Recipe) -> None:
    """The body of the process: learns what there is, publishing and cutting as it goes."""
    home = Home(path)
    log = open_log(home.log_url)
    loop = trainer_loop(recipe, home, log)
    while loop.turn():
        pass
    time.sleep(recipe.trainer.publish_every_s)
    loop.turn()  # what was learnt last is published
    loop.cut()
    log.close()


def start(home: Home) -> Any:
    process = PROCESSES.Process(target=train_to_the_end, args=(home.path, RECIPE))
    process.start()
    return process


def sums_of_newest_cut(home: Home) -> Mapping[str, Any]:
    """The checksum of every shard, and the meta, of the newest cut."""
    cuts = sorted(home.cuts("trainer").glob("cut-*"))
    body: Mapping[str, Any] = json.loads(json.loads((cuts[-1] / MANIFEST).read_text())["body"])
    return body


def replica_of(home: Home, log: Log) -> Replica:
    """A replica that has followed every announcement from the first on."""
    replica = Replica()
    follower = Follower(log, VersionStore(home.versions), replica, look_back=1_000)
    follower.turn(timeout_s=0)
    return replica


@pytest.fixture(scope="module")
def undisturbed(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    path = tmp_path_factory.mktemp("undisturbed") / "home"
    home = Home(Path(shutil.copytree(template, path)))
    process = start(home)
    process.join()
    assert process.exitcode == 0
    return home


def test_ten_kills_at_random_moments_change_no_bit(undisturbed: Home, home: Home) -> None:
    moments = random.Random(7)
    killed = 0
    while killed < KILLS:
        process = start(home)
        process.join(moments.uniform(0.1, 1.0))
        if process.exitcode is not None:
            break  # it came to the end before its time
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += 1
    assert killed >= 3, "the trainer is too quick to be killed often: give it more steps"
    last = start(home)
    last.join()
    assert last.exitcode == 0
    assert sums_of_newest_cut(home) == sums_of_newest_cut(undisturbed)


def test_after_a_kill_a_replica_has_the_very_rows_of_the_trainer(home: Home) -> None:
    process = start(home)
    process.join(0.7)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    process = start(home)
    process.join()
    log = open_log(home.log_url)
    state, positions = CutDirectory(home.cuts("trainer")).newest()
    assert state is not None
    assert positions == log.ends([SAMPLES])
    with replica_of(home, log).reading() as served:
        assert served is not None
        assert served.info.step == state.meta["steps"]
        for name, table in served.model.tables.items():
            rows = state.shards[f"table-{name}"]
            assert (table(rows["id"].to_numpy()).numpy() == column_matrix(rows["row"])).all()
    log.close()


def test_a_stop_between_any_two_turns_changes_no_bit(undisturbed: Home, home: Home) -> None:
    log = open_log(home.log_url)
    more = True
    while more:
        loop = trainer_loop(RECIPE, home, log)
        more = sum(loop.turn() for _ in range(9)) > 0
        stopping = threading.Event()
        stopping.set()
        loop.run(stopping)
    log.close()
    assert sums_of_newest_cut(home) == sums_of_newest_cut(undisturbed)
