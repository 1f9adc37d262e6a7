"""Chance without state: a random number for every place, the same whoever asks and when.

A draw is a hash of a seed, of what is drawn and of counters such as an entity's number: any part
of a world can be made without the rest, and a new kind of draw leaves all others as they were.
The mixing is that of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaming.ids import stable_id

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Counter = int | NDArray[np.integer[Any]]

_GOLDEN = 0x9E3779B97F4A7C15
_WRAP = (1 << 64) - 1


def uniform(seed: int, what: str, *counters: Counter) -> Floats:
    """Draws from [0, 1), one for each combination of the counters, which are broadcast.

    >>> uniform(0, "price", np.array([7, 8, 7])).round(3).tolist()
    [0.211, 0.642, 0.211]
    """
    state = np.full(1, (stable_id(what) + seed * _GOLDEN) & _WRAP, np.uint64)
    for counter in counters:
        column = np.atleast_1d(np.asarray(counter, np.int64)).astype(np.uint64)
        state = _mixed(state ^ (column + np.uint64(1)) * np.uint64(_GOLDEN))
    drawn: Floats = (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return drawn


def normal(seed: int, what: str, *counters: Counter) -> Floats:
    """Draws from the standard normal distribution, by the method of Box and Muller."""
    radius = np.sqrt(-2.0 * np.log1p(-uniform(seed, what, *counters)))
    drawn: Floats = radius * np.cos(2 * np.pi * uniform(seed, f"{what}/angle", *counters))
    return drawn


def picked(cumulative: Floats, drawn: Floats) -> Ints:
    """The place that each draw from [0, 1) picks, by weights given as their cumulative sum."""
    places: Ints = np.searchsorted(cumulative, drawn * cumulative[-1], side="right")
    return np.minimum(places, len(cumulative) - 1, dtype=np.int64)


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
