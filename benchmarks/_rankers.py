"""What models are compared with: popularity, the nearest items, and peers that are fitted anew.

All know items in the order in which they came up, as the trainer's corpus does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks._streams import Step
from features.batch import Ids, Jagged, Users, read_declarations
from streaming.id_map import IdMap
from streaming.samples import decode_samples

Scores = NDArray[np.float32]
READ = 50  # newest actions of a history, by peers


class Known:
    """The items that came up so far."""

    def __init__(self) -> None:
        self._map = IdMap()

    def __len__(self) -> int:
        return len(self._map)

    def declare(self, step: Step) -> None:
        if step.declares is not None:
            self._map.add(read_declarations(decode_samples(step.declares)).ids)

    def find(self, items: Ids) -> Ids:
        return self._map.find(items)

    def places(self, items: Ids) -> Ids:
        """The place of each item; one that did not come up before does now."""
        return self._map.add(items)


class Popular(Known):
    """What everyone takes lately: a count of each item, halved every so many samples."""

    def __init__(self, half_life: float = 20_000.0) -> None:
        super().__init__()
        self._half_life = half_life
        self._counts = np.zeros(0, np.float64)

    def scores(self, users: Users) -> Scores:
        counts = _longer(self._counts, len(self)).astype(np.float32)
        return np.broadcast_to(counts, (len(users.ids), len(self)))

    def learn(self, step: Step) -> None:
        places = self.places(step.samples.item_ids)
        self._counts = _longer(self._counts, len(self)) * 0.5 ** (len(places) / self._half_life)
        np.add.at(self._counts, places, 1.0)


class ItemKNN(Known):
    """The items that are taken with those of the newest history, by the cosine of who takes them.

    Each item remembers the last `remembered` items that were taken together with it, within
    `history` actions of one user: j is c_ij times among those of i. The score of j is the sum of
    c_ij / sqrt(n_i n_j) over the items i of the newest history, where n counts all that took them
    (Linden, Smith and York, "Amazon.com Recommendations: Item-to-Item Collaborative Filtering",
    IEEE Internet Computing 2003). So it learns from every action, and forgets what is long past.
    """

    def __init__(self, history: int = 10, remembered: int = 200) -> None:
        super().__init__()
        self._history = history
        self._beside = np.full((0, remembered), -1, np.int32)
        self._ends = np.zeros(0, np.int64)  # of each item how many were written
        self._taken = np.zeros(0, np.float64)

    def scores(self, users: Users) -> Scores:
        rows, size = len(users.ids), len(self)
        recent = newest(users.history, self._history)
        places, owners = self.find(recent.values), recent.owners()
        there = (places >= 0) & (places < len(self._ends))
        places, owners = places[there], owners[there]
        beside = self._beside[places]  # (m, remembered)
        weight = 1 / np.sqrt(np.maximum(self._taken[places], 1.0))
        at = np.where(beside >= 0, beside + owners[:, None] * size, rows * size)
        counted = np.bincount(
            at.ravel(), np.repeat(weight, beside.shape[1]), minlength=rows * size + 1
        )
        taken = np.maximum(_longer(self._taken, size)[:size], 1.0)
        found: Scores = (counted[:-1].reshape(rows, size) / np.sqrt(taken)).astype(np.float32)
        return found

    def learn(self, step: Step) -> None:
        items = self.places(step.samples.item_ids)
        self._grow(len(self))
        np.add.at(self._taken, items, 1.0)
        recent = newest(step.samples.users.history, self._history)
        others, taken = self.find(recent.values), items[recent.owners()]
        pairs = (others >= 0) & (others != taken)
        self._write(others[pairs], taken[pairs])
        self._write(taken[pairs], others[pairs])

    def _write(self, items: Ids, others: Ids) -> None:
        """Each item remembers one other, in order."""
        order = np.argsort(items, kind="stable")
        ordered = items[order]
        first = np.searchsorted(ordered, ordered)
        at = self._ends[ordered] + np.arange(len(ordered)) - first
        self._beside[ordered, at % self._beside.shape[1]] = others[order]
        np.add.at(self._ends, items, 1)

    def _grow(self, size: int) -> None:
        if size > len(self._ends):
            more = max(size, 2 * len(self._ends)) - len(self._ends)
            filler = np.full((more, self._beside.shape[1]), -1, np.int32)
            self._beside = np.concatenate([self._beside, filler])
            self._ends = np.concatenate([self._ends, np.zeros(more, np.int64)])
            self._taken = np.concatenate([self._taken, np.zeros(more)])


@dataclass(frozen=True, slots=True)
class Taken:
    """n samples in order: who (n,), the place of the item (n,), how it pleased (n,), and the places
    of what was taken before; of `items` items in all.
    """

    users: Ids
    places: Ids
    rewards: NDArray[np.float32]
    history: Jagged
    items: int

    @staticmethod
    def together(parts: Sequence[Taken]) -> Taken:
        return Taken(
            np.concatenate([part.users for part in parts]),
            np.concatenate([part.places for part in parts]),
            np.concatenate([part.rewards for part in parts]),
            Jagged.of(
                np.concatenate([part.history.values for part in parts]),
                np.concatenate([part.history.lengths for part in parts]),
            ),
            parts[-1].items,
        )


class Fitted(Protocol):
    """A model that does not learn any more."""

    def scores(self, users: Ids, history: Jagged) -> Scores:
        """(B, n) of the first n items, of users with what they took as places."""
        ...


class Refitted(Known):
    """A library's model that is fitted anew, on all samples so far, every `every_us` of the stream.

    In between it sees what users do, if it can make use of it; items that came up since come last.
    It waits for `least` samples more than it was fitted on.
    """

    def __init__(self, fit: Callable[[Taken], Fitted], every_us: int, least: int = 1) -> None:
        super().__init__()
        self._fit = fit
        self._every_us = every_us
        self._least = least
        self._period: int | None = None
        self._taken: list[Taken] = []
        self._new = 0
        self._fitted: Fitted | None = None

    def scores(self, users: Users) -> Scores:
        found = np.full((len(users.ids), len(self)), -np.inf, np.float32)
        if self._fitted is not None:
            scores = self._fitted.scores(users.ids, self._places(users.history))
            found[:, : scores.shape[1]] = scores
        return found

    def learn(self, step: Step) -> None:
        samples = step.samples
        period = int(samples.at_us[0]) // self._every_us
        if self._period is not None and period > self._period and self._new >= self._least:
            self._taken = [Taken.together(self._taken)]
            self._fitted, self._new = self._fit(self._taken[0]), 0
        self._period = period
        places, history = self.places(samples.item_ids), self._places(samples.users.history)
        columns = (samples.users.ids, places, samples.rewards, history)
        self._taken.append(Taken(*columns, len(self)))
        self._new += len(places)

    def _places(self, history: Jagged) -> Jagged:
        """As far as they are known, and of each user the newest."""
        recent = newest(history, READ)
        places = Jagged(self.find(recent.values), recent.offsets)
        return places.where(places.values >= 0)


def newest(lists: Jagged, count: int) -> Jagged:
    """The last `count` of each list."""
    place = np.arange(len(lists.values)) - np.repeat(lists.offsets[1:], lists.lengths)
    return lists.where(place >= -count)


def _longer(array: NDArray[Any], size: int) -> NDArray[Any]:
    """The array with zeros behind it, up to a size."""
    return np.concatenate([array, np.zeros(max(0, size - len(array)), array.dtype)])
