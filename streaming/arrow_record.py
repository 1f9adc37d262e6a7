"""Arrow batches inside log records: one batch with a known schema, as an IPC stream."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

STREAM_STARTS = b"\xff\xff\xff\xff"  # the bytes that no JSON begins with
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


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
    try:
        with pa.ipc.open_stream(value) as reader:
            if not reader.schema.equals(schema):
                raise ValueError(f"must have {name}, not the columns {reader.schema.names}")
            batches = list(reader)
            for batch in batches:
                batch.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"cannot be read: {error}") from error
    if not batches:
        return pa.RecordBatch.from_pylist([], schema=schema)
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def filled_columns(
    schema: pa.Schema, rows: int, columns: Mapping[str, pa.Array | pa.ChunkedArray]
) -> list[pa.Array | pa.ChunkedArray]:
    """The columns in the order and with the types of the schema; those not given are null."""
    return [
        columns[f.name].cast(f.type) if f.name in columns else pa.nulls(rows, f.type)
        for f in schema
    ]
