"""What the archive asks of the disk: to keep what was written, or to say in words why not."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from streaming.errors import ArtefactError, HeadraceError

_MANY = 16  # files for which one call for the whole file system is quicker
# A reader that has opened a directory lists it well before that.
GRACE_S = 30.0
_HERE = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE


class DiskFull(ArtefactError):
    """There is no space for the archive; nothing is lost, and writing again may succeed."""


def make_durable(paths: Collection[Path]) -> None:
    """Waits for the disk; for many files or directories of one file system, all at once."""
    sync_all = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if sync_all is None or len(paths) < _MANY:
        for path in paths:
            with _opened(path) as descriptor:
                os.fsync(descriptor)
        return
    with _opened(next(iter(paths))) as descriptor:
        if sync_all(descriptor) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def retire(path: Path, aside: Path) -> None:
    """Puts a directory out of sight, for `sweep` to remove when nobody can be listing it."""
    path.rename(aside / f"{time.time_ns()}")


def sweep(aside: Path) -> None:
    """Removes what was put, or left half-made, into `aside` more than `GRACE_S` ago."""
    for path in aside.iterdir():
        if time.time_ns() - int(path.name) > GRACE_S * 1e9:
            shutil.rmtree(path)


def exchange(one: Path, other: Path) -> None:
    """Two directories change names at once.

    Raises:
        ArtefactError: this system or file system cannot.
    """
    reason = "this system cannot exchange directories"
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is not None:
        if swap(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
            return
        reason = os.strerror(ctypes.get_errno())
    raise ArtefactError(
        f"cannot compact {other}: {reason}; it stays readable as it is, in more files: set"
        " `files` in [archive] so high that no day is compacted"
    )


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Errors of the file system as sentences."""
    try:
        yield
    except HeadraceError:
        raise
    except pa.ArrowInvalid as error:
        raise ArtefactError(
            f"a file in the archive {path} is damaged ({error}): restore it from a copy"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"no space is left for the archive {path}: free some disk space, it goes on by"
                " itself and nothing is lost"
            ) from error
        raise ArtefactError(
            f"cannot write the archive {path}: {error}; mend that and start again"
        ) from error
