"""The version store: written before it is announced, verified when read, old chains removed."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from streaming.artefact import Part
from streaming.artefact_store import RemoteArtefacts
from streaming.errors import ArtefactCorrupt, ArtefactError
from streaming.log import DEAD_LETTERS, VERSIONS, Append, Record
from trainers.arrays import matrix_column
from trainers.version_store import VersionStore
from trainers.versions import Version, VersionInfo, doorbell, is_doorbell, read_announcement

EVERY = 3  # each third version is a snapshot


def version(number: int, lineage: str = "a", value: int = 0, model: str = "m") -> Version:
    info = VersionInfo(
        model=model,
        lineage=lineage,
        number=number,
        base=None if number % EVERY == 0 else number - 1,
        watermark_us=None if number == 0 else number,
        learnt_logged_us=None if number == 0 else number + 1,
        step=number,
        options={"width": 8, "nested": {"a": [1, 2.5]}},
        metrics={"recall@10": 0.1 * number},
    )
    return Version(info, {"vectors": pa.table({"id": [value]}), "dense": pa.table({"x": [1.5]})})


def record(append: Append) -> Record:
    return Record(append.topic, 0, 0, append.key, append.value, 0)


def on_disk(root: Path) -> list[str]:
    """Every version that is there, as lineage/number."""
    paths = (path for path in root.glob("m/*/*") if path.name.isdigit())
    return sorted(f"{path.parent.name}/{int(path.name):02d}" for path in paths)


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path)


# Writing and announcing


def test_a_version_is_written_and_its_announcement_says_which_it_is(store: VersionStore) -> None:
    written = version(4, value=7)
    (announcement,) = store.execute([written])
    assert announcement.topic == VERSIONS
    assert announcement.key == b"m"
    info = read_announcement(record(announcement))
    assert info == written.info
    read = store.read(info)
    assert read.info == written.info
    assert read.shards.keys() == written.shards.keys()
    assert all(read.shards[name].equals(table) for name, table in written.shards.items())


def test_other_outputs_pass_through_in_their_places(store: VersionStore) -> None:
    first, last = Append(DEAD_LETTERS, b"one"), Append(DEAD_LETTERS, b"two")
    appends = store.execute([first, version(0), last])
    assert [a.topic for a in appends] == [DEAD_LETTERS, VERSIONS, DEAD_LETTERS]
    assert (appends[0], appends[2]) == (first, last)
    assert store.execute([]) == []


def test_a_version_that_cannot_be_written_is_not_announced(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("a file where a directory should be")
    with pytest.raises(ArtefactError, match="cannot write"):
        VersionStore(tmp_path).execute([version(0)])


def test_executing_again_writes_the_same_version_again(store: VersionStore, tmp_path: Path) -> None:
    once = store.execute([version(0), version(1, value=5)])
    again = store.execute([version(0), version(1, value=5)])
    assert [read_announcement(record(a)) for a in again] == [
        read_announcement(record(a)) for a in once
    ]
    assert on_disk(tmp_path) == ["a/00", "a/01"]
    assert store.read(version(1).info).shards["vectors"]["id"].to_pylist() == [5]


def test_what_an_execution_cut_short_left_behind_is_replaced(
    store: VersionStore, tmp_path: Path
) -> None:
    half = tmp_path / "m" / "a" / "1"
    half.mkdir(parents=True)
    (half / "vectors.arrow").write_bytes(b"half")
    store.execute([version(1, value=3)])
    assert store.read(version(1).info).shards["vectors"]["id"].to_pylist() == [3]


# Reading


def test_every_flipped_or_missing_byte_is_found_when_a_version_is_read(
    store: VersionStore, tmp_path: Path
) -> None:
    store.execute([version(0)])
    files = sorted((tmp_path / "m" / "a" / "0").iterdir())
    assert len(files) == 3
    for file in files:
        intact = file.read_bytes()
        for position in (0, len(intact) // 2, len(intact) - 1):
            broken = bytearray(intact)
            broken[position] ^= 0x40
            file.write_bytes(broken)
            with pytest.raises(ArtefactCorrupt):
                store.read(version(0).info)
        file.write_bytes(intact[:-1])
        with pytest.raises(ArtefactCorrupt):
            store.read(version(0).info)
        file.unlink()
        with pytest.raises(ArtefactCorrupt, match=file.name):
            store.read(version(0).info)
        file.write_bytes(intact)
    assert store.read(version(0).info).info == version(0).info


def test_a_version_that_is_gone_is_corrupt_too(store: VersionStore) -> None:
    with pytest.raises(ArtefactCorrupt):
        store.read(version(0).info)


# Retention


def test_everything_from_the_second_newest_snapshot_on_is_kept_and_no_more(
    store: VersionStore, tmp_path: Path
) -> None:
    for number in range(11):
        store.execute([version(number)])
        oldest = max(0, number // EVERY - 1) * EVERY
        assert on_disk(tmp_path) == [f"a/{kept:02d}" for kept in range(oldest, number + 1)]


def test_an_older_lineage_stays_until_the_new_one_has_two_snapshots(tmp_path: Path) -> None:
    before = VersionStore(tmp_path)
    for number in range(8):
        before.execute([version(number)])
    old = on_disk(tmp_path)
    restarted = VersionStore(tmp_path)
    for number in range(EVERY):
        restarted.execute([version(number, "b")])
        assert on_disk(tmp_path) == [*old, *(f"b/{n:02d}" for n in range(number + 1))]
    restarted.execute([version(EVERY, "b")])
    assert on_disk(tmp_path) == [f"b/{n:02d}" for n in range(EVERY + 1)]
    assert not (tmp_path / "m" / "a").exists()


def test_a_store_that_outlives_a_lineage_keeps_the_chain_a_replica_may_be_on(
    store: VersionStore, tmp_path: Path
) -> None:
    for number in range(8):
        store.execute([version(number)])
    store.execute([version(0, "b")])
    assert on_disk(tmp_path) == ["a/06", "a/07", "b/00"]
    for number in range(1, EVERY + 1):
        store.execute([version(number, "b")])
    assert on_disk(tmp_path) == [f"b/{n:02d}" for n in range(EVERY + 1)]


def test_executing_a_snapshot_again_removes_no_chain_earlier(
    store: VersionStore, tmp_path: Path
) -> None:
    for number in range(EVERY + 1):
        store.execute([version(number)])
    before = on_disk(tmp_path)
    store.execute([version(EVERY)])
    assert on_disk(tmp_path) == before


def test_versions_of_another_model_are_none_of_its_business(
    store: VersionStore, tmp_path: Path
) -> None:
    store.execute([version(0, model="other")])
    for number in range(4 * EVERY):
        store.execute([version(number)])
    assert store.read(version(0, model="other").info).info.model == "other"
    assert (tmp_path / "other" / "a" / "0").exists()


@pytest.mark.parametrize("kept", [1, 3])
def test_as_many_snapshots_are_kept_as_asked_for(kept: int, tmp_path: Path) -> None:
    store = VersionStore(tmp_path, snapshots_kept=kept)
    for number in range(6 * EVERY):
        store.execute([version(number)])
    snapshots = [name for name in on_disk(tmp_path) if int(name[2:]) % EVERY == 0]
    assert len(snapshots) == kept


def test_the_first_snapshot_of_each_hour_stays_to_go_back_to(tmp_path: Path) -> None:
    before = VersionStore(tmp_path, snapshots_kept=100)
    for number in range(6 * EVERY):
        before.execute([version(number)])
        hour = 400_000 + number // (2 * EVERY)  # two snapshots in each
        os.utime(tmp_path / "m" / "a" / str(number) / "manifest.json", (hour * 3_600,) * 2)
    store = VersionStore(tmp_path, hours_kept=3)
    for number in range(2 * EVERY + 1):
        store.execute([version(number, "b")])
    # This hour's, and those of the two before it in which there were any.
    there = [f"b/{number:02d}" for number in (0, *range(EVERY, 2 * EVERY + 1))]
    assert on_disk(tmp_path) == ["a/06", "a/12", *there]
    assert [link.number for link in store.chain("m/a/6")] == [6]


# What earlier incarnations left behind


def test_what_a_dead_trainer_left_half_written_is_removed_by_the_next_one(tmp_path: Path) -> None:
    before = VersionStore(tmp_path)
    for number in range(EVERY + 1):
        before.execute([version(number)])
    lineage = tmp_path / "m" / "a"
    (lineage / "4").mkdir()  # on an object store: shards without a manifest
    (lineage / "4" / "vectors.arrow").write_bytes(b"half")
    (lineage / ".5.4711").mkdir()
    before.write_part(version(5).info, 1, {"vectors@1": pa.table({"id": [1]})})
    VersionStore(tmp_path).execute([version(0, "b")])
    assert sorted(path.name for path in lineage.iterdir()) == ["0", "1", "2", "3"]


def test_a_version_that_was_never_announced_goes_with_its_lineage(tmp_path: Path) -> None:
    died_before_announcing = VersionStore(tmp_path)
    died_before_announcing.execute([version(0)])
    restarted = VersionStore(tmp_path)
    for number in range(EVERY + 1):
        restarted.execute([version(number, "b")])
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["b"]


# Holding replicas


def test_what_a_pinned_version_stands_on_is_never_removed(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    for number in range(EVERY + 3):
        store.execute([version(number)])
    VersionStore(tmp_path).pin("m", "m/a/4")
    for number in range(EVERY + 3, 5 * EVERY):
        store.execute([version(number)])
    kept = [f"a/{number:02d}" for number in (3, 4, *range(3 * EVERY, 5 * EVERY))]
    assert on_disk(tmp_path) == kept
    for number in range(2 * EVERY):
        store.execute([version(number, "b")])
    assert on_disk(tmp_path) == ["a/03", "a/04", *(f"b/{n:02d}" for n in range(2 * EVERY))]
    store.remove_lineage("m", "a")
    assert [link.number for link in store.chain("m/a/4")] == [3, 4]
    store.pin("m", None)
    store.execute([version(2 * EVERY, "b")])
    assert on_disk(tmp_path) == [f"b/{n:02d}" for n in range(EVERY, 2 * EVERY + 1)]


def test_nothing_is_removed_while_it_cannot_be_said_what_is_pinned(
    store: VersionStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "control.json").write_text("{")
    for number in range(4 * EVERY):
        store.execute([version(number)])
    assert len(on_disk(tmp_path)) == 4 * EVERY
    assert "`headrace versions unpin` writes it anew" in caplog.text


def test_a_pin_is_read_by_every_other_store_of_the_place(
    store: VersionStore, tmp_path: Path
) -> None:
    assert store.pinned("m") is None
    store.pin("m", "m/a/3")
    assert VersionStore(tmp_path).pinned("m") == "m/a/3"
    assert VersionStore(tmp_path).pinned("other") is None
    store.pin("m", None)
    assert VersionStore(tmp_path).pinned("m") is None


def test_a_doorbell_is_no_announcement(store: VersionStore) -> None:
    (announcement,) = store.execute([version(0)])
    assert is_doorbell(record(doorbell("m")))
    assert not is_doorbell(record(announcement))


# What is there


def test_versions_are_found_with_what_they_stand_on(store: VersionStore) -> None:
    for number in range(EVERY + 3):
        store.execute([version(number)])
    store.execute([version(0, "b")])
    assert store.models() == ["m"]
    assert sorted(store.names("m")) == ["m/a/3", "m/a/4", "m/a/5", "m/b/0"]
    assert [link.name for link in store.chain("m/a/5")] == ["m/a/3", "m/a/4", "m/a/5"]
    stored = store.stored("m/a/5")
    assert (stored.info, stored.rows) == (version(5).info, 1)
    assert stored.size > 0
    assert abs(stored.written_us / 1e6 - time.time()) < 60


def test_a_chain_with_a_link_that_is_gone_is_found_out(store: VersionStore, tmp_path: Path) -> None:
    for number in range(EVERY):
        store.execute([version(number)])
    shutil.rmtree(tmp_path / "m" / "a" / "1")
    with pytest.raises(ArtefactCorrupt, match="m/a/1/manifest.json cannot be read"):
        store.chain("m/a/2")


# In a place that is far away


class Away(fs.FSSpecHandler):  # type: ignore[misc]
    """A filesystem in memory that can be away."""

    away = False

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        if self.away:
            raise OSError("connection refused")
        return super().open_output_stream(path, metadata)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def away() -> Away:
    return Away(fsspec.filesystem("memory", skip_instance_cache=True))


@pytest.fixture
def far(away: Away, tmp_path: Path) -> RemoteArtefacts:
    return RemoteArtefacts(fs.PyFileSystem(away), f"/{tmp_path.name}")


def rows_version(number: int, ids: list[int], **options: Any) -> Version:
    table = pa.table({"id": ids, "row": matrix_column(np.full((len(ids), 2), number, "float32"))})
    return replace(version(number, **options), shards={"vectors": table})


def test_versions_wait_for_a_store_that_is_away_and_none_is_lost(
    away: Away, far: RemoteArtefacts, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    store = VersionStore(far, clock=clock)
    letter = Append(DEAD_LETTERS, b"x")
    assert len(store.execute([rows_version(0, [1, 2, 3])])) == 1
    away.away = True
    assert store.execute([rows_version(1, [1, 2])]) == []
    assert store.execute([rows_version(2, [2]), letter]) == [letter]  # training goes on
    away.away = False
    assert store.execute([]) == []  # it is not asked again at once
    clock.now += 60
    (late,) = store.execute([])
    info = read_announcement(record(late))
    assert (info.number, info.base) == (2, 0)
    rows = store.read(info).shards["vectors"]
    assert rows.to_pylist() == [{"id": 1, "row": [1, 1]}, {"id": 2, "row": [2, 2]}]
    assert store.execute([]) == []
    told = [r.levelname for r in caplog.records]
    assert told == ["ERROR", "WARNING"]
    assert "training goes on: cannot write m/a/1 in the store: connection refused" in caplog.text


def test_a_new_version_takes_what_waits_with_it(away: Away, far: RemoteArtefacts) -> None:
    clock = Clock()
    store = VersionStore(far, clock=clock)
    store.execute([rows_version(0, [1])])
    away.away = True
    store.execute([rows_version(1, [1])])
    away.away, clock.now = False, 60
    (announcement,) = store.execute([rows_version(2, [2])])
    assert read_announcement(record(announcement)).base == 0
    away.away = True
    store.execute([rows_version(4, [1])])
    away.away, clock.now = False, 120
    (announcement,) = store.execute([rows_version(6, [9])])  # a snapshot, which has it all
    assert read_announcement(record(announcement)).base is None


def test_old_chains_are_removed_far_away_too(far: RemoteArtefacts) -> None:
    store = VersionStore(far)
    for number in range(4 * EVERY):
        store.execute([version(number)])
        if (removing := store._retention._removing) is not None:
            removing.result(10)
    assert sorted(store.numbers("m", "a")) == [*range(2 * EVERY, 4 * EVERY)]


def test_ranks_write_one_version_far_away_too(far: RemoteArtefacts) -> None:
    whole = version(0)
    store, member = VersionStore(far), VersionStore(far)
    member.write_part(whole.info, 1, {"vectors@1": pa.table({"id": [8]})})
    part = Part(store.part_path(whole.info, 1), "rank 1", within_s=5)
    store.execute([replace(whole, parts=[part])])
    assert store.read(whole.info).shards["vectors"]["id"].to_pylist() == [0, 8]
    assert store.numbers("m", "a") == [0]
