"""Embedding tables: id look-ups, bytes an id, growth to ten million rows, updates a second.

Look-ups are of batches of 8192 ids, on one thread: a Zipf(1.1) stream over a million ids, and
uniform ones among ten million. torchrec's managed collision module, numba's typed.Dict and a
dict do the first job too, each in a process of its own, and the ratios are medians over rounds in
which all take turns; a peer whose library is not installed (`make peers`) is left out. Growth adds
ids to a table of a million rows (64 numbers and their slots each) until it has ten million, 8192 at
a time; its longest pause is the longest of these additions. One id more than `max_rows` then makes
the table take out the oldest of its rows. An update is one row of a step that
reads a Zipf batch, puts a gradient on it and learns by row-wise Adagrad, repeats added up.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._peers import ask, median_ratio
from benchmarks._peers.stream import draw_ids
from streaming.id_map import IdMap
from trainers.table import EmbeddingTable, TableConfig

BATCH = 8192
ROUNDS = 3
SECONDS = 3.0
PEERS = ("mch", "typed_dict", "dict")
MANY = 10_000_000
GROWTH = (1_000_000, MANY)
PROMISES = {
    "lookups_per_s_1m_ids": (30e6, 1e9),
    "lookups_per_s_10m_ids": (15e6, 1e9),
    "bytes_an_id_most": (0.0, 34.0),
    "lookups_over_mch_steady": (5.0, 1e9),
    "lookups_over_mch": (5.0, 1e9),
}


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Figures by name; rates are per second, sizes in bytes, pauses in milliseconds."""
    torch.set_num_threads(1)
    figures = _against_peers(report)
    ids = np.random.default_rng(0).permutation(MANY) * np.int64(1 << 39)
    figures |= _large_map(ids, report)
    figures |= _growth(ids, report)
    figures["rows_learnt_per_s"] = _updates()
    report(f"rows learnt: {figures['rows_learnt_per_s'] / 1e6:.1f} M/s")
    return figures


def _against_peers(report: Callable[[str], None]) -> dict[str, float]:
    """Look-ups among a million ids, and how many times those of the peers they are."""
    rates: dict[str, list[float]] = {}
    ids, stream = draw_ids(BATCH)
    own = IdMap(ids)
    for _ in range(ROUNDS):
        told = {"lookups": _lookups(own, stream)}
        for name in PEERS:
            answer = ask(name, BATCH, SECONDS, threads=1)
            if answer is None:
                report(f"{name} is not installed: `make peers`")
                continue
            told[name] = answer["lookups_per_s"]
            if "steady_lookups_per_s" in answer:
                told[f"{name}_steady"] = answer["steady_lookups_per_s"]
        for name, rate in told.items():
            rates.setdefault(name, []).append(rate)
        report(", ".join(f"{name} {rate / 1e6:.1f} M/s" for name, rate in told.items()))
    figures = {"lookups_per_s_1m_ids": median(rates["lookups"])}
    for name in rates.keys() - {"lookups"}:
        figures[f"lookups_over_{name}"] = median_ratio(rates["lookups"], rates[name])
    return dict(sorted(figures.items()))


def _lookups(ids: IdMap, stream: NDArray[np.int64]) -> float:
    """Ids found a second, over `SECONDS`."""
    found, begun = 0, perf_counter()
    while perf_counter() - begun < SECONDS:
        for batch in stream:
            ids.find(batch)
        found += stream.size
    return found / (perf_counter() - begun)


def _large_map(ids: NDArray[np.int64], report: Callable[[str], None]) -> dict[str, float]:
    """Look-ups among ten million ids, and the bytes an id takes on the way there."""
    bytes_an_id = []
    large = IdMap()
    for part in np.array_split(ids, len(ids) // BATCH):
        large.add(part)
        if len(large) >= GROWTH[0]:
            bytes_an_id.append(large.nbytes / len(large))
    settled = [b for b in bytes_an_id if b < median(bytes_an_id) * 1.25]
    picks = np.random.default_rng(1).integers(MANY, size=(200, BATCH))
    rates = [_lookups(large, ids[picks]) for _ in range(ROUNDS)]
    figures = {
        "lookups_per_s_10m_ids": median(rates),
        "bytes_an_id": median(bytes_an_id),
        "bytes_an_id_most": max(settled),
        "bytes_an_id_most_while_moving": max(bytes_an_id),
        "share_of_time_moving": 1 - len(settled) / len(bytes_an_id),
    }
    report(", ".join(f"{name} {value:,.4g}" for name, value in figures.items()))
    return figures


def _growth(ids: NDArray[np.int64], report: Callable[[str], None]) -> dict[str, float]:
    """From one to ten million rows; the pauses are those of a call with new ids."""
    table = EmbeddingTable(TableConfig(width=64, max_rows=MANY))
    table.training = True
    pauses = []
    for number, part in enumerate(np.array_split(ids, len(ids) // BATCH)):
        table.now_us = number
        begun = perf_counter()
        table(part)
        if len(table) > GROWTH[0]:
            pauses.append((perf_counter() - begun) * 1e3)
    table(ids[:1] + 1).sum().backward()  # type: ignore[no-untyped-call]
    begun = perf_counter()
    table.step()
    evicting = (perf_counter() - begun) * 1e3
    figures = {
        "births_per_s": len(pauses) * BATCH / sum(pauses) * 1e3,
        "growth_pause_ms_median": median(pauses),
        "growth_pause_ms_longest": max(pauses),
        "eviction_pause_ms": evicting,
        "evicted_at_once": table.evicted,
    }
    report(", ".join(f"{name} {value:,.4g}" for name, value in figures.items()))
    return figures


def _updates() -> float:
    """Rows of a batch learnt a second, repeats counted."""
    ids, stream = draw_ids(BATCH)
    table = EmbeddingTable(TableConfig(width=64))
    table.upsert(ids, table(ids).numpy())
    table.training = True
    gradient = torch.full((BATCH, 64), 1e-3)
    rates = []
    for _ in range(ROUNDS):
        begun = perf_counter()
        for batch in stream[:100]:
            table(batch).backward(gradient)  # type: ignore[no-untyped-call]
            table.step()
        rates.append(100 * BATCH / (perf_counter() - begun))
    return median(rates)
