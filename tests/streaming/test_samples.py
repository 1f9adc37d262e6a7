"""Samples as records of the log."""

from __future__ import annotations

import random
from multiprocessing.context import ForkServerContext

import pyarrow as pa
import pytest

from streaming.errors import ArtefactCorrupt, LogError
from streaming.log import EVENTS, SAMPLES, Append, Record
from streaming.memory_log import MemoryLog
from streaming.samples import (
    SAMPLE_SCHEMA,
    decode_samples,
    encode_samples,
    features_in,
    labels_in,
    sample_schema,
    samples_partition,
)

HISTORY = pa.list_(pa.int64())
FEATURES = pa.schema({"history": HISTORY, "age": pa.float32()})
SCHEMA = sample_schema((), FEATURES)


def batch(rows: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [
            {"user_id": n or None, "item_id": n, "at": n, "kind": "rate", "history": [1] * n,
             "age": n / 2, "reward": 0.25, "label_liked": None, "logged_us": n}
            for n in range(rows)
        ],
        schema=SCHEMA,
    )  # fmt: skip


def as_record(value: bytes) -> Record:
    return Record(SAMPLES, 3, 41, None, value, 0)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_a_micro_batch_comes_back_as_it_was(rows: int) -> None:
    append = encode_samples(batch(rows), key=b"k", partition=3)
    assert append == Append(SAMPLES, append.value, b"k", 3)
    assert decode_samples(as_record(append.value)).equals(batch(rows))
    outline = decode_samples(as_record(append.value), features=False)
    assert outline.equals(batch(rows).select(SAMPLE_SCHEMA.names))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_no_partition_stays_empty_while_there_are_enough_of_events(count: int) -> None:
    log = MemoryLog(partitions=count, topics=[SAMPLES])
    assert [samples_partition(log, n) for n in range(2 * count)] == 2 * list(range(count))


def test_a_log_without_the_topic_of_samples_says_so() -> None:
    with pytest.raises(LogError, match="no topic samples: `headrace topics --apply`"):
        samples_partition(MemoryLog(topics=[EVENTS]), 0)


def test_a_slice_of_a_batch_is_written_alone() -> None:
    whole = encode_samples(batch(200)).value
    part = encode_samples(batch(200).slice(190, 3)).value
    assert decode_samples(as_record(part)).equals(batch(200).slice(190, 3))
    assert len(part) < len(whole)


def test_features_and_labels_stand_behind_the_columns_of_every_sample() -> None:
    schema = sample_schema(["click", "watch"], FEATURES)
    assert schema.names == [*SAMPLE_SCHEMA.names, "history", "age", "label_click", "label_watch"]
    assert (features_in(schema), labels_in(schema)) == (FEATURES, ["click", "watch"])
    assert sample_schema([]).equals(SAMPLE_SCHEMA)
    row = {"item_id": 1, "at": 2, "kind": "watch", "logged_us": 3, "label_watch": 0.25}
    samples = pa.RecordBatch.from_pylist([row], schema=schema)
    decoded = decode_samples(as_record(encode_samples(samples).value))
    assert decoded.equals(samples)
    assert (decoded["label_watch"][0].as_py(), decoded["label_click"][0].as_py()) == (0.25, None)


@pytest.mark.parametrize("name", ["reward", "label_liked", "label_click", "label_else"])
def test_a_feature_has_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be called {name}"):
        sample_schema(["click"], pa.schema({name: pa.float32()}))


@pytest.mark.parametrize(
    "other",
    [
        SCHEMA.append(pa.field("label_click", pa.float64())),
        SCHEMA.append(pa.field("label_liked", pa.float32())),
        SCHEMA.remove(0),
        pa.schema(reversed(SCHEMA)),
        pa.schema([*FEATURES, *SAMPLE_SCHEMA]),
        sample_schema(["click"]).append(pa.field("age", pa.float32())),
    ],
)
def test_other_columns_are_no_samples(other: pa.Schema) -> None:
    empty = pa.RecordBatch.from_pylist([], schema=other)
    with pytest.raises(ArtefactCorrupt, match="must have SAMPLE_SCHEMA"):
        decode_samples(as_record(encode_samples(empty).value))


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"\xff\xff\xff\xff"])
def test_bytes_that_are_no_samples_name_their_place(damage: bytes) -> None:
    with pytest.raises(ArtefactCorrupt, match="samples/3 at 41 holds no samples"):
        decode_samples(as_record(damage))


def decode_damaged_samples(seed: int) -> None:
    """Runs in a process of its own: what goes wrong here takes the process with it."""
    rng = random.Random(seed)
    whole = encode_samples(batch(30)).value
    found = 0
    for _ in range(600):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        try:
            decoded = decode_samples(as_record(bytes(damaged)))
        except ArtefactCorrupt:
            found += 1
        else:
            decoded.validate(full=True)
            assert features_in(decoded.schema) == FEATURES or decoded.schema != SCHEMA
    assert found > 100


@pytest.mark.parametrize("seed", range(2))
def test_a_flipped_bit_in_samples_never_ends_the_process(
    processes: ForkServerContext, seed: int
) -> None:
    child = processes.Process(target=decode_damaged_samples, args=(seed,))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_truncated_samples_are_found() -> None:
    whole = encode_samples(batch(7)).value
    for size in range(0, len(whole) - 8, 11):
        with pytest.raises(ArtefactCorrupt):
            decode_samples(as_record(whole[:size]))
