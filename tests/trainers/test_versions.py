"""The version store: written before it is announced, verified when read, old chains removed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from streaming.errors import ArtefactCorrupt, ArtefactError
from streaming.log import DEAD_LETTERS, VERSIONS, Append, Record
from trainers.versions import Version, VersionInfo, VersionStore, read_announcement

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
