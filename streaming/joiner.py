"""The joiner: events in, samples out, each with what was known about its user at that moment."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import PositiveInt

from streaming.arrow_record import filled_columns
from streaming.artefact import Artefact
from streaming.events import EventRules, Rejected
from streaming.ids import stable_id
from streaming.intake import Intake
from streaming.log import DEAD_LETTERS, Append, Record
from streaming.samples import SAMPLE_SCHEMA, encode_samples


class PointInTime(Protocol):
    """The state that the features floor keeps of users; handed in, for this floor knows none."""

    def observe(self, events: pa.RecordBatch) -> PointInTimeColumns:
        """Takes events in order; for each action, what was known just before it."""
        ...

    def tables(self) -> dict[str, pa.Table]:
        """All of the state."""
        ...


@dataclass(frozen=True, slots=True)
class PointInTimeColumns:
    """For the rows `actions` of an event batch: who, what, and the history before it."""

    actions: NDArray[np.int64]
    user_id: NDArray[np.int64]
    item_id: NDArray[np.int64]
    history: pa.ListArray
    history_rewards: pa.ListArray
    reward: NDArray[np.float32]
    at_us: NDArray[np.int64]


@dataclass(frozen=True)
class JoinerConfig:
    """A sample counts as liked from the reward `liked_from` on; `step_size` samples make a step.

    `token_fields` are the item attributes that describe an item to the models.
    """

    step_size: PositiveInt = 256
    liked_from: float = 0.5
    token_fields: tuple[str, ...] = ("genres", "year")
    remembered_events: PositiveInt = 200_000


class Joiner:
    """The Step from `events` to `samples`; what it must refuse goes to `dead-letters`, whole."""

    def __init__(
        self,
        config: JoinerConfig,
        rules: EventRules,
        users: PointInTime,
        state: Artefact | None = None,
    ) -> None:
        self._config = config
        self._users = users
        self._intake = Intake(rules, config.remembered_events)
        if state is not None:
            self._intake.restore(state.shards["intake"])

    def on_batch(self, records: Sequence[Record]) -> list[Append]:
        taken = self._intake.take(records)
        outputs = [_dead_letter(rejected) for rejected in taken.rejected]
        batch = pa.concat_batches(
            [self._declarations(taken.events, taken.logged_us),
             self._samples(taken.events, taken.logged_us)]
        )  # fmt: skip
        for start in range(0, batch.num_rows, self._config.step_size):
            outputs.append(encode_samples(batch.slice(start, self._config.step_size)))
        return outputs

    def on_time(self, now_us: int) -> list[Append]:  # noqa: ARG002
        return []

    def snapshot(self) -> Artefact:
        return Artefact({}, {"intake": self._intake.snapshot(), **self._users.tables()})

    def _samples(self, events: pa.RecordBatch, logged_us: NDArray[np.int64]) -> pa.RecordBatch:
        known = self._users.observe(events)
        rows = events.take(pa.array(known.actions))
        return _columns(
            rows.num_rows,
            user_id=pa.array(known.user_id),
            item_id=pa.array(known.item_id),
            at=rows["at"],
            kind=rows["kind"],
            scenario=rows["scenario"],
            request_id=rows["request_id"],
            position=rows["position"],
            history=known.history,
            history_rewards=known.history_rewards,
            reward=pa.array(known.reward),
            label_liked=pa.array(known.reward >= self._config.liked_from),
            logged_us=pa.array(logged_us[known.actions]),
        )

    def _declarations(self, events: pa.RecordBatch, logged_us: NDArray[np.int64]) -> pa.RecordBatch:
        """The `item` events as rows without a user."""
        where = np.flatnonzero(pc.equal(events["kind"], "item").to_numpy(zero_copy_only=False))
        rows = events.take(pa.array(where))
        tokens = [
            item_tokens(json.loads(text or "{}"), self._config.token_fields)
            for text in rows["attributes"].to_pylist()
        ]
        return _columns(
            rows.num_rows,
            item_id=pa.array([stable_id(item) for item in rows["item_id"].to_pylist()], pa.int64()),
            at=rows["at"],
            kind=rows["kind"],
            item_tokens=pa.array(tokens, SAMPLE_SCHEMA.field("item_tokens").type),
            logged_us=pa.array(logged_us[where]),
        )


def item_tokens(attributes: dict[str, object], fields: Sequence[str]) -> list[int]:
    """What describes an item: the stable id of "field=value" for each value of the fields."""
    tokens = []
    for name in fields:
        value = attributes.get(name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        tokens += [stable_id(f"{name}={one}") for one in values]
    return tokens


def _columns(rows: int, **columns: pa.Array) -> pa.RecordBatch:
    """A batch with `SAMPLE_SCHEMA`; columns that are not given are null."""
    arrays = filled_columns(SAMPLE_SCHEMA, rows, columns)
    return pa.RecordBatch.from_arrays(arrays, schema=SAMPLE_SCHEMA)


def _dead_letter(rejected: Rejected) -> Append:
    """What was refused, with the place it came from and the reason."""
    record, error = rejected.record, rejected.error
    letter = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "row": rejected.row,
        "field": error.field,
        "value": error.value,
        "reason": error.reason,
        "record": base64.b64encode(rejected.raw).decode(),
    }
    return Append(DEAD_LETTERS, json.dumps(letter).encode(), record.key)
