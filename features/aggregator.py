"""The aggregator: a Step from events to the feature store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from pydantic import PositiveFloat, PositiveInt

from features.behaviour import Behaviour, BehaviourConfig
from features.definitions import EVENT_TIME, ITEM_STATISTICS, STEP, USER_HISTORY, View
from features.history_columns import pushed_columns, step_columns
from features.response import ItemResponse, ResponseConfig
from features.statistics import ItemStatistics
from streaming.artefact import Artefact
from streaming.event_columns import Ids, event_columns
from streaming.events import EventRules
from streaming.intake import Intake
from streaming.log import Record

_NOBODY = np.empty(0, np.int64)  # whose history is asked for


@dataclass(frozen=True, slots=True)
class Push:
    """An instruction: these rows, with `view.schema`, are now the newest of their entities.

    `logged_us` is when the oldest event that they tell of reached the log. Of a view with sequences
    `steps`, with `view.offline_schema`, is what the offline store keeps of them.
    """

    view: View
    rows: pa.Table
    logged_us: int | None = None
    steps: pa.Table | None = None


@dataclass(frozen=True)
class AggregatorConfig:
    """`popularity_half_life` counts actions; `response` says what of impressions and clicks counts
    for an item's CTR and COEC.
    """

    popularity_half_life: PositiveFloat = 5_000.0
    remembered_events: PositiveInt = 200_000
    response: ResponseConfig = field(default_factory=ResponseConfig)


class Aggregator:
    """Keeps the same state of users as the joiner does, and pushes what changed of it."""

    def __init__(
        self,
        config: AggregatorConfig,
        rules: EventRules,
        behaviour: BehaviourConfig,
        state: Artefact | None = None,
    ) -> None:
        self._intake = Intake(rules, config.remembered_events)
        self._users = Behaviour(behaviour, state)
        self._items = ItemStatistics(config.popularity_half_life, state)
        self._response = ItemResponse(config.response, state)
        self._clock_us = 0  # the newest event time
        self._steps = 0  # of histories, ever
        self._kept = behaviour.length, behaviour.searched_words
        if state is not None:
            self._intake.restore(state.shards["intake"])
            self._steps, self._clock_us = state.meta["steps"], state.meta["clock_us"]

    def on_batch(self, records: Sequence[Record]) -> list[Push]:
        taken = self._intake.take(records)
        events = event_columns(taken.events, taken.logged_us)
        self._clock_us = int(events.at_us.max(initial=self._clock_us))
        actions, searches = self._users.actions(events), self._users.searches(events)
        pushes = []
        users = np.unique(np.concatenate([actions.user_id, searches.user_id]))
        if len(users):
            before_us = self._users.newest_us(users)
            self._users.observe(actions, searches, _NOBODY, _NOBODY)
            steps = step_columns(actions, searches, users, before_us, self._steps, self._kept)
            self._steps += len(steps[STEP])
            pushes.append(self._user_push(users, steps))
        items = np.union1d(self._items.update(actions), self._response.update(events))
        if len(items):
            pushes.append(self._item_push(items))
        return [replace(push, logged_us=int(taken.logged_us.min())) for push in pushes]

    def on_time(self, now_us: int) -> list[Push]:  # noqa: ARG002
        return []

    def snapshot(self) -> Artefact:
        return self._state(None)

    def mark(self) -> tuple[int, int]:
        return self._users.mark()

    def changes(self, since: tuple[int, int]) -> Artefact:
        """As `snapshot`, but of users only what changed since a mark."""
        return self._state(since)

    def settle(self, mark: tuple[int, int]) -> None:
        """Nothing is kept that would be needed no longer."""

    def _state(self, since: tuple[int, int] | None) -> Artefact:
        shards = {
            "intake": self._intake.snapshot(),
            **self._users.tables(since),
            **self._items.tables(),
            **self._response.tables(),
        }
        meta = {"users": len(self._users), "steps": self._steps, "clock_us": self._clock_us}
        return Artefact(meta, shards)

    def _user_push(self, users: Ids, steps: Mapping[str, pa.Array]) -> Push:
        found, newest_us = self._users.histories(users)
        rows = _table(USER_HISTORY.schema, pushed_columns(users, found, newest_us))
        return Push(USER_HISTORY, rows, steps=_table(USER_HISTORY.offline_schema, steps))

    def _item_push(self, items: Ids) -> Push:
        found, response = self._items.columns(items), self._response.columns(items, self._clock_us)
        mean_reward = found.rewards / np.maximum(found.actions, 1)
        columns = {
            ITEM_STATISTICS.key: pa.array(items),
            EVENT_TIME: pa.array(np.maximum(found.newest_us, response.newest_us)),
            "actions": pa.array(found.actions),
            "mean_reward": pa.array(mean_reward, mask=found.actions == 0),
            "popularity": pa.array(found.popularity),
            "ctr": pa.array(response.ctr),
            "coec": pa.array(response.coec),
        }
        return Push(ITEM_STATISTICS, _table(ITEM_STATISTICS.schema, columns))


def _table(schema: pa.Schema, columns: Mapping[str, pa.Array]) -> pa.Table:
    arrays = [columns[field.name].cast(field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)
