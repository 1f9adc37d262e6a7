"""Histories as tensors: (B, L) with a mask, made without a loop over rows in Python.

Each row holds what a list holds newest, oldest first, from the left; behind it are zeros, and the
mask is False there. A row depends on nothing but its own list, so that a batch is the same as its
rows one by one. Where there is CUDA the memory is pinned, so that `to` can copy while the device
computes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.batch import Ids, Moments, Users
from streaming.kernels import compiled_in_place


@dataclass(frozen=True, slots=True)
class _OnOneDevice:
    def to(self, device: torch.device | str) -> Self:
        """The same on a device; does not wait for a copy from pinned memory."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in fields(self)
        }
        return type(self)(**moved)


@dataclass(frozen=True, slots=True)
class PaddedHistory(_OnOneDevice):
    """The newest L actions of B users, each tensor (B, L).

    `kinds` and `scenarios` are -1 where they are not known or there was none. `ages_s` are the
    seconds from each action to now, not less than 0. `values` are 0 where there was none.
    """

    items: Tensor  # int64
    rewards: Tensor  # float32
    kinds: Tensor  # int64
    scenarios: Tensor  # int64
    ages_s: Tensor  # float32
    values: Tensor  # float32
    mask: Tensor  # bool


@dataclass(frozen=True, slots=True)
class PaddedMoments(_OnOneDevice):
    """The newest L words or items of B users with their ages, each tensor (B, L)."""

    ids: Tensor  # int64
    ages_s: Tensor  # float32
    mask: Tensor  # bool


def pad_history(users: Users, now_us: Ids, length: int) -> PaddedHistory:
    """The newest `length` actions of each user whose now is `now_us` (B,).

    >>> from features.batch import Jagged
    >>> users = Users(np.array([1, 2]), Jagged.of(np.array([7, 8, 9]), np.array([2, 1])),
    ...               np.array([1.0, 0.5, 0.25], np.float32))
    >>> padded = pad_history(users, np.array([0, 0]), length=2)
    >>> padded.items.tolist(), padded.mask.tolist()
    ([[7, 8], [9, 0]], [[True, True], [True, False]])
    """
    offsets, details = users.history.offsets, users.details
    ages_s = _ages_s(details.at_us, offsets, now_us)
    return PaddedHistory(
        _padded(users.history.values, offsets, length, torch.int64),
        _padded(users.rewards, offsets, length, torch.float32),
        _padded(details.kinds, offsets, length, torch.int64),
        _padded(details.scenarios, offsets, length, torch.int64),
        _padded(ages_s, offsets, length, torch.float32),
        _padded(np.nan_to_num(details.values), offsets, length, torch.float32),
        _mask(offsets, length),
    )


def pad_moments(moments: Moments, now_us: Ids, length: int) -> PaddedMoments:
    """The newest `length` of each list, for users whose now is `now_us` (B,)."""
    offsets = moments.ids.offsets
    return PaddedMoments(
        _padded(moments.ids.values, offsets, length, torch.int64),
        _padded(_ages_s(moments.at_us, offsets, now_us), offsets, length, torch.float32),
        _mask(offsets, length),
    )


def _ages_s(at_us: Ids, offsets: Ids, now_us: Ids) -> NDArray[np.float32]:
    age_us = np.repeat(now_us, np.diff(offsets)) - at_us
    ages_s: NDArray[np.float32] = (np.maximum(age_us, 0) / 1e6).astype(np.float32)
    return ages_s


def _padded(values: NDArray[Any], offsets: Ids, length: int, dtype: torch.dtype) -> Tensor:
    tensor = _empty(len(offsets) - 1, length, dtype)
    _pad(values, offsets, tensor.numpy())
    return tensor


def _mask(offsets: Ids, length: int) -> Tensor:
    tensor = _empty(len(offsets) - 1, length, torch.bool)
    np.less(np.arange(length), np.diff(offsets)[:, None], out=tensor.numpy())
    return tensor


def _empty(rows: int, length: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((rows, length), dtype=dtype, pin_memory=torch.cuda.is_available())


@compiled_in_place
def _pad(values: Any, offsets: Ids, out: Any) -> None:
    length = out.shape[1]
    for row in range(offsets.size - 1):
        size = min(offsets[row + 1] - offsets[row], length)
        start = offsets[row + 1] - size
        for i in range(size):
            out[row, i] = values[start + i]
        for i in range(size, length):
            out[row, i] = 0
