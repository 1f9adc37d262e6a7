"""Files of rows - NDJSON, CSV, Parquet - read in bounded memory, each row with its line number.

CSV goes through Python's own reader, for it alone knows on which line of the file a row begins.
"""

from __future__ import annotations

import csv
import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol, cast, get_args

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from streaming.errors import ConfigError, SourceError
from streaming.sources.lines import Lines, open_bytes

Format = Literal["ndjson", "csv", "parquet"]
_SUFFIXES: dict[str, Format] = {
    ".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "ndjson",
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that has no columns to speak of."""

    line: int
    raw: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that follow each other: `rows` are columns, or the lines of NDJSON.

    `lines` (n,) says where each row begins; 1 is the first line of a text file, or the first row
    of Parquet. `done` counts what the file has up to the end of the chunk, in the same unit, and
    `fingerprint` (63 bits) stands for all of it.
    """

    lines: list[int]
    rows: pa.RecordBatch | list[bytes]
    broken: list[Broken]
    done: int
    fingerprint: int


class Table(Protocol):
    """A file of rows, read once from the front.

    `columns` is None where every row names its own. `head` tells the file from others of its
    name, and stays as it is when the file grows. `unfinished` is the line on which the file ends
    in half a row, known at the end; that row is in no chunk.
    """

    name: str
    columns: list[str] | None
    head: int
    unfinished: int | None

    def skip(self, done: int) -> int:
        """Passes over what an earlier reading has dealt with; returns its fingerprint."""
        ...

    def chunks(self, size: int, wanted: Sequence[str]) -> Iterator[Chunk]:
        """The rest, `size` rows at a time, with the wanted columns alone."""
        ...

    def fraction(self) -> float | None:
        """How much of the file has been read, 0 to 1; None where nobody can know."""
        ...


@dataclass(frozen=True)
class TableConfig:
    """How to read a file: what its name and first line do not say.

    `columns` names the columns of a CSV file without a header.
    """

    format: Format | None = None
    delimiter: str | None = None
    columns: tuple[str, ...] = ()


@contextmanager
def open_table(path: str, config: TableConfig) -> Iterator[Table]:
    """Opens a file for the block; `-` is the standard input, `.gz` is unpacked.

    Raises:
        ConfigError: the name does not tell the format, or an option does not fit it.
        SourceError: the file cannot be read, or not as that format.
    """
    form = config.format or _format_of(path)
    if form not in get_args(Format):
        raise ConfigError(f"--format {form}: choose one of {', '.join(get_args(Format))}")
    with ExitStack() as stack:
        if form == "parquet":
            yield ParquetTable(path, stack)
        elif form == "csv":
            yield CsvTable(Lines(path, stack), config)
        else:
            yield NdjsonTable(Lines(path, stack))


def _format_of(path: str) -> Format:
    if path == "-":
        raise ConfigError("the standard input has no name to tell its format: add --format ndjson")
    suffixes = [s.lower() for s in Path(path).suffixes if s.lower() != ".gz"]
    if not suffixes or suffixes[-1] not in _SUFFIXES:
        known = ", ".join(sorted(_SUFFIXES))
        raise ConfigError(
            f"{path}: the name does not tell the format (known are {known}): add --format csv,"
            " ndjson or parquet"
        )
    return _SUFFIXES[suffixes[-1]]


class _TextTable:
    """What NDJSON and CSV have in common."""

    unfinished: int | None = None

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self.name = lines.name

    def skip(self, done: int) -> int:
        if self._lines.dealt_with < done:
            for _ in self._lines:
                self._lines.deal()
                if self._lines.number == done:
                    break
        return self._lines.fingerprint if self._lines.dealt_with == done else -1

    def fraction(self) -> float | None:
        return self._lines.fraction()

    def _chunk(
        self, numbers: list[int], rows: pa.RecordBatch | list[bytes], broken: list[Broken]
    ) -> Chunk:
        return Chunk(numbers, rows, broken, self._lines.dealt_with, self._lines.fingerprint)


class NdjsonTable(_TextTable):
    """One JSON object a line; empty lines are passed over."""

    columns: list[str] | None = None

    def __init__(self, lines: Lines) -> None:
        super().__init__(lines)
        self._source = iter(lines)
        self._first = next(self._source, b"")
        self.head = xxhash.xxh3_64_intdigest(self._first.rstrip())

    def skip(self, done: int) -> int:
        if done == 0:
            return self._lines.fingerprint
        self._first = b""
        self._lines.deal()
        return super().skip(done)

    def chunks(self, size: int, wanted: Sequence[str]) -> Iterator[Chunk]:  # noqa: ARG002
        numbers: list[int] = []
        rows: list[bytes] = []
        for line in self._remaining():
            row = line.strip()
            if not line.endswith(b"\n") and row and not _is_json(row):
                self.unfinished = self._lines.number
                break
            self._lines.deal()
            if row:
                numbers.append(self._lines.number)
                rows.append(row)
            if len(rows) == size:
                yield self._chunk(numbers, rows, [])
                numbers, rows = [], []
        if rows:
            yield self._chunk(numbers, rows, [])

    def _remaining(self) -> Iterator[bytes]:
        if self._first:
            yield self._first
        yield from self._source


def _is_json(row: bytes) -> bool:
    try:
        msgspec.json.decode(row)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


class CsvTable(_TextTable):
    """Rows with one header; an empty field is an absent value."""

    def __init__(self, lines: Lines, config: TableConfig) -> None:
        super().__init__(lines)
        self._source = iter(lines)
        first = next(self._source, b"")
        if not first.strip():
            raise SourceError(f"{self.name} is empty, or begins with an empty line")
        self._delimiter = config.delimiter or _delimiter_of(first)
        if len(self._delimiter) != 1:
            raise ConfigError(f"--delimiter {self._delimiter!r}: must be one character")
        self._unread = [first]
        reader = csv.reader(self._texts(), delimiter=self._delimiter, strict=True)
        self._reader = reader
        if config.columns:
            self.columns: list[str] | None = list(config.columns)
            self.head = xxhash.xxh3_64_intdigest(first.rstrip())
            return
        try:
            self.columns = [name.strip() for name in next(reader)]
        except (csv.Error, StopIteration) as error:
            raise SourceError(f"the header of {self.name} is no CSV: {error}") from None
        if len(set(self.columns)) < len(self.columns):
            raise SourceError(f"{self.name} has two columns of one name: {self.columns}")
        lines.deal()
        second = next(self._source, b"")
        self._unread = [second] if second else []
        self.head = xxhash.xxh3_64_intdigest(first.rstrip() + b"\n" + second.rstrip())

    def skip(self, done: int) -> int:
        if done <= self._lines.dealt_with:
            return self._lines.fingerprint if done == self._lines.dealt_with else -1
        self._unread = []
        if self._lines.number <= done:
            self._lines.deal()
        return super().skip(done)

    def chunks(self, size: int, wanted: Sequence[str]) -> Iterator[Chunk]:
        numbers: list[int] = []
        rows: list[list[str]] = []
        broken: list[Broken] = []
        for number, raw, fields in self._rows():
            if isinstance(fields, str):
                broken.append(Broken(number, raw, fields))
            else:
                numbers.append(number)
                rows.append(fields)
            if len(rows) + len(broken) == size:
                yield self._chunk(numbers, self._batch(rows, wanted), broken)
                numbers, rows, broken = [], [], []
        if rows or broken:
            yield self._chunk(numbers, self._batch(rows, wanted), broken)

    def _rows(self) -> Iterator[tuple[int, bytes, list[str] | str]]:
        """Where a row begins, its bytes if it is broken, and its fields or what is wrong."""
        lines, width = self._lines, len(self.columns or ())
        while True:
            begins = lines.dealt_with + 1
            try:
                fields = next(self._reader, None)
            except csv.Error as error:
                if "unexpected end" in str(error):
                    self.unfinished = begins
                    return
                raise SourceError(
                    f"line {begins} of {self.name} is no CSV ({error}): look for a quote that is"
                    " not closed, or check --delimiter"
                ) from None
            if fields is None:
                return
            raw = b"" if len(fields) == width else lines.pending
            if raw and not raw.endswith(b"\n") and len(fields) < width:
                self.unfinished = begins
                return
            lines.deal()
            if len(fields) == width:
                yield begins, b"", fields
            elif fields:  # an empty line has no fields
                reason = f"has {len(fields)} fields where the header has {width}"
                yield begins, raw.rstrip(b"\r\n"), reason

    def _texts(self) -> Iterator[str]:
        while True:
            line = self._unread.pop() if self._unread else next(self._source, b"")
            if not line:
                return
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"line {self._lines.number} of {self.name} is not UTF-8 (byte"
                    f" 0x{line[error.start]:02x} at {error.start}): convert the file first, for"
                    " example with `iconv -f LATIN1 -t UTF-8`"
                ) from None

    def _batch(self, rows: list[list[str]], wanted: Sequence[str]) -> pa.RecordBatch:
        columns = list(zip(*rows, strict=True)) or [()] * len(self.columns or ())
        places = [(self.columns or []).index(name) for name in wanted]
        arrays = [
            pa.array([field or None for field in columns[place]], pa.string()) for place in places
        ]
        schema = pa.schema([(name, pa.string()) for name in wanted])
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _delimiter_of(header: bytes) -> str:
    return max(_DELIMITERS, key=lambda d: header.count(d.encode()))


