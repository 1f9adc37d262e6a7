"""Made-up micro-batches for benchmarks of the trainer: popular items are much more so."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from features.definitions import SAMPLE_FEATURES
from serving.sample_watch import Joined
from streaming.log import SAMPLES, Record
from streaming.samples import encode_samples, sample_schema

HISTORY = 20
SCHEMA = sample_schema((), SAMPLE_FEATURES)
_AT_US = 1_700_000_000_000_000


def micro_batch(
    number: int, size: int, users: int, items: int, known: int, liked: float = 0.0
) -> pa.RecordBatch:
    """A batch of samples; the same number gives the same.

    Args:
        number: of the batch, a microsecond each.
        size: B.
        users: how many there are.
        items: how many there are to be recommended.
        known: how many there are in histories, of `HISTORY` items each.
        liked: the share of samples that are tested before they are learnt.
    """
    rng = np.random.default_rng(number)
    drawn = rng.zipf(1.1, (size, HISTORY + 1)) % known
    list_of = {name: SCHEMA.field(name).type for name in ("history", "history_rewards")}
    history = pa.FixedSizeListArray.from_arrays(pa.array(drawn[:, 1:].ravel()), HISTORY)
    rewards = np.ones((size, HISTORY), np.float32)
    columns = {
        "user_id": rng.integers(users, size=size),
        "item_id": drawn[:, 0] % items,
        "at": pa.array(np.full(size, _AT_US + number)).cast(SCHEMA.field("at").type),
        "kind": pa.array(["click"] * size),
        "history": history.cast(list_of["history"]),
        "history_rewards": pa.array(rewards.tolist(), list_of["history_rewards"]),
        "reward": np.ones(size, np.float32),
        "label_liked": rng.random(size) < liked,
        "logged_us": np.full(size, _AT_US + number),
    }
    arrays = [
        pa.array(columns[f.name]) if f.name in columns else pa.nulls(size, f.type) for f in SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def as_joined(batch: pa.RecordBatch) -> Joined:
    """Samples as those who watch them get them from the log."""
    return Joined(Record(SAMPLES, 0, 0, None, encode_samples(batch).value, 0))
