"""Whether a search finds what it should, told by searching again, exactly, now and then."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import count as counter

import numpy as np
from numpy.typing import NDArray

from features.batch import Ids

Floats32 = NDArray[np.float32]

ENOUGH = 16  # searches, for a figure to be of use
_KEPT = 64  # searches that figures are of


@dataclass(frozen=True)
class Sampled:
    """A search and what it found."""

    queries: Floats32
    count: int
    hidden: Ids
    found: Ids


class RecallWatch:
    """Keeps one in `every` searches, and what became of those that were done again.

    From each of them it learns how far from a list the items of the answer lay, and so how far
    a search must look to find a share `target` of such items.
    """

    def __init__(self, every: int, target: float, margin: float) -> None:
        self.margin = margin
        self._every = every
        self._target = target
        self._calls = counter(1)
        self._sampled: Sampled | None = None
        self._needed: deque[NDArray[np.float64]] = deque(maxlen=_KEPT)
        self._recalls: deque[float] = deque(maxlen=_KEPT)

    @property
    def searches(self) -> int:
        """Of how many searches it has learnt, at most as many as it keeps."""
        return len(self._needed)

    @property
    def recalls(self) -> int:
        """How many searches `recall` is of."""
        return len(self._recalls)

    @property
    def recall(self) -> float:
        """The share of the true answers that sampled searches have found; NaN before any."""
        return float(np.mean(self._recalls)) if self._recalls else np.nan

    def note(self, queries: Floats32, count: int, hidden: Ids, found: Ids) -> None:
        """Called with every search; threads may call it at once."""
        if next(self._calls) % self._every == 0:
            self._sampled = Sampled(queries.copy(), count, hidden.copy(), found)

    def take(self) -> Sampled | None:
        """The latest search that was kept, once; after a write it cannot be repeated."""
        sampled, self._sampled = self._sampled, None
        return sampled

    def compare(self, found: Ids, exact: Ids) -> None:
        """Learns what a search has found of what it should have."""
        if len(exact):
            self._recalls.append(float(np.isin(exact, found).mean()))

    def learn(self, needed: NDArray[np.float64]) -> None:
        """Learns what margins it took to find each item of an exact answer."""
        if len(needed):
            self._needed.append(needed)
            needed = np.concatenate(self._needed)
            margin = max(0.01, float(np.quantile(needed, self._target)))
            # A few easy searches are no reason to look less far.
            self.margin = margin if self.searches >= ENOUGH else max(margin, self.margin)

    def forget(self) -> None:
        """The lists are others now: so are the margins."""
        self._needed.clear()
        self._recalls.clear()
