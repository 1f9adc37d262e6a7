"""The aggregator: a Step from events to the feature store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from pydantic import PositiveFloat, PositiveInt

from features.behaviour import Behaviour, BehaviourConfig
from features.definitions import EVENT_TIME, ITEM_STATISTICS, USER_HISTORY, View
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

    `logged_us` is when the oldest event that they tell of reached the log.
    """

    view: View
    rows: pa.Table
    logged_us: int | None = None


@dataclass(frozen=True)
class AggregatorConfig:
    """`popularity_half_life` counts actions."""

    popularity_half_life: PositiveFloat = 5_000.0
    remembered_events: PositiveInt = 200_000


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
        if state is not None:
            self._intake.restore(state.shards["intake"])

    def on_batch(self, records: Sequence[Record]) -> list[Push]:
        taken = self._intake.take(records)
        events = event_columns(taken.events, taken.logged_us)
        actions, searches = self._users.actions(events), self._users.searches(events)
        users = np.unique(np.concatenate([actions.user_id, searches.user_id]))
        if len(users) == 0:
            return []
        self._users.observe(actions, searches, _NOBODY, _NOBODY)
        pushes = [self._user_push(users)]
        if len(actions.rows):
            pushes.append(self._item_push(self._items.update(actions)))
        return [replace(push, logged_us=int(taken.logged_us.min())) for push in pushes]

    def on_time(self, now_us: int) -> list[Push]:  # noqa: ARG002
        return []

    def snapshot(self) -> Artefact:
        shards = {
            "intake": self._intake.snapshot(),
            **self._users.tables(),
            **self._items.tables(),
        }
        return Artefact({"users": len(self._users)}, shards)

    def _user_push(self, users: Ids) -> Push:
        """All that is known of them, of which those columns go that the view declares."""
        found, newest_us = self._users.histories(users)
        actions, searches = found.actions.columns(), found.searches.columns()
        values = actions["value"]  # without nulls, which lists in Feast cannot have
        values = pa.ListArray.from_arrays(values.offsets, values.values.fill_null(float("nan")))
        known = {
            USER_HISTORY.key: pa.array(users),
            EVENT_TIME: pa.array(newest_us),
            "newest_us": pa.array(newest_us),
            "items": actions["item"],
            "rewards": actions["reward"],
            "kinds": actions["kind"],
            "at_us": actions["at_us"],
            "scenarios": actions["scenario"],
            "values": values,
            "searched": searches["id"],
            "searched_at_us": searches["at_us"],
        }
        return _push(USER_HISTORY, [known[name] for name in USER_HISTORY.schema.names])

    def _item_push(self, items: Ids) -> Push:
        found = self._items.columns(items)
        columns = [
            pa.array(items),
            pa.array(found.newest_us),
            pa.array(found.actions),
            pa.array(found.rewards / found.actions),
            pa.array(found.popularity),
        ]
        return _push(ITEM_STATISTICS, columns)


def _push(view: View, columns: Sequence[pa.Array]) -> Push:
    arrays = [column.cast(f.type) for column, f in zip(columns, view.schema, strict=True)]
    return Push(view, pa.Table.from_arrays(arrays, schema=view.schema))
