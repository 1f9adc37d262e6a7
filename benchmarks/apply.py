"""Deltas laid over a replica: rows a second, by exact and by approximate index; bytes a row.

A version holds 200,000 items, each with its row and its vector, 300,000 users and 10,000 tokens,
64 numbers each. A delta brings 10,000 of each but of tokens, which are 1,000; one user in ten is
new. The rate is the rows of a delta, vectors too, over the time of `Replica.take`, which checks
them, lays them over both copies and flips; nobody reads meanwhile. Bytes a row are those of a table
of half a million rows, as the system counts them: as the trainer keeps it, and as a replica does.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from serving.index import IndexConfig
from serving.replica import Applied, Replica, ReplicaConfig
from trainers.arrays import matrix_column, tensors_table
from trainers.models import create
from trainers.table import EmbeddingTable, TableConfig
from trainers.versions import Version, VersionInfo

Ids = NDArray[np.int64]
WIDTH, BATCH, DELTAS = 64, 10_000, 30
THERE = {"item": 200_000, "user": 300_000, "token": 10_000}
BROUGHT = {"item": BATCH, "user": BATCH, "token": 1_000}
NEW_USERS = 0.1
TABLE_ROWS = 500_000
PROMISES = {
    "rows_applied_per_s_exact": (1e6, 1e9),
    "rows_applied_per_s_approximate": (1e6, 1e9),
    "bytes_a_row_served": (0.0, 345.0),
}


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Rates per second, times in milliseconds, sizes in bytes."""
    torch.set_num_threads(1)
    figures = {}
    for name, learns in (("learning", True), ("served", False)):
        figures[f"bytes_a_row_{name}"] = _bytes_a_row(learns)
    report(", ".join(f"{name} {value:.0f}" for name, value in figures.items()))
    for name, exact_below in (("exact", 1 << 40), ("approximate", 1)):
        found = _apply(IndexConfig(exact_below=exact_below))
        report(f"{name}: " + ", ".join(f"{key} {value:,.4g}" for key, value in found.items()))
        figures |= {f"{key}_{name}": value for key, value in found.items()}
    return figures


def _bytes_a_row(learns: bool) -> float:
    """What a row with its id takes, by what the process grows."""
    rng = np.random.default_rng(0)
    table = EmbeddingTable(TableConfig(width=WIDTH, learns=learns))
    ids = _some_ids(TABLE_ROWS)
    rows = rng.normal(size=(BATCH, WIDTH)).astype(np.float32)
    before = _resident()
    for part in np.split(ids, TABLE_ROWS // BATCH):
        table.upsert(part, rows)
    return (_resident() - before) / TABLE_ROWS


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE


def _apply(config: IndexConfig) -> dict[str, float]:
    """Loads a snapshot, then lays deltas over it."""
    makes = _Versions()
    replica = Replica(ReplicaConfig(index=config))
    begun = perf_counter()
    _take(replica, makes.snapshot())
    loading = perf_counter() - begun
    rates, times = [], []
    for number in range(1, DELTAS + 1):
        delta = makes.delta(number)
        rows = sum(t.num_rows for name, t in delta.shards.items() if name != "dense")
        begun = perf_counter()
        _take(replica, delta)
        times.append(perf_counter() - begun)
        rates.append(rows / times[-1])
    return {
        "rows_applied_per_s": median(rates),
        "delta_ms": median(times) * 1e3,
        "longest_delta_ms": max(times) * 1e3,
        "snapshot_ms": loading * 1e3,
    }


def _take(replica: Replica, version: Version) -> None:
    outcome = replica.take(version)
    if outcome is not Applied.APPLIED:
        raise RuntimeError(f"{version.info.name} was {outcome}: {replica.refusal}")


class _Versions:
    """A snapshot and deltas with random rows."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._options = {"width": WIDTH}
        self._dense = tensors_table(create("two_tower", self._options).state_dict())
        self._ids = {name: _some_ids(2 * count) for name, count in THERE.items()}

    def snapshot(self) -> Version:
        ids = {name: self._ids[name][:count] for name, count in THERE.items()}
        return self._version(0, None, ids)

    def delta(self, number: int) -> Version:
        picked = {
            name: self._ids[name][self._rng.choice(THERE[name], count, replace=False)]
            for name, count in BROUGHT.items()
        }
        new = int(NEW_USERS * BATCH)
        start = THERE["user"] + number * new
        picked["user"][:new] = self._ids["user"][start : start + new]
        return self._version(number, number - 1, picked)

    def _version(self, number: int, base: int | None, ids: dict[str, Ids]) -> Version:
        shards: dict[str, Any] = {f"table-{name}": self._rows(some) for name, some in ids.items()}
        shards |= {"vectors": self._rows(ids["item"]), "dense": self._dense}
        info = VersionInfo(
            "two_tower", "bench", number, base, number, None, number, self._options, {}
        )
        return Version(info, shards)

    def _rows(self, ids: Sequence[int] | Ids) -> pa.Table:
        rows = self._rng.standard_normal((len(ids), WIDTH), np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return pa.table({"id": np.asarray(ids), "row": matrix_column(rows)})


def _some_ids(count: int) -> Ids:
    """Distinct ids in no order."""
    return np.random.default_rng(count).permutation(count) * np.int64(1 << 39)
