"""What every user did last, kept in one way for training and for serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from pydantic import PositiveInt

from streaming.artefact import Artefact
from streaming.ids import stable_id
from streaming.joiner import PointInTimeColumns


@dataclass(frozen=True)
class Scale:
    """A reward that grows with the event's value: 0 up to `zero`, 1 from `one` on."""

    zero: float
    one: float


@dataclass(frozen=True)
class BehaviourConfig:
    """The newest `length` actions of a user are kept; `rewards` says which kinds are actions.

    A reward tells how much the action says that the item pleased, from 0 to 1.
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

    def reward(self, kind: str, value: float | None) -> float | None:
        """The reward of an event; None for a kind that is not an action.

        >>> BehaviourConfig().reward("rate", 3.5)
        0.75
        """
        rule = self.rewards.get(kind)
        if isinstance(rule, Scale):
            return min(1.0, max(0.0, ((value or 0.0) - rule.zero) / (rule.one - rule.zero)))
        return rule


@dataclass(slots=True)
class History:
    """One user's newest actions, oldest first, and the event time of the newest (µs)."""

    items: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    newest_us: int = 0


class Behaviour:
    """The history of every user; memory is bounded by users times `length`."""

    def __init__(self, config: BehaviourConfig, state: Artefact | None = None) -> None:
        self._config = config
        self.histories: dict[int, History] = {}
        if state is not None:
            self._restore(state.shards["behaviour"])

    def observe(self, events: pa.RecordBatch) -> PointInTimeColumns:
        """Takes events in log order; for each action, the user's history just before it."""
        actions: list[int] = []
        users: list[int] = []
        items: list[int] = []
        rewards: list[float] = []
        histories: list[list[int]] = []
        history_rewards: list[list[float]] = []
        columns = (events[n].to_pylist() for n in ("kind", "user_id", "item_id", "value"))
        times = events["at"].cast(pa.int64()).to_pylist()
        rows = enumerate(zip(*columns, times, strict=True))
        for row, (kind, user_text, item_text, value, at_us) in rows:
            reward = self._config.reward(kind, value)
            if reward is None or user_text is None or item_text is None:
                continue
            user, item = stable_id(user_text), stable_id(item_text)
            history = self.histories.setdefault(user, History())
            actions.append(row)
            users.append(user)
            items.append(item)
            rewards.append(reward)
            histories.append(history.items[:])
            history_rewards.append(history.rewards[:])
            self._remember(history, item, reward, at_us)
        return PointInTimeColumns(
            np.array(actions, np.int64),
            np.array(users, np.int64),
            np.array(items, np.int64),
            pa.array(histories, pa.list_(pa.int64())),
            pa.array(history_rewards, pa.list_(pa.float32())),
            np.array(rewards, np.float32),
            np.array(times, np.int64)[actions],
        )

    def tables(self) -> dict[str, pa.Table]:
        """All of the state, users in the order in which they first came."""
        histories = list(self.histories.values())
        return {
            "behaviour": pa.table(
                {
                    "user_id": pa.array(list(self.histories), pa.int64()),
                    "items": pa.array([h.items for h in histories], pa.list_(pa.int64())),
                    "rewards": pa.array([h.rewards for h in histories], pa.list_(pa.float64())),
                    "newest_us": pa.array([h.newest_us for h in histories], pa.int64()),
                }
            )
        }

    def _remember(self, history: History, item: int, reward: float, at_us: int) -> None:
        history.items.append(item)
        history.rewards.append(reward)
        history.newest_us = max(history.newest_us, at_us)
        del history.items[: -self._config.length], history.rewards[: -self._config.length]

    def _restore(self, table: pa.Table) -> None:
        columns = (table[n].to_pylist() for n in ("user_id", "items", "rewards", "newest_us"))
        for user, items, rewards, newest_us in zip(*columns, strict=True):
            self.histories[user] = History(items, rewards, newest_us)
