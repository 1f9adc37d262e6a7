"""What a trainer knows of the other ranks of its group; alone it has none, and sends nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainers.exchange import Exchange
from trainers.frequency import FrequencyEstimator
from trainers.sharding import ShardedFrequency, ShardedTable, learn
from trainers.table import EmbeddingTable

Arrays = Sequence[NDArray[Any]]


class Frequency(Protocol):
    """How often ids come by, in all ranks together; see `FrequencyEstimator`."""

    def update(self, ids: NDArray[np.int64], elapsed: float) -> None: ...

    def probability(self, ids: NDArray[np.int64]) -> NDArray[np.float64]: ...


class Peers(Protocol):
    """All ranks call the same methods in the same order; models and `Frequency` may ask between."""

    rank: int
    size: int

    def tables(self, shards: Mapping[str, EmbeddingTable]) -> Mapping[str, Any]:
        """What a model is to call in place of its tables, of which this rank has shards."""
        ...

    def frequency(self, shard: FrequencyEstimator) -> Frequency: ...

    def share(self, arrays: Arrays) -> Sequence[Arrays]:
        """Every rank's arrays, by rank; lengths may differ."""
        ...

    def meet(self) -> None:
        """Returns when no rank has anything more to ask."""
        ...

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes the sum of those of all ranks."""
        ...

    def learn(self, learnt: Sequence[bool]) -> None:
        """All tables learn what was called since the last time by the ranks that have learnt."""
        ...


class Alone:
    """The only rank."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self._tables: Mapping[str, EmbeddingTable] = {}

    def tables(self, shards: Mapping[str, EmbeddingTable]) -> Mapping[str, Any]:
        self._tables = shards
        return shards

    def frequency(self, shard: FrequencyEstimator) -> Frequency:
        return shard

    def share(self, arrays: Arrays) -> Sequence[Arrays]:
        return [arrays]

    def meet(self) -> None:
        pass

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        pass

    def learn(self, learnt: Sequence[bool]) -> None:
        for table in self._tables.values():
            if learnt[0]:
                table.step()
            else:
                table.forget_calls()


class Ranks:
    """The ranks at the other ends of an exchange."""

    def __init__(self, exchange: Exchange) -> None:
        self.rank, self.size = exchange.rank, exchange.size
        self.share, self.meet, self.add_up = exchange.share, exchange.meet, exchange.add_up
        self._exchange = exchange
        self._tables: Mapping[str, ShardedTable] = {}

    def tables(self, shards: Mapping[str, EmbeddingTable]) -> Mapping[str, Any]:
        for shard in shards.values():
            shard.keep_shared(self.rank, self.size)
        self._tables = {n: ShardedTable(shard, self._exchange) for n, shard in shards.items()}
        return self._tables

    def frequency(self, shard: FrequencyEstimator) -> Frequency:
        return ShardedFrequency(shard, self._exchange)

    def learn(self, learnt: Sequence[bool]) -> None:
        learn(list(self._tables.values()), learnt, self._exchange)
