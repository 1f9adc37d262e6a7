"""Data sets that fit into memory: files read whole or refused, rows laid out along time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from streaming.arrow_record import filled_columns
from streaming.errors import SourceError
from streaming.events import EVENT_SCHEMA

Column: TypeAlias = pa.Array | pa.ChunkedArray


class Part(NamedTuple):
    """Events of one kind. Those of one time come in the order of `rows`, then of the parts.

    `at_us` and `rows` have shape (n,); `columns` must hold `event_id` and may hold any other column
    of `EVENT_SCHEMA`.
    """

    kind: str
    at_us: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: Mapping[str, Column]


class TableSource:
    """A `Source` whose events lie in memory, in the order of time."""

    def __init__(self, name: str, parts: Sequence[Part]) -> None:
        self.name = name
        at = np.concatenate([part.at_us for part in parts])
        rows = np.concatenate([part.rows for part in parts])
        number = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])
        order = np.lexsort((number, rows, at))
        events = pa.concat_tables([_events(part) for part in parts])
        (self._events,) = events.take(pa.array(order)).combine_chunks().to_batches()

    @property
    def total(self) -> int:
        """How many events there are."""
        return int(self._events.num_rows)

    def batch(self, start: int, size: int) -> pa.RecordBatch:
        """Up to `size` events from number `start` on, with `EVENT_SCHEMA`; nothing is copied."""
        return self._events.slice(start, size)


def _events(part: Part) -> pa.Table:
    rows = len(part.rows)
    fixed = {"kind": pa.repeat(part.kind, rows), "at": pa.array(part.at_us)}
    arrays = filled_columns(EVENT_SCHEMA, rows, {**part.columns, **fixed})
    return pa.Table.from_arrays(arrays, schema=EVENT_SCHEMA)


def take(column: Column, rows: NDArray[np.int64]) -> Column:
    """The values in these rows."""
    return column.take(pa.array(rows))


def joined(*texts: Column | str) -> Column:
    """The texts of each row, one after the other."""
    return pc.binary_join_element_wise(*texts, "")


def described(columns: Mapping[str, Column]) -> pa.Array:
    """`attributes` for each row: a JSON object with these texts, made once for equal rows."""
    rows = pc.binary_join_element_wise(*columns.values(), "\x1f")
    codes = pc.dictionary_encode(rows)
    if isinstance(codes, pa.ChunkedArray):
        codes = codes.combine_chunks()
    texts = [
        json.dumps(dict(zip(columns, row.split("\x1f"), strict=True)))
        for row in codes.dictionary.to_pylist()
    ]
    return pa.array(texts, pa.string()).take(codes.indices)


def event_ids(name: str, rows: NDArray[np.int64]) -> pa.Array:
    """`name/row` for each row of a file: the same in every reading of it."""
    return joined(f"{name}/", pa.array(rows).cast(pa.string()))


def first_rows(ids: Column) -> NDArray[np.int64]:
    """Where each distinct id comes for the first time, ascending."""
    codes = pc.dictionary_encode(ids)
    if isinstance(codes, pa.ChunkedArray):
        codes = codes.combine_chunks()
    return np.sort(np.unique(codes.indices.to_numpy(), return_index=True)[1])


def declared(name: str, kind: str, at_us: NDArray[np.int64], columns: dict[str, Column]) -> Part:
    """An `item` or a `user` event right before each id's first row; rows lie in time order."""
    key = f"{kind}_id"
    rows = first_rows(columns[key])
    taken = {column: take(values, rows) for column, values in columns.items()}
    ids = joined(f"{name}/{kind}/", taken[key])
    return Part(kind, at_us[rows], rows, {"event_id": ids, **taken})


# -- files -----------------------------------------------------------------------------------


def read_csv(
    file: Path,
    types: Mapping[str, pa.DataType],
    *,
    names: Sequence[str] = (),
    delimiter: str = ",",
) -> pa.Table:
    """These columns of a CSV file, without a null; `names` where it has no header.

    Raises:
        SourceError: it is not there, cut short, or not as it should be; says what and where.
    """
    convert = csv.ConvertOptions(column_types=types, include_columns=list(types))
    read = csv.ReadOptions(column_names=list(names))
    parse = csv.ParseOptions(delimiter=delimiter)
    with refused(file):
        table = csv.read_csv(file, read_options=read, parse_options=parse, convert_options=convert)
    return _whole(file, table, list(types), header=0 if names else 1)


def read_parquet(
    file: Path, types: Mapping[str, pa.DataType], *, may_be_null: Sequence[str] = ()
) -> pa.Table:
    """These columns of a Parquet file; null is refused but in `may_be_null`.

    Raises:
        SourceError: it is not there, cut short, or not as it should be; says what and where.
    """
    with refused(file):
        found = pq.read_table(file, columns=list(types))
        table = found.select(list(types)).cast(pa.schema(list(types.items())))
    return _whole(file, table, [name for name in types if name not in may_be_null], header=0)


def read_lines(file: Path, fields: int, separator: str) -> list[list[str]]:
    """The fields of each line of a Latin-1 text file.

    Raises:
        SourceError: it is not there, cut short, or a line has more or fewer fields.
    """
    with refused(file):
        lines = file.read_text(encoding="latin-1").splitlines()
    rows = [line.split(separator) for line in lines]
    for number, row in enumerate(rows, 1):
        if len(row) != fields:
            raise _refusal(file, f"line {number} has {len(row)} fields, not {fields}")
    return rows


@contextmanager
def refused(file: Path) -> Iterator[None]:
    """What goes wrong inside is the fault of the file, and says so."""
    try:
        yield
    except FileNotFoundError:
        raise SourceError(f"{file} is not there") from None
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _refusal(file, str(error).replace("\n", " ")) from None


def _refusal(file: Path, reason: Any) -> SourceError:
    return SourceError(
        f"{file} is truncated or not the file it should be ({reason}): fetch it again"
    )


def _whole(file: Path, table: pa.Table, required: Sequence[str], header: int) -> pa.Table:
    if table.num_rows == 0:
        raise SourceError(f"{file} has no rows: fetch it again")
    for name in required:
        if table[name].null_count:
            row = pc.index(table[name].is_null(), True).as_py() + 1 + header
            raise SourceError(f"{file} has no {name} in line {row}: fetch it again")
    return table.combine_chunks()
