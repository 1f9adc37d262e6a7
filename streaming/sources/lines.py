"""The lines of a text file, however it is packed, and a fingerprint of those dealt with."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, cast

import xxhash

from streaming.errors import SourceError

_LONGEST_LINE = 1 << 20


def open_bytes(path: str, stack: ExitStack) -> IO[bytes]:
    """Opens a file until the stack unwinds; `-` is the standard input."""
    if path == "-":
        return sys.stdin.buffer
    try:
        return stack.enter_context(Path(path).open("rb"))
    except FileNotFoundError:
        raise SourceError(f"{path} is not there: check the path") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from None


class Lines:
    """The lines of a text file, with a fingerprint of those that were dealt with."""

    def __init__(self, path: str, stack: ExitStack) -> None:
        self.name = "standard input" if path == "-" else path
        self.number = 0
        self.dealt_with = 0
        self._pending: list[bytes] = []
        self._hash = xxhash.xxh3_64()
        raw = open_bytes(path, stack)
        self._raw = raw
        self._size = Path(path).stat().st_size if path != "-" and Path(path).is_file() else None
        buffered = raw if hasattr(raw, "peek") else io.BufferedReader(cast("io.RawIOBase", raw))
        start = cast("io.BufferedReader", buffered).peek(4)[:4]
        packed = start.startswith(b"\x1f\x8b")
        self._file = cast("IO[bytes]", gzip.GzipFile(fileobj=buffered)) if packed else buffered

    def __iter__(self) -> Iterator[bytes]:
        while line := self._next():
            self._pending.append(line)
            yield line

    def _next(self) -> bytes:
        try:
            line = self._file.readline(_LONGEST_LINE)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise SourceError(
                f"{self.name} is cut off or damaged after line {self.number} ({error}): fetch it"
                " again and run the same command, it goes on from there"
            ) from None
        except OSError as error:
            raise SourceError(f"{self.name} cannot be read: {error.strerror or error}") from None
        if not line:
            return line
        self.number += 1
        if self.number == 1:
            line = self._checked_start(line)
        if len(line) >= _LONGEST_LINE:
            raise SourceError(
                f"line {self.number} of {self.name} has over {_LONGEST_LINE} bytes: that is no row"
                " of a text file, check --format"
            )
        return line

    def _checked_start(self, line: bytes) -> bytes:
        if line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise SourceError(
                f"{self.name} is UTF-16: convert it first with `iconv -f UTF-16 -t UTF-8`"
            )
        if line.startswith(b"PAR1"):
            raise SourceError(f"{self.name} is a Parquet file: add --format parquet")
        return line.removeprefix(b"\xef\xbb\xbf")

    @property
    def pending(self) -> bytes:
        """What was read and not yet dealt with."""
        return b"".join(self._pending)

    def deal(self) -> None:
        """What was read until now has been dealt with."""
        for line in self._pending:
            self._hash.update(line.rstrip(b"\r\n"))
            self._hash.update(b"\n")
        self._pending.clear()
        self.dealt_with = self.number

    @property
    def fingerprint(self) -> int:
        return self._hash.intdigest() >> 1

    def fraction(self) -> float | None:
        return self._raw.tell() / self._size if self._size else None
