"""The version store: written before it is announced, verified when read, old chains removed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Sequence
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
from trainers.versions import (
    WHOLE,
    Version,
    VersionInfo,
    doorbell,
    is_doorbell,
    read_announcement,
)

EVERY = 3  # each third version is a snapshot too


def version(
    number: int, lineage: str = "a", value: int = 0, model: str = "m", *, whole: bool = False
) -> Version:
    info = VersionInfo(
        model=model,
        lineage=lineage,
        number=number,
        base=None if whole or number == 0 else number - 1,
        watermark_us=None if number == 0 else number,
        learnt_logged_us=None if number == 0 else number + 1,
        step=number,
        options={"width": 8, "nested": {"a": [1, 2.5]}},
        metrics={"recall@10": 0.1 * number},
    )
    return Version(info, {"vectors": pa.table({"id": [value]}), "dense": pa.table({"x": [1.5]})})


def given(number: int, lineage: str = "a", model: str = "m") -> list[Version]:
    """What a trainer gives of a version: its delta, then the snapshot if one is due."""
    versions = [version(number, lineage, model=model)]
    if number > 0 and number % EVERY == 0:
        versions.append(version(number, lineage, model=model, whole=True))
    return versions


def record(append: Append) -> Record:
    return Record(append.topic, 0, 0, append.key, append.value, 0)


def on_disk(root: Path) -> set[str]:
    """The artefacts of versions that are there, as lineage/number."""
    return {f"{p.parent.name}/{p.name}" for p in root.glob("m/*/*") if p.name[0].isdigit()}


def artefacts(numbers: Iterable[int], lineage: str = "a") -> set[str]:
    """All that were made of these versions, as `on_disk` calls them."""
    made = [version for number in numbers for version in given(number, lineage)]
    return {version.info.artefact.removeprefix("m/") for version in made}


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
    assert on_disk(tmp_path) == {"a/0", "a/1"}
    assert store.read(version(1).info).shards["vectors"]["id"].to_pylist() == [5]


def test_a_snapshot_beside_a_delta_has_a_name_of_its_own_and_is_announced_after_it(
    store: VersionStore, tmp_path: Path
) -> None:
    for _ in range(2):  # executed once more, nothing is doubled
        delta, snapshot = (read_announcement(record(a)) for a in store.execute(given(EVERY)))
        assert (delta.base, snapshot.base) == (EVERY - 1, None)
        assert delta.name == snapshot.name == f"m/a/{EVERY}"
        assert on_disk(tmp_path) == {f"a/{EVERY}", f"a/{EVERY}.whole"}
        assert [store.read(info).info for info in (delta, snapshot)] == [delta, snapshot]


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
        store.execute(given(number))
        oldest = max(0, number // EVERY - 1) * EVERY
        assert on_disk(tmp_path) == artefacts(range(oldest, number + 1))


def test_an_older_lineage_stays_until_the_new_one_has_two_snapshots(tmp_path: Path) -> None:
    before = VersionStore(tmp_path)
    for number in range(8):
        before.execute(given(number))
    old = on_disk(tmp_path)
    restarted = VersionStore(tmp_path)
    for number in range(EVERY):
        restarted.execute(given(number, "b"))
        assert on_disk(tmp_path) == old | artefacts(range(number + 1), "b")
    restarted.execute(given(EVERY, "b"))
    assert on_disk(tmp_path) == artefacts(range(EVERY + 1), "b")
    assert not (tmp_path / "m" / "a").exists()


def test_a_store_that_outlives_a_lineage_keeps_the_chain_a_replica_may_be_on(
    store: VersionStore, tmp_path: Path
) -> None:
    for number in range(8):
        store.execute(given(number))
    store.execute(given(0, "b"))
    assert on_disk(tmp_path) == artefacts((6, 7)) | {"b/0"}
    for number in range(1, EVERY + 1):
        store.execute(given(number, "b"))
    assert on_disk(tmp_path) == artefacts(range(EVERY + 1), "b")


def test_executing_a_snapshot_again_removes_no_chain_earlier(
    store: VersionStore, tmp_path: Path
) -> None:
    for number in range(EVERY + 1):
        store.execute(given(number))
    before = on_disk(tmp_path)
    store.execute(given(EVERY))
    assert on_disk(tmp_path) == before


def test_versions_of_another_model_are_none_of_its_business(
    store: VersionStore, tmp_path: Path
) -> None:
    store.execute(given(0, model="other"))
    for number in range(4 * EVERY):
        store.execute(given(number))
    assert store.read(version(0, model="other").info).info.model == "other"
    assert (tmp_path / "other" / "a" / "0").exists()


@pytest.mark.parametrize("kept", [1, 3])
def test_as_many_snapshots_are_kept_as_asked_for(kept: int, tmp_path: Path) -> None:
    store = VersionStore(tmp_path, snapshots_kept=kept)
    for number in range(6 * EVERY):
        store.execute(given(number))
    assert sum(name.endswith(WHOLE) for name in on_disk(tmp_path)) == kept


def test_the_first_snapshot_of_each_hour_stays_to_go_back_to(tmp_path: Path) -> None:
    before = VersionStore(tmp_path, snapshots_kept=100)
    for number in range(6 * EVERY):
        before.execute(given(number))
        hour = 400_000 + number // (2 * EVERY)  # two snapshots in each
        for made in given(number):
            os.utime(tmp_path / made.info.artefact / "manifest.json", (hour * 3_600,) * 2)
    store = VersionStore(tmp_path, hours_kept=3)
    for number in range(2 * EVERY + 1):
        store.execute(given(number, "b"))
    # This hour's, and those of the two before it in which there were any.
    there = artefacts((0, *range(EVERY, 2 * EVERY + 1)), "b")
    assert on_disk(tmp_path) == {"a/6.whole", "a/12.whole"} | there
    assert [link.number for link in store.chain("m/a/6")] == [6]


# What earlier incarnations left behind


def test_what_a_dead_trainer_left_half_written_is_removed_by_the_next_one(tmp_path: Path) -> None:
    before = VersionStore(tmp_path)
    for number in range(EVERY + 1):
        before.execute(given(number))
    lineage = tmp_path / "m" / "a"
    (lineage / "4").mkdir()  # on an object store: shards without a manifest
    (lineage / "4" / "vectors.arrow").write_bytes(b"half")
    (lineage / ".5.4711").mkdir()
    for made in (version(5), version(5, whole=True)):
        before.write_part(made.info, 1, {"vectors@1": pa.table({"id": [1]})})
    assert len([*lineage.glob(".part-5*")]) == 2
    VersionStore(tmp_path).execute(given(0, "b"))
    assert sorted(path.name for path in lineage.iterdir()) == ["0", "1", "2", "3", "3.whole"]


def test_a_version_that_was_never_announced_goes_with_its_lineage(tmp_path: Path) -> None:
    died_before_announcing = VersionStore(tmp_path)
    died_before_announcing.execute(given(0))
    restarted = VersionStore(tmp_path)
    for number in range(EVERY + 1):
        restarted.execute(given(number, "b"))
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["b"]


# Holding replicas


def test_what_a_pinned_version_stands_on_is_never_removed(tmp_path: Path) -> None:
    store = VersionStore(tmp_path)
    for number in range(EVERY + 3):
        store.execute(given(number))
    VersionStore(tmp_path).pin("m", "m/a/4")
    for number in range(EVERY + 3, 5 * EVERY):
        store.execute(given(number))
    assert on_disk(tmp_path) == {"a/3.whole", "a/4"} | artefacts(range(3 * EVERY, 5 * EVERY))
    for number in range(2 * EVERY):
        store.execute(given(number, "b"))
    assert on_disk(tmp_path) == {"a/3.whole", "a/4"} | artefacts(range(2 * EVERY), "b")
    store.remove_lineage("m", "a")
    assert [link.number for link in store.chain("m/a/4")] == [3, 4]
    store.pin("m", None)
    store.execute(given(2 * EVERY, "b"))
    assert on_disk(tmp_path) == artefacts(range(EVERY, 2 * EVERY + 1), "b")


def test_nothing_is_removed_while_it_cannot_be_said_what_is_pinned(
    store: VersionStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "control.json").write_text("{")
    for number in range(4 * EVERY):
        store.execute(given(number))
    assert on_disk(tmp_path) == artefacts(range(4 * EVERY))
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
    (announcement,) = store.execute(given(0))
    assert is_doorbell(record(doorbell("m")))
    assert not is_doorbell(record(announcement))


# What is there


def test_versions_are_found_with_what_they_stand_on(store: VersionStore) -> None:
    for number in range(EVERY + 3):
        store.execute(given(number))
    store.execute(given(0, "b"))
    assert store.models() == ["m"]
    there = ["m/a/3", "m/a/3.whole", "m/a/4", "m/a/5", "m/b/0"]
    assert sorted(store.artefacts("m")) == there
    assert [link.artefact for link in store.chain("m/a/5")] == there[1:4]
    stored = store.stored("m/a/5")
    assert (stored.info, stored.rows) == (version(5).info, 1)
    assert stored.size > 0
    assert abs(stored.written_us / 1e6 - time.time()) < 60


def test_a_chain_with_a_link_that_is_gone_is_found_out(store: VersionStore, tmp_path: Path) -> None:
    for number in range(EVERY):
        store.execute(given(number))
    shutil.rmtree(tmp_path / "m" / "a" / "1")
    with pytest.raises(ArtefactCorrupt, match="m/a/1/manifest.json cannot be read"):
        store.chain("m/a/2")


def test_a_chain_goes_by_the_delta_where_the_snapshot_beside_it_is_half_written(
    store: VersionStore, tmp_path: Path
) -> None:
    for number in range(EVERY + 2):
        store.execute(given(number))
    assert [link.number for link in store.chain(f"m/a/{EVERY + 1}")] == [EVERY, EVERY + 1]
    (tmp_path / "m" / "a" / f"{EVERY}.whole" / "manifest.json").unlink()
    assert [link.number for link in store.chain(f"m/a/{EVERY + 1}")] == [*range(EVERY + 2)]


# In a place that is far away


class Away(fs.FSSpecHandler):  # type: ignore[misc]
    """A filesystem in memory that can be away."""

    away = False
    away_from = ""  # for paths in which this is

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        if self.away or (self.away_from and self.away_from in path):
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


def published(store: VersionStore, outputs: Sequence[Version]) -> list[tuple[str, int | None]]:
    """What is announced of outputs: as which artefact, and what it continues."""
    infos = [read_announcement(record(append)) for append in store.execute(outputs)]
    return [(info.artefact.removeprefix("m/a/"), info.base) for info in infos]


def rows_of(store: VersionStore, artefact: str) -> dict[int, list[float]]:
    rows = store.read(store.stored(f"m/a/{artefact}").info).shards["vectors"]
    return {row["id"]: row["row"] for row in rows.to_pylist()}


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
    assert published(store, [rows_version(2, [2])]) == [("2", 0)]
    assert rows_of(store, "2") == {1: [1, 1], 2: [2, 2]}


def test_a_snapshot_that_is_due_while_the_store_is_away_waits_beside_the_deltas(
    away: Away, far: RemoteArtefacts
) -> None:
    clock = Clock()
    store = VersionStore(far, clock=clock)
    assert published(store, [rows_version(0, [1, 2, 3])]) == [("0", None)]
    away.away = True
    for number in (1, 2):
        assert published(store, [rows_version(number, [number])]) == []
    due = [rows_version(3, [3]), rows_version(3, [1, 2, 3], whole=True)]
    assert published(store, due) == []
    assert published(store, [rows_version(4, [1])]) == []
    away.away, clock.now = False, 60
    # What was served when it went away is continued, and who starts finds a snapshot.
    assert published(store, []) == [("4", 0), ("4.whole", None)]
    assert rows_of(store, "4") == {1: [4, 4], 2: [2, 2], 3: [3, 3]}
    assert rows_of(store, "4.whole") == {1: [4, 4], 2: [3, 3], 3: [3, 3]}
    assert published(store, []) == []
    assert published(store, [rows_version(5, [1])]) == [("5", 4)]


def test_a_snapshot_that_waits_gives_way_to_the_next_one(away: Away, far: RemoteArtefacts) -> None:
    clock = Clock()
    store = VersionStore(far, clock=clock)
    published(store, [rows_version(0, [1])])
    away.away = True
    for number in (1, 2):
        due = [rows_version(number, [1]), rows_version(number, [1, 2], whole=True)]
        assert published(store, due) == []
    away.away, clock.now = False, 60
    due = [rows_version(3, [1]), rows_version(3, [1, 2], whole=True)]
    assert published(store, due) == [("3", 0), ("3.whole", None)]
    assert rows_of(store, "3.whole") == {1: [3, 3], 2: [3, 3]}


def test_a_store_that_goes_away_between_delta_and_snapshot_gets_each_once(
    away: Away, far: RemoteArtefacts
) -> None:
    clock = Clock()
    store = VersionStore(far, clock=clock)
    published(store, [rows_version(0, [1])])
    away.away_from = "1.whole"
    due = [rows_version(1, [1]), rows_version(1, [1, 2], whole=True)]
    assert published(store, due) == [("1", 0)]
    away.away_from, clock.now = "", 60
    assert published(store, [rows_version(2, [1])]) == [("2", 1), ("2.whole", None)]
    assert rows_of(store, "2.whole") == {1: [2, 2], 2: [1, 1]}


def test_a_lineage_whose_first_snapshot_was_late_is_whole_all_the_same(
    away: Away, far: RemoteArtefacts
) -> None:
    clock = Clock()
    store = VersionStore(far, clock=clock)
    away.away = True
    assert published(store, [rows_version(0, [1, 2])]) == []
    away.away, clock.now = False, 60
    assert published(store, [rows_version(1, [1])]) == [("1", 0), ("1.whole", None)]
    assert [link.artefact for link in store.chain("m/a/1")] == ["m/a/1.whole"]
    assert rows_of(store, "1.whole") == {1: [1, 1], 2: [0, 0]}


def test_old_chains_are_removed_far_away_too(far: RemoteArtefacts) -> None:
    store = VersionStore(far)
    for number in range(4 * EVERY):
        store.execute(given(number))
        if (removing := store._retention._removing) is not None:
            removing.result(10)
    there = {f"a/{entry}" for entry in store.entries("m", "a")}
    assert there == artefacts(range(2 * EVERY, 4 * EVERY))


def test_ranks_write_one_version_far_away_too(far: RemoteArtefacts) -> None:
    store, member = VersionStore(far), VersionStore(far)
    due = given(EVERY)
    for value, whole in enumerate(due):  # its delta and its snapshot do not get mixed
        member.write_part(whole.info, 1, {"vectors@1": pa.table({"id": [8 + value]})})
    parts = [Part(store.part_path(whole.info, 1), "rank 1", within_s=5) for whole in due]
    store.execute([replace(v, parts=[part]) for v, part in zip(due, parts, strict=True)])
    found = [store.read(whole.info).shards["vectors"]["id"].to_pylist() for whole in due]
    assert found == [[0, 8], [0, 9]]
    assert [*store.entries("m", "a")] == [f"{EVERY}", f"{EVERY}.whole"]
