"""The inner loops of the frequency estimator, compiled by numba.

An entry is one record of `ENTRY`: a hit fetches one place in memory, not one for each field. The
entries of all m hashes lie in one array (m * buckets,), those of one hash after those of the one
before it. All loops are serial, and the order of the ids of a step leaves no trace in the entries.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaming.kernels import GOLDEN, compiled, mix

# `last` and `gap` are A and B of the paper; `hits` stops at 1 / alpha. `repeats` is scratch: the
# hits of the step at hand, 0 between steps.
ENTRY = np.dtype([("last", "f8"), ("gap", "f8"), ("hits", "i4"), ("repeats", "i4")], align=True)


@compiled
def draw_multipliers(seed: int, out: NDArray[np.uint64]) -> None:
    """Fills `out` (m,) with odd numbers, each of which makes another hash."""
    base = mix(np.uint64(seed) + GOLDEN)
    for j in range(out.size):
        out[j] = mix(base + np.uint64(j) + GOLDEN) | np.uint64(1)


@compiled
def find_places(
    ids: NDArray[np.int64],
    multipliers: NDArray[np.uint64],
    buckets: int,
    places: NDArray[np.int64],
) -> None:
    """Fills `places` (n, m) with where in the entries each id lies under each hash.

    A loop of its own, so that those over the entries are short enough for many to be fetched from
    memory at a time.
    """
    for i in range(ids.size):
        for j in range(multipliers.size):
            # + 1, or id 0 would hash alike under every multiplier.
            mixed = mix((np.uint64(ids[i]) + np.uint64(1)) * multipliers[j] + GOLDEN)
            places[i, j] = j * buckets + np.int64(mixed % np.uint64(buckets))


@compiled
def count_repeats(entries: NDArray[Any], places: NDArray[np.int64]) -> int:
    """Counts in `repeats` how often `places` (n,) name each entry.

    Returns the number of entries named; they are then the first ones of `places`, each once.
    """
    distinct = 0
    for i in range(places.size):
        place = places[i]
        repeats = entries[place].repeats
        entries[place].repeats = repeats + 1
        places[distinct] = place  # the next one overwrites it if it is not new
        distinct += repeats == 0
    return distinct


@compiled
def learn_gaps(
    entries: NDArray[Any],
    places: NDArray[np.int64],
    clock: float,
    alpha: float,
    whole: bool,
    count_aware: bool,
) -> None:
    """One step of the moving average for each of `places`, hit `repeats` times at `clock`."""
    most = math.ceil(1 / alpha)
    for i in range(places.size):
        entry = entries[places[i]]
        count = entry.repeats if count_aware else 1
        hits = entry.hits + count
        weight = min(alpha * count, 1.0)
        if whole:
            weight = max(weight, count / hits)
        entry.gap = (1 - weight) * entry.gap + weight * ((clock - entry.last) / count)
        entry.last = clock
        entry.hits = min(hits, most)
        entry.repeats = 0


@compiled
def longest_gaps(
    entries: NDArray[Any],
    places: NDArray[np.int64],
    unseen: float,
    gaps: NDArray[np.float64],
) -> None:
    """Fills `gaps` (n,) with the longest over the m `places` (n, m); `unseen` if never hit."""
    for i in range(gaps.size):
        longest = 0.0
        for j in range(places.shape[1]):
            entry = entries[places[i, j]]
            longest = max(longest, entry.gap if entry.hits > 0 else unseen)
        gaps[i] = longest


@compiled
def count_used(entries: NDArray[Any], gap: float) -> tuple[int, int]:
    """How many entries were ever hit, and how many of these with a mean gap of at most `gap`."""
    used = frequent = 0
    for i in range(entries.size):
        hit = entries[i].hits > 0
        used += hit
        frequent += hit & (entries[i].gap <= gap)
    return used, frequent
