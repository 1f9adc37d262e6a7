"""What came to something, remembered until the rest of its list is known to have come to nothing.

The rows of one request do not leave together: a click leaves at once, what was passed over when
its window ends. A loss of lists needs both in one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.batch import Items, Jagged
from features.shown import Pairs, Shown


class Positives:
    """The newest `most` pairs of which any of these labels was positive."""

    def __init__(self, labels: Sequence[str], most: int) -> None:
        self._names = tuple(labels)
        self._groups, self._items = np.zeros(most, np.int64), np.zeros(most, np.int64)
        self._positions = np.zeros(most, np.int32)
        self._labels = np.zeros((most, len(labels)), np.float32)
        self._end = np.zeros(1, np.int64)  # how many were written

    def add(self, samples: Shown) -> None:
        """Remembers those of the samples that came to something."""
        labels = self._known(samples)
        taken = np.flatnonzero((np.isfinite(labels) & (labels > 0)).any(1))[-len(self._items) :]
        if not taken.size:
            return
        places = (self._end[0] + np.arange(taken.size)) % len(self._items)
        self._groups[places] = samples.groups[taken]
        self._items[places] = samples.pairs.items.ids[taken]
        self._positions[places] = samples.pairs.positions[taken]
        self._labels[places] = labels[taken]
        self._end += taken.size

    def joined(self, samples: Shown) -> Shown:
        """The samples, and behind them what is remembered of the lists of which some came to
        nothing: pairs of their users, of which only these labels are known, and nothing describes
        the items of any.
        """
        vain = np.flatnonzero((self._known(samples) == 0).any(1))
        if not vain.size:
            return samples
        groups, first = np.unique(samples.groups[vain], return_index=True)
        remembered = self._groups[: self._end[0]]
        at = np.minimum(np.searchsorted(groups, remembered), len(groups) - 1)
        found = np.flatnonzero(groups[at] == remembered)
        if not found.size:
            return samples
        pairs, count = samples.pairs, found.size
        ids = np.concatenate([pairs.items.ids, self._items[found]])
        nothing = Jagged.of(np.empty(0, np.int64), np.zeros(len(ids), np.int64))
        unknown = np.full(count, np.nan, np.float32)
        of_list = vain[first[at[found]]]  # a sample of each list
        told = dict(zip(self._names, self._labels[found].T, strict=True))
        return replace(
            samples,
            pairs=Pairs(
                pairs.users,
                np.concatenate([pairs.user_of, pairs.user_of[of_list]]),
                Items(ids, nothing),
                np.concatenate([pairs.positions, self._positions[found]]),
            ),
            labels={
                name: np.concatenate([label, told.get(name, unknown)])
                for name, label in samples.labels.items()
            },
            rates=np.concatenate([samples.rates, np.ones(count, np.float32)]),
            groups=np.concatenate([samples.groups, remembered[found]]),
            at_us=np.concatenate([samples.at_us, samples.at_us[of_list]]),
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """A copy of all that is remembered: it belongs into the cut."""
        there = {name: array[: self._end[0]].copy() for name, array in self._arrays().items()}
        return {**there, "end": self._end.copy(), "shape": np.array(self._labels.shape)}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on where `state()` was taken; what has another size is forgotten."""
        if not np.array_equal(state["shape"], self._labels.shape):
            return
        self._end[:] = state["end"]
        for name, array in self._arrays().items():
            array[: self._end[0]] = state[name]

    def _known(self, samples: Shown) -> NDArray[np.float32]:
        """The labels (n, K)."""
        return np.stack([samples.labels[name] for name in self._names], 1)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "groups": self._groups,
            "items": self._items,
            "positions": self._positions,
            "labels": self._labels,
        }
