"""What every user did last, kept in one way for training and for serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import PositiveInt

from streaming.artefact import Artefact
from streaming.event_columns import NONE, Actions, EventColumns, Histories, Ids
from streaming.kernels import (
    EMPTY,
    compiled,
    find_rows,
    get,
    grown,
    has_room,
    internal,
    put,
    rehash,
    remove,
    slots_for,
)

# What is kept of a user beside the actions themselves; `older` and `newer` chain the users in the
# order in which they last acted, so that the one to forget is found at once.
_USER = np.dtype(
    [
        ("user_id", np.int64),
        ("older", np.int64),
        ("newer", np.int64),
        ("actions", np.int64),  # ever; the newest `length` lie in a ring
        ("newest_us", np.int64),
    ]
)


@dataclass(frozen=True)
class Scale:
    """A reward that grows with the event's value: 0 up to `zero`, 1 from `one` on."""

    zero: float
    one: float


@dataclass(frozen=True)
class BehaviourConfig:
    """The newest `length` actions of a user are kept; `rewards` says which kinds are actions.

    A reward tells how much the action says that the item pleased, from 0 to 1. At most `users`
    are remembered: who has not acted for longest is forgotten first.
    """

    length: PositiveInt = 100
    rewards: Mapping[str, float | Scale] = field(
        default_factory=lambda: {
            "click": 0.3,
            "like": 1.0,
            "wish": 0.7,
            "cart": 0.8,
            "buy": 1.0,
            "watch": Scale(zero=0.1, one=0.8),
            "rate": Scale(zero=2.0, one=4.0),
        }
    )
    users: PositiveInt = 1_000_000

    def actions(self, events: EventColumns) -> Actions:
        """The events that are actions, each with its reward."""
        rewards = np.full(len(events), np.nan, np.float32)
        for number, kind in enumerate(events.kinds):
            rule = self.rewards.get(kind)
            if rule is None:
                continue
            rows = np.flatnonzero(events.kind == number)
            if isinstance(rule, Scale):
                values = np.nan_to_num(events.value[rows])
                rewards[rows] = np.clip((values - rule.zero) / (rule.one - rule.zero), 0.0, 1.0)
            else:
                rewards[rows] = rule
        known = (events.user_id != NONE) & (events.item_id != NONE)
        rows = np.flatnonzero(~np.isnan(rewards) & known)
        return Actions(
            rows, events.user_id[rows], events.item_id[rows], rewards[rows], events.at_us[rows]
        )


class Behaviour:
    """The history of every user, in memory bounded by `users` times `length` actions."""

    def __init__(self, config: BehaviourConfig, state: Artefact | None = None) -> None:
        self._config = config
        self._slots = slots_for(0)  # user -> row
        self._chain = np.array([EMPTY, EMPTY, 0])  # rows: acted longest ago, acted last, in use
        self._users = np.zeros(0, _USER)
        self._items = np.zeros((0, config.length), np.int64)
        self._rewards = np.zeros((0, config.length), np.float32)
        if state is not None:
            self._restore(state.shards["behaviour"])

    def __len__(self) -> int:
        return int(self._chain[2])

    def actions(self, events: EventColumns) -> Actions:
        """The events that are actions, each with its reward."""
        return self._config.actions(events)

    def observe(self, actions: Actions, rows: Ids, users: Ids) -> Histories:
        """Takes the actions in order; answers with the histories of `users`, each as it was just
        before row `rows[i]` of the events, ascending.
        """
        self._make_room(len(actions.rows))
        found = _room_for(len(rows), len(rows) * self._config.length)
        _observe(
            (self._slots, self._chain, self._users, self._items, self._rewards),
            (actions.rows, actions.user_id, actions.item_id, actions.reward, actions.at_us),
            (rows, users),
            (found.offsets, found.items, found.rewards),
        )
        size = found.offsets[-1]
        return Histories(found.offsets, found.items[:size], found.rewards[:size])

    def histories(self, users: Ids) -> tuple[Histories, Ids]:
        """The history of each user as it is now, and the event time of the newest action (µs).

        Who never acted has an empty history and the time 0.
        """
        rows = np.empty(len(users), np.int64)
        find_rows(self._slots, users, rows)
        return self._gather(rows)

    def tables(self) -> dict[str, pa.Table]:
        """All of the state, who acted longest ago first."""
        rows = np.empty(len(self), np.int64)
        _walk(self._chain[0], self._users, rows)
        found, newest_us = self._gather(rows)
        offsets = pa.array(found.offsets, pa.int32())
        columns = {
            "user_id": self._users["user_id"][rows],
            "items": pa.ListArray.from_arrays(offsets, pa.array(found.items)),
            "rewards": pa.ListArray.from_arrays(offsets, pa.array(found.rewards)),
            "newest_us": newest_us,
        }
        return {"behaviour": pa.table(columns)}

    def _gather(self, rows: Ids) -> tuple[Histories, Ids]:
        """What is kept in these rows; nothing for EMPTY."""
        known = rows != EMPTY
        users = self._users[rows] if len(self._users) else np.zeros(len(rows), _USER)
        lengths = np.where(known, np.minimum(users["actions"], self._config.length), 0)
        found = _room_for(len(rows), lengths.sum())
        np.cumsum(lengths, out=found.offsets[1:])
        ring = (self._items, self._rewards)
        _copy_rows(rows, users["actions"], ring, (found.offsets, found.items, found.rewards))
        return found, np.where(known, users["newest_us"], 0)

    def _restore(self, table: pa.Table) -> None:
        """As if every user had done again what is remembered of him."""
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        lengths = columns["items"].value_lengths().to_numpy(zero_copy_only=False)
        users, newest_us = (
            np.repeat(columns[name].to_numpy(), lengths) for name in ("user_id", "newest_us")
        )
        items = columns["items"].flatten().to_numpy(zero_copy_only=False)
        rewards = columns["rewards"].flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
        nothing = np.empty(0, np.int64)
        again = Actions(np.arange(len(users)), users, items, rewards, newest_us)
        self.observe(again, nothing, nothing)

    def _make_room(self, more: int) -> None:
        """For `more` users who are new, as far as the bound on users allows."""
        needed = min(len(self) + more, self._config.users)
        if needed > len(self._users):
            rows = min(max(64, needed, 2 * len(self._users)), self._config.users)
            self._users = grown(self._users, rows)
            self._items, self._rewards = grown(self._items, rows), grown(self._rewards, rows)
        if not has_room(self._slots, needed):
            roomy = slots_for(needed)
            rehash(self._slots, roomy)
            self._slots = roomy


