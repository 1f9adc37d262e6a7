"""A group of ranks: what they learn together, whatever each of them has, and however it ends."""

from __future__ import annotations

import errno
import math
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from features.batch import read_samples
from serving.follower import Follower
from serving.replica import Applied, Replica
from streaming.artefact import Artefact, read_artefact, read_manifest
from streaming.cuts import GONE, CutDirectory
from streaming.dead_letters import DeadLetter, decode_letter
from streaming.errors import ArtefactError
from streaming.log import DEAD_LETTERS, SAMPLES, VERSIONS, Append, Record, TopicPartition
from streaming.loop import Loop, LoopConfig
from streaming.memory_log import MemoryLog
from streaming.samples import decode_samples
from trainers.arrays import column_matrix, table_arrays
from trainers.evaluation import RankingQuality
from trainers.exchange import Exchange, PeerLost
from trainers.frequency import FrequencyConfig
from trainers.group import GroupConfig, Leader, Member
from trainers.peers import Ranks
from trainers.trainer import Trainer, TrainerConfig
from trainers.version_store import VersionStore
from trainers.versions import read_announcement

MakeRecord = Callable[..., Record]
Damage = Callable[[Path], None]
MAKING = threading.Lock()  # models draw their first weights from torch's one generator
TABLES = ("user", "item", "token")


class Home:
    """Where a group keeps its cuts and versions, and the log that it reads."""

    def __init__(
        self, path: Path, log: MemoryLog, config: TrainerConfig, together: Callable[..., list[Any]]
    ) -> None:
        self.log, self.config = log, config
        self.cuts, self.versions = path / "cuts", VersionStore(path / "versions")
        self.members_cuts = self.cuts
        self._together = together

    def run(
        self,
        ranks: int,
        use: Callable[[Loop[Leader]], Any],
        *,
        limit: int = 2,
        background: bool = False,
        publishing: bool = False,
        answer_within_s: float = 20.0,
    ) -> Any:
        """What `use` makes of the leader's loop, while the members follow."""
        loop = LoopConfig(limit, idle_s=0.01, cut_every_s=1e9, background=background)
        ticks = count()

        def of_rank(exchange: Exchange) -> Any:
            peers = Ranks(exchange)

            def make(lineage: str, state: Artefact | None) -> Trainer:
                with MAKING:
                    return Trainer(self.config, lineage, state, peers)

            if exchange.rank:
                Member(exchange, self.log, make, self.members_cuts, self.versions).run()
                return None
            group = GroupConfig(ranks, answer_within_s)
            leader = Leader(exchange, self.log, make, self.cuts, self.versions, group)
            try:
                led = Loop(
                    self.log,
                    "trainer",
                    [SAMPLES],
                    leader.build,
                    self.cuts,
                    read=leader.read,
                    execute=self.versions.execute,
                    config=loop,
                    clock=lambda: float(next(ticks)) if publishing else 0.0,
                )
                used = use(led)
                leader.stop()
            finally:
                leader.close()
            return used

        return self._together(ranks, of_rank)[0]

    def state(self) -> Artefact:
        state, _ = CutDirectory(self.cuts).newest()
        assert state is not None
        return state

    def counts(self) -> dict[int, int]:
        """How many samples of each item were learnt."""
        corpus = self.state().shards["corpus"]
        counts = dict(zip(corpus["id"].to_pylist(), corpus["count"].to_pylist(), strict=True))
        return {item: round(times) for item, times in counts.items() if times}


MakeHome = Callable[..., Home]


@pytest.fixture
def make_home(
    tmp_path: Path, small: TrainerConfig, together: Callable[..., list[Any]]
) -> Iterator[MakeHome]:
    """A home with these records dealt out to so many partitions; nothing that is counted fades."""
    numbers, logs = count(), []

    def make(stream: Sequence[Record], partitions: int, config: TrainerConfig = small) -> Home:
        logs.append(log := MemoryLog(partitions=partitions))
        log.append([Append(SAMPLES, r.value, None, i % partitions) for i, r in enumerate(stream)])
        config = replace(config, popularity_half_life=1e15)
        return Home(tmp_path / str(next(numbers)), log, config, together)

    yield make
    for log in logs:
        log.close()


def learn_some(loop: Loop[Leader]) -> None:
    while not loop.turn():
        pass


def turn_to_the_end(loop: Loop[Leader]) -> None:
    while loop.positions != loop._log.ends([SAMPLES]):
        loop.turn()


def learn_all(loop: Loop[Leader]) -> Leader:
    turn_to_the_end(loop)
    loop.cut()
    return loop.step


