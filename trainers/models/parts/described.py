"""The items of histories as a model reads all items: by ids and by what describes them.

Each is read once, however many actions it is in: of a step's actions most are on few items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from features.batch import Ids, Items, Jagged, Users
from features.tensors import PaddedHistory, pad_history


@dataclass(frozen=True, slots=True)
class HistoryItems:
    """The N distinct items of the newest L actions of B users, and which action is on which.

    `numbers` (B, L) count the items from 1 on, and are 0 where no action is, as in `padded`.
    """

    items: Items
    numbers: Tensor
    padded: PaddedHistory

    def of_actions(self, values: Tensor) -> Tensor:
        """What is known of each item (N, d), for each action (B, L, d); zeros where none is."""
        behind = F.pad(values, (0, 0, 1, 0))  # (1 + N, d), the first of no action
        return F.embedding(self.numbers.to(values.device), behind, padding_idx=0)


def history_items(users: Users, length: int) -> HistoryItems:
    """The items of the newest `length` actions of each user, or of the most that anyone has.

    Raises:
        ValueError: the model has not asked for descriptions (`trainers.models.Retriever`).
    """
    longest = int(users.history.lengths.max(initial=0))
    padded = pad_history(users, users.at_us, max(1, min(length, longest)))
    there = padded.mask.numpy()
    ids, numbers = np.unique(padded.items.numpy()[there], return_inverse=True)
    numbered = np.zeros(there.shape, np.int64)
    numbered[there] = numbers + 1
    return HistoryItems(_described(ids, users.described), torch.from_numpy(numbered), padded)


def _described(ids: Ids, known: Items | None) -> Items:
    """The items with these distinct ids; nothing describes one that is not among the known."""
    if known is None:
        raise ValueError("a model that reads what describes histories says `describes = True`")
    found = np.isin(ids, known.ids)
    of_found = known.take(np.searchsorted(known.ids, ids[found]))
    lengths = np.zeros(len(ids), np.int64)
    lengths[found] = of_found.tokens.lengths
    return Items(ids, Jagged.of(of_found.tokens.values, lengths), of_found.fields)
