"""`headrace run` with a trainer of two ranks: it learns, survives kills and hangs, and reshards."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from benchmarks._service import Service, service
from infra.home import Home
from infra.targets import targets
from streaming.cuts import CutDirectory

MOVIES = 9_125
REPLAYED = 13_000  # of 109,129 events: all movies and the first ratings
RECIPE = {
    "models": {},
    "replay.limit": REPLAYED,
    "trainer_loop.cut_every_s": 1.0,
    "group.answer_within_s": 4.0,
    "trainer.popularity_half_life": 1e15,  # counts are then the numbers of samples
}


def process_of(home: Path, rank: int) -> int:
    """The newest process id of a rank of the trainer."""
    log = home / "logs" / (f"trainer-{rank}.log" if rank else "trainer.log")
    return int(re.findall(r"the trainer.* is process (\d+)", log.read_text())[-1])


def learnt(system: Service) -> float:
    samples: float = system.get("/v1/status")["metrics"]["samples"]
    return samples


def lineage_of(system: Service) -> str:
    """Which incarnation of the trainer published the newest version."""
    newest: str = system.get("/v1/status")["newest_version"]["name"]
    return newest.split("/")[1]


def counted(home: Path) -> int:
    """How many samples the counts of all items add up to, in the newest cut."""
    state, _ = CutDirectory(home / "cuts" / "trainer").newest()
    assert state is not None
    counts: list[float] = state.shards["corpus"]["count"].to_pylist()
    return round(sum(counts))


@pytest.mark.timeout(400)  # three starts of the whole system
def test_a_group_survives_a_kill_and_a_hang_and_changes_its_size(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with service(home, {**RECIPE, "group.ranks": 2}) as first:
        first.wait_until_ready()
        assert [t.rank for t in targets(Home(home)) if t.process == "trainer"] == [0, 1]
        for blow in (signal.SIGKILL, signal.SIGSTOP):
            lineage = lineage_of(first)
            os.kill(process_of(home, 1), blow)
            first.wait_for(lambda lineage=lineage: lineage_of(first) != lineage)
        first.wait_for(first.caught_up)
        assert first.get("/v1/status")["restarts"]["trainer"] >= 2
        assert learnt(first) == REPLAYED - MOVIES  # every rating once
        assert first.stop() == 0
    told = (home / "logs" / "run.log").read_text()
    assert "the trainer's rank 1 died" in told
    assert "the trainer's rank 1 hangs" in told
    assert counted(home) == REPLAYED - MOVIES

    for ranks, more in ((1, 1), (3, 2)):
        with service(home, {**RECIPE, "group.ranks": ranks}) as again:
            again.wait_until_ready()
            rating = {"kind": "rate", "user_id": f"u{ranks}", "item_id": "318", "value": 5}
            assert again.post_events(rating)[0] == 202
            again.wait_for(lambda again=again, more=more: learnt(again) == REPLAYED - MOVIES + more)
            again.wait_for(again.caught_up)
            assert again.stop() == 0
        assert counted(home) == REPLAYED - MOVIES + more
