"""Arrow batches inside log records: one batch with a known schema, as an IPC stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyarrow as pa
from pyarrow import types

STREAM_STARTS = b"\xff\xff\xff\xff"  # the bytes that no JSON begins with
_STREAM_ENDS = STREAM_STARTS + bytes(4)
MOST_ROWS = 1_000_000  # a few bytes can claim any number of rows
# For so few bytes other threads take longer: to compress a column many times as long.
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
_ALONE = pa.ipc.IpcReadOptions(use_threads=False)


def encode_batch(batch: pa.RecordBatch) -> bytes:
    """The batch as the value of a record."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_OPTIONS) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def decode_batch(value: bytes, schema: pa.Schema, name: str) -> pa.RecordBatch:
    """The batch in the value of a record, checked to the last offset: it is safe to read.

    `name` is what errors call the schema.

    Raises:
        ValueError: the bytes are damaged, or hold a batch with another schema.
    """
    batch = read_batch(value)
    if not batch.schema.equals(schema):
        raise ValueError(f"must have {name}, not the columns {batch.schema.names}")
    return batch


def read_batch(value: bytes, keep: Callable[[str], bool] | None = None) -> pa.RecordBatch:
    """As `decode_batch`, whatever the columns are; only those that are to be kept, by their names:
    what is not read is not decompressed either.

    Raises:
        ValueError: the bytes are damaged, or claim more than `MOST_ROWS` rows.
    """
    batches: list[pa.RecordBatch] = []
    rows = 0
    try:
        options = _ALONE
        if keep is not None:
            names = pa.ipc.read_schema(pa.BufferReader(value)).names
            kept = [number for number, name in enumerate(names) if keep(name)]
            options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=kept)
        with pa.ipc.open_stream(value, options=options) as reader:
            for batch in reader:
                rows += batch.num_rows
                if rows > MOST_ROWS:
                    raise ValueError(f"holds more than {MOST_ROWS} rows: send several records")
                batch.validate(full=True)
                batches.append(batch)
            if not batches:
                if not value.endswith(_STREAM_ENDS):
                    raise ValueError("ends before its first batch")
                return pa.RecordBatch.from_pylist([], schema=reader.schema)
            return batches[0] if len(batches) == 1 else pa.concat_batches(batches)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"cannot be read: {error}") from error


def fit_batch(batch: pa.RecordBatch, schema: pa.Schema, name: str) -> pa.RecordBatch:
    """The batch with the schema's columns, types and order; nothing is lost on the way.

    A column that may be null may be absent. Text may be large or dictionary-encoded, a time may
    have another unit or zone (none is UTC), and integers may stand for numbers, where every value
    fits.

    Raises:
        ValueError: names the column that is unknown, missing, there twice or of another type.
    """
    if batch.schema.equals(schema):
        return batch
    present = batch.schema.names
    for column in present:
        if column not in schema.names or present.count(column) > 1:
            what = "twice" if column in schema.names else "unknown"
            raise ValueError(f"must have {name}: the column {column!r} is {what}")
    arrays = []
    for field in schema:
        if field.name not in present and not field.nullable:
            raise ValueError(f"must have {name}: the column {field.name!r} is missing")
        column = batch[field.name] if field.name in present else pa.nulls(batch.num_rows)
        arrays.append(_cast(column, field, name))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def filled_columns(
    schema: pa.Schema, rows: int, columns: Mapping[str, pa.Array | pa.ChunkedArray]
) -> list[pa.Array | pa.ChunkedArray]:
    """The columns in the order and with the types of the schema; those not given are null."""
    return [
        columns[f.name].cast(f.type) if f.name in columns else pa.nulls(rows, f.type)
        for f in schema
    ]


def _cast(column: pa.Array, field: pa.Field, name: str) -> pa.Array:
    wanted, found = _family(field.type), _family(column.type)
    if found not in (wanted, "null") and (wanted, found) != ("number", "integer"):
        raise ValueError(
            f"must have {name}: the column {field.name!r} is {column.type}, not {field.type}"
        )
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise ValueError(
            f"must have {name}: the column {field.name!r} cannot become {field.type}: {error}"
        ) from error


def _family(kind: pa.DataType) -> str:
    """Types of one family say the same things."""
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    for family, belongs in (
        ("null", types.is_null),
        ("time", types.is_timestamp),
        ("integer", types.is_integer),
        ("number", types.is_floating),
    ):
        if belongs(kind):
            return family
    return str(kind)
