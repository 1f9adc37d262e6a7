"""Arrow samples to what models read: one place, no Python loop over rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.definitions import SAMPLE_FEATURES, FeatureError, type_name
from streaming.event_columns import NONE, scenario_codes
from streaming.kernels import compiled_briefly

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Jagged:
    """n lists in one array: list i is `values[offsets[i]:offsets[i + 1]]`; offsets (n + 1,)."""

    values: Ids
    offsets: Ids

    @staticmethod
    def of(values: Ids, lengths: Ids) -> Jagged:
        """The lists that lie one after another in `values`, by their lengths (n,).

        >>> Jagged.of(np.array([7, 8, 9]), np.array([2, 0, 1])).offsets.tolist()
        [0, 2, 2, 3]
        """
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return Jagged(values, offsets)

    @staticmethod
    def from_column(column: pa.ListArray) -> Jagged:
        """A list column; a null list reads as an empty one."""
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        return Jagged.of(column.flatten().to_numpy(zero_copy_only=False), lengths)

    @staticmethod
    def joined(several: Sequence[Jagged]) -> Jagged:
        """All lists of the first, then those of the second, and so on."""
        values = [one.values for one in several]
        return Jagged.of(np.concatenate(values), np.concatenate([one.lengths for one in several]))

    def column(self) -> pa.ListArray:
        """The lists as a column; `from_column` takes it back."""
        return pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), pa.array(self.values))

    @property
    def lengths(self) -> Ids:
        return np.diff(self.offsets)

    def take(self, lists: Ids) -> Jagged:
        """The lists with these numbers."""
        places = self.places(lists)
        return Jagged(self.values[places.values], places.offsets)

    def places(self, lists: Ids) -> Jagged:
        """Where in `values` the lists with these numbers lie; for columns beside `values`."""
        lengths = self.lengths[lists]
        taken = Jagged.of(np.empty(0, np.int64), lengths)
        starts = np.repeat(self.offsets[lists] - taken.offsets[:-1], lengths)
        return Jagged(starts + np.arange(len(starts)), taken.offsets)

    def where(self, chosen: NDArray[np.bool_]) -> Jagged:
        """The same lists with only the chosen values."""
        kept = np.bincount(self.owners()[chosen], minlength=len(self.offsets) - 1)
        return Jagged.of(self.values[chosen], kept)

    def owners(self) -> Ids:
        """For each value the number of the list it is in."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)


_UNKNOWN_FIELDS = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Items:
    """n items as a model sees them: `ids` (n,), the tokens that describe each, and of each token
    the field that it is a value of, by its `streaming.event_columns.field_codes`; NONE where that
    is not known, as in samples of older releases.
    """

    ids: Ids
    tokens: Jagged
    fields: NDArray[np.int32] = field(default_factory=lambda: _UNKNOWN_FIELDS)

    def __post_init__(self) -> None:
        if self.fields is _UNKNOWN_FIELDS:
            object.__setattr__(self, "fields", np.full(len(self.tokens.values), NONE, np.int32))

    def of_field(self, code: int) -> Jagged:
        """Of each item only the tokens of one field."""
        return self.tokens.where(self.fields == code)

    def of_fields(self, codes: NDArray[np.int32]) -> Jagged:
        """The tokens of F fields, of which each is told apart: n * F lists, those of the first item
        before those of the second.
        """
        tokens = self.tokens
        return Jagged(*_by_field(tokens.values, tokens.offsets, self.fields, codes))

    def take(self, rows: Ids) -> Items:
        """The items with these numbers."""
        places = self.tokens.places(rows)
        return Items(
            self.ids[rows],
            Jagged(self.tokens.values[places.values], places.offsets),
            self.fields[places.values],
        )