def items_in(stream: Sequence[Record]) -> Counter[int]:
    samples = [read_samples(decode_samples(record)) for record in stream]
    return Counter(item for s in samples for item in s.item_ids.tolist())


def looked_for(state: Artefact, name: str) -> float:
    """How many liked items were looked for by all ranks."""
    total = 0.0
    for rank in range(state.meta["ranks"]):
        quality = RankingQuality((10, 50))
        quality.load(table_arrays(state.shards[f"{name}@{rank}" if rank else name]))
        total += float(quality.sums()[0, 0, 0])
    return total


def rows_of(state: Artefact, name: str) -> dict[int, list[float]]:
    """The rows of all ranks."""
    return {
        i: row
        for shard, table in state.shards.items()
        if shard.split("@")[0] == f"table-{name}"
        for i, row in zip(
            table["id"].to_pylist(), column_matrix(table["row"]).tolist(), strict=True
        )
    }


# What is learnt


def test_an_empty_rank_changes_nothing_but_the_place_of_rows(
    make_home: MakeHome, small: TrainerConfig, stream: list[Record]
) -> None:
    # No two ids in one bucket: of two ranks, fewer collide than alone.
    options = {**small.options, "precision": "float32"}
    small = replace(small, frequency=FrequencyConfig(buckets=1 << 20), options=options)
    alone = Trainer(small, "alone")
    alone.on_batch(stream)
    home = make_home(stream, 1, small)
    leader = home.run(2, learn_all)
    assert leader.trainer.samples == alone.samples
    state = home.state()
    for name, table in alone.tables.items():
        ids, rows = table.touched_since(0)
        halves = [state.shards[f"table-{name}{part}"] for part in ("", "@1")]
        assert all(len(half) > len(ids) / 4 for half in halves)
        theirs = rows_of(state, name)
        assert theirs.keys() == set(ids.tolist())
        for i, row in zip(ids.tolist(), rows, strict=True):
            np.testing.assert_allclose(theirs[i], row, atol=1e-5)


@pytest.mark.parametrize(("ranks", "partitions"), [(2, 2), (2, 1), (2, 3), (3, 2)], ids=str)
def test_every_sample_is_learnt_and_tested_once(
    ranks: int, partitions: int, make_home: MakeHome, stream: list[Record]
) -> None:
    home = make_home(stream, partitions)
    home.run(ranks, learn_all)
    state, items = home.state(), items_in(stream)
    assert home.counts() == items
    assert state.meta["samples"] == items.total()
    assert state.meta["steps"] == len(stream)
    liked = sum(int(read_samples(decode_samples(record)).liked.sum()) for record in stream)
    assert looked_for(state, "ranking") == looked_for(state, "popularity") == liked


def test_ranks_that_have_records_in_turns(make_home: MakeHome, stream: list[Record]) -> None:
    home = make_home([], 2)

    def one_at_a_time(loop: Loop[Leader]) -> None:
        for number, record in enumerate(stream):
            home.log.append([Append(SAMPLES, record.value, None, number % 2)])
            turn_to_the_end(loop)
        loop.cut()

    home.run(2, one_at_a_time)
    assert home.counts() == items_in(stream)
    assert home.state().meta["steps"] == len(stream)


# Versions


def test_a_replica_has_the_rows_of_all_ranks(
    make_home: MakeHome, small: TrainerConfig, stream: list[Record]
) -> None:
    table = {**small.options["table"], "max_rows": 60, "admission": {"after": 2, "shared": 8}}
    options = {**small.options, "table": table}
    home = make_home(stream, 2, replace(small, options=options, snapshot_every=2))
    leader = home.run(2, learn_all, publishing=True)
    records = home.log.read({TopicPartition(VERSIONS, 0): 0}, 1_000, timeout_s=0)
    infos = [read_announcement(record) for record in records]
    kept = [home.versions.read(info) for info in infos[-4:]]
    assert {version.info.base is None for version in kept} == {True, False}
    gone = [len(v.shards[f"table-item{GONE}"]) for v in kept if v.info.base is not None]
    assert sum(gone) > 0, "nothing was evicted: this was not tried"
    replica, ahead = Replica(), Replica()
    Follower(home.log, home.versions, replica, look_back=1_000).turn(timeout_s=0)
    before, newest = [info for info in infos if info.base is None][-2:]
    assert any(info.base is not None and info.name == newest.name for info in infos)
    for info in [before, *(i for i in infos if i.base is not None and i.number > before.number)]:
        assert ahead.take(home.versions.read(info)) is Applied.APPLIED
    # One from the newest snapshot on, the other from the one before, by deltas only.
    assert replica.info == replace(infos[-1], base=None)
    assert ahead.info == replace(infos[-1], base=infos[-1].number - 1)
    state = home.state()
    for each in (replica, ahead):
        with each.reading() as served:
            assert served is not None
            assert served.info.step == len(stream)
            assert len(served) == len(leader.trainer.family.corpus)
            for name, of_replica in served.model.tables.items():
                ids, rows = of_replica.touched_since(0)
                assert dict(zip(ids.tolist(), rows.tolist(), strict=True)) == rows_of(state, name)
            for name, weights in leader.trainer.model.state_dict().items():
                assert torch.equal(served.model.state_dict()[name], weights)


