"""Samples: what a model learns from, one Arrow micro-batch a record, one record a training step."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from streaming.arrow_record import encode_batch, filled_columns, read_batch
from streaming.errors import ArtefactCorrupt, LogError
from streaming.log import NOBODY, SAMPLES, Append, Log, Record

# A row with a `user_id` is a sample: this user, this item, what was known, what came of it.
# A row without one declares an item: the model learns that it exists and what describes it.
# Behind these columns stands one `label_<kind>` for each label of the recipe.
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
        # The user's actions before `at`, oldest first, as they were at that moment.
        ("history", pa.list_(pa.field("item", pa.int64(), nullable=False))),
        ("history_rewards", pa.list_(pa.field("item", pa.float32(), nullable=False))),
        # Of each of these actions: its number in the recipe's `behaviour.rewards`, when it happened
        # (µs), the code of its scenario (`streaming.event_columns.scenario_codes`, -1 for none) and
        # the value of its event, null where it had none.
        ("history_kinds", pa.list_(pa.field("item", pa.int8(), nullable=False))),
        ("history_at_us", pa.list_(pa.field("item", pa.int64(), nullable=False))),
        ("history_scenarios", pa.list_(pa.field("item", pa.int32(), nullable=False))),
        ("history_values", pa.list_(pa.float32())),
        # The words that the user searched for before `at`, oldest first, and when: those with the
        # same time are of one search.
        ("searched", pa.list_(pa.field("item", pa.int64(), nullable=False))),
        ("searched_at_us", pa.list_(pa.field("item", pa.int64(), nullable=False))),
        # What he was shown and nothing came of, as was known at that moment, and when.
        ("passed_over", pa.list_(pa.field("item", pa.int64(), nullable=False))),
        ("passed_over_at_us", pa.list_(pa.field("item", pa.int64(), nullable=False))),
        # What describes the item, each as the stable id of "field=value"; for declarations.
        ("item_tokens", pa.list_(pa.field("item", pa.int64(), nullable=False))),
        # How much an action pleased, 0 to 1: the weight of a retrieval loss; null = no action.
        ("reward", pa.float32()),
        ("label_liked", pa.bool_()),  # null = not known
        # Of the impressions that came to nothing, this share became samples; null = was not shown.
        ("negative_rate", pa.float32()),
        # When the event that made it a sample reached the log.
        pa.field("logged_us", pa.int64(), nullable=False),
    ]
)
# What samples of an older release lack; they are read with nulls in its place.
LATER = {
    "history_kinds", "history_at_us", "history_scenarios", "history_values",
    "searched", "searched_at_us", "passed_over", "passed_over_at_us",
}  # fmt: skip
_LABEL = "label_"


def sample_schema(labels: Iterable[str]) -> pa.Schema:
    """`SAMPLE_SCHEMA` and, for each label, a column: 0 or 1 (or the value of a graded label),
    null where it is not known.
    """
    schema = SAMPLE_SCHEMA
    for label in labels:
        schema = schema.append(pa.field(f"{_LABEL}{label}", pa.float32()))
    return schema


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


def decode_samples(record: Record) -> pa.RecordBatch:
    """The micro-batch of a record, with whatever labels it has; one that an older release wrote has
    nulls in the columns that it lacked.

    Raises:
        ArtefactCorrupt: only a joiner writes samples, so bytes that are none mean a damaged log.
    """
    try:
        batch = fit_samples(read_batch(record.value))
    except ValueError as error:
        raise ArtefactCorrupt(
            f"{record.topic}/{record.partition} at {record.offset} holds no samples: {error}"
        ) from error
    return batch


def fit_samples(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with all columns of this release, in their order.

    Raises:
        ValueError: it lacks a column that samples always had, or has one that is none of theirs.
    """
    labels = [column for column in batch.schema if _is_label(column)]
    known = pa.schema([column for column in batch.schema if not _is_label(column)])
    if known.equals(SAMPLE_SCHEMA):
        return batch
    needed = {*known.names, *SAMPLE_SCHEMA.names} - (LATER - {*known.names})
    if not known.equals(pa.schema([column for column in SAMPLE_SCHEMA if column.name in needed])):
        raise ValueError(f"must have SAMPLE_SCHEMA, not the columns {batch.schema.names}")
    schema = sample_schema(label.name.removeprefix(_LABEL) for label in labels)
    given = dict(zip(batch.schema.names, batch.columns, strict=True))
    return pa.RecordBatch.from_arrays(filled_columns(schema, batch.num_rows, given), schema=schema)


def _is_label(column: pa.Field) -> bool:
    of_every_sample = column.name in SAMPLE_SCHEMA.names
    return column.name.startswith(_LABEL) and column.type == pa.float32() and not of_every_sample