@dataclass(frozen=True, slots=True)
class Details:
    """What else is known of each of m actions, each column (m,).

    `kinds` are places in the recipe's `behaviour.rewards`, `scenarios` and `sessions` the codes of
    `streaming.event_columns.codes`, -1 where it is not known or there was none; `at_us` is 0 where
    it is not known; `values` are those of the events, NaN where there was none.
    """

    kinds: NDArray[np.int32]
    at_us: Ids
    scenarios: NDArray[np.int32]
    sessions: NDArray[np.int32]
    values: NDArray[np.float32]

    @staticmethod
    def unknown(actions: int) -> Details:
        """Of so many actions of which nothing else is known, as in samples of older releases."""
        return Details(
            np.full(actions, NONE, np.int32),
            np.zeros(actions, np.int64),
            np.full(actions, NONE, np.int32),
            np.full(actions, NONE, np.int32),
            np.full(actions, np.nan, np.float32),
        )

    def take(self, places: Any) -> Details:
        """Those at these places, or where a mask (m,) says so."""
        return Details(
            self.kinds[places],
            self.at_us[places],
            self.scenarios[places],
            self.sessions[places],
            self.values[places],
        )


_NOT_SAID = np.empty(0, np.bool_)


@dataclass(frozen=True, slots=True)
class Moments:
    """n lists of ids, oldest first, with a time (µs) for each value: what users searched for, word
    by word (words with the same time are of one search), or which items they passed over.

    `suggested` says of each word whether its search was only suggested to the user: False where
    that is not known, as in samples of older releases.
    """

    ids: Jagged
    at_us: Ids
    suggested: NDArray[np.bool_] = field(default_factory=lambda: _NOT_SAID)

    def __post_init__(self) -> None:
        if self.suggested is _NOT_SAID:
            object.__setattr__(self, "suggested", np.zeros(len(self.at_us), np.bool_))

    @staticmethod
    def none(lists: int) -> Moments:
        """So many empty lists."""
        nothing = np.empty(0, np.int64)
        return Moments(Jagged(nothing, np.zeros(lists + 1, np.int64)), nothing)

    def take(self, lists: Ids) -> Moments:
        """The lists with these numbers."""
        places = self.ids.places(lists)
        return Moments(
            Jagged(self.ids.values[places.values], places.offsets),
            self.at_us[places.values],
            self.suggested[places.values],
        )


_UNKNOWN, _NONE = Details.unknown(0), Moments.none(0)
_NO_TIMES, _NO_SCENARIOS = np.empty(0, np.int64), np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Users:
    """n users as a model sees them; `rewards` and `details` have one entry for each value of
    `history`. What is not given is not known of anybody.

    `at_us` (n,) is when each is asked about, 0 if that is not known, and `scenarios` (n,) where, by
    the codes of `streaming.event_columns`. `described` is what describes the items of all their
    histories, each once, sorted by id; None but for a model that asks for it.
    """

    ids: Ids
    history: Jagged
    rewards: NDArray[np.float32]
    details: Details = _UNKNOWN
    searched: Moments = _NONE
    passed_over: Moments = _NONE
    at_us: Ids = field(default_factory=lambda: _NO_TIMES)
    scenarios: NDArray[np.int32] = field(default_factory=lambda: _NO_SCENARIOS)
    described: Items | None = None

    def __post_init__(self) -> None:
        if self.details is _UNKNOWN:
            object.__setattr__(self, "details", Details.unknown(len(self.rewards)))
        for name in ("searched", "passed_over"):
            if getattr(self, name) is _NONE:
                object.__setattr__(self, name, Moments.none(len(self.ids)))
        if self.at_us is _NO_TIMES:
            object.__setattr__(self, "at_us", np.zeros(len(self.ids), np.int64))
        if self.scenarios is _NO_SCENARIOS:
            object.__setattr__(self, "scenarios", np.full(len(self.ids), NONE, np.int32))

    def split(self, count: int, least: float) -> tuple[Jagged, Jagged]:
        """Of the newest `count` actions of each the items of those whose reward was at least so
        much, and the items of the others.
        """
        history = self.history
        values, ends = _split(history.values, history.offsets, self.rewards, count, least)
        those, others = (Jagged(v[: e[-1]], e) for v, e in zip(values, ends, strict=True))
        return those, others

    def take(self, rows: Ids) -> Users:
        """The users with these numbers."""
        places = self.history.places(rows)
        return Users(
            self.ids[rows],
            Jagged(self.history.values[places.values], places.offsets),
            self.rewards[places.values],
            self.details.take(places.values),
            self.searched.take(rows),
            self.passed_over.take(rows),
            self.at_us[rows],
            self.scenarios[rows],
            self.described,
        )

    def history_tokens(self, code: int) -> Jagged:
        """What describes the item of each action (m,) in one field; nothing of an item of which
        nothing is known.

        Raises:
            ValueError: the model has not asked for descriptions (`trainers.models.Retriever`).
        """
        if self.described is None:
            raise ValueError("a model that reads what describes histories says `describes = True`")
        known, actions = self.described.ids, self.history.values
        if not len(known):
            return Jagged.of(_NO_TIMES, np.zeros(len(actions), np.int64))
        rows = np.minimum(np.searchsorted(known, actions), len(known) - 1)
        tokens = self.described.of_field(code).take(rows)
        found = np.repeat(known[rows] == actions, tokens.lengths)
        return tokens.where(found)

    def where(self, chosen: NDArray[np.bool_]) -> Users:
        """The same users with only the chosen actions (m,) of their histories."""
        return replace(
            self,
            history=self.history.where(chosen),
            rewards=self.rewards[chosen],
            details=self.details.take(chosen),
        )


