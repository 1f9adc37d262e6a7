"""Events as numbers: the columns that the joiner and the features compute with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streaming.ids import stable_ids
from streaming.rings import Lists

Ids = NDArray[np.int64]
NONE = -1  # where an event has no such id, position or scenario
# An action as it is kept of its user. `kind` is its place among the kinds that are actions,
# `scenario` and `session` are codes (`codes`), `value` is NaN where the event had none. There are
# a hundred of them for each of a million users: a byte here is 100 MB.
ACTION = np.dtype(
    [
        ("item", np.int64),
        ("at_us", np.int64),
        ("value", np.float32),
        ("reward", np.float32),
        ("scenario", np.int32),
        ("session", np.int32),
        ("kind", np.int8),
    ]
)
# An item that was passed over; and a word that was searched for, `suggested` where the user did not
# type it himself.
MOMENT = np.dtype([("id", np.int64), ("at_us", np.int64)])
WORD = np.dtype([*MOMENT.descr, ("suggested", np.bool_)])


@dataclass(frozen=True, slots=True)
class EventColumns:
    """n events in order, each column (n,).

    `kind` and `scenario` are numbers of the strings in `kinds` and `scenarios`; ids are stable
    ids; times are in microseconds; a value that is absent is NaN.
    """

    kinds: tuple[str, ...]
    scenarios: tuple[str, ...]
    kind: Ids
    scenario: Ids
    user_id: Ids
    item_id: Ids
    request_id: Ids
    session_id: Ids
    position: NDArray[np.int32]
    value: NDArray[np.float64]
    at_us: Ids
    logged_us: Ids
    query: pa.StringArray
    attributes: pa.StringArray

    def __len__(self) -> int:
        return len(self.kind)

    def of_kind(self, kind: str) -> NDArray[np.bool_]:
        """Which events are of this kind, (n,)."""
        number = self.kinds.index(kind) if kind in self.kinds else NONE
        found: NDArray[np.bool_] = self.kind == number
        return found

    def scenario_code(self) -> NDArray[np.int32]:
        """The code of each event's scenario, (n,), NONE where it has none: see `scenario_codes`."""
        return np.append(scenario_codes(self.scenarios), np.int32(NONE))[self.scenario]


@dataclass(frozen=True, slots=True)
class Actions:
    """What users did, in order: the rows (k,) of the events that are actions, and of each who,
    on what, how much it says that the item pleased (0 to 1), and when; then the other fields of
    `ACTION`, (k,) too or one for all.
    """

    rows: Ids
    user_id: Ids
    item_id: Ids
    reward: NDArray[np.float32]
    at_us: Ids
    kind: NDArray[np.int8] | int = NONE
    scenario: NDArray[np.int32] | int = NONE
    value: NDArray[np.float32] | float = float("nan")
    session: NDArray[np.int32] | int = NONE

    def records(self) -> NDArray[Any]:
        """As they are kept, (k,) of `ACTION`."""
        records = np.empty(len(self.rows), ACTION)
        records["item"], records["at_us"], records["reward"] = (
            self.item_id, self.at_us, self.reward,
        )  # fmt: skip
        records["kind"], records["value"] = self.kind, self.value
        records["scenario"], records["session"] = self.scenario, self.session
        return records


@dataclass(frozen=True, slots=True)
class Searches:
    """What users searched for, word by word in order: the rows (w,) of the events, not all
    different, and of each who, and the word as `WORD`.
    """

    rows: Ids
    user_id: Ids
    words: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Histories:
    """What m users did and searched for, oldest first: lists of `ACTION`, and of `WORD`.

    Words with the same time are of one search.
    """

    actions: Lists
    searches: Lists


def event_columns(events: pa.RecordBatch, logged_us: Ids) -> EventColumns:
    """The columns of a batch with `EVENT_SCHEMA`, each event logged at `logged_us`."""
    kinds, kind = _numbered(events["kind"])
    scenarios, scenario = _numbered(events["scenario"])
    return EventColumns(
        tuple(kinds.to_pylist()),
        tuple(scenarios.to_pylist()),
        kind,
        scenario,
        _stable(events["user_id"]),
        _stable(events["item_id"]),
        _stable(events["request_id"]),
        _stable(events["session_id"]),
        pc.fill_null(events["position"], NONE).to_numpy(zero_copy_only=False),
        pc.fill_null(events["value"], float("nan")).to_numpy(zero_copy_only=False),
        events["at"].cast(pa.int64()).to_numpy(zero_copy_only=False),
        logged_us,
        events["query"],
        events["attributes"],
    )


def scenario_codes(scenarios: Sequence[str]) -> NDArray[np.int32]:
    """The same not negative number for a scenario in every process, shape (n,).

    >>> scenario_codes(["home", "search"]).tolist()
    [705456213, 1316664091]
    """
    return codes(stable_ids(scenarios))


def field_codes(fields: Sequence[str]) -> NDArray[np.int32]:
    """The same not negative number for a field of descriptions in every process, shape (n,)."""
    return codes(stable_ids(fields))


def codes(ids: Ids) -> NDArray[np.int32]:
    """Half of a stable id, its upper 31 bits, shape (n,); of NONE it is NONE.

    It tells things apart where there are few: of 1,000 scenarios two share one with a probability
    of 0.02%, and of the 100 actions of a user, in as many sessions, with 0.0002%.
    """
    return (ids >> 32).astype(np.int32)


def _stable(texts: pa.StringArray) -> Ids:
    """The stable id of each text, NONE for a null; what repeats is hashed once."""
    distinct, number = _numbered(texts)
    ids = np.append(stable_ids(distinct.to_pylist()), NONE)  # NONE indexes the last
    return ids[number]


def _numbered(texts: pa.StringArray) -> tuple[pa.StringArray, Ids]:
    """The distinct texts, and for each text its number among them, NONE for a null."""
    encoded = texts.dictionary_encode()
    numbers = pc.fill_null(encoded.indices, NONE).to_numpy(zero_copy_only=False)
    return encoded.dictionary, numbers.astype(np.int64)
