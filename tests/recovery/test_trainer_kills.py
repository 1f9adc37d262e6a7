"""Kill -9 the trainer at any moment: it ends with the very bits of one that was never killed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from benchmarks.kills import (
    PRELOADED,
    PROCESSES,
    RECIPE,
    copy_of,
    fingerprint,
    live,
    make_template,
    newest,
    rounds,
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


@pytest.fixture(scope="module", autouse=True)
def _preloaded() -> Iterator[None]:
    PROCESSES.set_forkserver_preload([*PRELOADED, "pytest"])
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # else it outlives the tests


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
    continued = 0
    # How far a process has come after so many seconds is the machine's affair: should none have
    # begun a chain of cuts when it was killed, they are killed once more, sooner or later.
    for attempt in range(3):
        kills = 0
        for ended in rounds(template, tmp_path / str(attempt), KILLS, seconds * 0.7**attempt):
            assert fingerprint(newest(ended.home)) == fingerprint(newest(whole))
            kills, continued = kills + ended.kills, continued + ended.continued
        assert kills == KILLS
        if continued:
            break
    assert continued > 0, "no kill left a chain of cuts: what this is about was not tried"


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