class ParquetTable:
    """A Parquet file; from the standard input it is put into a temporary file first."""

    unfinished: int | None = None

    def __init__(self, path: str, stack: ExitStack) -> None:
        self.name = "standard input" if path == "-" else path
        file = open_bytes(path, stack)
        if path == "-" or path.endswith(".gz"):
            packed = path.endswith(".gz")
            plain = cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if packed else file
            file = self._unpacked(plain, stack)
        try:
            self._parquet = pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from None
        self.columns: list[str] | None = self._parquet.schema_arrow.names
        self._rows = self._parquet.metadata.num_rows
        self._done = 0
        file.seek(-8, io.SEEK_END)
        footer = int.from_bytes(file.read(4), "little")
        file.seek(-8 - footer, io.SEEK_END)
        # The footer names every page and its statistics: it stands for the whole file.
        self.head = xxhash.xxh3_64_intdigest(file.read(footer)) >> 1

    def skip(self, done: int) -> int:
        self._done = done
        return self.head if done <= self._rows else -1

    def chunks(self, size: int, wanted: Sequence[str]) -> Iterator[Chunk]:
        first, groups = 0, []
        for group in range(self._parquet.metadata.num_row_groups):
            rows = self._parquet.metadata.row_group(group).num_rows
            if first + rows > self._done:
                groups.append(group)
            elif not groups:
                first += rows
        surplus = self._done - first
        try:
            batches = self._parquet.iter_batches(size, row_groups=groups, columns=list(wanted))
            for batch in batches:
                kept = batch.slice(surplus)
                surplus = max(0, surplus - batch.num_rows)
                if kept.num_rows == 0:
                    continue
                numbers = list(range(self._done + 1, self._done + kept.num_rows + 1))
                self._done += kept.num_rows
                yield Chunk(numbers, kept, [], self._done, self.head)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(error) from None

    def fraction(self) -> float | None:
        return self._done / self._rows if self._rows else None

    def _unpacked(self, file: IO[bytes], stack: ExitStack) -> IO[bytes]:
        unpacked: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - the stack closes it
        stack.enter_context(unpacked)
        try:
            shutil.copyfileobj(file, unpacked)
        except (EOFError, zlib.error, OSError) as error:
            raise self._damaged(error) from None
        unpacked.seek(0)
        return unpacked

    def _damaged(self, error: Exception) -> SourceError:
        return SourceError(
            f"{self.name} is cut off, or is no Parquet file ({error}): fetch it again, or check"
            " --format"
        )
