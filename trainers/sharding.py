"""A table of which every rank of a group keeps the rows that it owns.

Who owns an id is a hash of it. A rank that needs rows asks their owners, each id once; the
gradients of what it learnt go back to them, and each owner learns from those of all ranks at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.exchange import Exchange, Ids
from trainers.frequency import FrequencyEstimator
from trainers.kernels import distinct_by_owner, owners
from trainers.table import EmbeddingTable


class Table(Protocol):
    """What a model does with a table; see `EmbeddingTable`."""

    training: bool

    def __call__(self, ids: Ids) -> Tensor: ...

    def mean(self, ids: Ids, offsets: Ids) -> Tensor: ...


class ShardedTable:
    """Called as an `EmbeddingTable` is; `shard` has the rows that this rank owns."""

    def __init__(self, shard: EmbeddingTable, exchange: Exchange) -> None:
        self.shard = shard
        self.training = False
        self._exchange = exchange
        self._predicts = _register(exchange, _Predict(shard))
        self._lookup = _Learn(shard)
        self._learns = _register(exchange, self._lookup)
        self._read: list[tuple[Tensor, Ids]] = []  # rows that were read, and how many of each owner

    def __call__(self, ids: Ids) -> Tensor:
        rows, index = self._rows(ids)
        return F.embedding(self._there(index), rows)

    def mean(self, ids: Ids, offsets: Ids) -> Tensor:
        rows, index = self._rows(ids)
        starts = self._there(offsets[:-1])
        return F.embedding_bag(self._there(index), rows, starts, mode="mean")

    def gradients(self) -> list[list[Tensor]]:
        """For each owner the gradients of the rows that were read of it, in the order of reading.

        What was read is then forgotten.
        """
        read, self._read = self._read, []
        of_owner: list[list[Tensor]] = [[] for _ in range(self._exchange.size)]
        for rows, counts in read:
            gradient = torch.zeros_like(rows) if rows.grad is None else rows.grad
            for owner, part in enumerate(torch.split(gradient, counts.tolist())):
                of_owner[owner].append(part)
        return of_owner

    def read_by(self, rank: int) -> list[Ids]:
        """This rank's rows that a rank has read to learn them, and has not told of yet."""
        return self._lookup.read.pop(rank, [])

    def _rows(self, ids: Ids) -> tuple[Tensor, Ids]:
        """Each row that is needed once, and for each id the number of its row."""
        if ids.size and ids.min() < 0:
            raise ValueError(
                f"table {self.shard.config.name!r} was asked for id {ids.min()}:"
                " ids are not negative, leave out those that stand for nothing"
            )
        distinct, repeats, index = np.empty((3, ids.size), np.int64)
        counts = np.zeros(self._exchange.size, np.int64)
        size = distinct_by_owner(ids, self.shard.shared, distinct, repeats, index, counts)
        if not (self.training and torch.is_grad_enabled()):
            return self._exchange.ask(self._predicts, distinct[None, :size], counts), index
        question = np.stack([distinct[:size], repeats[:size]])
        rows = self._exchange.ask(self._learns, question, counts).requires_grad_()
        self._read.append((rows, counts))
        return rows, index

    def _there(self, array: Ids) -> Tensor:
        return torch.from_numpy(array).to(self.shard.config.device)


class _Predict:
    """Answers with the rows as they are, or as they would be born."""

    columns = 1

    def __init__(self, shard: EmbeddingTable) -> None:
        self.width = shard.config.width
        self._shard = shard

    def __call__(self, rank: int, question: Ids) -> Tensor:  # noqa: ARG002
        return self._shard.read_rows(self._shard.find_rows(question[0]), question[0])


class _Learn:
    """Gives rows to ids that are worth it, and remembers who has read which."""

    columns = 2

    def __init__(self, shard: EmbeddingTable) -> None:
        self.width = shard.config.width
        self.read: defaultdict[int, list[Ids]] = defaultdict(list)
        self._shard = shard

    def __call__(self, rank: int, question: Ids) -> Tensor:
        rows = self._shard.rows_to_learn(*question)
        self.read[rank].append(rows)
        return self._shard.read_rows(rows, question[0])


class _Frequency:
    """Answers with how often ids come by."""

    width = 1
    columns = 1

    def __init__(self, estimator: FrequencyEstimator) -> None:
        self._estimator = estimator

    def __call__(self, rank: int, question: Ids) -> Tensor:  # noqa: ARG002
        return torch.from_numpy(self._estimator.probability(question[0])).float()


class ShardedFrequency:
    """An estimator of which every rank keeps the entries of the ids that it owns."""

    def __init__(self, shard: FrequencyEstimator, exchange: Exchange) -> None:
        self._shard = shard
        self._exchange = exchange
        self._service = _register(exchange, _Frequency(shard))

    def update(self, ids: Ids, elapsed: float) -> None:
        """Takes the ids of all ranks."""
        mine = owners(ids, self._exchange.size, 0) == self._exchange.rank
        self._shard.update(ids[mine], elapsed)

    def probability(self, ids: Ids) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        order = np.argsort(owner := owners(ids, self._exchange.size, 0), kind="stable")
        counts = np.bincount(owner, minlength=self._exchange.size)
        answers = self._exchange.ask(self._service, ids[None, order], counts)
        p = np.empty(len(ids))
        p[order] = answers[:, 0].cpu().numpy()
        return p


def learn(tables: Sequence[ShardedTable], learnt: Sequence[bool], exchange: Exchange) -> None:
    """Gradients go to the owners of their rows, and these learn; of ranks that have `learnt` only.

    All ranks take part, whatever they have read.
    """
    of_owner: list[list[Tensor]] = [[] for _ in range(exchange.size)]
    mine = learnt[exchange.rank]
    for table in tables:
        for owner, parts in enumerate(table.gradients()):
            of_owner[owner] += [part.reshape(-1) for part in parts if mine]
    read = [[table.read_by(rank) for table in tables] for rank in range(exchange.size)]
    expected = [
        sum(
            r.size * t.shard.config.width
            for t, rows in zip(tables, of_rank, strict=True)
            for r in rows
        )
        if learnt[rank]
        else 0
        for rank, of_rank in enumerate(read)
    ]
    sent = [sum(part.numel() for part in parts) for parts in of_owner]
    everything = [part for parts in of_owner for part in parts]
    told = torch.cat(everything) if everything else torch.empty(0)
    received = exchange.swap(told, sent, expected)
    start = 0
    for rank, of_rank in enumerate(read):
        for table, read_of_table in zip(tables, of_rank, strict=True):
            for rows in read_of_table if learnt[rank] else ():
                end = start + rows.size * table.shard.config.width
                gradient = received[start:end].view(rows.size, -1)
                table.shard.use(rows, gradient)
                start = end
    for table in tables:
        table.shard.step()


def _register(exchange: Exchange, service: _Predict | _Learn | _Frequency) -> int:
    exchange.services.append(service)
    return len(exchange.services) - 1
