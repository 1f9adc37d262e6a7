"""What the stream tells of items: how often, how well, how popular lately."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.decayed import DecayedSums
from streaming.artefact import Artefact
from streaming.event_columns import Actions

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(slots=True)
class ItemStatistic:
    """`actions` counted, the sum of their rewards, the popularity in units of one action now, and
    the event time of the newest action.
    """

    actions: int = 0
    rewards: float = 0.0
    popularity: float = 0.0
    newest_us: int = 0


@dataclass(frozen=True, slots=True)
class ItemColumns:
    """As `ItemStatistic`, of n items, each column (n,)."""

    actions: Ids
    rewards: Floats
    popularity: Floats
    newest_us: Ids


class ItemStatistics:
    """Counts per item, and a popularity in which an action fades with those that follow it.

    Popularity halves with every `half_life` actions on anything, not with time: so a replayed
    past and a live present can share one stream. At most `most` items are kept, the most popular.
    It may be read by other threads than the one that updates it.

    >>> statistics = ItemStatistics(half_life=2)
    >>> items, rewards = np.array([7, 8, 8]), np.array([1.0, 0.5, 0.0], np.float32)
    >>> statistics.update(Actions(np.arange(3), np.ones(3, int), items, rewards, np.arange(3)))
    array([7, 8])
    >>> statistics.get(7)
    ItemStatistic(actions=1, rewards=1.0, popularity=0.5, newest_us=0)
    """

    def __init__(
        self, half_life: float = 5_000.0, state: Artefact | None = None, most: int = 1_000_000
    ) -> None:
        self._clock = 0  # actions ever
        self._lock = Lock()
        table = None if state is None else state.shards["statistics"]
        half_lives = {"popularity": half_life, "actions": math.inf, "rewards": math.inf}
        self._sums = DecayedSums(half_lives, most, ("item_id",), table)
        if table is not None:
            self._clock = int(table.schema.metadata[b"clock"])

    @property
    def items(self) -> Mapping[int, ItemStatistic]:
        """Every item that is known, in the order in which they came; a view."""
        return _Items(self)

    def update(self, actions: Actions) -> Ids:
        """Takes actions in order; returns the distinct items that changed and are still kept."""
        count = len(actions.item_id)
        reward = actions.reward.astype(np.float64)
        values = np.column_stack([reward, np.ones(count), reward])
        with self._lock:
            clock = np.arange(self._clock + 1, self._clock + count + 1)
            self._sums.add(actions.item_id, actions.at_us, values, clock)
            self._clock += count
            changed = np.unique(actions.item_id)
            return changed[self._sums.has(changed)]

    def get(self, item: int) -> ItemStatistic:
        """The statistic of an item, its popularity in units of one action now."""
        found = self.columns(np.array([item], np.int64))
        return ItemStatistic(
            int(found.actions[0]), float(found.rewards[0]),
            float(found.popularity[0]), int(found.newest_us[0]),
        )  # fmt: skip

    def columns(self, items: Ids) -> ItemColumns:
        """The statistics of many items at once, zeros for one that is not known."""
        with self._lock:
            popularity, actions, rewards = self._sums.get(items, self._clock).T
            newest_us = self._sums.newest_us(items)
        return ItemColumns(actions.astype(np.int64), rewards, popularity, newest_us)

    def known(self, items: Ids) -> NDArray[np.bool_]:
        """Whether each item was ever acted upon, and not forgotten."""
        with self._lock:
            return self._sums.has(items)

    def most_popular(self, count: int) -> list[int]:
        """The items of highest recent popularity, best first; of equal ones the first that came."""
        with self._lock:
            ranks, items = -self._sums.ranks(0), self._sums.ids[:, 0].copy()
        best = np.arange(len(ranks))
        if 0 < count < len(ranks):
            best = np.flatnonzero(ranks <= np.partition(ranks, count - 1)[count - 1])
        found: list[int] = items[best[np.argsort(ranks[best], kind="stable")][:count]].tolist()
        return found

    def tables(self) -> dict[str, pa.Table]:
        """All of the state."""
        table = self._sums.table()
        metadata = {**table.schema.metadata, "clock": str(self._clock)}
        return {"statistics": table.replace_schema_metadata(metadata)}


class _Items(Mapping[int, ItemStatistic]):
    def __init__(self, statistics: ItemStatistics) -> None:
        self._statistics = statistics

    def __getitem__(self, item: int) -> ItemStatistic:
        if item not in self:
            raise KeyError(item)
        return self._statistics.get(item)

    def __contains__(self, item: object) -> bool:
        return isinstance(item, int) and bool(self._statistics.known(np.array([item]))[0])

    def __iter__(self) -> Iterator[int]:
        with self._statistics._lock:
            items: list[int] = self._statistics._sums.ids[:, 0].tolist()
        return iter(items)

    def __len__(self) -> int:
        return len(self._statistics._sums)
