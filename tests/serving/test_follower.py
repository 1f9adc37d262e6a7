"""The follower with a real log, a real store and a real replica: order, gaps, damage, control."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from features.behaviour import Behaviour, BehaviourConfig
from serving.follower import Follower
from serving.replica import Applied, Replica
from streaming.artefact_store import RemoteArtefacts
from streaming.events import EventRules, encode_events
from streaming.file_log import FileLog
from streaming.joiner import Joiner, JoinerConfig
from streaming.log import EVENTS, SAMPLES, Record
from streaming.sources.movielens import MovieLens
from trainers.compaction import compact_chain
from trainers.negatives import NegativesConfig
from trainers.trainer import Trainer, TrainerConfig
from trainers.version_store import VersionStore
from trainers.versions import Version, VersionInfo, doorbell

MakeVersion = Callable[..., Version]
IDS = st.sets(st.integers(0, 9), max_size=5).map(sorted)
LOGGED_US = 1_700_000_000_000_000
EVERY = 4  # each fourth version is a snapshot too


class Stage:
    """A log, a store, and a follower with its replica; `applied` lists what it told of."""

    def __init__(self, log: FileLog, root: Path, make: MakeVersion) -> None:
        self.log = log
        self.root = root
        self.store = VersionStore(root)
        self.replica = Replica()
        self.applied: list[int] = []
        self.loads: list[int] = []  # those of `applied` that needed all of the model
        self.refused: list[tuple[str, str]] = []
        self.read_from = self.store
        self.make = make

    def follower(self, look_back: int = 100, **options: Any) -> Follower:
        def refused(info: VersionInfo, reason: str) -> None:
            self.refused.append((info.name, reason))

        return Follower(
            self.log, self.read_from, self.replica, look_back, self._told, refused, **options
        )

    def publish(
        self,
        *numbers: int,
        lineage: str = "a",
        lost: bool = False,
        watermark_us: int | None = None,
        held: str | None = None,
        **made: Any,
    ) -> None:
        """Writes and announces versions, the delta first, then the snapshot that is due.

        With `lost` a shard of each is gone afterwards. `held` names the last good one, such as "a3"
        or "" for none, of versions that are held back.
        """
        for number in numbers:
            versions = [
                self.make(number, lineage, snapshot=whole, watermark_us=watermark_us, **made)
                for whole in (False, True)
                if (number % EVERY == 0 if whole else number > 0)
            ]
            if held is not None:
                last_good = f"two_tower/{held[0]}/{held[1:]}" if held else None
                verdict: dict[str, Any] = {"held": "it is worse", "last_good": last_good}
                versions = [replace(v, info=replace(v.info, **verdict)) for v in versions]
            self.log.append(self.store.execute(versions))
            for version in versions if lost else ():
                self.shard(version.info.artefact).unlink()

    def pin(self, name: str | None) -> None:
        """Holds replicas at a version, as the command does."""
        self.store.pin("two_tower", None if name is None else f"two_tower/{name}")
        self.log.append([doorbell("two_tower")])

    def shard(self, artefact: str) -> Path:
        return self.root / artefact / "vectors.arrow"

    @property
    def serves(self) -> str | None:
        """lineage and number of what is served, which must be whole."""
        with self.replica.reading() as served:
            if served is None:
                return None
            assert set(served.vectors(served.items)[0].flatten().tolist()) == {
                float(served.info.number)
            }
            return f"{served.info.lineage}{served.info.number}"

    def _told(self, info: VersionInfo, seconds: float) -> None:
        assert seconds > 0
        self.applied.append(info.number)
        if info.base is None:
            self.loads.append(info.number)


@pytest.fixture
def stage(log: FileLog, tmp_path: Path, constant_version: MakeVersion) -> Stage:
    return Stage(log, tmp_path / "versions", constant_version)


def test_starts_from_the_newest_snapshot(stage: Stage) -> None:
    stage.publish(*range(10))
    stage.follower().turn(0)
    assert stage.serves == "a9"
    assert stage.applied == [9]  # with what follows it, in one step


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


def test_what_waits_is_applied_in_one_step_from_the_newest_snapshot_on(stage: Stage) -> None:
    follower = stage.follower()
    stage.publish(0)
    follower.turn(0)
    stage.publish(1, 2, 3)
    follower.turn(0)
    assert (stage.serves, stage.applied) == ("a3", [0, 3])
    stage.publish(*range(EVERY, 2 * EVERY + 2))
    follower.turn(0)
    assert (stage.serves, stage.applied) == ("a9", [0, 3, 9])


def test_a_step_has_no_more_rows_than_asked_for(stage: Stage) -> None:
    follower = stage.follower(rows_at_once=24)  # a version of the tests has 12
    stage.publish(0)
    follower.turn(0)
    stage.publish(1, 2, 3)
    follower.turn(0)
    assert stage.applied == [0, 2, 3]
    stage.publish(*range(EVERY, EVERY + 4))
    follower.turn(0)
    assert (stage.serves, stage.applied) == ("a7", [0, 2, 3, 5, 7])
    stage.replica = Replica()
    stage.follower(rows_at_once=24).turn(0)
    assert stage.applied[5:] == [7]  # a snapshot is laid once, with all that follows


def spoil(shard: Path, damage: str) -> None:
    if damage == "gone":
        shard.unlink()
    elif damage == "flipped":
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    else:
        shard.parent.rename(shard.parent.with_name(f"away-{shard.parent.name}"))


@pytest.mark.parametrize("damage", ["gone", "flipped", "directory gone"])
@pytest.mark.parametrize(("entry", "whole"), [("4", True), ("4.whole", False)])
def test_of_a_version_that_is_there_in_two_ways_one_is_enough(
    stage: Stage, damage: str, entry: str, whole: bool
) -> None:
    follower = stage.follower()
    stage.publish(*range(EVERY))
    follower.turn(0)
    stage.publish(EVERY)
    spoil(stage.shard(f"two_tower/a/{entry}"), damage)
    follower.turn(0)
    assert stage.serves == f"a{EVERY}"
    assert stage.replica.info is not None
    assert (stage.replica.info.base is None) == whole
    stage.publish(EVERY + 1)
    follower.turn(0)
    assert stage.serves == f"a{EVERY + 1}"


@pytest.mark.parametrize("damage", ["gone", "flipped", "directory gone"])
@pytest.mark.parametrize("entries", [("2",), ("4", "4.whole")], ids=["a delta", "both ways"])
def test_a_version_that_cannot_be_read_is_healed_by_the_next_snapshot(
    stage: Stage, damage: str, entries: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    follower, where = stage.follower(), int(entries[0])
    stage.publish(*range(where))
    follower.turn(0)
    stage.publish(where)
    for entry in entries:
        spoil(stage.shard(f"two_tower/a/{entry}"), damage)
    healed_by = EVERY * (where // EVERY + 1)
    with caplog.at_level(logging.WARNING):
        for number in range(where, healed_by):
            if number > where:
                stage.publish(number)
            follower.turn(0)
            assert stage.serves == f"a{where - 1}"  # the old version goes on being served
    assert all(f"passing over version two_tower/a/{entry}: " in caplog.text for entry in entries)
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
    away = stage.shard("two_tower/a/0").with_name("away")
    stage.shard("two_tower/a/0").rename(away)
    follower = stage.follower()
    stage.publish(1)
    follower.turn(0)
    assert stage.serves is None
    away.rename(stage.shard("two_tower/a/0"))
    stage.publish(2)
    follower.turn(0)
    assert stage.serves == "a2"
    assert stage.applied == [2]


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
    assert stage.applied == [1]


def test_what_is_announced_twice_is_applied_once(stage: Stage) -> None:
    follower = stage.follower()
    for number in range(6):
        stage.publish(number, number)
        follower.turn(0)
        assert stage.serves == f"a{number}"
    assert stage.applied == list(range(6))


def test_a_chain_with_a_version_announced_twice_is_healed_to_its_end(stage: Stage) -> None:
    stage.publish(0)
    away = stage.shard("two_tower/a/0").with_name("away")
    stage.shard("two_tower/a/0").rename(away)
    follower = stage.follower()
    stage.publish(1, 1, 2)
    follower.turn(0)
    away.rename(stage.shard("two_tower/a/0"))
    stage.publish(3)
    follower.turn(0)
    assert stage.serves == "a3"


def test_announcements_without_a_snapshot_in_sight_are_waited_out(stage: Stage) -> None:
    stage.publish(*range(EVERY))
    follower = stage.follower(look_back=2)  # sees the deltas 2 and 3 only
    follower.turn(0)
    assert stage.serves is None
    stage.publish(EVERY, EVERY + 1)
    for _ in range(2):  # they are read two at a time
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


# What is missing, doubled or nonsense


def test_a_delta_that_was_never_announced_is_healed_by_the_next_snapshot(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    follower = stage.follower()
    stage.publish(0, 1)
    follower.turn(0)
    for number in (3, 3):
        stage.publish(number)
        follower.turn(0)
        assert stage.serves == "a1"
    assert caplog.text.count("two_tower/a/3 cannot be reached yet, waiting for a snapshot") == 1
    stage.publish(EVERY, EVERY + 1)
    follower.turn(0)
    assert stage.serves == f"a{EVERY + 1}"


def test_two_lineages_at_once_do_not_take_turns(stage: Stage) -> None:
    follower = stage.follower()
    served = []
    for number in range(2 * EVERY):
        stage.publish(number, lineage="a", watermark_us=100 + number)
        stage.publish(number, lineage="b", watermark_us=100 + number)
        follower.turn(0)
        served.append(stage.serves)
    assert served == [f"b{number}" for number in range(2 * EVERY)]


def test_clocks_that_are_wrong_do_no_harm(stage: Stage) -> None:
    """Neither the times in names of lineages, nor in versions, are compared with any clock."""
    follower = stage.follower()
    in_2100_us = 4_102_444_800_000_000
    stage.publish(*range(3), lineage="20991231T000000-aaaa", watermark_us=in_2100_us)
    follower.turn(0)
    stage.publish(0, lineage="19700101T000000-bbbb", watermark_us=in_2100_us)
    follower.turn(0)
    assert stage.serves == "19700101T000000-bbbb0"


def test_a_version_that_makes_nonsense_is_refused_and_named_once(stage: Stage) -> None:
    follower = stage.follower()
    stage.publish(0, 1)
    follower.turn(0)
    stage.publish(2, value=float("nan"))
    follower.turn(0)
    for _ in range(2):
        stage.publish(3)
        follower.turn(0)
        assert stage.serves == "a1"
    assert [name for name, _ in stage.refused] == ["two_tower/a/2"]
    assert "not finite" in stage.refused[0][1]
    stage.publish(EVERY)
    follower.turn(0)
    assert stage.serves == f"a{EVERY}"


def test_what_comes_before_nonsense_in_one_turn_is_applied(stage: Stage) -> None:
    follower = stage.follower()
    stage.publish(0, 1)
    stage.publish(2, value=float("inf"), ids=(7,))
    stage.publish(3)
    follower.turn(0)
    assert stage.serves == "a1"
    assert [name for name, _ in stage.refused] == ["two_tower/a/2"]


@pytest.mark.parametrize("what", ["model", "options"])
def test_a_version_that_cannot_be_built_here_is_refused(stage: Stage, what: str) -> None:
    follower = stage.follower()
    stage.publish(0, watermark_us=50)
    follower.turn(0)
    version = stage.make(0, "b", snapshot=True, watermark_us=60)
    other: dict[str, Any] = {"model": "of tomorrow"} if what == "model" else {}
    if what == "options":
        other = {"options": {"width": 4, "tomorrow": True}}
    version = replace(version, info=replace(version.info, **other))
    stage.log.append(stage.store.execute([version]))
    follower.turn(0)
    assert stage.serves == "a0"
    assert [name for name, _ in stage.refused] == [version.info.name]
    stage.publish(1, watermark_us=51)
    follower.turn(0)
    assert stage.serves == "a1"


# A store that is away, or slow


class Away(fs.FSSpecHandler):  # type: ignore[misc]
    """Files of this machine that can be away, or hang."""

    def __init__(self) -> None:
        super().__init__(fsspec.filesystem("file", skip_instance_cache=True))
        self.reads = 0
        self.act: Callable[[], object] = lambda: None

    def open_input_stream(self, path: str) -> Any:
        self.reads += 1
        self.act()
        return super().open_input_stream(path)

    def refuse(self) -> None:
        raise OSError("connection refused")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def away(stage: Stage) -> Away:
    """Replaces what the stage's followers read from; it writes as before."""
    handler = Away()
    far = RemoteArtefacts(fs.PyFileSystem(handler), str(stage.root), patience_s=0.2)
    stage.read_from = VersionStore(far)
    return handler