@dataclass(frozen=True, slots=True)
class Samples:
    """A micro-batch of n samples: who, which item (n,), how much it pleased (n,), and when."""

    users: Users
    item_ids: Ids
    rewards: NDArray[np.float32]
    liked: NDArray[np.bool_]
    at_us: Ids


def read_samples(batch: pa.RecordBatch) -> Samples:
    """The rows of a micro-batch that are actions: what a retrieval model learns from."""
    rows = batch.filter(pc.and_(batch["user_id"].is_valid(), batch["reward"].is_valid()))
    return Samples(
        read_users(rows),
        rows["item_id"].to_numpy(),
        rows["reward"].to_numpy(),
        rows["label_liked"].fill_null(False).to_numpy(zero_copy_only=False),
        rows["at"].cast(pa.int64()).to_numpy(),
    )


def read_users(rows: pa.RecordBatch) -> Users:
    """The users of rows that are samples, as each was known at the moment of his row.

    Features that were not declared yet when the samples were made are not known of anybody.

    Raises:
        FeatureError: a feature in them has another type than is declared.
    """
    found = _features(rows)
    history = Jagged.from_column(found["history"])
    return Users(
        rows["user_id"].to_numpy(),
        history,
        found["history_rewards"].flatten().to_numpy(zero_copy_only=False),
        Details(
            _beside(history, found["history_kinds"], NONE),
            _beside(history, found["history_at_us"], 0),
            _beside(history, found["history_scenarios"], NONE),
            _beside(history, found["history_sessions"], NONE),
            _beside(history, found["history_values"], np.nan),
        ),
        _moments(found["searched"], found["searched_at_us"], found["searched_suggested"]),
        _moments(found["passed_over"], found["passed_over_at_us"]),
        rows["at"].cast(pa.int64()).to_numpy(),
        _scenarios(rows["scenario"]),
    )


def known_user(
    user: int,
    row: Mapping[str, Any],
    at_us: int = 0,
    scenario: str | None = None,
    words: Ids = _NO_TIMES,
) -> Users:
    """One user who asks now and here, with his features as the online store answers them for
    USER_HISTORY; the words that he searches for now are his newest search.
    """
    sizes = np.array([len(row["items"])], np.int64)
    history = Jagged.of(np.array(row["items"], np.int64), sizes)
    searched = np.concatenate([np.array(row["searched"], np.int64), words])
    searched_at_us = np.array(row["searched_at_us"], np.int64)
    suggested = np.array(row["searched_suggested"], np.bool_)
    return Users(
        np.array([user], np.int64),
        history,
        np.array(row["rewards"], np.float32),
        Details(
            np.array(row["kinds"], np.int32),
            np.array(row["at_us"], np.int64),
            np.array(row["scenarios"], np.int32),
            np.array(row["sessions"], np.int32),
            np.array(row["values"], np.float32),
        ),
        Moments(
            Jagged.of(searched, np.array([len(searched)], np.int64)),
            np.concatenate([searched_at_us, np.full(len(words), at_us)]),
            np.concatenate([suggested, np.zeros(len(words), np.bool_)]),
        ),
        at_us=np.array([at_us], np.int64),
        scenarios=scenario_codes([scenario]) if scenario else np.full(1, NONE, np.int32),
    )


