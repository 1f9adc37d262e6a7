"""Directories that are there whole or not at all: the form of every cut and every version.

An artefact is `manifest.json` and one Arrow IPC file per shard. It is written aside, every file
is fsynced, and the directory is renamed into place as the last act. The manifest carries the
checksum of every shard and of itself, so that a missing shard or a flipped byte is found when
it is read, never when it is used.

Several processes may write one artefact: each its own *part*, which is an artefact itself, and the
last of them the whole, into which it moves the shards of the parts.

The same form in other places than a local disk is `streaming.artefact_store`'s.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

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

    def wait(self, is_there: Callable[[], bool], every_s: float = 0.002) -> None:
        """Returns when it is there.

        Raises:
            ArtefactError: that took too long.
        """
        deadline = time.monotonic() + self.within_s
        while not is_there():
            if time.monotonic() > deadline:
                raise ArtefactError(
                    f"{self.writer} has not written {self.path} within {self.within_s:g} s: see"
                    " why in its own log, and start again"
                )
            time.sleep(every_s)


@dataclass(frozen=True, slots=True)
class Artefact:
    """Named Arrow tables, and everything else as JSON in `meta`; `parts` have more tables."""

    meta: dict[str, Any]
    shards: Mapping[str, pa.Table]
    parts: Sequence[Part] = ()


class Shard(NamedTuple):
    """What a manifest says of the file of a shard; one of an older release says its checksum."""

    checksum: str
    rows: int | None
    size: int | None  # in bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in an artefact; two whose `checksum` is the same hold the same, bit for bit."""

    meta: dict[str, Any]
    shards: Mapping[str, Shard]
    checksum: str
    size: int  # in bytes, of the manifest itself


class Sink(Protocol):
    """Where bytes can be written to: a file, or a stream of `pyarrow.fs`."""

    def write(self, data: bytes | pa.Buffer, /) -> int: ...

    def flush(self) -> None: ...


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
        written: dict[str, Shard] = {}
        for name, table in shards.items():
            with (aside / f"{name}.arrow").open("wb") as stream:
                written[name] = write_shard(stream, table)
                _make_durable(stream)
        for part in parts:
            part.wait(part.path.exists)
            written |= _move_shards(part.path, aside)
        sealed = sealed_manifest(written, meta)
        with (aside / MANIFEST).open("wb") as stream:
            stream.write(sealed)
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
    return total_size(written) + len(sealed)


def read_manifest(path: Path) -> dict[str, Any]:
    """The `meta` of an artefact, its own checksum verified; its shards are not looked at."""
    return manifest_of(path).meta


def seal(path: Path) -> str:
    """The checksum of an artefact's manifest: two that share it hold the same, bit for bit."""
    return manifest_of(path).checksum


def read_artefact(path: Path, *, mapped: bool = False) -> Artefact:
    """The artefact at a path, every checksum verified.

    The shards that are `mapped` are views of the files, which cost no memory and must stay as
    they are; they may be unlinked.

    Raises:
        ArtefactCorrupt: it is not there, not complete, or not what was written.
    """
    manifest = manifest_of(path)
    shards: dict[str, pa.Table] = {}
    for name, shard in manifest.shards.items():
        file = path / f"{name}.arrow"
        try:
            data = _map(file) if mapped else file.read_bytes()
        except OSError as error:
            raise ArtefactCorrupt(f"{file} cannot be read: {error.strerror}") from error
        shards[name] = open_shard(data, shard, str(file))
    return Artefact(manifest.meta, shards)


def manifest_of(path: Path) -> Manifest:
    """The manifest of the artefact at a path.

    Raises:
        ArtefactCorrupt: it is not there, or not what was written.
    """
    file = path / MANIFEST
    try:
        return open_manifest(file.read_bytes(), str(file))
    except OSError as error:
        raise ArtefactCorrupt(f"{file} cannot be read: {error.strerror}") from error


# -- the form, wherever the bytes lie ------------------------------------------------------


def sealed_manifest(shards: Mapping[str, Shard], meta: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest. `meta` keeps its order: that of a model's tasks counts."""
    body = json.dumps(
        {
            "format": FORMAT,
            "shards": {name: shard.checksum for name, shard in shards.items()},
            "rows": {name: shard.rows for name, shard in shards.items()},
            "sizes": {name: shard.size for name, shard in shards.items()},
            "meta": meta,
        }
    )
    sealed = {"checksum": xxhash.xxh3_128_hexdigest(body.encode()), "body": body}
    return json.dumps(sealed).encode()


def open_manifest(data: bytes, where: str) -> Manifest:
    """What `sealed_manifest` took; `where` is told in errors.

    Raises:
        ArtefactCorrupt: it is not what was written.
        ArtefactError: another release wrote it.
    """
    try:
        sealed = json.loads(data)
        checksum = xxhash.xxh3_128_hexdigest(sealed["body"].encode())
        body: dict[str, Any] = json.loads(sealed["body"])
        intact = checksum == sealed["checksum"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtefactCorrupt(f"{where} is not a manifest") from error
    if not intact:
        raise ArtefactCorrupt(f"{where} is not what was written: its checksum differs")
    if body["format"] != FORMAT:
        raise ArtefactError(
            f"{where} has format {body['format']}, this release reads format {FORMAT}"
        )
    rows, sizes = body.get("rows", {}), body.get("sizes", {})
    shards = {n: Shard(s, rows.get(n), sizes.get(n)) for n, s in body["shards"].items()}
    return Manifest(body["meta"], shards, checksum, len(data))


def write_shard(sink: Sink, table: pa.Table) -> Shard:
    """Writes a table as it lies in memory."""
    hashing = _Hashing(sink)
    with pa.ipc.new_file(hashing, table.schema) as writer:
        writer.write_table(table)
    return Shard(hashing.checksum.hexdigest(), table.num_rows, hashing.size)


def open_shard(data: bytes | pa.Buffer, shard: Shard, where: str) -> pa.Table:
    """The table that `write_shard` took, as a view of the data; `where` is told in errors.

    Raises:
        ArtefactCorrupt: it is not what was written.
    """
    if xxhash.xxh3_128_hexdigest(data) != shard.checksum:
        raise ArtefactCorrupt(f"{where} is not what was written: its checksum differs")
    with pa.ipc.open_file(pa.BufferReader(data)) as reader:
        return reader.read_all()


def total_size(shards: Mapping[str, Shard]) -> int:
    """The bytes of all shards whose size is known."""
    return sum(shard.size or 0 for shard in shards.values())


def _map(file: Path) -> pa.Buffer:
    with pa.memory_map(str(file)) as source:
        return source.read_buffer()


class _Hashing:
    """A file to write to that keeps the checksum and the size of what was written."""

    closed = False

    def __init__(self, stream: Sink) -> None:
        self._stream = stream
        self.checksum = xxhash.xxh3_128()
        self.size = 0

    def write(self, data: bytes | pa.Buffer) -> int:
        self.checksum.update(data)
        self.size += len(data)
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()


def _move_shards(part: Path, to: Path) -> Mapping[str, Shard]:
    """Moves the shards of a part; returns what its manifest says of them."""
    shards = manifest_of(part).shards
    for name in shards:
        (part / f"{name}.arrow").rename(to / f"{name}.arrow")
    shutil.rmtree(part)
    return shards


def _make_durable(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
