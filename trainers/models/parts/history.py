"""Histories as sequences of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from features.batch import Users
from features.tensors import PaddedHistory, pad_history
from trainers.table import EmbeddingTable


def sequence(table: EmbeddingTable, users: Users, length: int) -> tuple[Tensor, PaddedHistory]:
    """The rows (B, L, d) of the newest `length` items of each history, oldest first, zeros behind
    them; and what else is known of these actions. L is that of the longest.
    """
    longest = int(users.history.lengths.max(initial=0))
    padded = pad_history(users, users.at_us, max(1, min(length, longest)))
    return padded_rows(table, padded.items, padded.mask), padded


def padded_rows(table: EmbeddingTable, ids: Tensor, mask: Tensor) -> Tensor:
    """The rows (B, L, d) of padded ids (B, L); zeros where the mask is False: nobody asks for the
    id 0 of the padding, for it would be born.
    """
    rows = table(ids[mask].numpy())  # (n, d)
    mask = mask.to(rows.device)
    found = rows.new_zeros(*mask.shape, rows.shape[1])
    return found.masked_scatter(mask[..., None], rows)


def newest(values: Tensor, mask: Tensor) -> Tensor:
    """Of each sequence (B, L, d) the last that is there, (B, d); zeros of an empty one."""
    last = mask.sum(1).clamp(min=1) - 1
    found = values[torch.arange(len(values), device=values.device), last]
    return found * mask.any(1, keepdim=True)
