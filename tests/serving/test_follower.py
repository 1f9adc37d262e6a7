"""The follower with a real log and a real store: order, gaps, damage, new lineages."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.follower import Follower
from serving.replica import Replica
from streaming.file_log import FileLog
from trainers.versions import Version, VersionInfo, VersionStore

MakeVersion = Callable[..., Version]
EVERY = 4  # each fourth version is a snapshot


class Stage:
    """A log, a store, and a follower with its replica; `applied` lists what it told of."""

    def __init__(self, log: FileLog, root: Path, make: MakeVersion) -> None:
        self.log = log
        self.root = root
        self.store = VersionStore(root)
        self.replica = Replica()
        self.applied: list[int] = []
        self._make = make

    def follower(self, look_back: int = 100) -> Follower:
        return Follower(self.log, self.store, self.replica, look_back, self._told)

    def publish(
        self,
        *numbers: int,
        lineage: str = "a",
        lost: bool = False,
        watermark_us: int | None = None,
    ) -> None:
        """Writes and announces versions; with `lost` a shard of each is gone afterwards."""
        for number in numbers:
            version = self._make(
                number, lineage, snapshot=number % EVERY == 0, watermark_us=watermark_us
            )
            self.log.append(self.store.execute([version]))
            if lost:
                self.shard(number, lineage).unlink()

    def shard(self, number: int, lineage: str = "a") -> Path:
        return self.root / "two_tower" / lineage / str(number) / "vectors.arrow"

    @property
    def serves(self) -> str | None:
        """lineage and number of what is served, which must be whole."""
        with self.replica.reading() as served:
            if served is None:
                return None
            assert set(served._all_vectors().flatten().tolist()) == {float(served.info.number)}
            return f"{served.info.lineage}{served.info.number}"

    def _told(self, info: VersionInfo, seconds: float) -> None:
        assert seconds > 0
        self.applied.append(info.number)


@pytest.fixture
def stage(log: FileLog, tmp_path: Path, constant_version: MakeVersion) -> Stage:
    return Stage(log, tmp_path / "versions", constant_version)


def test_starts_from_the_newest_snapshot(stage: Stage) -> None:
    stage.publish(*range(10))
    stage.follower().turn(0)
    assert stage.serves == "a9"
    assert stage.applied == [8, 9]


def test_follows_what_is_announced_and_each_version_once(stage: Stage) -> None:
    follower = stage.follower()
    follower.turn(0)
    assert stage.serves is None
    for number in range(10):
        stage.publish(number)
        follower.turn(0)
        assert stage.serves == f"a{number}"
        follower.turn(0)
    assert stage.applied == list(range(10))


def test_several_announcements_in_one_turn_are_taken_in_their_order(stage: Stage) -> None:
    follower = stage.follower()
    stage.publish(0)
    follower.turn(0)
    stage.publish(*range(1, 7))
    follower.turn(0)
    assert stage.applied == list(range(7))


@pytest.mark.parametrize("damage", ["gone", "flipped", "directory gone"])
@pytest.mark.parametrize("where", [2, EVERY], ids=["delta", "snapshot"])
def test_a_version_that_cannot_be_read_is_healed_by_the_next_snapshot(
    stage: Stage, damage: str, where: int, caplog: pytest.LogCaptureFixture
) -> None:
    follower = stage.follower()
    stage.publish(*range(where))
    follower.turn(0)
    stage.publish(where)
    shard = stage.shard(where)
    if damage == "gone":
        shard.unlink()
    elif damage == "flipped":
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    else:
        shard.parent.rename(shard.parent.with_name("away"))
    healed_by = EVERY * (where // EVERY + 1)
    with caplog.at_level(logging.WARNING):
        for number in range(where, healed_by):
            if number > where:
                stage.publish(number)
            follower.turn(0)
            assert stage.serves == f"a{where - 1}"  # the old version goes on being served
    assert f"two_tower/a/{where}" in caplog.text
    stage.publish(healed_by)
    follower.turn(0)
    assert stage.serves == f"a{healed_by}"
    stage.publish(healed_by + 1)
    follower.turn(0)
    assert stage.serves == f"a{healed_by + 1}"


def test_starts_from_the_snapshot_before_if_the_newest_cannot_be_read(stage: Stage) -> None:
    stage.publish(*range(EVERY))
    stage.publish(EVERY, lost=True)
    stage.publish(EVERY + 1)
    stage.follower().turn(0)
    assert stage.serves == f"a{EVERY - 1}"


def test_starts_from_the_lineage_before_if_the_newest_cannot_be_read(stage: Stage) -> None:
    stage.publish(*range(6), watermark_us=50)
    stage.publish(0, lineage="b", watermark_us=51, lost=True)
    stage.publish(1, lineage="b", watermark_us=52)
    follower = stage.follower()
    follower.turn(0)
    assert stage.serves == "a5"
    stage.publish(EVERY, lineage="b", watermark_us=53)
    follower.turn(0)
    assert stage.serves == f"b{EVERY}"


def test_a_snapshot_that_can_be_read_after_all_is_taken_with_the_next_delta(stage: Stage) -> None:
    stage.publish(0)
    away = stage.shard(0).with_name("away")
    stage.shard(0).rename(away)
    follower = stage.follower()
    stage.publish(1)
    follower.turn(0)
    assert stage.serves is None
    away.rename(stage.shard(0))
    stage.publish(2)
    follower.turn(0)
    assert stage.serves == "a2"
    assert stage.applied == [0, 1, 2]


def test_a_new_lineage_takes_over(stage: Stage) -> None:
    follower = stage.follower()
    stage.publish(*range(6), watermark_us=50)
    follower.turn(0)
    stage.publish(0, lineage="b", watermark_us=50)  # as far as the one before: it goes on from it
    follower.turn(0)
    assert stage.serves == "b0"
    stage.publish(1, 2, lineage="b", watermark_us=61)
    follower.turn(0)
    assert stage.serves == "b2"


def test_a_straggler_of_the_lineage_before_does_not_bring_it_back(stage: Stage) -> None:
    follower = stage.follower()
    stage.publish(*range(6), watermark_us=50)
    stage.publish(0, lineage="b", watermark_us=50)
    follower.turn(0)
    stage.publish(6, watermark_us=50)
    follower.turn(0)
    assert stage.serves == "b0"


def test_a_lineage_that_is_behind_waits_until_a_snapshot_of_it_has_caught_up(stage: Stage) -> None:
    follower = stage.follower()
    stage.publish(*range(3), watermark_us=50)
    follower.turn(0)
    for number in range(EVERY):
        stage.publish(number, lineage="b", watermark_us=20 + number)
        follower.turn(0)
        assert stage.serves == "a2"
    stage.publish(EVERY, lineage="b", watermark_us=51)
    follower.turn(0)
    assert stage.serves == f"b{EVERY}"


def test_a_restarted_follower_starts_with_the_newest_lineage(stage: Stage) -> None:
    stage.publish(*range(6), watermark_us=50)
    stage.publish(0, 1, lineage="b", watermark_us=51)
    stage.follower().turn(0)
    assert stage.serves == "b1"
    assert stage.applied == [0, 1]


def test_what_is_announced_twice_is_applied_once(stage: Stage) -> None:
    follower = stage.follower()
    for number in range(6):
        stage.publish(number, number)
        follower.turn(0)
        assert stage.serves == f"a{number}"
    assert stage.applied == list(range(6))


def test_a_chain_with_a_version_announced_twice_is_healed_to_its_end(stage: Stage) -> None:
    stage.publish(0)
    away = stage.shard(0).with_name("away")
    stage.shard(0).rename(away)
    follower = stage.follower()
    stage.publish(1, 1, 2)
    follower.turn(0)
    away.rename(stage.shard(0))
    stage.publish(3)
    follower.turn(0)
    assert stage.serves == "a3"


def test_announcements_without_a_snapshot_in_sight_are_waited_out(stage: Stage) -> None:
    stage.publish(*range(EVERY))
    follower = stage.follower(look_back=2)  # sees the deltas 2 and 3 only
    follower.turn(0)
    assert stage.serves is None
    stage.publish(EVERY, EVERY + 1)
    follower.turn(0)
    assert stage.serves == f"a{EVERY + 1}"


def test_more_announcements_than_it_looks_back_over_are_all_followed(stage: Stage) -> None:
    stage.publish(0)
    follower = stage.follower(look_back=3)
    follower.turn(0)
    stage.publish(*range(1, 8))
    for _ in range(3):
        follower.turn(0)
    assert stage.serves == "a7"


def test_runs_until_it_is_told_to_stop(stage: Stage) -> None:
    follower, stopping, changed = stage.follower(), threading.Event(), threading.Event()
    follower._applied = lambda _info, _seconds: changed.set()
    thread = threading.Thread(target=follower.run, args=(stopping,), daemon=True)
    thread.start()
    try:
        stage.publish(0)
        assert changed.wait(10)
    finally:
        stopping.set()
        thread.join(timeout=10)
    assert not thread.is_alive()
    assert stage.serves == "a0"
