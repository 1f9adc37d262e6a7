"""The corpus: every item that can be recommended, what describes it, its vector and its count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.batch import Ids, Items, Jagged
from streaming.cuts import KEYED
from trainers.arrays import column_matrix, matrix_column
from trainers.descriptions import Descriptions, described_items, description_columns


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors (n, d) of items (n,), as a version carries them."""

    ids: Ids
    rows: NDArray[np.float32]


class Corpus:
    """Items in the order in which they became known, each with its newest vector.

    Vectors are what serving will see: they are refreshed for the items of every step and for a
    slice of all others in turn, so none is older than `len(corpus) / slice` steps.
    """

    def __init__(self, width: int) -> None:
        self._known = Descriptions()
        self._vectors = torch.zeros(1024, width)
        self._refreshed = np.zeros(1024, np.int64)
        self._counts = np.zeros(1024, np.float64)
        self._weight = 1.0
        self._turn = 0
        self._rescaled = 0  # the clock when all counts changed
        self.clock = 0

    def __len__(self) -> int:
        return len(self._known)

    @property
    def ids(self) -> Ids:
        """(n,), the id of the item at every place; only to be read, and only now."""
        return self._known.ids

    @property
    def vectors(self) -> Tensor:
        """(n, d), in the order of the items."""
        return self._vectors[: len(self)]

    @property
    def counts(self) -> NDArray[np.float64]:
        """How popular each item is, up to a common factor, (n,)."""
        return self._counts[: len(self)]

    def find(self, ids: Ids) -> Ids:
        """The place of each item, -1 for one that is not in the corpus."""
        return self._known.find(ids)

    def add(self, items: Items) -> Ids:
        """Adds items, or replaces what describes them; returns their places."""
        places = self._known.add(items)
        self._reserve(len(self))
        return places

    def add_unseen(self, ids: Ids) -> None:
        """Adds those of the distinct ids that are not there, with nothing to describe them."""
        unseen = ids[self._known.find(ids) < 0]
        nothing = Jagged.of(np.empty(0, np.int64), np.zeros(unseen.size, np.int64))
        self.add(Items(unseen, nothing))

    def items(self, places: Ids) -> Items:
        """What the model reads of the items at these places."""
        return self._known.items(places)

    def describe(self, ids: Ids) -> Items:
        """What describes those of the ids that are known, each once, sorted by id."""
        return self._known.describe(ids)

    def next_slice(self, size: int) -> Ids:
        """The next places in turn whose vectors are to be refreshed."""
        size = min(size, len(self))
        places = (self._turn + np.arange(size)) % max(1, len(self))
        self._turn = (self._turn + size) % max(1, len(self))
        return places

    def refresh(self, places: Ids, vectors: Tensor) -> None:
        """Sets the vectors of items."""
        self.clock += 1
        self._vectors[torch.from_numpy(places)] = vectors
        self._refreshed[places] = self.clock

    def count(self, places: Ids, samples: int, half_life: float) -> None:
        """Counts a sample for each place, one that lies `half_life` samples back only half.

        Instead of all counts fading, the weight of a new sample grows.
        """
        self._weight *= 2.0 ** (samples / half_life)
        np.add.at(self._counts, places, self._weight)
        if self._weight > 1e100:
            self._counts /= self._weight
            self._weight = 1.0
            self._rescaled = self.clock + 1

    def refreshed_since(self, clock: int) -> Vectors:
        """The vectors that were set after that clock; 0 gives all of them."""
        places = np.flatnonzero(self._refreshed[: len(self)] > clock)
        return Vectors(self._known.ids[places], self._vectors[torch.from_numpy(places)].numpy())

    def table(self, since: int = -1) -> pa.Table:
        """All of the state by id, or what changed after the clock `since`.

        What counts or describes an item changes with its vector, in the same step.
        """
        whole = since < self._rescaled
        places = np.flatnonzero(self._refreshed[: len(self)] > (-1 if whole else since))
        places = places[np.argsort(self._known.ids[places])]
        items = self.items(places)
        return pa.table(
            {
                "id": self._known.ids[places],
                "place": places,
                **description_columns(items),
                "vector": matrix_column(self._vectors[torch.from_numpy(places)].numpy()),
                "refreshed": self._refreshed[places],
                "count": self._counts[places],
            },
            metadata={
                **KEYED,
                "turn": str(self._turn),
                "clock": str(self.clock),
                "weight": self._weight.hex(),
                "rescaled": str(self._rescaled),
            },
        )

    def restore(self, table: pa.Table) -> None:
        """Takes the state that `table` gave; the corpus must be empty."""
        table = table.sort_by("place").combine_chunks()
        count = table.num_rows
        self.add(described_items(table))
        self._vectors[:count] = torch.from_numpy(column_matrix(table["vector"]).copy())
        self._refreshed[:count] = table["refreshed"].to_numpy()
        self._counts[:count] = table["count"].to_numpy()
        metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        self._weight = float.fromhex(metadata["weight"])
        self._turn = int(metadata["turn"])
        self._rescaled = int(metadata["rescaled"])
        self.clock = int(metadata["clock"])

    def _reserve(self, size: int) -> None:
        if size <= len(self._counts):
            return
        extra = max(size, 2 * len(self._counts)) - len(self._counts)
        self._vectors = torch.cat([self._vectors, torch.zeros(extra, self._vectors.shape[1])])
        self._refreshed = np.concatenate([self._refreshed, np.zeros(extra, np.int64)])
        self._counts = np.concatenate([self._counts, np.zeros(extra)])
