"""Where artefacts stand by name: a directory of this machine, or any filesystem of `pyarrow.fs`.

A local artefact is renamed into place whole (`streaming.artefact`). Object stores know no rename:
there the shards are written first and the manifest last, so the manifest is the commit, and who
finds none sees nothing.

Names are paths with `/`, such as `two_tower/20261121T101502-9f3a/5`.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from streaming.artefact import (
    MANIFEST,
    Artefact,
    Manifest,
    Part,
    Shard,
    manifest_of,
    open_manifest,
    open_shard,
    read_artefact,
    sealed_manifest,
    total_size,
    write_artefact,
    write_shard,
)
from streaming.errors import ArtefactCorrupt, ArtefactError, ConfigError

T = TypeVar("T")
_AT_ONCE = 8  # shards on their way to or from a store that is far away
_SLOWEST = 1e6  # bytes per second: what takes longer is taken for a store that hangs
_OBJECT_STORES = ("s3", "gcs", "abfs")  # a directory is no more than a prefix there
_S3_OPTIONS = ("region", "scheme", "endpoint_override")


class StoreAway(ArtefactError):
    """The store does not answer now, or refuses; what was asked may be asked again later."""


class Entry(NamedTuple):
    """What stands in a folder; `changed_us` is by the clock of the store, None for a folder."""

    name: str
    changed_us: int | None


class Artefacts(Protocol):
    """Artefacts, and single small files, by their names."""

    def write(
        self,
        name: str,
        meta: Mapping[str, Any],
        shards: Mapping[str, pa.Table],
        parts: Sequence[Part] = (),
    ) -> int:
        """Writes an artefact, in place of any of that name; returns its size in bytes.

        Raises:
            ArtefactError: it cannot be written; nothing is there that could be taken for it.
            StoreAway: nor can it be said whether it was.
        """
        ...

    def read(self, name: str) -> Artefact:
        """An artefact with every checksum verified.

        Raises:
            ArtefactCorrupt: it is not there, not complete, or not what was written.
            StoreAway: that cannot be said now.
        """
        ...

    def manifest(self, name: str) -> Manifest:
        """As `read`, its shards are not looked at."""
        ...

    def entries(self, name: str) -> list[Entry]:
        """What stands in a folder, by name; empty if there is no such folder."""
        ...

    def changed_us(self, name: str) -> int | None:
        """When an artefact was written, by the clock of the store; None if it is not there."""
        ...

    def remove(self, name: str) -> None:
        """Removes an artefact or a folder, if it is there."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Writes a small file, or replaces it: a reader finds the old or the new one."""
        ...

    def get(self, name: str) -> bytes | None:
        """A small file; None if it is not there."""
        ...

    def path(self, name: str) -> Path:
        """How a name is told to people, and where a part of an artefact is waited for."""
        ...


def open_artefacts(place: str | Path) -> Artefacts:
    """The store at a path or URL: `/a/path`, `file:///a/path`, `s3://bucket/prefix?region=eu-west-1`.

    Whoever asks for `s3://` is who the environment says (`AWS_ACCESS_KEY_ID` and so on).

    Raises:
        ConfigError: no store can be at such a URL.
    """
    url = urlsplit(str(place))
    if isinstance(place, Path) or not url.scheme:
        return LocalArtefacts(Path(place))
    if url.scheme == "file":
        return LocalArtefacts(Path(unquote(url.path)))
    try:
        if url.scheme == "s3":
            return RemoteArtefacts(_open_s3(dict(parse_qsl(url.query))), url.netloc + url.path)
        return RemoteArtefacts(*fs.FileSystem.from_uri(str(place)))
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        raise ConfigError(
            f"versions cannot be kept at {url.scheme}://{url.netloc}{url.path}"
            f" ({_first_line(error)}): name a path, file:///path, or s3://bucket/prefix with"
            f" {', '.join(_S3_OPTIONS)} where they are needed"
        ) from error


def _open_s3(options: Mapping[str, str]) -> fs.FileSystem:
    if unknown := [name for name in options if name not in _S3_OPTIONS]:
        raise ValueError(f"there is no option {unknown[0]!r}")
    return fs.S3FileSystem(
        **options,
        connect_timeout=3,
        request_timeout=10,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
        allow_delayed_open=True,  # a small file is one request
    )