def test_a_store_that_is_away_is_asked_less_and_less_often_and_told_of_once(
    stage: Stage, away: Away, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    follower = stage.follower(clock=clock)
    stage.publish(0)
    follower.turn(0)
    away.act, away.reads = away.refuse, 0
    for number in (1, 2, 3):
        stage.publish(number)
        for _ in range(20):
            clock.now += 1
            follower.turn(0)
        assert stage.serves == "a0"
    assert away.reads < 12  # of 60 turns
    away.act = lambda: None
    clock.now += 60
    follower.turn(0)
    assert (stage.serves, stage.applied) == ("a3", [0, 3])
    told = [r.getMessage() for r in caplog.records if r.name == "serving.follower"]
    assert len(told) == 2
    assert "connection refused" in told[0]
    assert told[1] == "the store of versions answers again"


def test_a_store_that_is_slow_is_given_up_and_what_is_served_is_served(
    stage: Stage, away: Away
) -> None:
    goes_on, clock = threading.Event(), Clock()
    follower = stage.follower(clock=clock)
    stage.publish(0)
    follower.turn(0)
    away.act = lambda: goes_on.wait(10)
    stage.publish(1)
    try:
        follower.turn(0)
        assert stage.serves == "a0"
    finally:
        away.act = lambda: None
        goes_on.set()
    for _ in range(100):
        clock.now += 60
        follower.turn(0.05)
        if stage.serves == "a1":
            break
    assert stage.serves == "a1"


def test_a_replica_that_starts_while_the_store_is_away_starts_when_it_is_back(
    stage: Stage, away: Away
) -> None:
    clock = Clock()
    stage.publish(0, 1)
    away.act = away.refuse
    follower = stage.follower(clock=clock)
    follower.turn(0)
    assert stage.serves is None
    away.act = lambda: None
    clock.now += 60
    follower.turn(0)
    assert stage.serves == "a1"


# Held at a version


def test_a_pin_holds_what_is_served_while_training_goes_on(stage: Stage) -> None:
    follower = stage.follower()
    stage.publish(0, 1)
    follower.turn(0)
    stage.pin("a/1")
    stage.publish(*range(2, EVERY + 2))
    follower.turn(0)
    assert stage.serves == "a1"
    stage.pin(None)
    follower.turn(0)
    assert stage.serves == f"a{EVERY + 1}"


def test_a_rollback_goes_back_in_one_step_and_holds(stage: Stage) -> None:
    follower = stage.follower()
    stage.publish(*range(EVERY + 3))
    follower.turn(0)
    stage.pin("a/2")
    follower.turn(0)
    assert (stage.serves, stage.applied) == ("a2", [EVERY + 2, 2])
    stage.publish(EVERY + 3)
    follower.turn(0)
    assert stage.serves == "a2"
    stage.pin(f"a/{EVERY + 1}")  # forward, but not to the end
    follower.turn(0)
    assert stage.serves == f"a{EVERY + 1}"
    stage.pin(None)
    follower.turn(0)
    assert stage.serves == f"a{EVERY + 3}"


def test_a_pin_a_little_ahead_is_reached_by_deltas(stage: Stage) -> None:
    follower = stage.follower()
    stage.publish(0)
    follower.turn(0)
    stage.pin("a/2")
    stage.publish(1, 2, 3)
    follower.turn(0)
    assert (stage.serves, stage.applied) == ("a2", [0, 2])


def test_a_replica_that_starts_while_pinned_loads_the_pinned_one(stage: Stage) -> None:
    stage.publish(*range(EVERY + 3), watermark_us=50)
    stage.publish(0, lineage="b", watermark_us=60)
    stage.pin("a/5")
    stage.follower(look_back=2).turn(0)
    assert stage.serves == "a5"


def test_a_rollback_across_lineages_is_undone_by_unpin(stage: Stage) -> None:
    follower = stage.follower()
    stage.publish(0, 1, watermark_us=50)
    stage.publish(0, 1, lineage="b", watermark_us=60)
    follower.turn(0)
    assert stage.serves == "b1"
    stage.pin("a/1")
    follower.turn(0)
    assert stage.serves == "a1"
    stage.pin(None)
    follower.turn(0)
    assert stage.serves == "b1"


def test_a_pinned_version_that_is_damaged_changes_nothing_until_it_is_mended(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    follower = stage.follower(clock=clock)
    stage.publish(*range(EVERY + 1))
    follower.turn(0)
    stage.shard("two_tower/a/2").rename(stage.shard("two_tower/a/2").with_name("away"))
    stage.pin("a/3")
    for _ in range(5):
        clock.now += 1
        follower.turn(0)
        assert stage.serves == f"a{EVERY}"
    assert caplog.text.count("passing over version two_tower/a/2") == 1
    stage.shard("two_tower/a/2").with_name("away").rename(stage.shard("two_tower/a/2"))
    clock.now += 60
    follower.turn(0)
    assert stage.serves == "a3"


def test_a_pin_of_which_nobody_told_is_found_in_time(stage: Stage) -> None:
    clock = Clock()
    follower = stage.follower(clock=clock)
    stage.publish(0, 1)
    follower.turn(0)
    stage.store.pin("two_tower", "two_tower/a/0")
    follower.turn(0)
    assert stage.serves == "a1"
    clock.now += 10
    follower.turn(0)
    assert stage.serves == "a0"


# -- what the gate holds back --------------------------------------------------------------


def test_a_version_that_is_held_back_is_never_served_and_the_next_good_one_is(
    stage: Stage,
) -> None:
    follower = stage.follower()
    stage.publish(*range(3))
    follower.turn(0)
    for number in range(3, 3 * EVERY):  # past snapshots, which are held too
        stage.publish(number, held="a2")
        follower.turn(0)
        assert stage.serves == "a2"
    stage.publish(3 * EVERY)
    follower.turn(0)
    assert stage.serves == f"a{3 * EVERY}"
    assert stage.applied == [2, 3 * EVERY]
    assert stage.refused == []


def test_after_a_long_hold_no_delta_is_asked_for_that_is_gone(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    follower = stage.follower()
    stage.publish(*range(3))
    follower.turn(0)
    stage.publish(*range(3, 3 * EVERY), held="a2")
    stage.publish(3 * EVERY)
    assert not stage.shard("two_tower/a/3").exists()
    follower.turn(0)
    assert stage.serves == f"a{3 * EVERY}"
    assert caplog.text == ""


def test_nor_on_the_way_to_the_last_good_version(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    follower = stage.follower()
    stage.publish(*range(3))
    follower.turn(0)
    stage.publish(*range(3, 3 * EVERY + 2))
    stage.publish(3 * EVERY + 2, held=f"a{3 * EVERY + 1}")
    follower.turn(0)
    assert stage.serves == f"a{3 * EVERY + 1}"
    assert caplog.text == ""


def test_deltas_that_are_still_there_lead_past_snapshots_that_cannot_be_read(stage: Stage) -> None:
    stage.store = stage.read_from = VersionStore(stage.root, snapshots_kept=9)
    follower = stage.follower()
    stage.publish(*range(3))
    follower.turn(0)
    stage.publish(*range(3, 3 * EVERY + 1))
    for number in range(EVERY, 3 * EVERY + 1, EVERY):
        stage.shard(f"two_tower/a/{number}.whole").unlink()
    follower.turn(0)
    assert stage.serves == f"a{3 * EVERY}"
    assert stage.loads == [2]


def test_a_replica_goes_back_to_the_last_good_version(stage: Stage) -> None:
    follower = stage.follower()
    for number in range(EVERY + 3):
        stage.publish(number)
        follower.turn(0)
    stage.publish(EVERY + 3, held=f"a{EVERY - 1}")
    follower.turn(0)
    assert stage.serves == f"a{EVERY - 1}"
    stage.publish(EVERY + 4, held=f"a{EVERY - 1}")
    follower.turn(0)
    assert stage.serves == f"a{EVERY - 1}"
    stage.publish(EVERY + 5)
    follower.turn(0)
    assert stage.serves == f"a{EVERY + 5}"


def test_a_replica_that_starts_meanwhile_loads_the_last_good_version(stage: Stage) -> None:
    stage.publish(*range(EVERY + 2))
    # So long that the good ones are neither among what it looks back over nor the newest snapshots.
    stage.publish(*range(EVERY + 2, 10 * EVERY), held=f"a{EVERY + 1}")
    stage.follower(look_back=5).turn(0)
    assert stage.serves == f"a{EVERY + 1}"


def test_what_is_held_back_with_nothing_good_before_it_is_not_served(stage: Stage) -> None:
    follower = stage.follower()
    stage.publish(0, 1, held="")
    follower.turn(0)
    assert stage.serves is None
    stage.publish(2)
    follower.turn(0)
    assert stage.serves == "a2"


def test_steps_of_few_rows_do_not_stay_at_what_was_held_back(stage: Stage) -> None:
    follower = stage.follower(rows_at_once=12)  # of one version
    stage.publish(0)
    follower.turn(0)
    stage.publish(1, 2, held="a0")
    stage.publish(3)
    follower.turn(0)
    assert stage.applied == [0, 3]


def test_a_damaged_version_behind_held_ones_changes_nothing(stage: Stage) -> None:
    follower = stage.follower()
    stage.publish(0)
    follower.turn(0)
    stage.publish(1, 2, held="a0")
    stage.publish(3, lost=True)
    follower.turn(0)
    assert stage.serves == "a0"
    stage.publish(EVERY)
    follower.turn(0)
    assert stage.serves == f"a{EVERY}"


def test_a_pin_by_hand_stands_above_the_gate(stage: Stage) -> None:
    follower = stage.follower()
    stage.publish(0, 1, 2)
    stage.publish(3, held="a1")
    follower.turn(0)
    assert stage.serves == "a1"
    stage.pin("a/3")
    follower.turn(0)
    assert stage.serves == "a3"  # he who says so has his reasons
    stage.pin(None)
    follower.turn(0)
    assert stage.serves == "a1"


def test_other_threads_may_ask_where_it_is_to_stay_while_it_follows(stage: Stage) -> None:
    follower = stage.follower(look_back=40)
    found: set[str | None] = set()
    failed: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                found.add(follower.target)
        except RuntimeError as error:  # what it looks at has changed meanwhile
            failed.append(error)

    asking = threading.Thread(target=ask)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # they take turns often, and nobody waits long
    asking.start()
    for number in range(60):
        stage.publish(number, held=None if number % 3 else "a0")
        follower.turn(0)
    done.set()
    asking.join()
    sys.setswitchinterval(usual)
    assert failed == []
    assert found <= {None, "two_tower/a/0"}


def test_a_new_incarnation_that_is_held_back_leaves_what_was_served(stage: Stage) -> None:
    follower = stage.follower()
    stage.publish(*range(3), watermark_us=50)
    follower.turn(0)
    stage.publish(*range(2 * EVERY + 2), lineage="b", watermark_us=51, held="a2")
    follower.turn(0)
    assert stage.serves == "a2"
    assert stage.store.last_good("two_tower") == "two_tower/a/2"
    stage.replica = Replica()
    stage.follower(look_back=3).turn(0)
    assert stage.serves == "a2"  # what it stands on was kept
    stage.publish(2 * EVERY + 2, lineage="b", watermark_us=52)
    assert stage.store.last_good("two_tower") == f"two_tower/b/{2 * EVERY + 2}"


def test_a_control_file_that_makes_no_sense_pins_nothing(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    (stage.root / "two_tower").mkdir(parents=True)
    (stage.root / "two_tower" / "control.json").write_text("[")
    stage.publish(0)
    stage.follower().turn(0)
    assert stage.serves == "a0"
    assert "does not say what is pinned" in caplog.text


def test_a_pin_a_little_ahead_is_reached_by_deltas_past_a_snapshot(stage: Stage) -> None:
    follower = stage.follower()
    stage.publish(*range(3))
    follower.turn(0)
    stage.pin("a/5")
    stage.publish(*range(3, 8))
    follower.turn(0)
    assert stage.serves == "a5"
    assert (stage.applied, stage.loads) == ([2, 5], [2])  # what it started with, and no more


def test_of_a_pinned_version_that_is_there_in_two_ways_the_snapshot_is_loaded(stage: Stage) -> None:
    stage.publish(*range(EVERY + 3))
    stage.pin(f"a/{EVERY}.whole")  # however it is called
    follower = stage.follower()
    for _ in range(2):
        follower.turn(0)
    assert (stage.serves, stage.applied) == (f"a{EVERY}", [EVERY])


# With a trainer


@pytest.fixture(scope="module")
def samples() -> list[Record]:
    """Ratings of MovieLens, joined as in production, in steps of 32."""
    ratings = MovieLens()
    event = encode_events(ratings.batch(ratings.declarations, 512))
    joiner = Joiner(JoinerConfig(step_size=32), EventRules(), Behaviour(BehaviourConfig()))
    joined = joiner.on_batch([Record(EVENTS, 0, 0, event.key, event.value, LOGGED_US)])
    return [Record(SAMPLES, 0, n, one.key, one.value, n) for n, one in enumerate(joined)]


@pytest.fixture
def trainer() -> Trainer:
    return Trainer(
        TrainerConfig(
            options={"width": 4, "hidden": 4, "table": {"max_rows": 100}},
            negatives=NegativesConfig(uniform=16),
            publish_every_s=0.0,
            snapshot_every=EVERY,
        ),
        "a",
    )


def test_a_replica_that_keeps_up_loads_the_first_version_and_no_other(
    stage: Stage, trainer: Trainer, samples: list[Record]
) -> None:
    follower = stage.follower()
    for number, record in enumerate([None, *samples]):
        trainer.on_batch([] if record is None else [record])
        stage.log.append(stage.store.execute(trainer.on_time(number)))
        follower.turn(0)
        assert stage.replica.info is not None
        assert stage.replica.info.number == number
    assert len(samples) > 3 * EVERY
    assert stage.loads == [0]
    started = Stage(stage.log, stage.root, stage.make)  # from the newest snapshot
    started.follower().turn(0)
    assert started.loads == [len(samples)]
    assert content(started.replica) == content(stage.replica)
    metrics = trainer.metrics
    assert len(content(started.replica)["item"]) < metrics["items"]
    assert metrics["item_rows_evicted"] > 0


def test_a_delta_that_is_damaged_is_healed_by_the_snapshot_beside_it(
    stage: Stage, trainer: Trainer, samples: list[Record]
) -> None:
    follower, whole = stage.follower(), Stage(stage.log, stage.root, stage.make)
    undisturbed = whole.follower()
    for number, record in enumerate([None, *samples[: 2 * EVERY]]):
        trainer.on_batch([] if record is None else [record])
        stage.log.append(stage.store.execute(trainer.on_time(number)))
        undisturbed.turn(0)
        if number == EVERY:
            spoil(stage.shard(f"two_tower/a/{EVERY}"), "flipped")
        follower.turn(0)
        assert content(stage.replica) == content(whole.replica)
    assert (stage.loads, whole.loads) == ([0, EVERY], [0])


# One step or many


@settings(deadline=None, derandomize=True, max_examples=10)
@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=4))
def test_a_replica_ends_the_same_by_one_step_or_many(
    constant_version: MakeVersion, deltas: list[tuple[list[int], list[int]]]
) -> None:
    chain = [constant_version(0, snapshot=True, ids=range(8))]
    for number, (ids, gone) in enumerate(deltas, 1):
        delta = constant_version(number, ids=ids)
        tombstones = {
            f"table-{name}.gone": pa.table({"id": pa.array(gone, pa.int64())})
            for name in ("item", "user")
        }
        chain.append(replace(delta, shards={**delta.shards, **tombstones}))
    one_by_one, in_one, whole = Replica(), Replica(), Replica()
    for version in chain:
        assert one_by_one.take(version) is Applied.APPLIED
    in_one.take(chain[0])
    assert in_one.take(compact_chain(chain[1:])) is Applied.APPLIED
    assert whole.take(compact_chain(chain)) is Applied.APPLIED
    for other in (in_one, whole):
        assert content(other) == content(one_by_one)
        assert other.take(chain[-1]) is Applied.DUPLICATE
        assert content(other) == content(one_by_one)


def content(replica: Replica) -> dict[str, Any]:
    """All rows, vectors and dense numbers of what is served."""
    with replica.reading() as served:
        assert served is not None
        tables = {
            name: {i: r.tolist() for ids, rows in t.parts() for i, r in zip(ids, rows, strict=True)}
            for name, t in served.model.tables.items()
        }
        items = np.sort(served.items)
        dense = {name: value.tolist() for name, value in served.model.state_dict().items()}
        vectors = served.vectors(items)[0].tolist()
        return {
            **tables,
            "items": items.tolist(),
            "vectors": vectors,
            **dense,
            "is": served.info.name,
        }


# Several models


def of(version: Version, model: str) -> Version:
    return replace(version, info=replace(version.info, model=model, kind="two_tower"))


def test_it_follows_one_of_several_models(stage: Stage) -> None:
    mine = stage.follower(model="two_tower")
    stage.publish(*range(4))
    wide = [of(stage.make(n, "a", snapshot=n == 0, value=70.0), "wide") for n in range(9)]
    stage.log.append(stage.store.execute(wide))
    mine.turn(0)
    assert stage.serves == "a3"
    replica = Replica(model="wide")
    Follower(stage.log, stage.store, replica, 100, model="wide").turn(0)
    assert replica.info is not None
    assert replica.info.name == "wide/a/8"
    stage.pin("a/1")  # holds the other where it is
    mine.turn(0)
    assert mine.pinned == "two_tower/a/1"


def test_it_looks_back_as_far_as_its_own_model_needs(stage: Stage) -> None:
    stage.publish(0, 1)
    wide = [of(stage.make(n, "b", snapshot=n == 0), "wide") for n in range(60)]
    stage.log.append(stage.store.execute(wide))
    follower = stage.follower(look_back=4, model="two_tower")
    follower.turn(0)
    while stage.serves is None:
        follower.turn(0)
    assert stage.serves == "a1"
