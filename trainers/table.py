"""Embedding tables: id -> row without collisions, learnt row by row.

A model calls a table with ids and gets their rows as a tensor that takes part in autograd.
While it is training, unknown ids get a row of their own; while it is predicting, they get the
row they would be born with and the table stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from streaming.id_map import IdMap
from streaming.kernels import EMPTY
from trainers.arrays import column_matrix, matrix_column
from trainers.kernels import birth_rows, rowwise_adagrad


@dataclass(frozen=True)
class TableConfig:
    """`birth_scale` bounds the uniform numbers a row is born with (0: rows are born zero)."""

    name: str
    width: int = 64
    birth_scale: float = 0.05
    learning_rate: float = 0.05
    first_square: float = 0.01
    seed: int = 0


class EmbeddingTable:
    """Rows of float32, each with its optimiser slot, born from id and seed alone.

    Row-wise Adagrad: one accumulator a row, the running sum of the mean squared gradient.
    """

    def __init__(self, config: TableConfig) -> None:
        self.config = config
        self.training = False
        self.clock = 0  # counts updates: `touched_since(clock)` is a consumer's cursor
        self._map = IdMap()
        self._weights = np.empty((64, config.width), np.float32)
        self._squares = np.empty(64, np.float32)
        self._touched = np.empty(64, np.int64)
        self._place = np.full(64, EMPTY, np.int64)
        self._used: list[tuple[NDArray[np.int64], Tensor]] = []

    def __len__(self) -> int:
        return len(self._map)

    def __call__(self, ids: NDArray[np.int64]) -> Tensor:
        """The rows of ids of shape (n,), as (n, width)."""
        distinct, index = np.unique(ids, return_inverse=True)
        return F.embedding(torch.from_numpy(index), self._rows(distinct))

    def mean(
        self, ids: NDArray[np.int64], offsets: NDArray[np.int64], weights: Tensor | None = None
    ) -> Tensor:
        """Means of jagged lists of rows: list i is `ids[offsets[i]:offsets[i + 1]]`; (n, width).

        With `weights` (one per id) it is their weighted sum. An empty list gives zeros.
        """
        distinct, index = np.unique(ids, return_inverse=True)
        return F.embedding_bag(
            torch.from_numpy(index),
            self._rows(distinct),
            torch.from_numpy(offsets),
            mode="mean" if weights is None else "sum",
            per_sample_weights=weights,
            include_last_offset=True,
        )

    def step(self) -> None:
        """Learns from the gradients of every call since the last step."""
        used = [(rows, leaf.grad) for rows, leaf in self._used if leaf.grad is not None]
        self._used.clear()
        if not used:
            return
        self.clock += 1
        rows = np.concatenate([rows for rows, _ in used])
        gradients = torch.cat([gradient for _, gradient in used]).numpy()
        distinct = rowwise_adagrad(
            self._weights, self._squares, rows, gradients, self._place, self.config.learning_rate
        )
        self._touched[rows[:distinct]] = self.clock

    def forget_calls(self) -> None:
        """Drops what was called and not learnt, as when a step is refused."""
        self._used.clear()

    def touched_since(self, clock: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids (n,) and rows (n, width) learnt or born after that clock; 0 gives all of them."""
        rows = np.flatnonzero(self._touched[: len(self)] > clock)
        return self._map.ids[rows], self._weights[rows]

    def upsert(self, ids: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Sets rows to absolute values, making those that are not there: a replica's only write."""
        rows = self._grown(ids)
        self._weights[rows] = values

    def table(self) -> pa.Table:
        """All of the state, in row order."""
        count = len(self)
        return pa.table(
            {
                "id": self._map.ids.copy(),
                "row": matrix_column(self._weights[:count].copy()),
                "square": self._squares[:count].copy(),
                "touched": self._touched[:count].copy(),
            },
            metadata={"clock": str(self.clock)},
        )

    def restore(self, table: pa.Table) -> None:
        """Takes the state that `table` gave; the table must be empty."""
        ids = table["id"].to_numpy()
        self._grown(ids)
        self._weights[: ids.size] = column_matrix(table["row"])
        self._squares[: ids.size] = table["square"].to_numpy()
        self._touched[: ids.size] = table["touched"].to_numpy()
        self.clock = int(table.schema.metadata[b"clock"])

    def _rows(self, distinct: NDArray[np.int64]) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return torch.from_numpy(self._peek(distinct))
        rows = self._grown(distinct)
        leaf = torch.from_numpy(self._weights[rows]).requires_grad_()
        self._used.append((rows, leaf))
        return leaf

    def _peek(self, distinct: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows to predict with; an id without a row gets the one it would be born with."""
        rows = self._map.find(distinct)
        values = self._weights[rows]
        unborn = np.flatnonzero(rows == EMPTY)
        if unborn.size:
            values[unborn] = self._birth(distinct[unborn])
        return values

    def _grown(self, distinct: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of every id, after the birth of those that were missing."""
        rows = self._map.find(distinct)
        missing = np.flatnonzero(rows == EMPTY)
        if missing.size:
            start, end = len(self), len(self) + missing.size
            self._reserve(end)
            newborn = distinct[missing]
            self._map.add(newborn)
            self._weights[start:end] = self._birth(newborn)
            self._squares[start:end] = self.config.first_square
            self._touched[start:end] = self.clock + 1
            rows[missing] = np.arange(start, end)
        return rows

    def _birth(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        born = np.empty((ids.size, self.config.width), np.float32)
        birth_rows(ids, self.config.seed, self.config.birth_scale, born)
        return born

    def _reserve(self, rows: int) -> None:
        if rows <= len(self._squares):
            return
        size = max(rows, 2 * len(self._squares))
        count = len(self)
        for name in ("_weights", "_squares", "_touched"):
            old = getattr(self, name)
            new = np.empty((size, *old.shape[1:]), old.dtype)
            new[:count] = old[:count]
            setattr(self, name, new)
        self._place = np.full(size, EMPTY, np.int64)
