"""Where the rows of a table lie: in memory (or a mapped file) for numba, or on a GPU for torch.

Both know rows by number only. `gather` and `pool` give rows to a model; EMPTY stands for an id
without a row, and reads as the row that the id would be born with. `learn` takes the gradients
of everything that was read in a step, adds up those of equal rows, and updates each row once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from streaming.growing import GrowingArray, Reused
from streaming.kernels import EMPTY
from trainers.kernels import add_up, birth_rows, gather_rows, pool_rows
from trainers.optimisers import LOOPS, OptimiserConfig, learn_tensors

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


class Birth(NamedTuple):
    """Rows are born uniform in ±scale, from id, seed and column alone."""

    seed: int
    scale: float

    def rows(self, ids: Ids, width: int) -> Floats:
        born = np.empty((ids.size, width), np.float32)
        birth_rows(ids, self.seed, self.scale, born)
        return born


class Used(NamedTuple):
    """Rows that a model read, and the gradient of what it got: (n, d), of lists if `offsets`."""

    rows: Ids
    offsets: Ids | None
    gradient: Tensor


class Rows(Protocol):
    """Rows of `width` float32 numbers with their optimiser's slots."""

    def reserve(self, rows: int) -> None:
        """Makes room."""
        ...

    def gather(self, rows: Ids, ids: Ids) -> Tensor:
        """(n, d)."""
        ...

    def pool(self, rows: Ids, ids: Ids, offsets: Ids) -> Tensor:
        """Means of lists of rows, (len(offsets) - 1, d); zeros for an empty list."""
        ...

    def learn(self, used: Sequence[Used]) -> Ids:
        """Updates; returns the distinct rows, in the order of their first use."""
        ...

    def read(self, rows: Ids) -> tuple[Floats, Floats]:
        """Copies of rows (n, d) and their slots (n, s)."""
        ...

    def write(self, rows: Ids, values: Floats, slots: Floats) -> None:
        """Sets distinct rows and their slots."""
        ...


class MemoryRows:
    """Rows in memory; with a `directory` in a file of it that is mapped into memory."""

    def __init__(
        self, width: int, optimiser: OptimiserConfig, birth: Birth, directory: Path | None = None
    ) -> None:
        self._width = width
        self._birth = birth
        self._settings = optimiser.settings
        self._loop = LOOPS[optimiser.kind]
        self._weights = GrowingArray(np.float32, (width,), directory)
        self._slots = GrowingArray(np.float32, (optimiser.slots(width),), directory)
        # For each row its place among the distinct rows of a step, plus 1; zeros between steps.
        self._place = GrowingArray(np.int32)
        self._sums = np.empty((0, width), np.float32)
        self._copies = Reused(), Reused()

    def reserve(self, rows: int) -> None:
        for array in (self._weights, self._slots, self._place):
            array.reserve(rows)

    def gather(self, rows: Ids, ids: Ids) -> Tensor:
        out = torch.empty(rows.size, self._width)
        gather_rows(self._weights.rows, rows, ids, *self._birth, out.numpy())
        return out

    def pool(self, rows: Ids, ids: Ids, offsets: Ids) -> Tensor:
        out = torch.empty(len(offsets) - 1, self._width)
        pool_rows(self._weights.rows, rows, ids, offsets, *self._birth, out.numpy())
        return out

    def learn(self, used: Sequence[Used]) -> Ids:
        distinct = np.empty(sum(u.rows.size for u in used), np.int64)
        if distinct.size > len(self._sums):
            self._sums = np.empty((2 * distinct.size, self._width), np.float32)
        count = 0
        for rows, offsets, gradient in used:
            lists = np.arange(rows.size + 1) if offsets is None else offsets
            g = gradient.contiguous().numpy()
            count = add_up(rows, lists, g, self._place.rows, distinct, self._sums, count)
        distinct = distinct[:count].copy()  # who keeps it should not keep all of the step
        self._place.rows[distinct] = 0
        self._loop(distinct, self._sums, self._weights.rows, self._slots.rows, self._settings)
        return distinct

    def read(self, rows: Ids) -> tuple[Floats, Floats]:
        copies = []
        for array, reused in ((self._weights, self._copies[0]), (self._slots, self._copies[1])):
            copy = reused.empty((rows.size, array.rows.shape[1]), np.float32)
            gather_rows(array.rows, rows, rows, *self._birth, copy)
            copies.append(copy)
        return copies[0], copies[1]

    def write(self, rows: Ids, values: Floats, slots: Floats) -> None:
        self._weights.rows[rows] = values
        self._slots.rows[rows] = slots


class DeviceRows:
    """Rows as tensors on a device of torch's, such as a GPU."""

    def __init__(
        self, width: int, optimiser: OptimiserConfig, birth: Birth, device: torch.device
    ) -> None:
        self._optimiser = optimiser
        self._birth = birth
        self._device = device
        self._weights = torch.zeros(0, width, device=device)
        self._slots = torch.zeros(0, optimiser.slots(width), device=device)

    def reserve(self, rows: int) -> None:
        missing = rows - len(self._weights)
        if missing > 0:
            more = max(missing, len(self._weights) // 2, 64)
            self._weights = F.pad(self._weights, (0, 0, 0, more))
            self._slots = F.pad(self._slots, (0, 0, 0, more))

    def gather(self, rows: Ids, ids: Ids) -> Tensor:
        unborn = rows == EMPTY
        self.reserve(1)
        found = self._weights[self._there(np.where(unborn, 0, rows))]
        if unborn.any():
            born = self._birth.rows(ids[unborn], self._weights.shape[1])
            found[self._there(np.flatnonzero(unborn))] = torch.from_numpy(born).to(self._device)
        return found

    def pool(self, rows: Ids, ids: Ids, offsets: Ids) -> Tensor:
        gathered = self.gather(rows, ids)
        owners, lengths = self._lists(offsets)
        sums = gathered.new_zeros(len(offsets) - 1, gathered.shape[1])
        return sums.index_add_(0, owners, gathered) / lengths

    def learn(self, used: Sequence[Used]) -> Ids:
        parts = []
        for _, offsets, gradient in used:
            if offsets is None:
                parts.append(gradient)
            else:
                owners, lengths = self._lists(offsets)
                parts.append((gradient / lengths)[owners])
        rows = np.concatenate([u.rows for u in used])
        distinct, index = np.unique(rows, return_inverse=True)
        sums = torch.zeros(distinct.size, self._weights.shape[1], device=self._device)
        sums.index_add_(0, self._there(index), torch.cat(parts))
        at = self._there(distinct)
        slots = self._slots[at]
        self._weights[at] = learn_tensors(self._optimiser, self._weights[at], slots, sums)
        self._slots[at] = slots
        return distinct

    def read(self, rows: Ids) -> tuple[Floats, Floats]:
        at = self._there(rows)
        return self._weights[at].cpu().numpy(), self._slots[at].cpu().numpy()

    def write(self, rows: Ids, values: Floats, slots: Floats) -> None:
        at = self._there(rows)
        self._weights[at] = self._there(values)
        self._slots[at] = self._there(slots)

    def _there(self, array: NDArray[np.generic]) -> Tensor:
        return torch.tensor(array, device=self._device)

    def _lists(self, offsets: Ids) -> tuple[Tensor, Tensor]:
        """For each value the list that it is in, and of each list its length, at least 1."""
        lengths = np.diff(offsets)
        owners = np.repeat(np.arange(lengths.size), lengths)
        divisors = np.maximum(lengths, 1).astype(np.float32)[:, None]
        return self._there(owners), self._there(divisors)
