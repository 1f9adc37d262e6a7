"""Samples: what a model learns from, one Arrow micro-batch a record, one record a training step."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from streaming.arrow_record import encode_batch, read_batch
from streaming.errors import ArtefactCorrupt, LogError
from streaming.log import NOBODY, SAMPLES, Append, Log, Record

# A row with a `user_id` is a sample: this user, this item, what was known, what came of it.
# A row without one declares an item: the model learns that it exists and what describes it.
# Behind these columns stand the features of that moment, which the floor above declares, and one
# `label_<kind>` for each label of the recipe.
SAMPLE_SCHEMA = pa.schema(
    [
        ("user_id", pa.int64()),
        pa.field("item_id", pa.int64(), nullable=False),
        # When the item was shown, or acted upon without having been shown.
        pa.field("at", pa.timestamp("us", "UTC"), nullable=False),
        # What made this sample: an action, or `impression` for the end of a label's window.
        pa.field("kind", pa.string(), nullable=False),
        ("scenario", pa.string()),
        ("request_id", pa.int64()),
        ("position", pa.int32()),
        # What describes the item, for declarations: stable ids of "field=value", ids of words.
        ("item_tokens", pa.list_(pa.field("item", pa.int64(), nullable=False))),
        # Of each of them the code of its field (`event_columns.field_codes`).
        ("item_fields", pa.list_(pa.field("item", pa.int32(), nullable=False))),
        # How much an action pleased, 0 to 1: the weight of a retrieval loss; null = no action.
        ("reward", pa.float32()),
        ("label_liked", pa.bool_()),  # null = not known
        # Of the impressions that came to nothing, this share became samples; null = was not shown.
        ("negative_rate", pa.float32()),
        # Of an impression that says so: the score with which it was served, and the stable id of
        # the name of the version that gave it.
        ("served_score", pa.float32()),
        ("served_version", pa.int64()),
        # When the event that made it a sample reached the log.
        pa.field("logged_us", pa.int64(), nullable=False),
    ]
)
_LABEL = "label_"
_NO_FEATURES = pa.schema([])


def sample_schema(labels: Iterable[str], features: pa.Schema = _NO_FEATURES) -> pa.Schema:
    """`SAMPLE_SCHEMA`, the features, and a column for each label: 0 or 1 (or the value of a graded
    label), null where it is not known.

    Raises:
        ValueError: a feature has the name of another column.
    """
    own = [pa.field(f"{_LABEL}{label}", pa.float32()) for label in labels]
    taken = {*SAMPLE_SCHEMA.names, *(field.name for field in own)}
    if wrong := [n for n in features.names if n in taken or n.startswith(_LABEL)]:
        raise ValueError(f"a feature in samples cannot be called {', '.join(wrong)}")
    return pa.schema([*SAMPLE_SCHEMA, *features, *own])


def features_in(schema: pa.Schema) -> pa.Schema:
    """The features among the columns of samples."""
    own = {*SAMPLE_SCHEMA.names}
    return pa.schema([f for f in schema if f.name not in own and not f.name.startswith(_LABEL)])


def labels_in(schema: pa.Schema) -> list[str]:
    """The labels among the columns of samples."""
    own = {*SAMPLE_SCHEMA.names}
    return [n.removeprefix(_LABEL) for n in schema.names if n.startswith(_LABEL) and n not in own]


def samples_partition(log: Log, events_partition: int) -> int:
    """In which partition of `samples` those of a partition of `events` lie.

    By number and not by hash, for then none stays empty while there are no more of them than
    partitions of `events`.

    Raises:
        LogError: the log has no topic `samples`.
    """
    count = len(log.positions(NOBODY, [SAMPLES]))  # in Kafka much cheaper than its ends
    if count == 0:
        raise LogError(f"the log has no topic {SAMPLES}: `headrace topics --apply` makes it")
    return events_partition % count


def encode_samples(
    batch: pa.RecordBatch, key: bytes | None = None, partition: int | None = None
) -> Append:
    """One micro-batch with a `sample_schema` as a record."""
    return Append(SAMPLES, encode_batch(batch), key, partition)


def decode_samples(record: Record, *, features: bool = True) -> pa.RecordBatch:
    """The micro-batch of a record, with whatever labels and, if they are wanted, features it has:
    lists of these are most of its bytes.

    Raises:
        ArtefactCorrupt: only a joiner writes samples, so bytes that are none mean a damaged log.
    """
    try:
        batch = read_batch(record.value, None if features else _is_no_feature)
        labels, found = labels_in(batch.schema), features_in(batch.schema)
        if not batch.schema.equals(sample_schema(labels, found)):
            raise ValueError(f"must have SAMPLE_SCHEMA, not the columns {batch.schema.names}")
    except ValueError as error:
        raise ArtefactCorrupt(
            f"{record.topic}/{record.partition} at {record.offset} holds no samples: {error}"
        ) from error
    return batch


def _is_no_feature(column: str) -> bool:
    return column in SAMPLE_SCHEMA.names or column.startswith(_LABEL)
