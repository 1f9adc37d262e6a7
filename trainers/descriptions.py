"""What describes items: of each the tokens, and the fields that they are values of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from features.batch import Ids, Items, Jagged
from streaming.growing import GrowingArray
from streaming.id_map import IdMap

_FEW = 1 << 12  # tokens, of which it does not matter whether they are needed


class Descriptions:
    """Items in the order in which they became known, each with its newest description.

    What describes them lies one item after another, in the order in which it was told; what was
    replaced is given up now and then, when it may be half of all.
    """

    def __init__(self) -> None:
        self._map = IdMap()
        self._starts, self._lengths = GrowingArray(np.int64), GrowingArray(np.int64)  # by place
        self._tokens, self._fields = GrowingArray(np.int64), GrowingArray(np.int32)
        self._end = 0  # of tokens
        self._most = _FEW  # of them, until what was replaced is given up

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
        """Adds items, or replaces what describes them; of one that comes twice the last counts.
        Returns their places.
        """
        begin, end = self._end, self._end + len(items.tokens.values)
        places = self._map.add(items.ids)
        self._tokens.reserve(end)[begin:end] = items.tokens.values
        self._fields.reserve(end)[begin:end] = items.fields
        self._starts.reserve(len(self))[places] = begin + items.tokens.offsets[:-1]
        self._lengths.reserve(len(self))[places] = items.tokens.lengths
        self._end = end
        if end > self._most:
            self._give_up_replaced()
        return places

    def items(self, places: Ids) -> Items:
        """The items at these places, as a model reads them."""
        lengths = self._lengths.rows[places]
        taken = Jagged.of(np.empty(0, np.int64), lengths)
        at = np.repeat(self._starts.rows[places] - taken.offsets[:-1], lengths)
        at += np.arange(len(at))
        tokens = Jagged(self._tokens.rows[at], taken.offsets)
        return Items(self._map.ids[places], tokens, self._fields.rows[at])

    def _give_up_replaced(self) -> None:
        every = self.items(np.arange(len(self)))
        self._end = len(every.tokens.values)
        self._tokens.rows[: self._end] = every.tokens.values
        self._fields.rows[: self._end] = every.fields
        self._starts.rows[: len(self)] = every.tokens.offsets[:-1]
        self._most = max(_FEW, 2 * self._end)

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
