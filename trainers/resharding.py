"""What one rank takes from a cut, of as many ranks as there are now or of any other number.

Shards of rank 0 go by their names, those of rank 1 by `<name>@1`, and so on. Where the number has
changed, rows go to their new owners, frequencies and admission counts to everybody (an entry keeps
no ids), sums to rank 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streaming.artefact import Artefact
from trainers.arrays import table_arrays
from trainers.frequency import merge_states
from trainers.kernels import owners

Arrays = dict[str, NDArray[Any]]


def shard_name(name: str, rank: int) -> str:
    """What a rank's shard is called.

    >>> shard_name("table-item", 0), shard_name("table-item", 2)
    ('table-item', 'table-item@2')
    """
    return f"{name}@{rank}" if rank else name


class SavedRanks:
    """The state of all ranks in a cut, for `rank` of `ranks` that go on from it."""

    def __init__(self, state: Artefact, rank: int, ranks: int) -> None:
        self._shards = state.shards
        self._rank, self._ranks = rank, ranks
        self._saved: int = state.meta["ranks"]

    def table(self, name: str, shared: int) -> tuple[pa.Table, Arrays]:
        """What `EmbeddingTable.restore` takes; `shared` is the table's number of shared rows."""
        if self._ranks == self._saved:
            return self._of_rank(f"table-{name}"), self.own(f"filter-{name}") or {}
        parts = []
        for part in self._of_all(f"table-{name}"):
            mine = owners(part["id"].to_numpy(), self._ranks, shared) == self._rank
            parts.append(part.filter(pa.array(mine)))
        states = [json.loads(part.schema.metadata[b"state"]) for part in parts]
        metadata = {**(parts[0].schema.metadata or {}), b"state": self._merged(states)}
        filters = [table_arrays(t) for t in self._of_all(f"filter-{name}")]
        table = pa.concat_tables([part.replace_schema_metadata(None) for part in parts])
        return table.replace_schema_metadata(metadata).combine_chunks(), _largest(filters)

    def frequency(self) -> Arrays:
        """What `FrequencyEstimator.load` takes."""
        if self._ranks == self._saved:
            return table_arrays(self._of_rank("frequency"))
        return merge_states([table_arrays(table) for table in self._of_all("frequency")])

    def metric(self, name: str, metric: Any, new: Callable[[], Any]) -> None:
        """Loads a metric, or several as one, with what it had counted; `new` makes one like it."""
        if self._ranks == self._saved or self._rank == 0:
            metric.load(table_arrays(self._of_rank(name)))
        if self._ranks != self._saved and self._rank == 0:
            for table in self._of_all(name)[1:]:
                others = new()
                others.load(table_arrays(table))
                metric.absorb(others.sums())

    def own(self, name: str) -> Arrays | None:
        """The arrays of the saved rank of the same number, if there was one."""
        return table_arrays(self._of_rank(name)) if self._rank < self._saved else None

    def handed_out(self, name: str) -> list[pa.Table]:
        """The tables of all saved ranks, each to one of those that go on."""
        return self._of_all(name)[self._rank :: self._ranks]

    def _of_rank(self, name: str) -> pa.Table:
        return self._shards[shard_name(name, self._rank)]

    def _of_all(self, name: str) -> list[pa.Table]:
        return [self._shards[shard_name(name, rank)] for rank in range(self._saved)]

    def _merged(self, states: Sequence[Mapping[str, Any]]) -> bytes:
        """The counters of several ranks' tables as this rank's."""
        due = [s["expiry_due_us"] for s in states if s["expiry_due_us"] is not None]
        merged = {
            **states[0],
            "clock": max(s["clock"] for s in states),
            "evicted": sum(s["evicted"] for s in states) if self._rank == 0 else 0,
            "expiry_due_us": min(due, default=None),
        }
        return json.dumps(merged).encode()


def _largest(filters: Sequence[Arrays]) -> Arrays:
    """The largest counts of several admission filters.

    An id was counted by its owner alone, who has counted on from what all had: a sum would count
    twice what it began with.
    """
    return {name: np.max([f[name] for f in filters], axis=0) for name in filters[0]}
