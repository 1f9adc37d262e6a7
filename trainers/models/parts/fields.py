"""Fields: what is known of a pair of user and item, one vector for each thing that is known.

A field is an id (`user_id`, `item_id`, `scenario`, `hour`), the mean of some (`history`, the items
of the newest actions; `disliked`, of those that did not please), or any field of the items'
descriptions by its own name, such as `category`: the mean of its values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from features.batch import Items, Users
from features.shown import Pairs
from streaming.event_columns import field_codes
from streaming.ids import stable_ids
from trainers.table import EmbeddingTable

Tables = Mapping[str, EmbeddingTable]
TABLES = ("user", "item", "token", "context")  # users, items, their tokens, what a visit is like

OF_USERS = ("user_id", "history", "disliked", "scenario", "hour")
_PLEASED = 0.5  # rewards of actions that pleased
_HOUR_US, _HOURS = 3_600_000_000, 24
_HOUR_IDS = stable_ids(f"hour={hour}" for hour in range(_HOURS))


class Fields(nn.Module):
    """The vectors of F fields, of width d: those of users, then those of items.

    Of a history the newest `history` actions are read. The tables are the model's, `TABLES`: a
    trainer may put others in their place.
    """

    def __init__(self, names: Sequence[str], history: int) -> None:
        super().__init__()
        self.of_users = [name for name in names if name in OF_USERS]
        self.of_items = [name for name in names if name not in OF_USERS]
        self._history = history
        self._codes = dict(zip(self.of_items, field_codes(self.of_items).tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.of_users) + len(self.of_items)

    def forward(self, tables: Tables, pairs: Pairs) -> Tensor:
        """(n, F, d); of each user it is computed once."""
        users = self.users(tables, pairs.users)
        rows = torch.from_numpy(pairs.user_of).to(users.device)
        return torch.cat([users[rows], self.items(tables, pairs.items)], 1)

    def users(self, tables: Tables, users: Users) -> Tensor:
        """(m, F_u, d)."""
        pleased, others = users.split(self._history, _PLEASED)
        made = {
            "user_id": lambda: tables["user"](users.ids),
            "history": lambda: tables["item"].mean(pleased.values, pleased.offsets),
            "disliked": lambda: tables["item"].mean(others.values, others.offsets),
            "scenario": lambda: tables["context"](users.scenarios.astype(np.int64) + 1),
            "hour": lambda: tables["context"](_HOUR_IDS[_hours(users)]),
        }
        return torch.stack([made[name]() for name in self.of_users], 1)

    def items(self, tables: Tables, items: Items) -> Tensor:
        """(n, F_i, d)."""
        found = []
        for name in self.of_items:
            if name == "item_id":
                found.append(tables["item"](items.ids))
            else:
                values = items.of_field(self._codes[name])
                found.append(tables["token"].mean(values.values, values.offsets))
        return torch.stack(found, 1)


def _hours(users: Users) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    hours: np.ndarray[tuple[int], np.dtype[np.int64]] = users.at_us // _HOUR_US % _HOURS
    return hours
