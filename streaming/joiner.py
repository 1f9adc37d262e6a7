"""The joiner: events in, samples out, each with what was known about its user at that moment.

An action without an impression is a sample at once. An impression is joined with what comes of it
(`streaming.impressions`): a positive label leaves as soon as it comes, a negative one when its
window ends, each as a row with only the labels that became known by it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from streaming.arrow_record import filled_columns
from streaming.artefact import Artefact
from streaming.dead_letters import dead_letter
from streaming.event_columns import (
    NONE,
    Actions,
    EventColumns,
    Histories,
    Ids,
    Searches,
    event_columns,
    field_codes,
)
from streaming.event_order import EventOrder, Ordered, encode_tick
from streaming.events import EventRules
from streaming.ids import stable_id
from streaming.impressions import Impressions, ImpressionsConfig, Rows
from streaming.intake import Intake
from streaming.join_kernels import ACTION, EVENT, IMPRESSION, NOTHING
from streaming.log import Append, Record
from streaming.rings import Lists
from streaming.samples import encode_samples, sample_schema

_AT_ONCE = 4_096  # events in one run of the compiled part
_LIVE_WITHIN_US = 60_000_000  # between an event and its record, in a partition that is not replayed


class PointInTime(Protocol):
    """The state that the features floor keeps of users; handed in, for this floor knows none."""

    @property
    def sample_features(self) -> pa.Schema:
        """The columns of samples that `columns` answers with."""
        ...

    def columns(self, histories: Histories, passed_over: Lists) -> dict[str, pa.Array]:
        """What m users did, searched for and passed over before, as columns of samples."""
        ...

    def actions(self, events: EventColumns) -> Actions:
        """The events that are actions."""
        ...

    def searches(self, events: EventColumns) -> Searches:
        """The words of the events that are searches."""
        ...

    def words(self, texts: Sequence[str]) -> list[list[int]]:
        """The words of each text, by the ids that those of searches have."""
        ...

    def observe(self, actions: Actions, searches: Searches, rows: Ids, users: Ids) -> Histories:
        """Takes what was done in order; answers with the histories of `users`, each as it was just
        before row `rows[i]` of the events, ascending.
        """
        ...

    def tables(self) -> dict[str, pa.Table]:
        """All of the state."""
        ...


@dataclass(frozen=True)
class JoinerConfig:
    """A sample counts as liked from the reward `liked_from` on; `step_size` samples make a step.

    `token_fields` are the item attributes that describe an item to the models by their values,
    `text_fields` those that do so by their words: a word is the same token in a title and in a
    search. At most `history` actions and `searched_words` travel with a sample. Events are put in
    the order of their time within `lateness_s`, which delays every sample by as much; 0 takes them
    as they come. Where a partition that follows the clock is silent for `tick_after_s`, a tick
    tells it the time, if that closes a window.
    """

    step_size: PositiveInt = 256
    liked_from: float = 0.5
    token_fields: tuple[str, ...] = ("genres", "year")
    text_fields: tuple[str, ...] = ()
    remembered_events: PositiveInt = 200_000
    history: PositiveInt = 100
    searched_words: NonNegativeInt = 20
    lateness_s: NonNegativeFloat = 0.0
    tick_after_s: PositiveFloat = 1.0
    impressions: ImpressionsConfig = field(default_factory=ImpressionsConfig)


class Joiner:
    """The Step from one partition of `events` to one of `samples`; what it must refuse goes to
    `dead-letters`, whole.
    """

    def __init__(
        self,
        config: JoinerConfig,
        rules: EventRules,
        users: PointInTime,
        state: Artefact | None = None,
        partition: int = 0,
        samples_partition: int = 0,
    ) -> None:
        self._config = config
        self._rules = rules
        self._users = users
        self._partition = partition
        self._samples_partition = samples_partition
        self._labels = {name: n for n, name in enumerate(config.impressions.labels)}
        self._schema = sample_schema(self._labels, users.sample_features)
        self._intake = Intake(rules, config.remembered_events)
        self._order = EventOrder(round(config.lateness_s * 1e6))
        self._impressions = Impressions(
            config.impressions, config.history, config.searched_words, state
        )
        self._kinds: dict[str, int] = {}  # numbered as they come
        self._scenarios: dict[str, int] = {}
        self._logged_us = 0
        self._ticked_us = 0
        self._dealt_with: Ordered | None = None
        if state is not None:
            self._intake.restore(state.shards["intake"])
            self._intake.repeats = state.meta["counts"]["repeated_events"]
            self._order.restore(
                state.shards["held"], state.meta["newest_us"], state.meta["counts"]["late_events"]
            )
            self._kinds = {kind: n for n, kind in enumerate(state.meta["kinds"])}
            self._scenarios = {name: n for n, name in enumerate(state.meta["scenarios"])}
            self._logged_us = state.meta["logged_us"]

    # -- the Step protocol -----------------------------------------------------------------

    def on_batch(self, records: Sequence[Record]) -> list[Append]:
        taken = self._intake.take(records)
        letters = [dead_letter(rejected) for rejected in taken.rejected]
        if len(taken.logged_us):
            self._logged_us = max(self._logged_us, int(taken.logged_us.max()))
        self._dealt_with = self._order.take(taken.events, taken.logged_us)
        return letters + self._joined(self._dealt_with)

    def on_time(self, now_us: int) -> list[Append]:
        """A tick for a partition in which nothing else says that time goes on.

        Time travels through the log like everything else, for only so a replay repeats it.
        """
        lateness_us = round(self._config.lateness_s * 1e6)
        due = []
        if self._order.next_due_us is not None:
            due.append(self._order.next_due_us)
        if self._impressions.next_due_us is not None:
            due.append(self._impressions.next_due_us + lateness_us)
        silent_us = now_us - self._logged_us
        # A replay of the past has a time of its own, and who replays says when it is over.
        live = self._logged_us - self._order.newest_us < _LIVE_WITHIN_US
        # One that was sent may lie behind much that is still to be read.
        quiet_us = min(silent_us, now_us - self._ticked_us)
        if not due or quiet_us < self._config.tick_after_s * 1e6 or not live:
            return []
        tick_us = self._order.newest_us + silent_us
        if tick_us - 1 <= min(due):
            return []
        self._ticked_us = now_us
        return [encode_tick("joiner", tick_us, self._partition)]

    def snapshot(self) -> Artefact:
        meta = {
            "counts": self.counts,
            "newest_us": self._order.newest_us,
            "logged_us": self._logged_us,
            "kinds": list(self._kinds),
            "scenarios": list(self._scenarios),
        }
        return Artefact(
            meta,
            {
                "intake": self._intake.snapshot(),
                "held": self._order.table(),
                **self._impressions.tables(),
                **self._users.tables(),
            },
        )

    @property
    def counts(self) -> dict[str, int]:
        """What became of the events so far, and what is held now."""
        return {
            **self._impressions.counts,
            "late_events": self._order.late,
            "repeated_events": self._intake.repeats,
        }

    @property
    def config(self) -> JoinerConfig:
        return self._config

    @property
    def intake(self) -> Intake:
        """What decided which events were taken; to be looked at."""
        return self._intake

    @property
    def open_impressions(self) -> int:
        return len(self._impressions)

    @property
    def newest_us(self) -> int:
        """The time of the partition, 0 before its first event."""
        return self._order.newest_us

    @property
    def dealt_with(self) -> Ordered | None:
        """The events of the last batch, and of those that waited for it, that were joined."""
        return self._dealt_with

    # -- joining ---------------------------------------------------------------------------

    def _joined(self, ordered: Ordered) -> list[Append]:
        """The micro-batches that the events bring about."""
        batches: list[pa.RecordBatch] = []
        for start in range(0, ordered.events.num_rows, _AT_ONCE):
            end = start + _AT_ONCE
            batches.append(
                self._rows(
                    Ordered(
                        ordered.events.slice(start, _AT_ONCE),
                        ordered.now_us[start:end],
                        ordered.logged_us[start:end],
                    )
                )
            )
        if not batches:
            return []
        rows = pa.concat_batches(batches)
        key, step = b"%d" % self._partition, self._config.step_size
        return [
            encode_samples(rows.slice(start, step), key, self._samples_partition)
            for start in range(0, rows.num_rows, step)
        ]

    def _rows(self, ordered: Ordered) -> pa.RecordBatch:
        """All rows that leave, in the order of the events that made them leave."""
        columns = event_columns(ordered.events, ordered.logged_us)
        served = _served(ordered.events, columns.of_kind("impression"))
        causes: list[Ids] = []
        batches: list[pa.RecordBatch] = []
        for rows in self._impressions.take(*self._told(columns, ordered.now_us, served)):
            causes.append(rows.rows["event"])
            batches.append(self._samples(rows, columns))
        declared = np.flatnonzero(columns.of_kind("item"))
        if len(declared):
            causes.append(declared)
            batches.append(self._declarations(ordered.events.take(pa.array(declared)), columns,
                                              declared))  # fmt: skip
        if not batches:
            return _columns(self._schema, 0)
        together = pa.concat_batches(batches)
        if len(batches) == 1 or not len(declared):
            return together
        return together.take(pa.array(np.argsort(np.concatenate(causes), kind="stable")))

    def _told(
        self, events: EventColumns, now_us: Ids, served: _Served
    ) -> tuple[NDArray[Any], Histories]:
        """What the compiled part is told of the events, with the histories it may need."""
        actions = self._users.actions(events)
        label, value = self._label_of(events)
        reward = np.full(len(events), np.nan, np.float32)
        reward[actions.rows] = actions.reward
        does = np.zeros(len(events), np.int8)
        does[events.of_kind("impression")] = IMPRESSION
        does[(label != NONE) | ~np.isnan(reward)] = ACTION
        does[(events.user_id == NONE) | (events.item_id == NONE)] = NOTHING
        asked = np.flatnonzero(does)
        searches = self._users.searches(events)
        histories = self._users.observe(actions, searches, asked, events.user_id[asked])
        history = np.full(len(events), NONE)
        history[asked] = np.arange(len(asked))
        told = np.empty(len(events), EVENT)
        for name, column in {
            "now_us": now_us,
            "at_us": events.at_us,
            "user_id": events.user_id,
            "item_id": events.item_id,
            "request_id": events.request_id,
            "history": history,
            "position": events.position,
            "scenario": np.append(_numbers(events.scenarios, self._scenarios), NONE)[
                events.scenario
            ],
            "version": served.version,
            "score": served.score,
            "kind": _numbers(events.kinds, self._kinds)[events.kind],
            "label": label,
            "value": value,
            "reward": reward,
            "does": does,
        }.items():
            told[name] = column
        return told, histories

    def _label_of(self, events: EventColumns) -> tuple[Ids, NDArray[np.float32]]:
        """For each event the number of the label it is about, and the label's value."""
        numbers = np.array([self._labels.get(kind, NONE) for kind in events.kinds], np.int64)
        graded = np.array(
            [
                kind in self._labels and self._config.impressions.labels[kind].graded
                for kind in events.kinds
            ],
            np.bool_,
        )
        value = np.where(graded[events.kind], np.nan_to_num(events.value), 1.0)
        return numbers[events.kind], value.astype(np.float32)

    # -- rows ------------------------------------------------------------------------------

    def _samples(self, found: Rows, events: EventColumns) -> pa.RecordBatch:
        rows = found.rows
        kinds = pa.array(list(self._kinds), pa.string())
        scenarios = pa.array(list(self._scenarios), pa.string())
        kind = np.where(rows["kind"] == NONE, self._kinds.get("impression", 0), rows["kind"])
        reward = pa.array(rows["reward"], mask=np.isnan(rows["reward"]))
        liked = rows["reward"] >= self._config.liked_from
        columns = {
            "user_id": pa.array(rows["user_id"]),
            "item_id": pa.array(rows["item_id"]),
            "at": pa.array(rows["at_us"]),
            "kind": kinds.take(pa.array(kind)),
            "scenario": scenarios.take(_nullable(rows["scenario"])),
            "request_id": _nullable(rows["request_id"]),
            "position": _nullable(rows["position"]),
            **self._users.columns(found.histories, found.passed_over),
            "reward": reward,
            "label_liked": pa.array(liked, mask=np.isnan(rows["reward"])),
            "negative_rate": pa.array(
                np.full(len(rows), self._config.impressions.keep_negatives, np.float32),
                mask=~rows["joined"],
            ),
            "served_score": pa.array(rows["score"], mask=np.isnan(rows["score"])),
            "served_version": _nullable(rows["version"]),
            "logged_us": pa.array(events.logged_us[rows["event"]]),
        }
        for name, number in self._labels.items():
            label = found.labels[:, number]
            columns[f"label_{name}"] = pa.array(label, mask=np.isnan(label))
        return _columns(self._schema, len(rows), **columns)

    def _declarations(
        self, items: pa.RecordBatch, events: EventColumns, rows: Ids
    ) -> pa.RecordBatch:
        """The `item` events as rows without a user."""
        described = [json.loads(text or "{}") for text in items["attributes"].to_pylist()]
        names, texts = self._config.token_fields, self._config.text_fields
        codes = field_codes(names).tolist()
        tokens = [item_tokens(one, names) for one in described]
        fields = [_item_fields(one, names, codes) for one in described]
        for name, code in zip(texts, field_codes(texts).tolist(), strict=True):
            said = [" ".join(map(str, _values_of(one.get(name)))) for one in described]
            for number, words in enumerate(self._users.words(said)):
                tokens[number] += words
                fields[number] += [code] * len(words)
        return _columns(
            self._schema,
            len(rows),
            item_id=pa.array(events.item_id[rows]),
            at=items["at"],
            kind=items["kind"],
            item_tokens=pa.array(tokens, self._schema.field("item_tokens").type),
            item_fields=pa.array(fields, self._schema.field("item_fields").type),
            logged_us=pa.array(events.logged_us[rows]),
        )