def test_a_version_tells_the_figures_of_all_ranks(
    make_home: MakeHome, stream: list[Record]
) -> None:
    home = make_home(stream, 2)
    home.run(2, learn_all, publishing=True)
    last = home.log.read({TopicPartition(VERSIONS, 0): 0}, 1_000, timeout_s=0)[-1]
    metrics, state = read_announcement(last).metrics, home.state()
    assert metrics["samples"] == items_in(stream).total()
    for name in TABLES:
        assert metrics[f"{name}_rows"] == len(rows_of(state, name))
    qualities = [RankingQuality((10, 50)) for _ in range(2)]
    for quality, shard in zip(qualities, ("ranking", "ranking@1"), strict=True):
        quality.load(table_arrays(state.shards[shard]))
    counts = qualities[0].sums() + qualities[1].sums()
    assert metrics["recall@50"] == qualities[0].figures(counts[0])["recall@50"] > 0


# Numbers that are none


def test_a_micro_batch_that_is_not_finite_is_refused_and_the_other_ranks_is_learnt(
    make_home: MakeHome, micro_batch: MakeRecord, stream: list[Record]
) -> None:
    rows = [{"user_id": 1, "item_id": 5, "reward": math.nan, "label_liked": True}] * 3
    home = make_home([stream[0], micro_batch(rows), *stream[2:4]], 2)
    home.run(2, learn_all)
    (letter,) = home.log.read({TopicPartition(DEAD_LETTERS, p): 0 for p in range(2)}, 9, 0)
    told = decode_letter(letter.value)
    assert isinstance(told, DeadLetter)
    assert (told.topic, told.partition, told.offset) == (SAMPLES, 1, 0)
    assert "not finite" in told.reason
    state = home.state()
    assert state.meta["refused"] == 1
    assert state.meta["samples"] == items_in([stream[0], *stream[2:4]]).total()
    assert all(
        math.isfinite(x) for name in TABLES for r in rows_of(state, name).values() for x in r
    )
    weights = table_arrays(state.shards["dense"])
    assert all(np.isfinite(array).all() for array in weights.values())


# The end of a group, and the next


def test_what_was_learnt_after_the_cut_is_learnt_again_and_once(
    make_home: MakeHome, stream: list[Record]
) -> None:
    home = make_home(stream, 2)

    def die_two_turns_after_the_cut(loop: Loop[Leader]) -> None:
        learn_some(loop)
        loop.cut()
        learn_some(loop)
        learn_some(loop)

    home.run(2, die_two_turns_after_the_cut)
    before = home.state().meta["steps"]
    assert before < home.run(3, lambda loop: loop.step.trainer.steps)  # others may go on from it
    home.run(2, learn_all)
    assert home.counts() == items_in(stream)
    assert home.state().meta["samples"] == items_in(stream).total()


