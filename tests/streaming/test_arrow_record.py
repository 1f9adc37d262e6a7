"""Arrow batches as values of records: they come back, or a ValueError says why not."""

from __future__ import annotations

import pyarrow as pa
import pytest

from streaming.arrow_record import STREAM_STARTS, decode_batch, encode_batch

SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False), ("name", pa.string())])


def batch(*names: str | None) -> pa.RecordBatch:
    rows = [{"id": n, "name": name} for n, name in enumerate(names)]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def stream(*batches: pa.RecordBatch, schema: pa.Schema = SCHEMA) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for one in batches:
            writer.write_batch(one)
    value: bytes = sink.getvalue().to_pybytes()
    return value


@pytest.mark.parametrize("names", [[], ["a"], ["a", None, "é" * 1_000]])
def test_a_batch_comes_back_as_it_was(names: list[str | None]) -> None:
    value = encode_batch(batch(*names))
    assert value.startswith(STREAM_STARTS)
    assert decode_batch(value, SCHEMA, "SCHEMA").equals(batch(*names))


def test_a_slice_is_written_alone() -> None:
    whole = batch(*(f"name {n}" for n in range(1_000)))
    value = encode_batch(whole.slice(500, 2))
    assert decode_batch(value, SCHEMA, "SCHEMA").equals(whole.slice(500, 2))
    assert len(value) < len(encode_batch(whole)) / 5


def test_batches_of_one_stream_are_read_as_one() -> None:
    found = decode_batch(stream(batch("a"), batch(), batch("b", "c")), SCHEMA, "SCHEMA")
    assert found["name"].to_pylist() == ["a", "b", "c"]


def test_a_stream_without_batches_is_an_empty_batch() -> None:
    assert decode_batch(stream(), SCHEMA, "SCHEMA").equals(batch())


@pytest.mark.parametrize(
    "schema",
    [
        pa.schema([SCHEMA.field("id")]),
        pa.schema([SCHEMA.field("name"), SCHEMA.field("id")]),
        pa.schema([("id", pa.int64()), ("name", pa.string())]),
    ],
)
def test_another_schema_is_named(schema: pa.Schema) -> None:
    value = stream(schema=schema)
    with pytest.raises(ValueError, match=r"must have SCHEMA, not the columns \['"):
        decode_batch(value, SCHEMA, "SCHEMA")


@pytest.mark.parametrize("value", [b"", b"nonsense", STREAM_STARTS, encode_batch(batch("a"))[:-40]])
def test_bytes_that_are_no_stream_cannot_be_read(value: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be read: "):
        decode_batch(value, SCHEMA, "SCHEMA")


def test_text_that_is_not_utf8_cannot_be_read() -> None:
    broken = pa.array([b"\xff"], pa.binary()).view(pa.string())
    value = stream(pa.RecordBatch.from_arrays([pa.array([1]), broken], schema=SCHEMA))
    with pytest.raises(ValueError, match="cannot be read: .*UTF8"):
        decode_batch(value, SCHEMA, "SCHEMA")