class LocalArtefacts:
    """In a directory of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(
        self,
        name: str,
        meta: Mapping[str, Any],
        shards: Mapping[str, pa.Table],
        parts: Sequence[Part] = (),
    ) -> int:
        path = self.path(name)
        shutil.rmtree(path, ignore_errors=True)  # what was cut short left it behind
        return write_artefact(path, meta, shards, parts)

    def read(self, name: str) -> Artefact:
        return read_artefact(self.path(name))

    def manifest(self, name: str) -> Manifest:
        return manifest_of(self.path(name))

    def entries(self, name: str) -> list[Entry]:
        try:
            found = sorted(self.path(name).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [Entry(one.name, None if one.is_dir() else _changed_us(one)) for one in found]

    def changed_us(self, name: str) -> int | None:
        return _changed_us(self.path(name) / MANIFEST)

    def remove(self, name: str) -> None:
        shutil.rmtree(self.path(name), ignore_errors=True)

    def put(self, name: str, data: bytes) -> None:
        path = self.path(name)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with aside.open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                aside.rename(path)
            finally:
                aside.unlink(missing_ok=True)
        except OSError as error:
            raise ArtefactError(
                f"cannot write {path}: {error.strerror}; mend that and try again"
            ) from error

    def get(self, name: str) -> bytes | None:
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreAway(f"{self.path(name)} cannot be read: {error.strerror}") from error

    def path(self, name: str) -> Path:
        return self._root / name


class RemoteArtefacts:
    """In a filesystem of `pyarrow.fs`: the shards of an artefact first, its manifest last.

    A call may take `patience_s`, and longer for many bytes; then the store is away. As nobody can
    end a call that hangs, it is left alone, and until it returns all others say so at once.
    """

    def __init__(self, filesystem: fs.FileSystem, root: str, patience_s: float = 10.0) -> None:
        self._files = filesystem
        self._root = root.strip("/") if filesystem.type_name in _OBJECT_STORES else root
        self._patience_s = patience_s
        self._hanging: threading.Thread | None = None

    def write(
        self,
        name: str,
        meta: Mapping[str, Any],
        shards: Mapping[str, pa.Table],
        parts: Sequence[Part] = (),
    ) -> int:
        for part in parts:
            part.wait(partial(self._is_there, str(part.path)), every_s=0.02)
        size = sum(table.nbytes for table in shards.values())
        return self._within(size, f"write {name}", lambda: self._write(name, meta, shards, parts))

    def read(self, name: str) -> Artefact:
        manifest = self.manifest(name)
        size = total_size(manifest.shards)
        return self._within(size, f"read {name}", lambda: self._read(name, manifest))

    def manifest(self, name: str) -> Manifest:
        where = self._key(f"{name}/{MANIFEST}")
        data = self._within(0, f"read {where}", lambda: self._bytes(where))
        return open_manifest(data.to_pybytes(), where)

    def entries(self, name: str) -> list[Entry]:
        chosen = fs.FileSelector(self._key(name), allow_not_found=True)
        found = self._within(0, f"list {name}", lambda: self._files.get_file_info(chosen))
        return sorted(
            Entry(info.base_name, None if info.type == fs.FileType.Directory else _time_us(info))
            for info in found
            if info.base_name
        )

    def changed_us(self, name: str) -> int | None:
        where = self._key(f"{name}/{MANIFEST}")
        info = self._within(0, f"look at {where}", lambda: self._files.get_file_info(where))
        return _time_us(info) if info.type == fs.FileType.File else None

    def remove(self, name: str) -> None:
        self._within(0, f"remove {name}", lambda: self._remove(name))

    def put(self, name: str, data: bytes) -> None:
        self._within(0, f"write {name}", lambda: self._put(name, data))

    def get(self, name: str) -> bytes | None:
        try:
            data = self._within(0, f"read {name}", lambda: self._bytes(self._key(name)))
        except ArtefactCorrupt:
            return None
        return bytes(data.to_pybytes())

    def path(self, name: str) -> Path:
        return Path(name)

    # -- what may take long ----------------------------------------------------------------

    def _write(
        self,
        name: str,
        meta: Mapping[str, Any],
        shards: Mapping[str, pa.Table],
        parts: Sequence[Part],
    ) -> int:
        # First, or the shards that are written now would seem to be those that it names.
        self._remove_file(self._key(f"{name}/{MANIFEST}"))
        self._make_folder(name)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            sent = pool.map(lambda shard: self._send(name, *shard), shards.items())
            written = dict(zip(shards, sent, strict=True))
        for part in parts:
            written |= self._move_shards(str(part.path), name)
        sealed = sealed_manifest(written, meta)
        self._put(f"{name}/{MANIFEST}", sealed)
        for part in parts:
            self._remove(str(part.path))
        return total_size(written) + len(sealed)

    def _send(self, name: str, shard: str, table: pa.Table) -> Shard:
        with self._files.open_output_stream(self._key(f"{name}/{shard}.arrow")) as stream:
            return write_shard(stream, table)

    def _move_shards(self, part: str, to: str) -> Mapping[str, Shard]:
        """Copies the shards of a part; it is removed once the whole is there."""
        where = self._key(f"{part}/{MANIFEST}")
        shards = open_manifest(self._bytes(where).to_pybytes(), where).shards
        for name in shards:
            file = f"{name}.arrow"
            self._files.copy_file(self._key(f"{part}/{file}"), self._key(f"{to}/{file}"))
        return shards

    def _read(self, name: str, manifest: Manifest) -> Artefact:
        def read(item: tuple[str, Shard]) -> pa.Table:
            where = self._key(f"{name}/{item[0]}.arrow")
            return open_shard(self._bytes(where), item[1], where)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            tables = pool.map(read, manifest.shards.items())
            return Artefact(manifest.meta, dict(zip(manifest.shards, tables, strict=True)))

    def _bytes(self, where: str) -> pa.Buffer:
        try:
            with self._files.open_input_stream(where) as stream:
                return stream.read_buffer()
        except FileNotFoundError as error:
            raise ArtefactCorrupt(f"{where} cannot be read: it is not there") from error

    def _put(self, name: str, data: bytes) -> None:
        self._make_folder(name.rpartition("/")[0])
        with self._files.open_output_stream(self._key(name)) as stream:
            stream.write(data)

    def _make_folder(self, name: str) -> None:
        if self._files.type_name not in _OBJECT_STORES:
            self._files.create_dir(self._key(name), recursive=True)

    def _remove(self, name: str) -> None:
        self._remove_file(self._key(f"{name}/{MANIFEST}"))  # first: what is left is no artefact
        if self._files.get_file_info(self._key(name)).type == fs.FileType.Directory:
            self._files.delete_dir(self._key(name))

    def _remove_file(self, where: str) -> None:
        if self._files.get_file_info(where).type == fs.FileType.File:
            self._files.delete_file(where)

    def _is_there(self, name: str) -> bool:
        return self.changed_us(name) is not None

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}" if self._root else name

    def _within(self, size: int, what: str, act: Callable[[], T]) -> T:
        """Does it in a thread of its own, for so long as is right for so many bytes."""
        if self._hanging is not None and self._hanging.is_alive():
            raise StoreAway(f"cannot {what}: the store has not answered an earlier call yet")
        result: Future[T] = Future()

        def carry_out() -> None:
            try:
                result.set_result(act())
            except BaseException as error:  # noqa: BLE001 - it is raised by who waits
                result.set_exception(error)

        thread = threading.Thread(target=carry_out, name="artefacts", daemon=True)
        thread.start()
        seconds = self._patience_s + size / _SLOWEST
        thread.join(seconds)
        if not result.done():
            self._hanging = thread
            raise StoreAway(f"cannot {what}: the store has not answered within {seconds:.0f} s")
        try:
            return result.result()
        except (OSError, pa.ArrowException) as error:
            raise StoreAway(f"cannot {what} in the store: {_first_line(error)}") from error


def _changed_us(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns // 1000
    except OSError:
        return None


def _time_us(info: fs.FileInfo) -> int:
    return 0 if info.mtime_ns is None else int(info.mtime_ns // 1000)


def _first_line(error: BaseException) -> str:
    """An error of Arrow without the trace that may follow it."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(" .")
