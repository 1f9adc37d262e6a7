"""The item book: what describes every item, and which of it changed since when."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.batch import Ids, Items
from streaming.cuts import KEYED
from trainers.descriptions import Descriptions, described_items, description_columns


class ItemBook:
    """Items by id, each with its newest description."""

    def __init__(self) -> None:
        self._known = Descriptions()
        self._changed: NDArray[np.int64] = np.zeros(1024, np.int64)  # by place, at which clock
        self.clock = 0

    def __len__(self) -> int:
        return len(self._known)

    def add(self, items: Items) -> None:
        """Adds items, or replaces what describes them."""
        self.clock += 1
        places = self._known.add(items)
        if len(self) > len(self._changed):
            more = max(len(self), 2 * len(self._changed)) - len(self._changed)
            self._changed = np.append(self._changed, np.zeros(more, np.int64))
        self._changed[places] = self.clock

    def items(self, ids: Ids) -> Items:
        """The items with these ids, in their order; nothing describes one that is not known."""
        return self._known.in_order(ids)

    def describe(self, ids: Ids) -> Items:
        """Those of the ids that are known, each once, sorted by id."""
        return self._known.describe(ids)

    def table(self, since: int) -> pa.Table:
        """What has changed after a clock, by id; all if that is -1. `restore` takes it back."""
        places = np.flatnonzero(self._changed[: len(self)] > since)
        places = places[np.argsort(self._known.ids[places])]
        return pa.table(
            {
                "id": self._known.ids[places],
                **description_columns(self._known.items(places)),
                "changed": self._changed[places],
            },
            metadata={**KEYED, "clock": str(self.clock)},
        )

    def restore(self, table: pa.Table) -> None:
        """Takes the state that `table` gave; the book must be empty."""
        self.add(described_items(table.combine_chunks()))
        self._changed[: len(self)] = table["changed"].to_numpy()
        self.clock = int(table.schema.metadata[b"clock"])
