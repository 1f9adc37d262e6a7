"""What the models of one family have in common: what they learn from, and how they are tested.

A trainer (`trainers.trainer`) does for all of them what is the same: steps, tables, gradients, the
gate, versions, cuts. What differs it asks its `Family`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from trainers.arrays import arrays_table, table_arrays
from trainers.peers import Arrays
from trainers.resharding import SavedRanks


class Batch(NamedTuple):
    """What a family makes of a micro-batch: `samples` to learn, None if it has none; how many,
    and the newest of their times (1,); and what the other ranks are told of it.
    """

    samples: Any
    size: int
    at_us: NDArray[np.int64]
    told: Arrays


class Moment(NamedTuple):
    """Where the stream stands: `steps` and `samples` were learnt before."""

    steps: int
    samples: int


class Evenly:
    """Weighs steps so that every sample counts as much: a step is as long as the traffic makes it,
    and a sample that comes alone says no more than one among hundreds.
    """

    def __init__(self) -> None:
        self._size = 0.0  # of steps, on average

    def weight(self, size: int) -> float:
        """How much a step of so many samples counts; the first one 1."""
        self._size += (size - self._size) * (_SIZES if self._size else 1.0)
        return size / self._size

    def table(self) -> pa.Table:
        """A shard of the cut; `load` takes it back."""
        return arrays_table({"size": np.array([self._size])})

    def load(self, table: pa.Table) -> None:
        self._size = float(table_arrays(table)["size"][0])


_SIZES = 1 / 64  # how much the size of a step says of that of steps


class Family(Protocol):
    """In a step it is asked in the order of these methods. All ranks ask it for the same, whoever
    has samples; `told` is what each was told, by rank.
    """

    rows: tuple[str, ...]  # names of the shards of versions that it has beside the tables

    @property
    def clock(self) -> int:
        """Counts changes of what it keeps beside the tables."""
        ...

    def read(self, batch: pa.RecordBatch | None) -> Batch:
        """What there is to learn of a micro-batch; of None nothing, in the same form."""
        ...

    def declare(self, told: Sequence[Arrays], samples: Any) -> Any:
        """Takes note of items that are described; returns samples with what is known of theirs."""
        ...

    def test(self, samples: Any, now: Moment) -> None:
        """Tests the model on samples that it has not learnt."""
        ...

    def note(self, told: Sequence[Arrays]) -> None:
        """Takes note of the items of all samples, which are about to be learnt."""
        ...

    def weight(self, size: int) -> float:
        """How much a step of so many samples, of all ranks, counts; asked once for each step."""
        ...

    def loss(self, samples: Any, seed: int) -> Tensor:
        """The loss of a sample, on average; all that is drawn is drawn from `seed`."""
        ...

    def is_finite(self, samples: Any) -> bool:
        """Whether all numbers are that the loss may not show."""
        ...

    def refresh(self, told: Sequence[Arrays]) -> None:
        """Renews what depends on what was learnt."""
        ...

    def metrics(self, now: Moment) -> dict[str, float]:
        """Test-then-train figures, of all ranks together."""
        ...

    def gauges(self) -> dict[str, float]:
        """What else is to be known of it; costs little."""
        ...

    def state(self) -> dict[str, pa.Table]:
        """Of a cut what no other rank has."""
        ...

    def common_state(self, since: int) -> dict[str, pa.Table]:
        """Of a cut what is the same in all ranks, as far as it has changed since a clock."""
        ...

    def restore(self, saved: SavedRanks, shards: Mapping[str, pa.Table]) -> None:
        """Goes on from a cut."""
        ...

    def shards(self, since: int) -> dict[str, pa.Table]:
        """Shards of a version, by `rows`: what has changed since a clock."""
        ...
