"""Artefacts in every kind of place: whole or not there, whatever the filesystem can do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from pyarrow import fs

from benchmarks._object_store import object_store
from streaming.artefact import MANIFEST, Part
from streaming.artefact_store import (
    Artefacts,
    LocalArtefacts,
    RemoteArtefacts,
    StoreAway,
    open_artefacts,
)
from streaming.errors import ArtefactCorrupt, ArtefactError, ConfigError

NAME = "model/lineage/0"
SHARDS = {"rows": pa.table({"id": list(range(1_000))}), "dense": pa.table({"x": [1.5]})}
META = {"number": 0}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "tests")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "none")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with object_store(tmp_path_factory.mktemp("s3")) as url:
            yield url


def in_memory() -> fs.FileSystem:
    return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem("memory", skip_instance_cache=True)))


@pytest.fixture(params=["local", "remote local", "subtree", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Artefacts:
    match request.param:
        case "local":
            return open_artefacts(tmp_path)
        case "remote local":
            return RemoteArtefacts(fs.LocalFileSystem(), str(tmp_path))
        case "subtree":
            return RemoteArtefacts(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "")
        case "memory":
            return RemoteArtefacts(in_memory(), f"/{tmp_path.name}")
    bucket: str = request.getfixturevalue("bucket")
    return open_artefacts(bucket.replace("/models", f"/{tmp_path.name}"))


# In every place


def test_an_artefact_comes_back_as_it_was_written(store: Artefacts) -> None:
    size = store.write(NAME, META, SHARDS)
    artefact, manifest = store.read(NAME), store.manifest(NAME)
    assert artefact.meta == manifest.meta == META
    assert artefact.shards.keys() == SHARDS.keys()
    assert all(artefact.shards[name].equals(table) for name, table in SHARDS.items())
    assert {name: shard.rows for name, shard in manifest.shards.items()} == {
        "rows": 1_000,
        "dense": 1,
    }
    assert size == sum(s.size or 0 for s in manifest.shards.values()) + manifest.size


def test_writing_again_replaces_it_whole(store: Artefacts) -> None:
    store.write(NAME, META, SHARDS)
    store.write(NAME, {"number": 1}, {"other": SHARDS["dense"]})
    artefact = store.read(NAME)
    assert (artefact.meta, [*artefact.shards]) == ({"number": 1}, ["other"])


def test_what_is_not_there_is_named(store: Artefacts) -> None:
    for read in (store.read, store.manifest):
        with pytest.raises(ArtefactCorrupt, match="lineage/0/manifest.json cannot be read"):
            read(NAME)
    assert store.changed_us(NAME) is None
    assert store.get("model/control.json") is None
    assert store.entries("model") == []


def test_folders_and_files_are_listed_by_name(store: Artefacts) -> None:
    store.write(NAME, META, SHARDS)
    store.write("model/lineage/1", META, SHARDS)
    store.write("model/another/7", META, SHARDS)
    store.put("model/control.json", b"{}")
    assert [entry.name for entry in store.entries("model")] == [
        "another",
        "control.json",
        "lineage",
    ]
    assert [entry.name for entry in store.entries("model") if entry.changed_us is None] == [
        "another",
        "lineage",
    ]
    assert [entry.name for entry in store.entries("model/lineage")] == ["0", "1"]
    assert store.changed_us(NAME) is not None
    assert store.changed_us("model") is None


def test_when_an_artefact_was_written_is_known(tmp_path: Path, bucket: str) -> None:
    far = RemoteArtefacts(fs.LocalFileSystem(), str(tmp_path / "far"))
    for store in (open_artefacts(tmp_path), far, open_artefacts(bucket)):
        store.write(NAME, META, SHARDS)
        assert abs((store.changed_us(NAME) or 0) - time.time_ns() // 1000) < 60_000_000


def test_what_is_removed_is_gone_and_may_be_removed_again(store: Artefacts) -> None:
    store.write(NAME, META, SHARDS)
    store.write("model/lineage/1", META, SHARDS)
    store.remove(NAME)
    store.remove(NAME)
    assert [entry.name for entry in store.entries("model/lineage")] == ["1"]
    store.remove("model/lineage")
    with pytest.raises(ArtefactCorrupt):
        store.read("model/lineage/1")


def test_a_small_file_is_replaced(store: Artefacts) -> None:
    for data in (b"first and longer", b"second"):
        store.put("model/control.json", data)
        assert store.get("model/control.json") == data


def test_parts_of_others_become_one_with_the_whole(store: Artefacts) -> None:
    store.write("model/lineage/.part-0-1", {}, {"rows@1": SHARDS["rows"]})
    part = Part(store.path("model/lineage/.part-0-1"), "rank 1", within_s=5)
    store.write(NAME, META, {"dense": SHARDS["dense"]}, [part])
    assert store.read(NAME).shards.keys() == {"dense", "rows@1"}
    assert [entry.name for entry in store.entries("model/lineage")] == ["0"]


def test_a_part_that_does_not_come_is_named_and_nothing_is_there(store: Artefacts) -> None:
    part = Part(store.path("model/lineage/.part-0-1"), "rank 1", within_s=0)
    with pytest.raises(ArtefactError, match=r"rank 1 has not written .*part-0-1 within 0 s"):
        store.write(NAME, META, SHARDS, [part])
    with pytest.raises(ArtefactCorrupt):
        store.read(NAME)


# Far away


class Broken(fs.FSSpecHandler):  # type: ignore[misc]
    """A filesystem in memory that fails, or hangs, at what it is told to."""

    def __init__(self) -> None:
        super().__init__(fsspec.filesystem("memory", skip_instance_cache=True))
        self.at: Callable[[str], bool] = lambda _: False
        self.act: Callable[[], None] = lambda: None

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        if self.at(path):
            self.act()
        return super().open_output_stream(path, metadata)

    def open_input_stream(self, path: str) -> Any:
        if self.at(path):
            self.act()
        return super().open_input_stream(path)

    def fail(self, error: Exception, at: Callable[[str], bool] = lambda _: True) -> None:
        def act() -> None:
            raise error

        self.at, self.act = at, act

    def mend(self) -> None:
        self.at = lambda _: False


@pytest.fixture
def broken() -> Broken:
    return Broken()


@pytest.fixture
def far(broken: Broken, tmp_path: Path) -> RemoteArtefacts:
    return RemoteArtefacts(fs.PyFileSystem(broken), f"/{tmp_path.name}", patience_s=0.2)


@pytest.mark.parametrize("at", ["rows.arrow", MANIFEST])
def test_what_is_cut_short_is_no_artefact(at: str, broken: Broken, far: RemoteArtefacts) -> None:
    broken.fail(OSError("no space is left"), lambda path: path.endswith(at))
    with pytest.raises(StoreAway, match=f"cannot write {NAME} in the store: no space is left"):
        far.write(NAME, META, SHARDS)
    broken.mend()
    with pytest.raises(ArtefactCorrupt):
        far.read(NAME)
    far.write(NAME, META, SHARDS)
    assert far.read(NAME).meta == META


def test_what_is_cut_short_in_place_of_another_is_no_artefact(
    broken: Broken, far: RemoteArtefacts
) -> None:
    far.write(NAME, META, SHARDS)
    broken.fail(OSError("away"), lambda path: path.endswith("dense.arrow"))
    with pytest.raises(StoreAway):
        far.write(NAME, {"number": 1}, SHARDS)
    broken.mend()
    with pytest.raises(ArtefactCorrupt):
        far.read(NAME)


def test_a_store_that_is_away_is_not_taken_for_one_without_it(
    broken: Broken, far: RemoteArtefacts
) -> None:
    far.write(NAME, META, SHARDS)
    broken.fail(OSError("connection refused"))
    for read in (far.read, far.manifest, far.get):
        with pytest.raises(StoreAway, match="connection refused"):
            read(NAME)


def test_a_call_that_hangs_is_given_up_and_holds_up_no_other(
    broken: Broken, far: RemoteArtefacts
) -> None:
    goes_on = threading.Event()
    broken.at, broken.act = lambda path: path.endswith(MANIFEST), lambda: void(goes_on.wait(10))
    try:
        with pytest.raises(StoreAway, match=r"cannot write .* not answered within 0 s"):
            far.write(NAME, META, SHARDS)
        with pytest.raises(StoreAway, match="has not answered an earlier call yet"):
            far.read(NAME)
    finally:
        goes_on.set()
    hanging = far._hanging
    assert hanging is not None
    hanging.join(10)
    assert far.read(NAME).meta == META  # it was written after all


def void(_: object) -> None:
    pass


def test_a_bucket_that_is_not_there_is_told_in_one_line(bucket: str) -> None:
    missing = open_artefacts(bucket.replace("headrace", "elsewhere"))
    with pytest.raises(StoreAway, match="NO_SUCH_BUCKET") as raised:
        missing.write(NAME, META, SHARDS)
    assert "\n" not in str(raised.value)


# Naming


def test_a_path_and_a_file_url_are_this_machine(tmp_path: Path) -> None:
    for place in (tmp_path, str(tmp_path), tmp_path.as_uri()):
        opened = open_artefacts(place)
        assert isinstance(opened, LocalArtefacts)
        opened.put("one", str(place).encode())
        assert (tmp_path / "one").read_text() == str(place)


@pytest.mark.parametrize("url", ["nowhere://bucket/x", "s3://bucket/x?colour=red"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"versions cannot be kept at .*name a path"):
        open_artefacts(url)


def test_a_place_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file where a directory should be")
    with pytest.raises(ArtefactError, match="cannot write .*control.json"):
        open_artefacts(tmp_path).put("model/control.json", b"{}")
