"""Directories that are there whole or not at all: the form of every cut and every version.

An artefact is `manifest.json` and one Arrow IPC file per shard. It is written aside, every file
is fsynced, and the directory is renamed into place as the last act. The manifest carries the
checksum of every shard and of itself, so that a missing shard or a flipped byte is found when
it is read, never when it is used.

Several processes may write one artefact: each its own *part*, which is an artefact itself, and the
last of them the whole, into which it moves the shards of the parts.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import xxhash

from streaming.errors import ArtefactCorrupt, ArtefactError

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Part:
    """An artefact that another process is writing, to be moved into a larger one beside it."""

    path: Path
    writer: str
    within_s: float

    def wait(self) -> None:
        """Returns when it is there.

        Raises:
            ArtefactError: that took too long.
        """
        deadline = time.monotonic() + self.within_s
        while not self.path.exists():
            if time.monotonic() > deadline:
                raise ArtefactError(
                    f"{self.writer} has not written {self.path} within {self.within_s:g} s: see"
                    " why in its own log, and start again"
                )
            time.sleep(0.002)


@dataclass(frozen=True, slots=True)
class Artefact:
    """Named Arrow tables, and everything else as JSON in `meta`; `parts` have more tables."""

    meta: dict[str, Any]
    shards: Mapping[str, pa.Table]
    parts: Sequence[Part] = ()


def write_artefact(
    path: Path,
    meta: Mapping[str, Any],
    shards: Mapping[str, pa.Table],
    parts: Sequence[Part] = (),
) -> int:
    """Writes an artefact to a path where nothing is yet; returns its size in bytes.

    Raises:
        ArtefactError: there is no space, or no right to write, or a part does not come; nothing
            is left behind.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        sums: dict[str, str] = {}
        size = 0
        for name, table in shards.items():
            sums[name], written = _write_shard(aside / f"{name}.arrow", table)
            size += written
        for part in parts:
            part.wait()
            moved, written = _move_shards(part.path, aside)
            sums |= moved
            size += written
        body = json.dumps({"format": FORMAT, "shards": sums, "meta": meta}, sort_keys=True)
        sealed = json.dumps({"checksum": xxhash.xxh3_128_hexdigest(body.encode()), "body": body})
        with (aside / MANIFEST).open("wb") as stream:
            stream.write(sealed.encode())
            _make_durable(stream)
        _sync_directory(aside)
        aside.rename(path)
        _sync_directory(path.parent)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "no space is left on the disk" if full else str(error)
        raise ArtefactError(f"cannot write {path}: {reason}; mend that and start again") from error
    return size + len(sealed)


def read_manifest(path: Path) -> dict[str, Any]:
    """The `meta` of an artefact, its own checksum verified; its shards are not looked at."""
    meta: dict[str, Any] = _open_manifest(path)[0]["meta"]
    return meta


def seal(path: Path) -> str:
    """The checksum of an artefact's manifest: two that share it hold the same, bit for bit."""
    return _open_manifest(path)[1]


def read_artefact(path: Path, *, mapped: bool = False) -> Artefact:
    """The artefact at a path, every checksum verified.

    The shards that are `mapped` are views of the files, which cost no memory and must stay as
    they are; they may be unlinked.

    Raises:
        ArtefactCorrupt: it is not there, not complete, or not what was written.
    """
    body, _ = _open_manifest(path)
    shards: dict[str, pa.Table] = {}
    for name, checksum in body["shards"].items():
        file = path / f"{name}.arrow"
        try:
            data = _map(file) if mapped else file.read_bytes()
        except OSError as error:
            raise ArtefactCorrupt(f"{file} cannot be read: {error.strerror}") from error
        if xxhash.xxh3_128_hexdigest(data) != checksum:
            raise ArtefactCorrupt(f"{file} is not what was written: its checksum differs")
        with pa.ipc.open_file(pa.BufferReader(data)) as reader:
            shards[name] = reader.read_all()
    return Artefact(body["meta"], shards)


def _open_manifest(path: Path) -> tuple[dict[str, Any], str]:
    """What a manifest says, and its checksum."""
    file = path / MANIFEST
    try:
        sealed = json.loads(file.read_bytes())
        checksum = xxhash.xxh3_128_hexdigest(sealed["body"].encode())
        body: dict[str, Any] = json.loads(sealed["body"])
        intact = checksum == sealed["checksum"]
    except OSError as error:
        raise ArtefactCorrupt(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtefactCorrupt(f"{file} is not a manifest") from error
    if not intact:
        raise ArtefactCorrupt(f"{file} is not what was written: its checksum differs")
    if body["format"] != FORMAT:
        raise ArtefactError(
            f"{file} has format {body['format']}, this release reads format {FORMAT}"
        )
    return body, checksum


def _map(file: Path) -> pa.Buffer:
    with pa.memory_map(str(file)) as source:
        return source.read_buffer()


class _Hashing:
    """A file to write to that keeps the checksum and the size of what was written."""

    closed = False

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.checksum = xxhash.xxh3_128()
        self.size = 0

    def write(self, data: bytes | pa.Buffer) -> int:
        self.checksum.update(data)
        self.size += len(data)
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()


def _write_shard(file: Path, table: pa.Table) -> tuple[str, int]:
    """Writes a table as it lies in memory; returns the checksum and the size of the file."""
    with file.open("wb") as stream:
        sink = _Hashing(stream)
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        _make_durable(stream)
    return sink.checksum.hexdigest(), sink.size


def _move_shards(part: Path, to: Path) -> tuple[dict[str, str], int]:
    """Moves the shards of a part; returns their checksums and the size of all files."""
    sums: dict[str, str] = _open_manifest(part)[0]["shards"]
    size = 0
    for name in sums:
        file = to / f"{name}.arrow"
        (part / file.name).rename(file)
        size += file.stat().st_size
    shutil.rmtree(part)
    return sums, size


def _make_durable(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