class _Said(msgspec.Struct):
    """What whoever served an impression says of it among its attributes."""

    score: float | None = None
    version: str | None = None


class _Served(NamedTuple):
    """How each of n events was served: `version` (n,), NONE if it is not known; `score` (n,), NaN
    if it is not known.
    """

    version: Ids
    score: NDArray[np.float32]


_LARGEST = float(np.finfo(np.float32).max)
_SAID = msgspec.json.Decoder(_Said)


def _served(events: pa.RecordBatch, impressions: NDArray[np.bool_]) -> _Served:
    count = events.num_rows
    found = _Served(np.full(count, NONE), np.full(count, np.nan, np.float32))
    said_of = events["attributes"].is_valid().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(impressions & said_of)
    texts = events["attributes"].take(pa.array(rows)).to_pylist()
    for row, text in zip(rows.tolist(), texts, strict=True):
        try:
            said = _SAID.decode(text)
        except (msgspec.ValidationError, msgspec.DecodeError):  # they mean something else by it
            continue
        if said.version is not None:
            found.version[row] = stable_id(said.version)
        if said.score is not None and abs(said.score) < _LARGEST:
            found.score[row] = said.score
    return found


def item_tokens(attributes: dict[str, object], fields: Sequence[str]) -> list[int]:
    """What describes an item: the stable id of "field=value" for each value of the fields."""
    return [
        stable_id(f"{name}={one}") for name in fields for one in _values_of(attributes.get(name))
    ]


def _item_fields(
    attributes: dict[str, object], fields: Sequence[str], codes: Sequence[int]
) -> list[int]:
    """The code of the field of each of the `item_tokens`."""
    each = zip(fields, codes, strict=True)
    return [code for name, code in each for _ in _values_of(attributes.get(name))]


def _values_of(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _numbers(texts: Sequence[str], known: dict[str, int]) -> Ids:
    """The number of each text; one that is not known yet gets the next."""
    return np.array([known.setdefault(text, len(known)) for text in texts], np.int64)


def _nullable(numbers: NDArray[Any]) -> pa.Array:
    return pa.array(numbers, mask=numbers == NONE)


def _columns(schema: pa.Schema, rows: int, **columns: pa.Array) -> pa.RecordBatch:
    """A batch with this schema; columns that are not given are null."""
    return pa.RecordBatch.from_arrays(filled_columns(schema, rows, columns), schema=schema)
