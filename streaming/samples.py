"""Samples: what a model learns from, one Arrow micro-batch a record, one record a training step."""

from __future__ import annotations

import pyarrow as pa

from streaming.arrow_record import decode_batch, encode_batch
from streaming.errors import ArtefactCorrupt
from streaming.log import SAMPLES, Append, Record

# A row with a `user_id` is a sample: this user, this item, what was known, what came of it.
# A row without one declares an item: the model learns that it exists and what describes it.
SAMPLE_SCHEMA = pa.schema(
    [
        ("user_id", pa.int64()),
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        ("scenario", pa.string()),
        ("request_id", pa.string()),
        ("position", pa.int32()),
        # The user's actions before this one, oldest first, as they were at that moment.
        ("history", pa.list_(pa.field("item", pa.int64(), nullable=False))),
        ("history_rewards", pa.list_(pa.field("item", pa.float32(), nullable=False))),
        # What describes the item, each as the stable id of "field=value"; for declarations.
        ("item_tokens", pa.list_(pa.field("item", pa.int64(), nullable=False))),
        ("reward", pa.float32()),  # how much it pleased, 0 to 1: the weight of a retrieval loss
        ("label_liked", pa.bool_()),  # null = not known
        pa.field("logged_us", pa.int64(), nullable=False),  # when its event reached the log
    ]
)


def encode_samples(batch: pa.RecordBatch, key: bytes | None = None) -> Append:
    """One micro-batch with `SAMPLE_SCHEMA` as a record."""
    return Append(SAMPLES, encode_batch(batch), key)


def decode_samples(record: Record) -> pa.RecordBatch:
    """The micro-batch of a record.

    Raises:
        ArtefactCorrupt: only a joiner writes samples, so bytes that are none mean a damaged log.
    """
    try:
        return decode_batch(record.value, SAMPLE_SCHEMA, "SAMPLE_SCHEMA")
    except ValueError as error:
        raise ArtefactCorrupt(
            f"{record.topic}/{record.partition} at {record.offset} holds no samples: {error}"
        ) from error
