"""The synthetic stream that every contender learns: Zipf items, uniform users, full histories."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

USERS = 1_000_000
ITEMS = 1_000_000
ATTRIBUTES = 1_000
HISTORY = 20  # items a user has seen before, in every sample
EXPONENT = 1.1
SAMPLES = 1 << 17  # drawn ahead; a longer run goes round

Work = TypeVar("Work")


class Batch(NamedTuple):
    """Samples side by side; ids are rows already, so that no peer pays for a map."""

    users: NDArray[np.int64]  # (B,)
    history: NDArray[np.int64]  # (B, HISTORY)
    items: NDArray[np.int64]  # (B,)
    attributes: NDArray[np.int64]  # (B,), of the items
    log_q: NDArray[np.float32]  # (B,), log of the items' share of the stream


def draw_batches(batch: int, seed: int = 0) -> list[Batch]:
    """The stream in batches, the same for the same arguments; at least `SAMPLES` samples."""
    rng = np.random.default_rng(seed)
    item_of_rank = rng.permutation(ITEMS)
    attribute = rng.integers(ATTRIBUTES, size=ITEMS)
    log_share = np.empty(ITEMS, np.float32)
    log_share[item_of_rank] = np.log(zipf_shares())
    ranks = zipf_ranks(rng, (-(-SAMPLES // batch), batch, HISTORY + 1))
    drawn = []
    for ids in item_of_rank[ranks]:
        items = np.ascontiguousarray(ids[:, 0])
        history = np.ascontiguousarray(ids[:, 1:])
        users = rng.integers(USERS, size=batch)
        drawn.append(Batch(users, history, items, attribute[items], log_share[items]))
    return drawn


def draw_ids(batch: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What an id map meets: all `ITEMS` ids, 63 random bits each, and a Zipf stream (n, batch)."""
    rng = np.random.default_rng(seed)
    ids = np.unique(rng.integers(1 << 63, size=ITEMS + 1000))
    rng.shuffle(ids)
    ids = ids[:ITEMS]
    return ids, ids[zipf_ranks(rng, (-(-16 * SAMPLES // batch), batch))]


def zipf_shares() -> NDArray[np.float64]:
    """The share (ITEMS,) that each rank has of a Zipf stream, the most frequent first."""
    weights = np.arange(1, ITEMS + 1, dtype=np.float64) ** -EXPONENT
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def zipf_ranks(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Ranks, 0 the most frequent, by inversion of the cumulated shares."""
    cumulated = np.cumsum(zipf_shares())
    return np.searchsorted(cumulated / cumulated[-1], rng.random(shape), side="right")


def lap_times(step: Callable[[Work], object], works: list[Work], seconds: float) -> list[float]:
    """Seconds of each step, round and round `works` for so long, after two steps to warm up."""
    for work in works[:2]:
        step(work)
    laps: list[float] = []
    last_s = start_s = perf_counter()
    while last_s - start_s < seconds:
        step(works[(2 + len(laps)) % len(works)])
        now_s = perf_counter()
        laps.append(now_s - last_s)
        last_s = now_s
    return laps