@compiled_briefly
def _split(
    items: Ids, offsets: Ids, rewards: NDArray[np.float32], count: int, least: float
) -> tuple[Ids, Ids]:
    """The values of either kind, (2, actions), and the offsets of their lists, (2, n + 1)."""
    values = np.empty((2, items.size), np.int64)
    ends = np.zeros((2, offsets.size), np.int64)
    for user in range(offsets.size - 1):
        ends[:, user + 1] = ends[:, user]
        for i in range(max(offsets[user], offsets[user + 1] - count), offsets[user + 1]):
            kind = 0 if rewards[i] >= least else 1
            values[kind, ends[kind, user + 1]] = items[i]
            ends[kind, user + 1] += 1
    return values, ends


@compiled_briefly
def _by_field(
    values: Ids, offsets: Ids, fields: NDArray[np.int32], codes: NDArray[np.int32]
) -> tuple[Ids, Ids]:
    """The values of n lists, each list by fields in the order of `codes`, without those of others;
    and the offsets of the n * F lists.
    """
    lists, count = offsets.size - 1, codes.size
    ends = np.zeros(lists * count + 1, np.int64)
    number = np.empty(values.size, np.int64)  # of the list that a value goes to, or -1
    field = 0
    for i in range(lists):
        for at in range(offsets[i], offsets[i + 1]):
            number[at] = -1
            # Mostly it is the field of the value before, or the next one.
            for _ in range(count):
                if codes[field] == fields[at]:
                    number[at] = i * count + field
                    ends[number[at] + 1] += 1
                    break
                field = field + 1 if field + 1 < count else 0
    for one in range(1, ends.size):
        ends[one] += ends[one - 1]
    found = np.empty(ends[-1], np.int64)
    starts = ends.copy()
    for at in range(values.size):
        if number[at] >= 0:
            found[starts[number[at]]] = values[at]
            starts[number[at]] += 1
    return found, ends


def _features(rows: pa.RecordBatch) -> dict[str, pa.ListArray]:
    """The declared columns, null where the samples have none."""
    there = set(rows.schema.names)
    for declared in SAMPLE_FEATURES:
        if declared.name in there and rows.schema.field(declared.name).type != declared.type:
            found = type_name(rows.schema.field(declared.name).type)
            raise FeatureError(
                f"the samples in the log have {declared.name} as {found}, and"
                f" features/definitions.py declares it as {type_name(declared.type)}: a feature"
                " keeps its type, so give the new one another name, or start over with `headrace"
                " run --fresh`"
            )
    return {
        f.name: rows[f.name] if f.name in there else pa.nulls(rows.num_rows, f.type)
        for f in SAMPLE_FEATURES
    }


def _scenarios(column: pa.StringArray) -> NDArray[np.int32]:
    """The code of each scenario (n,), NONE for a null."""
    encoded = column.dictionary_encode()
    known = np.append(scenario_codes(encoded.dictionary.to_pylist()), np.int32(NONE))
    found: NDArray[np.int32] = known[encoded.indices.fill_null(-1).to_numpy()]
    return found


def _moments(
    ids: pa.ListArray, at_us: pa.ListArray, suggested: pa.ListArray | None = None
) -> Moments:
    lists = Jagged.from_column(ids)
    if suggested is None:
        return Moments(lists, _beside(lists, at_us, 0))
    return Moments(lists, _beside(lists, at_us, 0), _beside(lists, suggested, absent=False))


def _beside(lists: Jagged, column: pa.ListArray, absent: float) -> NDArray[Any]:
    """The values of a list column, one for each value of `lists`; `absent` where a row has none."""
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    values: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    known = lengths == lists.lengths
    if known.all():
        return values
    found = np.full(len(lists.values), absent, values.dtype)
    found[np.repeat(known, lists.lengths)] = values[np.repeat(known, lengths)]
    return found


def read_declarations(batch: pa.RecordBatch) -> Items:
    """The rows of a micro-batch that declare items; of several for one item the last counts."""
    rows = batch.filter(batch["user_id"].is_null())
    ids = rows["item_id"].to_numpy()
    _, last = np.unique(ids[::-1], return_index=True)
    rows = rows.take(pa.array(np.sort(len(ids) - 1 - last)))
    tokens = Jagged.from_column(rows["item_tokens"])
    fields = _beside(tokens, rows["item_fields"], NONE)
    return Items(rows["item_id"].to_numpy(), tokens, fields)
