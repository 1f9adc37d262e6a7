"""Arrow samples to what models read: one place, no Python loop over rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.definitions import SAMPLE_FEATURES, FeatureError, type_name
from streaming.event_columns import NONE
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


@dataclass(frozen=True, slots=True)
class Items:
    """n items as a model sees them: `ids` (n,) and the tokens that describe each."""

    ids: Ids
    tokens: Jagged


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


@dataclass(frozen=True, slots=True)
class Moments:
    """n lists of ids, oldest first, with a time (µs) for each value: what users searched for, word
    by word (words with the same time are of one search), or which items they passed over.
    """

    ids: Jagged
    at_us: Ids

    @staticmethod
    def none(lists: int) -> Moments:
        """So many empty lists."""
        nothing = np.empty(0, np.int64)
        return Moments(Jagged(nothing, np.zeros(lists + 1, np.int64)), nothing)

    def take(self, lists: Ids) -> Moments:
        """The lists with these numbers."""
        places = self.ids.places(lists)
        return Moments(
            Jagged(self.ids.values[places.values], places.offsets), self.at_us[places.values]
        )


_UNKNOWN, _NONE = Details.unknown(0), Moments.none(0)


@dataclass(frozen=True, slots=True)
class Users:
    """n users as a model sees them; `rewards` and `details` have one entry for each value of
    `history`. What is not given is not known of anybody.
    """

    ids: Ids
    history: Jagged
    rewards: NDArray[np.float32]
    details: Details = _UNKNOWN
    searched: Moments = _NONE
    passed_over: Moments = _NONE

    def __post_init__(self) -> None:
        if self.details is _UNKNOWN:
            object.__setattr__(self, "details", Details.unknown(len(self.rewards)))
        for name in ("searched", "passed_over"):
            if getattr(self, name) is _NONE:
                object.__setattr__(self, name, Moments.none(len(self.ids)))

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
        )

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
        _moments(found["searched"], found["searched_at_us"]),
        _moments(found["passed_over"], found["passed_over_at_us"]),
    )


def known_user(user: int, row: Mapping[str, Any]) -> Users:
    """One user, with his features as the online store answers them for USER_HISTORY."""
    sizes = np.array([len(row["items"])], np.int64)
    history = Jagged.of(np.array(row["items"], np.int64), sizes)
    words = np.array(row["searched"], np.int64)
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
            Jagged.of(words, np.array([len(words)], np.int64)),
            np.array(row["searched_at_us"], np.int64),
        ),
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


def _moments(ids: pa.ListArray, at_us: pa.ListArray) -> Moments:
    lists = Jagged.from_column(ids)
    return Moments(lists, _beside(lists, at_us, 0))


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
    return Items(rows["item_id"].to_numpy(), Jagged.from_column(rows["item_tokens"]))
