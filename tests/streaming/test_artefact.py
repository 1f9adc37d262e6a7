"""Artefacts: there whole or not at all, and a byte that changed is found when it is read."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streaming import artefact
from streaming.artefact import Artefact, read_artefact, read_manifest, write_artefact
from streaming.errors import ArtefactCorrupt, ArtefactError

META = {"step": 7, "names": ["a", "é"], "nested": {"x": 1.5, "none": None}, "big": 2**62}


def tables() -> dict[str, pa.Table]:
    return {
        "rows": pa.table(
            {"id": pa.array(range(500)), "row": pa.array(np.random.default_rng(0).random(500))},
            metadata={"weight": "0x1.8p+1"},
        ),
        "lists": pa.table({"l": pa.array([[1, 2], [], None], pa.list_(pa.int64()))}),
        "empty": pa.table({"x": pa.array([], pa.int64())}),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cuts" / "cut-1"


@pytest.fixture
def written(path: Path) -> Path:
    write_artefact(path, META, tables())
    return path


def files(directory: Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


# Writing and reading


def test_an_artefact_comes_back_as_it_was(written: Path) -> None:
    back = read_artefact(written)
    assert back.meta == META
    assert back.shards.keys() == tables().keys()
    for name, table in tables().items():
        assert back.shards[name].equals(table, check_metadata=True)


def test_what_is_told_of_an_artefact_keeps_its_order(path: Path) -> None:
    write_artefact(path, {"tasks": {"click": 1, "buy": 2}}, {})
    assert list(read_artefact(path).meta["tasks"]) == ["click", "buy"]


def test_an_artefact_without_shards_comes_back(path: Path) -> None:
    write_artefact(path, {}, {})
    assert read_artefact(path) == Artefact({}, {})


def test_the_manifest_can_be_read_alone(written: Path) -> None:
    for shard in written.glob("*.arrow"):
        shard.unlink()
    assert read_manifest(written) == META


def test_writing_returns_the_size_on_disk(path: Path) -> None:
    size = write_artefact(path, META, tables())
    assert size == sum(file.stat().st_size for file in path.iterdir())


def test_nothing_but_the_artefact_is_there_afterwards(written: Path) -> None:
    assert files(written.parent) == [
        "cut-1/empty.arrow",
        "cut-1/lists.arrow",
        "cut-1/manifest.json",
        "cut-1/rows.arrow",
    ]
    assert os.listdir(written.parent) == ["cut-1"]  # noqa: PTH208 - sees hidden names, too


def test_what_is_already_there_is_not_touched(written: Path) -> None:
    with pytest.raises(ArtefactError, match=r"cannot write .*cut-1: "):
        write_artefact(written, {"other": 1}, {})
    assert read_artefact(written).meta == META
    assert len(files(written.parent)) == 4


def test_what_a_dying_process_left_aside_does_not_get_in(path: Path) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.mkdir(parents=True)
    (aside / "stray.arrow").write_bytes(b"half")
    write_artefact(path, META, tables())
    assert len(files(path.parent)) == 4


# Damage


def shards_and_manifest(path: Path) -> list[Path]:
    return sorted(path.iterdir())


def test_a_flipped_bit_in_any_file_is_found_and_the_file_named(written: Path) -> None:
    rng = random.Random(1)
    for file in shards_and_manifest(written):
        whole = file.read_bytes()
        places = {0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(40))}
        for place in places:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            with pytest.raises(ArtefactCorrupt, match=str(file)):
                read_artefact(written)
        file.write_bytes(whole)
    assert read_artefact(written).meta == META


def test_a_truncated_file_is_found_and_named(written: Path) -> None:
    for file in shards_and_manifest(written):
        whole = file.read_bytes()
        for size in (0, 1, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:size])
            with pytest.raises(ArtefactCorrupt, match=str(file)):
                read_artefact(written)
        file.write_bytes(whole)


def test_a_file_that_grew_is_found_and_named(written: Path) -> None:
    for file in shards_and_manifest(written):
        whole = file.read_bytes()
        file.write_bytes(whole + b"x")
        with pytest.raises(ArtefactCorrupt, match=str(file)):
            read_artefact(written)
        file.write_bytes(whole)


def test_a_missing_file_is_found_and_named(written: Path) -> None:
    for file in shards_and_manifest(written):
        whole = file.read_bytes()
        file.unlink()
        with pytest.raises(ArtefactCorrupt, match=rf"{file} cannot be read: No such file"):
            read_artefact(written)
        file.write_bytes(whole)


def test_a_shard_of_another_artefact_is_found(written: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_artefact(other, META, {**tables(), "lists": pa.table({"l": [[7]]})})
    shutil.copy(other / "lists.arrow", written / "lists.arrow")
    with pytest.raises(ArtefactCorrupt, match=r"lists\.arrow is not what was written"):
        read_artefact(written)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x00" * 300,
        b"\xff\xfe",
        b"{}",
        b"[]",
        b"null",
        b'{"body": 3, "checksum": ""}',
        b'{"body": "{}", "checksum": 3}',
        b'{"body": "x", "checksum": "x"}',
        b'{"body": "\\ud800", "checksum": "x"}',
        b"[" * 100_000,
    ],
)
def test_a_manifest_of_garbage_is_found_and_named(written: Path, garbage: bytes) -> None:
    (written / "manifest.json").write_bytes(garbage)
    for read in (read_artefact, read_manifest):
        with pytest.raises(ArtefactCorrupt, match=str(written / "manifest.json")):
            read(written)


@pytest.mark.parametrize("read", [read_artefact, read_manifest])
def test_an_artefact_that_is_not_there_is_named(path: Path, read: Callable[[Path], Any]) -> None:
    with pytest.raises(ArtefactCorrupt, match=r"cut-1/manifest\.json cannot be read: No such"):
        read(path)


def test_a_format_of_another_release_is_not_called_damage(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefact, "FORMAT", 2)
    with pytest.raises(ArtefactError, match="has format 1, this release reads format 2") as caught:
        read_artefact(written)
    assert not isinstance(caught.value, ArtefactCorrupt)


# Writing that fails


def write_with_little_room(path: Path, room: int) -> None:
    """In a process that may not write a longer file: the write fails half-way, for real."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    with pytest.raises(ArtefactError, match=r"cannot write .*cut-1: .*mend that and start again"):
        write_artefact(path, META, tables())