def _room_for(lists: int, actions: int) -> Histories:
    return Histories(
        np.zeros(lists + 1, np.int64), np.empty(actions, np.int64), np.empty(actions, np.float32)
    )


# -- compiled --------------------------------------------------------------------------------


@compiled
def _observe(state: Any, actions: Any, asked: Any, found: Any) -> None:
    """Writes the histories that are asked for, and remembers the actions, in the order of rows."""
    slots, chain, users, items, rewards = state
    action_rows, action_users, action_items, action_rewards, action_times = actions
    asked_rows, asked_users = asked
    offsets, found_items, found_rewards = found
    next_asked = 0
    for i in range(action_rows.size + 1):
        until = action_rows[i] if i < action_rows.size else np.iinfo(np.int64).max
        while next_asked < asked_rows.size and asked_rows[next_asked] <= until:
            row = get(slots, asked_users[next_asked])
            start = offsets[next_asked]
            size = 0 if row == EMPTY else _copy(
                row, users[row].actions, items, rewards, found_items[start:], found_rewards[start:]
            )  # fmt: skip
            next_asked += 1
            offsets[next_asked] = start + size
        if i == action_rows.size:
            return
        row = _row_of(action_users[i], slots, chain, users)
        place = users[row].actions % items.shape[1]
        items[row, place] = action_items[i]
        rewards[row, place] = action_rewards[i]
        users[row].actions += 1
        users[row].newest_us = max(users[row].newest_us, action_times[i])


@internal
def _row_of(user: int, slots: Ids, chain: Ids, users: Any) -> int:
    """The row of a user who acts now; a new one may take that of who acted longest ago."""
    row = get(slots, user)
    if row != EMPTY and chain[1] == row:
        return row
    if row != EMPTY:
        _unchain(row, chain, users)
    else:
        row = int(chain[2])
        if row < users.size:
            chain[2] += 1
        else:
            row = int(chain[0])
            _unchain(row, chain, users)
            remove(slots, users[row].user_id)
        put(slots, user, row)
        users[row].user_id = user
        users[row].actions = 0
        users[row].newest_us = 0
    users[row].older = chain[1]
    users[row].newer = EMPTY
    if chain[1] == EMPTY:
        chain[0] = row
    else:
        users[chain[1]].newer = row
    chain[1] = row
    return row


@internal
def _unchain(row: int, chain: Ids, users: Any) -> None:
    older, newer = users[row].older, users[row].newer
    if older == EMPTY:
        chain[0] = newer
    else:
        users[older].newer = newer
    if newer == EMPTY:
        chain[1] = older
    else:
        users[newer].older = older


@internal
def _copy(row: int, actions: int, items: Any, rewards: Any, to_items: Any, to_rewards: Any) -> int:
    """One user's ring, oldest first; returns how many there are."""
    length = items.shape[1]
    size = int(min(actions, length))
    for i in range(size):
        place = (actions - size + i) % length
        to_items[i] = items[row, place]
        to_rewards[i] = rewards[row, place]
    return size


@compiled
def _copy_rows(rows: Ids, actions: Ids, ring: Any, found: Any) -> None:
    items, rewards = ring
    offsets, found_items, found_rewards = found
    for i in range(rows.size):
        if rows[i] != EMPTY:
            start = offsets[i]
            _copy(
                rows[i], actions[i], items, rewards, found_items[start:], found_rewards[start:]
            )  # fmt: skip


@compiled
def _walk(row: int, users: Any, rows: Ids) -> None:
    for i in range(rows.size):
        rows[i] = row
        row = users[row].newer
