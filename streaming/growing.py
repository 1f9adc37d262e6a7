"""Arrays that become longer without being copied, and memory that is used again for copies."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from streaming.errors import TableFull

_FIRST_BYTES = 1 << 16
_HUGE_PAGE = 1 << 21


class GrowingArray:
    """Rows of numbers; new ones read as zeros.

    The system moves the pages of a longer array, not its bytes, so that growing takes about as
    long for a gigabyte as for a megabyte, and a page takes no memory before it is written to.

    With a `directory` the pages belong to a file there, which has no name and so is gone with the
    process: the system keeps those in memory that are in use, and the array may be larger than
    memory. Space for the whole file is set aside when it grows, so that a disk that is full is
    an error here, not a signal at some later write.
    """

    def __init__(
        self,
        dtype: type[np.generic],
        row_shape: tuple[int, ...] = (),
        directory: Path | None = None,
    ) -> None:
        self._dtype = np.dtype(dtype)
        self._row_shape = row_shape
        self._row_bytes = max(1, self._dtype.itemsize * int(np.prod(row_shape)))
        self._file: IO[bytes] | None = None
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = TemporaryFile(dir=directory)  # noqa: SIM115 - open as long as this is
            finalize(self, self._file.close)
        self._pages = self._map(_FIRST_BYTES)
        self.rows = self._view()

    @property
    def nbytes(self) -> int:
        """Address space taken; memory is taken only for what was written to."""
        return len(self._pages)

    def reserve(self, rows: int) -> NDArray[Any]:
        """Makes room for so many rows, and gives `rows`: views from before are of no use then.

        Raises:
            TableFull: the disk has no room for them.
        """
        if rows <= len(self.rows):
            return self.rows
        size = max(rows * self._row_bytes, len(self._pages) * (2 if self._file is None else 5 / 4))
        # Linux lays memory of whole huge pages where it can use them, also when it moves.
        page = _HUGE_PAGE if self._file is None and size > _HUGE_PAGE else mmap.PAGESIZE
        size = int(-(-size // page) * page)
        if self._file is not None:
            self._allocate(self._file, size)
        del self.rows
        try:
            self._pages.resize(size)
        except (BufferError, SystemError):
            # Somebody still looks at the old pages, or the system cannot move any.
            old, self._pages = self._pages, self._map(size)
            if self._file is None:
                self._pages[: len(old)] = old[:]
        finally:
            self.rows = self._view()
        return self.rows

    def _map(self, size: int) -> mmap.mmap:
        if self._file is not None:
            self._allocate(self._file, size)
            pages = mmap.mmap(self._file.fileno(), size)
            pages.madvise(mmap.MADV_RANDOM)
            return pages
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux: fewer misses when rows are read at random
            pages.madvise(mmap.MADV_HUGEPAGE)
        return pages

    def _view(self) -> NDArray[Any]:
        count = len(self._pages) // self._row_bytes
        flat = np.frombuffer(self._pages, self._dtype, count * int(np.prod(self._row_shape)))
        return flat.reshape(count, *self._row_shape)

    @staticmethod
    def _allocate(file: IO[bytes], size: int) -> None:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise TableFull(
                f"no space for {size:,} bytes of rows that are kept on disk ({error.strerror}):"
                " free some, or lower the table's budget"
            ) from error


class Reused:
    """Memory for large copies, given out again once nobody holds what was in it.

    The first touch of fresh memory costs several times what copying into it does.
    """

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        """An array whose content does not matter; never one that is still in use."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        # Every view of the buffer, and all that was made of one, holds a reference to it; so do
        # this object and the call itself.
        if size > self._buffer.nbytes or sys.getrefcount(self._buffer) > 2:
            self._buffer = np.empty(size + size // 8, np.uint8)
        return self._buffer[:size].view(dtype).reshape(shape)
