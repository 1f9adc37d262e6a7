"""Which ids are worth a row: those that came by often enough, counted in fixed memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from streaming.kernels import GOLDEN, compiled, mix

_FULL = 255


@dataclass(frozen=True)
class AdmissionConfig:
    """An id gets a row of its own at its `after`-th hit; until then it shares one of `shared`.

    Hits are counted in 2 * `buckets` bytes, and all counts are halved every `window` hits, so
    that an id must come by often enough within a few windows. With `after` = 1 every id is
    admitted at sight, and nothing is counted or shared.
    """

    after: PositiveInt = 1
    shared: PositiveInt = 256
    buckets: PositiveInt = 1 << 20
    window: PositiveInt = 10_000_000

    def __post_init__(self) -> None:
        if self.after >= _FULL:
            raise ValueError(f"admission.after is {self.after}: it must be below {_FULL}")


class AdmissionFilter:
    """Counts hits of ids that have no row, as a count-min sketch with conservative update.

    An id may be admitted too early, when others share both of its counters, and never too late
    within a window (Estan and Varghese, SIGCOMM 2002).
    """

    def __init__(self, config: AdmissionConfig) -> None:
        self._config = config
        self._counts = np.zeros((2, config.buckets), np.uint8)
        self._seen = 0

    def admit(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Counts a hit for each id (n,), repeats included; which of the hits admits its id."""
        admitted = np.empty(ids.size, np.bool_)
        start = 0
        while start < ids.size:
            end = min(ids.size, start + self._config.window - self._seen)
            _count(ids[start:end], self._counts, self._config.after, admitted[start:end])
            self._seen += end - start
            if self._seen == self._config.window:
                self._counts >>= 1
                self._seen = 0
            start = end
        return admitted

    def state(self) -> dict[str, NDArray[np.generic]]:
        """All that was counted."""
        return {"counts": self._counts.copy(), "seen": np.array(self._seen)}

    def load(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Goes on counting where `state` was taken.

        Raises:
            ValueError: it was taken with another number of buckets.
        """
        if state["counts"].shape != self._counts.shape:
            raise ValueError(f"admission counts of shape {state['counts'].shape}")
        self._counts[:] = state["counts"]
        self._seen = int(state["seen"].item())


@compiled
def _count(
    ids: NDArray[np.int64],
    counts: NDArray[np.uint8],
    after: int,
    admitted: NDArray[np.bool_],
) -> None:
    buckets = np.uint64(counts.shape[1])
    for i in range(ids.size):
        bits = mix(np.uint64(ids[i]) + GOLDEN)
        one = (bits >> np.uint64(32)) * buckets >> np.uint64(32)
        other = (bits & np.uint64(0xFFFFFFFF)) * buckets >> np.uint64(32)
        hits = min(counts[0, one], counts[1, other])
        if hits < _FULL:
            hits += 1
        counts[0, one] = max(counts[0, one], hits)
        counts[1, other] = max(counts[1, other], hits)
        admitted[i] = hits >= after
