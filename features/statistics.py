"""What the stream tells of items: how often, how well, how popular lately."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streaming.artefact import Artefact
from streaming.event_columns import Actions


@dataclass(slots=True)
class ItemStatistic:
    """`actions` counted, the sum of their rewards, the popularity up to a common factor, and the
    event time of the newest action.
    """

    actions: int = 0
    rewards: float = 0.0
    popularity: float = 0.0
    newest_us: int = 0


class ItemStatistics:
    """Counts per item, and a popularity in which an action fades with those that follow it.

    Popularity halves with every `half_life` actions on anything, not with time: so a replayed
    past and a live present can share one stream.
    """

    def __init__(self, half_life: float = 5_000.0, state: Artefact | None = None) -> None:
        self._half_life = half_life
        self._weight = 1.0  # what the next action adds; grows instead of all others fading
        self.items: dict[int, ItemStatistic] = {}
        if state is not None:
            self._restore(state.shards["statistics"])

    def update(self, actions: Actions) -> NDArray[np.int64]:
        """Takes actions in order; returns the distinct items that changed."""
        columns = (actions.item_id, actions.reward, actions.at_us)
        for item, reward, at_us in zip(*(c.tolist() for c in columns), strict=True):
            self._weight *= 2.0 ** (1.0 / self._half_life)
            statistic = self.items.setdefault(item, ItemStatistic())
            statistic.actions += 1
            statistic.rewards += reward
            statistic.newest_us = max(statistic.newest_us, at_us)
            statistic.popularity += self._weight * reward
            if self._weight > 1e100:
                self._rescale()
        return np.unique(actions.item_id)

    def get(self, item: int) -> ItemStatistic:
        """The statistic of an item, its popularity in units of one action now."""
        found = self.items.get(item, ItemStatistic())
        return replace(found, popularity=found.popularity / self._weight)

    def most_popular(self, count: int) -> list[int]:
        """The items of highest recent popularity, best first."""
        ordered = sorted(self.items.items(), key=lambda pair: -pair[1].popularity)
        return [item for item, _ in ordered[:count]]

    def tables(self) -> dict[str, pa.Table]:
        """All of the state."""
        values = self.items.values()
        columns = {
            "item_id": pa.array(list(self.items), pa.int64()),
            "actions": pa.array([s.actions for s in values], pa.int64()),
            "rewards": pa.array([s.rewards for s in values], pa.float64()),
            "popularity": pa.array([s.popularity for s in values], pa.float64()),
            "newest_us": pa.array([s.newest_us for s in values], pa.int64()),
        }
        return {"statistics": pa.table(columns, metadata={"weight": self._weight.hex()})}

    def _rescale(self) -> None:
        for statistic in self.items.values():
            statistic.popularity /= self._weight
        self._weight = 1.0

    def _restore(self, table: pa.Table) -> None:
        self._weight = float.fromhex(table.schema.metadata[b"weight"].decode())
        for row in table.to_pylist():
            item = row.pop("item_id")
            self.items[item] = ItemStatistic(**row)
