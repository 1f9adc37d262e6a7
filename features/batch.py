"""Arrow samples to what models read: one place, no Python loop over rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Jagged:
    """n lists in one array: list i is `values[offsets[i]:offsets[i + 1]]`; offsets (n + 1,)."""

    values: Ids
    offsets: Ids

    @staticmethod
    def of(values: Ids, lengths: Ids) -> Jagged:
        """The lists that lie one after another in `values`, by their lengths (n,).

        >>> Jagged.of(np.array([7, 8, 9]), np.array([2, 0, 1])).offsets.tolist()
        [0, 2, 2, 3]
        """
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return Jagged(values, offsets)

    @staticmethod
    def from_column(column: pa.ListArray) -> Jagged:
        """A list column; a null list reads as an empty one."""
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        return Jagged.of(column.flatten().to_numpy(zero_copy_only=False), lengths)

    def column(self) -> pa.ListArray:
        """The lists as a column; `from_column` takes it back."""
        return pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), pa.array(self.values))

    @property
    def lengths(self) -> Ids:
        return np.diff(self.offsets)

    def take(self, lists: Ids) -> Jagged:
        """The lists with these numbers."""
        taken = Jagged.of(self.values, self.lengths[lists])
        starts = np.repeat(self.offsets[lists] - taken.offsets[:-1], taken.lengths)
        return Jagged(self.values[starts + np.arange(len(starts))], taken.offsets)

    def where(self, chosen: NDArray[np.bool_]) -> Jagged:
        """The same lists with only the chosen values."""
        kept = np.bincount(self.owners()[chosen], minlength=len(self.offsets) - 1)
        return Jagged.of(self.values[chosen], kept)

    def owners(self) -> Ids:
        """For each value the number of the list it is in."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)


@dataclass(frozen=True, slots=True)
class Items:
    """n items as a model sees them: `ids` (n,) and the tokens that describe each."""

    ids: Ids
    tokens: Jagged


@dataclass(frozen=True, slots=True)
class Users:
    """n users as a model sees them; `rewards` has one entry for each value of `history`."""

    ids: Ids
    history: Jagged
    rewards: NDArray[np.float32]

    def take(self, rows: Ids) -> Users:
        """The users with these numbers."""
        numbered = Jagged(np.arange(len(self.rewards)), self.history.offsets).take(rows)
        history = Jagged(self.history.values[numbered.values], numbered.offsets)
        return Users(self.ids[rows], history, self.rewards[numbered.values])


@dataclass(frozen=True, slots=True)
class Samples:
    """A micro-batch of n samples: who, which item (n,), how much it pleased (n,), and when."""

    users: Users
    item_ids: Ids
    rewards: NDArray[np.float32]
    liked: NDArray[np.bool_]
    at_us: Ids


def read_samples(batch: pa.RecordBatch) -> Samples:
    """The rows of a micro-batch that are actions: what a retrieval model learns from."""
    rows = batch.filter(pc.and_(batch["user_id"].is_valid(), batch["reward"].is_valid()))
    return Samples(
        Users(
            rows["user_id"].to_numpy(),
            Jagged.from_column(rows["history"]),
            rows["history_rewards"].flatten().to_numpy(zero_copy_only=False),
        ),
        rows["item_id"].to_numpy(),
        rows["reward"].to_numpy(),
        rows["label_liked"].fill_null(False).to_numpy(zero_copy_only=False),
        rows["at"].cast(pa.int64()).to_numpy(),
    )


def read_declarations(batch: pa.RecordBatch) -> Items:
    """The rows of a micro-batch that declare items; of several for one item the last counts."""
    rows = batch.filter(batch["user_id"].is_null())
    ids = rows["item_id"].to_numpy()
    _, last = np.unique(ids[::-1], return_index=True)
    rows = rows.take(pa.array(np.sort(len(ids) - 1 - last)))
    return Items(rows["item_id"].to_numpy(), Jagged.from_column(rows["item_tokens"]))
