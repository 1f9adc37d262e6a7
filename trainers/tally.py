"""Sums over a stream: over all samples so far, and over the recent ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.metric_kernels import RENEWAL, accumulate

Sums = NDArray[np.float64]


class Tally:
    """`rows` x `columns` sums of what each sample brought, plain and faded.

    In the faded sums a sample has the weight `2 ** (-age / half_life)`, its age counted in samples:
    exponential decay kept as growing weights (Cormode et al., "Forward Decay", ICDE 2009).
    """

    def __init__(self, rows: int, columns: int, half_life: int) -> None:
        if half_life < 1:
            raise ValueError(f"half_life must be a positive number of samples: {half_life!r}")
        self.total: Sums = np.zeros((rows, columns))
        self.recent: Sums = np.zeros((rows, columns))  # times the weight of the newest sample
        self.clock = np.zeros(1, np.int64)
        self.half_life = half_life

    def add(self, places: NDArray[np.int64], values: Sums) -> None:
        """Adds each sample's values (n, columns) to the rows `places` (n, m), all different."""
        accumulate(self.total, self.recent, self.clock, self.half_life, places, values)

    @property
    def newest(self) -> float:
        """The weight that the newest sample has in `recent`."""
        age = int(self.clock[0]) % (RENEWAL * self.half_life)
        return float(2.0 ** (age / self.half_life))

    def sums(self) -> Sums:
        """(2, rows, columns): all samples, and the recent ones, of which the newest weighs 1."""
        return np.stack([self.total, self.recent / self.newest])

    def absorb(self, sums: Sums) -> None:
        """Adds what `sums()` of others told: it fades here as if it were as new as the newest."""
        self.total += sums[0]
        self.recent += sums[1] * self.newest

    def state(self) -> dict[str, NDArray[Any]]:
        """A copy of all that was counted; rows of zeros are left out."""
        places = np.flatnonzero(self.total.any(1) | self.recent.any(1))
        return {
            "sizes": np.array([*self.total.shape, self.half_life]),
            "clock": self.clock.copy(),
            "places": places,
            "total": self.total[places],
            "recent": self.recent[places],
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> bool:
        """Goes on where `state()` was taken; False, and nothing done, if it has other sizes."""
        if not np.array_equal(state["sizes"], [*self.total.shape, self.half_life]):
            return False
        self.clock[:] = state["clock"]
        for sums, name in ((self.total, "total"), (self.recent, "recent")):
            sums[:] = 0
            sums[state["places"]] = state[name]
        return True


class TallyMetric(ABC):
    """Figures that follow from the sums of a `Tally`.

    Sums are additive over the ranks of a group: add up the `sums()` of all, then ask any rank for
    the `figures` of the result. Each rank fades by its own samples, so the half-life of the whole
    is that of one rank times their number.
    """

    def __init__(self, rows: int, columns: int, half_life: int) -> None:
        self._tally = Tally(rows, columns, half_life)

    @abstractmethod
    def figures(self, sums: Sums) -> dict[str, float]:
        """The figures of one array of sums (rows, columns); none that is not defined yet."""

    def sums(self) -> Sums:
        """(2, rows, columns): over all samples, and over the recent ones."""
        return self._tally.sums()

    def get(self) -> dict[str, float]:
        """Each figure over all samples and, as `recent_...`, over the recent ones."""
        return self.both_figures(self.sums())

    def both_figures(self, sums: Sums) -> dict[str, float]:
        """What `get` gives, of sums (2, rows, columns) that may be those of several ranks."""
        recent = {f"recent_{name}": value for name, value in self.figures(sums[1]).items()}
        return {**self.figures(sums[0]), **recent}

    def absorb(self, sums: Sums) -> None:
        """Goes on counting from the `sums()` of others too: those of ranks that are no more."""
        self._tally.absorb(sums)

    def state(self) -> dict[str, NDArray[Any]]:
        """A copy of all that was counted: it belongs into the checkpoint's one cut."""
        return self._tally.state()

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on to the bit where `state()` was taken; begins anew if its sizes are others."""
        self._tally.load(state)
