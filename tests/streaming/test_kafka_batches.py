"""Records in a Kafka batch: found where kafka-python finds them, and never beyond the bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from streaming.kafka_batches import Found, find_records

BYTES = st.none() | st.binary(max_size=200)
RECORDS = st.lists(
    st.tuples(
        st.integers(0, 2**40),
        BYTES,
        BYTES,
        st.lists(st.tuples(st.text(max_size=3), BYTES), max_size=2),
    ),
    min_size=1,
    max_size=20,
)


def batch_of(records: list[tuple[int, Any, Any, Any]]) -> DefaultRecordBatch:
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1,
        base_sequence=-1, batch_size=1 << 20,
    )  # fmt: skip
    for offset, (at_ms, key, value, headers) in enumerate(records):
        builder.append(offset, at_ms, key, value, headers)
    return DefaultRecordBatch(builder.build())


def body_of(batch: DefaultRecordBatch) -> bytes:
    return bytes(batch._buffer)[DefaultRecordBatch.HEADER_STRUCT.size :]


@given(RECORDS)
def test_records_are_found_where_kafka_python_finds_them(
    records: list[tuple[int, Any, Any, Any]],
) -> None:
    batch = batch_of(records)
    body = body_of(batch)
    found = [Found(*one) for one in find_records(body, 0, len(records))]
    assert [
        (
            batch.base_offset + one.offset_delta,
            batch.first_timestamp + one.time_delta_ms,
            body[one.key_start : one.key_end] if one.key_start >= 0 else None,
            body[one.value_start : one.value_end] if one.value_start >= 0 else None,
        )
        for one in found
    ] == [(record.offset, record.timestamp, record.key, record.value) for record in batch]


@given(RECORDS, st.data())
def test_damaged_records_lie_within_the_bytes_or_are_refused(
    records: list[tuple[int, Any, Any, Any]], data: st.DataObject
) -> None:
    body = bytearray(body_of(batch_of(records)))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    del body[data.draw(st.integers(0, len(body))) :]
    try:
        found = list(find_records(body, 0, len(records)))
    except ValueError:
        return
    assert all(-1 <= place <= len(body) for one in found for place in one[2:])


@pytest.mark.parametrize(
    ("body", "count"), [(b"", 1), (b"", -1), (b"x" * 7, 2), (b"\xff" * 70, 1), (b"", 2**40)]
)
def test_what_cannot_be_records_is_refused(body: bytes, count: int) -> None:
    with pytest.raises(ValueError, match="do not fit|not a record batch"):
        find_records(body, 0, count)


def test_no_records_need_no_bytes() -> None:
    assert list(find_records(b"", 0, 0)) == []
