"""The aggregator: a Step from events to the feature store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pydantic import PositiveFloat, PositiveInt

from features.behaviour import Behaviour, BehaviourConfig
from features.definitions import ITEM_STATISTICS, USER_HISTORY, View
from features.statistics import ItemStatistics
from streaming.artefact import Artefact
from streaming.event_columns import Ids, event_columns
from streaming.events import EventRules
from streaming.intake import Intake
from streaming.log import Record

_NOBODY = np.empty(0, np.int64)  # whose history is asked for


@dataclass(frozen=True, slots=True)
class Push:
    """An instruction: these rows, with `view.schema`, are now the newest of their entities."""

    view: View
    rows: pa.Table


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
        actions = self._users.actions(event_columns(taken.events, taken.logged_us))
        if len(actions.rows) == 0:
            return []
        self._users.observe(actions, _NOBODY, _NOBODY)
        items = self._items.update(actions)
        return [self._user_push(np.unique(actions.user_id)), self._item_push(items.tolist())]

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
        found, newest_us = self._users.histories(users)
        offsets = pa.array(found.offsets, pa.int32())
        columns = [
            pa.array(users),
            pa.array(newest_us),
            pa.ListArray.from_arrays(offsets, pa.array(found.items)),
            pa.ListArray.from_arrays(offsets, pa.array(found.rewards)),
            pa.array(newest_us),
        ]
        return _push(USER_HISTORY, columns)

    def _item_push(self, items: list[int]) -> Push:
        statistics = [self._items.get(item) for item in items]
        columns = [
            pa.array(items, pa.int64()),
            pa.array([s.newest_us for s in statistics]),
            pa.array([s.actions for s in statistics]),
            pa.array([s.rewards / s.actions for s in statistics]),
            pa.array([s.popularity for s in statistics]),
        ]
        return _push(ITEM_STATISTICS, columns)


def _push(view: View, columns: Sequence[pa.Array]) -> Push:
    arrays = [column.cast(f.type) for column, f in zip(columns, view.schema, strict=True)]
    return Push(view, pa.Table.from_arrays(arrays, schema=view.schema))