@pytest.mark.parametrize("room", [0, 600, 4_000])
def test_a_write_that_fails_half_way_leaves_nothing(
    processes: ForkServerContext, path: Path, room: int
) -> None:
    child = processes.Process(target=write_with_little_room, args=(path, room))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert os.listdir(path.parent) == []  # noqa: PTH208


def test_a_full_disk_is_called_by_its_name_and_nothing_is_left(small_disk: Path) -> None:
    big = {"big": pa.table({"x": pa.array(range(200_000))})}
    free = shutil.disk_usage(small_disk).free
    with pytest.raises(ArtefactError, match=r"cannot write .*: no space is left on the disk"):
        write_artefact(small_disk / "cut-1", {}, big)
    assert os.listdir(small_disk) == []  # noqa: PTH208
    assert shutil.disk_usage(small_disk).free == free


def test_a_place_where_no_directory_can_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match=r"cannot write .*cut-1"):
        write_artefact(tmp_path / "file" / "cut-1", {}, {})


@pytest.mark.parametrize("meta", [{"x": object()}, {"x": {1, 2}}])
def test_a_defect_in_what_is_to_be_written_leaves_nothing(
    path: Path, meta: dict[str, object]
) -> None:
    with pytest.raises(TypeError):
        write_artefact(path, meta, tables())
    assert os.listdir(path.parent) == []  # noqa: PTH208


# Writing that is interrupted


def die_at_sync(path: Path, number: int) -> None:
    """Dies as the `number`th file or directory is about to be made durable."""
    syncs = 0

    def sync(descriptor: Any) -> None:
        nonlocal syncs
        syncs += 1
        if syncs == number:
            os._exit(9)

    vars(os).update(fsync=sync)
    write_artefact(path, META, tables())


# Three shards, the manifest, the directory aside; then it is renamed, and its parent is synced.
@pytest.mark.parametrize("number", range(1, 7))
def test_a_process_that_dies_while_writing_leaves_a_whole_artefact_or_none(
    processes: ForkServerContext, path: Path, number: int
) -> None:
    child = processes.Process(target=die_at_sync, args=(path, number))
    child.start()
    child.join(60)
    assert child.exitcode == 9
    assert path.exists() == (number == 6)
    if path.exists():
        assert read_artefact(path).meta == META
    else:
        write_artefact(path, META, tables())
        assert read_artefact(path).meta == META


def test_every_file_and_both_directories_are_made_durable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def sync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)

    monkeypatch.setattr(os, "fsync", sync)
    write_artefact(path, META, tables())
    aside = f".{path.name}.{os.getpid()}"
    shards = [f"{name}.arrow" for name in tables()]
    assert synced == [*shards, "manifest.json", aside, path.parent.name]


def test_the_manifest_is_readable_json(written: Path) -> None:
    sealed = json.loads((written / "manifest.json").read_bytes())
    assert json.loads(sealed["body"])["meta"] == META
