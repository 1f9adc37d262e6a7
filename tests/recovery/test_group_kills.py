"""Kill -9 or stop a rank of a trainer group: the others notice, every sample is learnt once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest

from benchmarks.group_kills import (
    LOST,
    RECIPE,
    learnt,
    life_of_a_group,
    logged,
    make_template,
    start,
)
from benchmarks.kills import PRELOADED, PROCESSES, copy_of, newest, rounds
from infra.home import Home
from trainers.group import GroupConfig

KILLS = 10
LONGEST_S = 2.0  # about what a group needs that nobody disturbs


@pytest.fixture(scope="module", autouse=True)
def _preloaded() -> Iterator[None]:
    PROCESSES.set_forkserver_preload(
        [*PRELOADED, "benchmarks.group_kills", "trainers.group", "pytest"]
    )
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # else it outlives the tests


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return make_template(tmp_path_factory.mktemp("template") / "home")


def test_ten_kills_of_any_rank_lose_no_sample_and_learn_none_twice(
    template: Home, tmp_path: Path
) -> None:
    live = life_of_a_group(np.random.default_rng(11))
    kills = 0
    for ended in rounds(template, tmp_path, KILLS, LONGEST_S, live):
        assert learnt(ended.home) == logged(ended.home)
        assert newest(ended.home).meta["samples"] == logged(ended.home).total()
        assert not [p for p in ended.home.cuts("trainer").iterdir() if p.name.startswith(".")]
        kills += ended.kills
    assert kills == KILLS


def test_a_rank_that_hangs_is_lost_and_a_new_group_goes_on(template: Home, tmp_path: Path) -> None:
    home = copy_of(template, tmp_path / "home")
    impatient = replace(RECIPE, group=GroupConfig(ranks=2, answer_within_s=4.0))
    for stopped in (0, 1):
        before = newest_cut(home)
        _store, ranks = start(home, impatient)
        while newest_cut(home) == before:  # it has begun to learn
            assert all(rank.is_alive() for rank in ranks)
            time.sleep(0.005)
        pid = ranks[stopped].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        ranks[1 - stopped].join(30)
        ranks[stopped].kill()
        ranks[stopped].join()
        assert ranks[1 - stopped].exitcode == LOST
        assert ranks[stopped].exitcode == -signal.SIGKILL
    assert life_of_a_group(np.random.default_rng(0))(home, None)
    assert learnt(home) == logged(home)


def newest_cut(home: Home) -> str:
    return max((path.name for path in home.cuts("trainer").glob("cut-*")), default="")
