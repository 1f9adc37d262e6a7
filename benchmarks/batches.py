"""Batches: how fast samples become arrays, periods and padded tensors.

Micro-batches of 256 samples, each with a history of 50 actions of which all is known, are read from
Arrow (`read_samples`), split into periods by session, and padded to (256, 50). One process, one
thread. The costs are added up, and items per second are of the histories.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from features.batch import read_samples
from features.definitions import SAMPLE_FEATURES
from features.sessions import split
from features.tensors import pad_history
from streaming.arrow_record import filled_columns
from streaming.samples import sample_schema

SCHEMA = sample_schema((), SAMPLE_FEATURES)
ROWS, HISTORY = 256, 50
BATCHES, ROUNDS = 64, 7
START_US = 1_700_000_000_000_000
UNBOUNDED = float("inf")
PROMISES: dict[str, tuple[float, float]] = {"history_items_per_s": (1e6, UNBOUNDED)}


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Items of histories per second of processor time, for each part and for all of it."""
    torch.set_num_threads(1)
    batches = [micro_batch(number) for number in range(BATCHES)]
    read = [read_samples(batch) for batch in batches]
    parts: dict[str, Callable[[], Any]] = {
        "read": lambda: [read_samples(batch) for batch in batches],
        "split": lambda: [split(samples.users, samples.at_us) for samples in read],
        "pad": lambda: [pad_history(samples.users, samples.at_us, HISTORY) for samples in read],
    }
    items = BATCHES * ROWS * HISTORY
    seconds = {name: _seconds(work) for name, work in parts.items()}
    figures = {f"{name}_items_per_s": items / spent for name, spent in seconds.items()}
    figures["history_items_per_s"] = items / sum(seconds.values())
    for name, rate in figures.items():
        report(f"{name}: {rate / 1e6:,.1f} M")
    return figures


def _seconds(work: Callable[[], Any]) -> float:
    work()  # compiles
    spent = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        work()
        spent.append(time.process_time() - begun)
    return median(spent)


def micro_batch(number: int) -> pa.RecordBatch:
    """A batch of samples with full histories; the same number gives the same."""
    rng = np.random.default_rng(number)
    size = ROWS * HISTORY
    ages_us = rng.exponential(3 * 86_400e6, (ROWS, HISTORY)).astype(np.int64)
    columns = {
        "history": rng.integers(1 << 62, size=size),
        "history_rewards": rng.random(size, np.float32),
        "history_kinds": rng.integers(7, size=size, dtype=np.int32),
        "history_at_us": START_US - np.sort(ages_us)[:, ::-1].ravel(),
        "history_scenarios": rng.integers(9, size=size, dtype=np.int32),
        "history_sessions": rng.integers(99, size=size, dtype=np.int32),
        "history_values": rng.random(size, np.float32),
    }
    offsets = pa.array(np.arange(0, size + 1, HISTORY), pa.int32())
    given = {
        name: pa.ListArray.from_arrays(offsets, pa.array(values))
        for name, values in columns.items()
    }
    given |= {
        "user_id": pa.array(rng.integers(1 << 62, size=ROWS)),
        "item_id": pa.array(rng.integers(1 << 62, size=ROWS)),
        "at": pa.array(np.full(ROWS, START_US)),
        "kind": pa.repeat("click", ROWS),
        "reward": pa.array(np.ones(ROWS, np.float32)),
        "logged_us": pa.array(np.full(ROWS, START_US)),
    }
    return pa.RecordBatch.from_arrays(filled_columns(SCHEMA, ROWS, given), schema=SCHEMA)
