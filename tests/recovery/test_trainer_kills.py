"""Kill -9 the trainer at any moment: it ends with the very bits of one that was never killed."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.kills import (
    RECIPE,
    copy_of,
    fingerprint,
    kill,
    live,
    make_template,
    newest,
    newest_continues,
    rounds,
    start,
    undisturbed_life,
)
from infra.home import Home
from infra.wiring import trainer_loop
from serving.follower import Follower
from serving.replica import Replica
from streaming.cuts import CutDirectory
from streaming.log import SAMPLES, Log
from streaming.open_log import open_log
from trainers.arrays import column_matrix, table_arrays
from trainers.trainer import Trainer
from trainers.version_store import VersionStore

KILLS = 10
TABLES = ("user", "item", "token")
pytestmark = pytest.mark.usefixtures("processes")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return make_template(tmp_path_factory.mktemp("template") / "home")


@pytest.fixture(scope="module")
def undisturbed(template: Home, tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, float]:
    """A home that nothing happened to, and the seconds that this took."""
    return undisturbed_life(template, tmp_path_factory.mktemp("undisturbed") / "home")


@pytest.fixture
def home(template: Home, tmp_path: Path) -> Home:
    return copy_of(template, tmp_path / "home")


def replica_of(home: Home, log: Log) -> Replica:
    """A replica that has followed every announcement from the first on."""
    replica = Replica()
    follower = Follower(log, VersionStore(home.versions), replica, look_back=1_000)
    follower.turn(timeout_s=0)
    return replica


def test_what_is_killed_has_tables_that_admit_expire_and_evict(
    undisturbed: tuple[Home, float],
) -> None:
    state = newest(undisturbed[0])
    trainer = Trainer(RECIPE.trainer, "again", state)
    table = RECIPE.trainer.options["table"]
    for name in TABLES:
        ids = state.shards[f"table-{name}"]["id"].to_numpy()
        assert (ids < 0).sum() == table["admission"]["shared"]
        assert 0 < trainer.metrics[f"{name}_rows"] == (ids >= 0).sum() <= table["max_rows"]
        assert trainer.metrics[f"{name}_rows_evicted"] > table["max_rows"]
        assert table_arrays(state.shards[f"filter-{name}"])["counts"].any()


def test_ten_kills_at_random_moments_change_no_bit(
    template: Home, undisturbed: tuple[Home, float], tmp_path: Path
) -> None:
    whole, seconds = undisturbed
    kills = 0
    for ended in rounds(template, tmp_path, KILLS, seconds):
        assert fingerprint(newest(ended.home)) == fingerprint(newest(whole))
        kills += ended.kills
    assert kills == KILLS


def test_a_kill_that_leaves_a_chain_of_cuts_changes_no_bit(
    template: Home, undisturbed: tuple[Home, float], tmp_path: Path
) -> None:
    home = killed_in_a_chain(template, tmp_path)
    assert live(home)
    assert fingerprint(newest(home)) == fingerprint(newest(undisturbed[0]))


def killed_in_a_chain(template: Home, folder: Path) -> Home:
    """A home whose trainer was killed when the newest of its cuts continued another."""
    slow = replace(RECIPE, trainer_loop=replace(RECIPE.trainer_loop, limit=1))  # twice the cuts
    for attempt in range(10):
        home = copy_of(template, folder / f"home-{attempt}")
        process = start(home, slow)
        while process.is_alive() and not newest_continues(home):
            time.sleep(0.001)
        # It goes on while it is looked at: it may have made its cuts one since, or have ended.
        if kill(process) and newest_continues(home):
            return home
    raise AssertionError("a chain was never there long enough to kill its process")


def test_after_a_kill_a_replica_has_the_very_rows_of_the_trainer(
    home: Home, undisturbed: tuple[Home, float]
) -> None:
    live(home, undisturbed[1] / 2)
    live(home)
    log = open_log(home.log_url)
    state, positions = CutDirectory(home.cuts("trainer")).newest()
    assert state is not None
    assert positions == log.ends([SAMPLES])
    with replica_of(home, log).reading() as served:
        assert served is not None
        assert served.info.step == state.meta["steps"]
        for name, table in served.model.tables.items():
            rows = state.shards[f"table-{name}"]
            ids, values = table.touched_since(0)  # the shared ones too
            order = ids.argsort()
            assert (ids[order] == rows["id"].to_numpy()).all()
            assert (values[order] == column_matrix(rows["row"])).all()
    log.close()


def test_a_stop_between_any_two_turns_changes_no_bit(
    undisturbed: tuple[Home, float], home: Home
) -> None:
    log = open_log(home.log_url)
    more = True
    while more:
        loop = trainer_loop(RECIPE, home, log)
        more = sum(loop.turn() for _ in range(9)) > 0
        stopping = threading.Event()
        stopping.set()
        loop.run(stopping)
    log.close()
    assert fingerprint(newest(home)) == fingerprint(newest(undisturbed[0]))
