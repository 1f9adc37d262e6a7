"""Kill -9 or stop a rank of a trainer group: the others notice, every sample is learnt once."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
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
from benchmarks.kills import copy_of, newest, rounds
from infra.home import Home
from trainers.group import GroupConfig

KILLS = 10
LONGEST_S = 2.0  # about what a group needs that nobody disturbs
pytestmark = pytest.mark.usefixtures("processes")


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


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_or_hangs_while_it_learns_is_lost_and_a_new_group_goes_on(
    template: Home, tmp_path: Path, victim: int
) -> None:
    home = copy_of(template, tmp_path / "home")
    impatient = replace(
        RECIPE,
        group=GroupConfig(ranks=2, answer_within_s=4.0),
        trainer_loop=replace(RECIPE.trainer_loop, limit=1),  # so there is something left to learn
    )
    for blow in (signal.SIGKILL, signal.SIGSTOP):
        before = newest_cut(home)
        _store, ranks = start(home, impatient)
        while newest_cut(home) == before:  # it has begun to learn
            assert all(rank.is_alive() for rank in ranks)
            time.sleep(0.001)
        os.kill(ranks[victim].pid or 0, blow)
        ranks[1 - victim].join(30)
        ranks[victim].kill()
        ranks[victim].join()
        assert ranks[1 - victim].exitcode == LOST
        assert ranks[victim].exitcode == -signal.SIGKILL
    assert life_of_a_group(np.random.default_rng(0))(home, None)
    assert learnt(home) == logged(home)


def newest_cut(home: Home) -> str:
    return max((path.name for path in home.cuts("trainer").glob("cut-*")), default="")