def test_changes_since_a_cut_and_the_cut_are_the_whole(
    make_home: MakeHome, small: TrainerConfig, stream: list[Record]
) -> None:
    table = {**small.options["table"], "max_rows": 60}
    home = make_home(stream * 2, 2, replace(small, options={**small.options, "table": table}))
    continued = 0

    def cut_after_each_turn(loop: Loop[Leader]) -> Artefact:
        nonlocal continued
        while loop.positions != home.log.ends([SAMPLES]):
            learn_some(loop)
            loop.cut()
            continued += "base" in read_manifest(max(home.cuts.glob("cut-*")))
        CutDirectory(home.cuts.with_name("whole")).save(loop.positions, loop.step.snapshot())
        return home.state()

    chained = home.run(2, cut_after_each_turn, limit=1, background=True)
    assert continued > 2
    whole = read_artefact(next(home.cuts.with_name("whole").glob("cut-*")))
    assert chained.meta == whole.meta["state"]
    assert chained.shards.keys() == whole.shards.keys()
    for name, shard in whole.shards.items():
        assert chained.shards[name].equals(shard, check_metadata=True), name
    assert sorted(path.name for path in home.cuts.iterdir() if path.name.startswith(".")) == []


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, Path.unlink])
@pytest.mark.parametrize("shard", ["table-item", "table-item@1", "rng@1"])
def test_where_a_ranks_shard_is_damaged_the_cut_before_is_used(
    shard: str, damage: Damage, make_home: MakeHome, stream: list[Record]
) -> None:
    home = make_home(stream[:8], 2)

    def two_cuts(loop: Loop[Leader]) -> None:
        learn_some(loop)
        CutDirectory(home.cuts).save(loop.positions, loop.step.snapshot())
        turn_to_the_end(loop)
        CutDirectory(home.cuts).save(loop.positions, loop.step.snapshot())

    home.run(2, two_cuts)
    damage(home.cuts / "cut-00000002" / f"{shard}.arrow")
    # What a rank leaves behind that dies while it writes its part, or when it has.
    for name in (".cut-part-a-3-1", "..cut-part-a-3-1.4711"):
        (home.cuts / name).mkdir()
        (home.cuts / name / "table-item@1.arrow").write_bytes(b"half of i")
    home.log.append([Append(SAMPLES, stream[8].value, None, 0)])
    home.run(2, learn_all)
    assert home.counts() == items_in(stream[:9])
    assert not [path.name for path in home.cuts.iterdir() if path.name.startswith(".")]


class Disk:
    """One that is full for those files whose path has this in it."""

    def __init__(self) -> None:
        self.full_for: str | None = None
        self._fsync = os.fsync

    def fsync(self, descriptor: int) -> None:
        if self.full_for and self.full_for in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        self._fsync(descriptor)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    return disk


@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
def test_a_disk_that_is_full_for_a_members_part(
    background: bool, make_home: MakeHome, stream: list[Record], disk: Disk
) -> None:
    home = make_home(stream, 2)

    def fail_in_the_second_cut(loop: Loop[Leader]) -> None:
        learn_some(loop)
        loop.cut()
        learn_some(loop)
        disk.full_for = ".cut-part"
        with pytest.raises(PeerLost, match=r"rank 1 of the trainer has not written .*within 0.5 s"):
            loop.cut()
        raise PeerLost("as the leader would")

    with pytest.raises(ArtefactError, match=r"cannot write .*no space is left on the disk"):
        home.run(2, fail_in_the_second_cut, background=background, answer_within_s=0.5)
    assert [path.name for path in home.cuts.iterdir()] == ["cut-00000001"]
    disk.full_for = None
    home.run(2, learn_all)
    assert home.counts() == items_in(stream)


def test_a_member_whose_part_fails_in_the_background_says_so_at_its_next_command(
    make_home: MakeHome, stream: list[Record], disk: Disk
) -> None:
    home = make_home(stream, 2)

    def go_on(loop: Loop[Leader]) -> None:
        learn_some(loop)
        disk.full_for = ".cut-part"
        loop._begin_cut()
        while True:
            loop.turn()

    with pytest.raises(ArtefactError, match=r"cannot write .*no space is left on the disk"):
        home.run(2, go_on, background=True, answer_within_s=1.0)
    assert not [*home.cuts.glob("cut-*")]


def test_a_disk_that_is_full_for_a_members_part_of_a_version(
    make_home: MakeHome, stream: list[Record], disk: Disk
) -> None:
    home = make_home(stream, 2)
    disk.full_for = ".part-0-1"
    with pytest.raises(ArtefactError, match=r"cannot write .*no space is left on the disk"):
        home.run(2, learn_all, publishing=True, answer_within_s=0.5)
    assert home.log.ends([VERSIONS])[TopicPartition(VERSIONS, 0)] == 0
    disk.full_for = None
    home.run(2, learn_all, publishing=True)
    assert home.counts() == items_in(stream)


def test_a_member_that_sees_other_cuts_than_the_leader_says_so(
    make_home: MakeHome, stream: list[Record], tmp_path: Path
) -> None:
    home = make_home(stream[:4], 2)
    home.run(2, learn_all)
    home.members_cuts = tmp_path / "elsewhere"
    with pytest.raises(
        ArtefactError,
        match=r"rank 1 finds another cut in .*elsewhere.* of 0 steps instead of 4: all ranks must",
    ):
        home.run(2, learn_all)
    shutil.copytree(home.cuts, home.members_cuts)
    home.run(2, learn_all)
