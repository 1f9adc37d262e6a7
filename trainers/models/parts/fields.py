"""Fields: what is known of a pair of user and item, one vector for each thing that is known.

A field is an id (`user_id`, `item_id`, `scenario`, `hour`), the mean of some (`history`, the items
of the newest actions; `disliked`, of those that did not please), or any field of the items'
descriptions by its own name, such as `category`: the mean of its values. Such a one is `coec`, how
an item does where it is shown (`trainers.item_response`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from features.batch import Ids, Items, Jagged, Users
from features.shown import Pairs
from streaming.event_columns import field_codes
from streaming.ids import stable_ids
from trainers.models.parts.products import joined
from trainers.table import EmbeddingTable

Tables = Mapping[str, EmbeddingTable]
TABLES = ("user", "item", "token", "context")  # users, items, their tokens, what a visit is like

OF_USERS = ("user_id", "history", "disliked", "scenario", "hour")
_TAKEN = ("history", "disliked")
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
        described = [name for name in names if name not in (*OF_USERS, "item_id")]
        self.of_users = [name for name in names if name in OF_USERS]
        self.of_items = [*(["item_id"] if "item_id" in names else []), *described]
        self._history = history
        self._codes = field_codes(described)

    def __len__(self) -> int:
        return len(self.of_users) + len(self.of_items)

    def forward(self, tables: Tables, pairs: Pairs) -> Tensor:
        """(n, F, d); of each user it is computed once."""
        users = self.users(tables, pairs.users)
        rows = torch.from_numpy(pairs.user_of).to(users.device)
        return torch.cat([users[rows], self.items(tables, pairs.items)], 1)

    def users(self, tables: Tables, users: Users) -> Tensor:
        """(m, F_u, d)."""
        found: dict[str, Tensor] = {}
        if "user_id" in self.of_users:
            found["user_id"] = tables["user"](users.ids)
        found |= self._taken(tables["item"], users)
        found |= self._visits(tables["context"], users)
        return torch.stack([found[name] for name in self.of_users], 1)

    def items(self, tables: Tables, items: Items) -> Tensor:
        """(n, F_i, d)."""
        found = joined(self.item_parts(tables, items))
        return found.view(len(found), len(self.of_items), -1)

    def item_parts(self, tables: Tables, items: Items) -> list[Tensor]:
        """(n, F_i * d), in a part for each table: not joined before it is known how."""
        found = []
        if "item_id" in self.of_items:
            found.append(tables["item"](items.ids))
        if len(self._codes):
            tokens = items.of_fields(self._codes)
            means = tables["token"].mean(tokens.values, tokens.offsets)
            found.append(means.view(len(items.ids), -1))
        return found

    # Of one table all is read at once: every call has its price, whatever it reads.

    def _taken(self, table: EmbeddingTable, users: Users) -> Mapping[str, Tensor]:
        """What is wanted of the items that users took, (m, d) each."""
        wanted = [name for name in self.of_users if name in _TAKEN]
        if not wanted:
            return {}
        split = dict(zip(_TAKEN, users.split(self._history, _PLEASED), strict=True))
        lists = Jagged.joined([split[name] for name in wanted])
        means = table.mean(lists.values, lists.offsets)
        return dict(zip(wanted, means.chunk(len(wanted)), strict=True))

    def _visits(self, table: EmbeddingTable, users: Users) -> Mapping[str, Tensor]:
        """What is wanted of what the users' visits are like, (m, d) each."""
        wanted = [name for name in self.of_users if name in _VISITS]
        if not wanted:
            return {}
        read = table(np.concatenate([_VISITS[name](users) for name in wanted]))
        return dict(zip(wanted, read.chunk(len(wanted)), strict=True))


def _scenarios(users: Users) -> Ids:
    return users.scenarios.astype(np.int64) + 1


def _hours(users: Users) -> Ids:
    hours: Ids = _HOUR_IDS[users.at_us // _HOUR_US % _HOURS]
    return hours


_VISITS = {"scenario": _scenarios, "hour": _hours}
