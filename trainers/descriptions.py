"""What describes items: of each the tokens, and the fields that they are values of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.batch import Ids, Items, Jagged
from streaming.id_map import IdMap


class Descriptions:
    """Items in the order in which they became known, each with its newest description."""

    def __init__(self) -> None:
        self._map = IdMap()
        self._tokens: list[Ids] = []
        self._fields: list[NDArray[np.int32]] = []  # of each token

    def __len__(self) -> int:
        return len(self._map)

    @property
    def ids(self) -> Ids:
        """(n,), the id of the item at every place; only to be read, and only now."""
        return self._map.ids

    def find(self, ids: Ids) -> Ids:
        """The place of each item, -1 for one that is not known."""
        return self._map.find(ids)

    def add(self, items: Items) -> Ids:
        """Adds items, or replaces what describes them; returns their places."""
        fresh = items.ids[self._map.find(items.ids) < 0]
        self._map.add(fresh)
        more = len(self._map) - len(self._tokens)
        self._tokens += [np.empty(0, np.int64)] * more
        self._fields += [np.empty(0, np.int32)] * more
        places = self._map.find(items.ids)
        bounds = items.tokens.offsets.tolist()
        for i, place in enumerate(places.tolist()):
            self._tokens[place] = items.tokens.values[bounds[i] : bounds[i + 1]]
            self._fields[place] = items.fields[bounds[i] : bounds[i + 1]]
        return places

    def items(self, places: Ids) -> Items:
        """The items at these places, as a model reads them."""
        tokens = [self._tokens[place] for place in places.tolist()]
        lengths = np.array([t.size for t in tokens], np.int64)
        values = np.concatenate([np.empty(0, np.int64), *tokens])
        fields = [np.empty(0, np.int32), *(self._fields[place] for place in places.tolist())]
        return Items(self._map.ids[places], Jagged.of(values, lengths), np.concatenate(fields))

    def in_order(self, ids: Ids) -> Items:
        """The items with these ids, in their order; nothing describes one that is not known."""
        places = self._map.find(ids)
        known = self.items(places[places >= 0])
        lengths = np.zeros(len(ids), np.int64)
        lengths[places >= 0] = known.tokens.lengths
        return Items(ids, Jagged.of(known.tokens.values, lengths), known.fields)

    def describe(self, ids: Ids) -> Items:
        """Those of the ids that are known, each once, sorted by id."""
        places = self._map.find(np.unique(ids))
        return self.items(places[places >= 0])

    def copy(self) -> Descriptions:
        """Another one that knows the same."""
        other = Descriptions()
        other.add(self.items(np.arange(len(self))))
        return other


def description_columns(items: Items) -> dict[str, pa.Array]:
    """What describes items, as columns beside their ids; `described_items` takes them back."""
    fields = pa.ListArray.from_arrays(pa.array(items.tokens.offsets, pa.int32()), items.fields)
    return {"tokens": items.tokens.column(), "fields": fields}


def described_items(table: pa.Table) -> Items:
    """The items of a table with `id` and `description_columns`."""
    fields = table["fields"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return Items(table["id"].to_numpy(), Jagged.from_column(table["tokens"]), fields)
