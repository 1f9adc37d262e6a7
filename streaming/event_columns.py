"""Events as numbers: the columns that the joiner and the features compute with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streaming.ids import stable_ids

Ids = NDArray[np.int64]
NONE = -1  # where an event has no such id, position or scenario


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
    position: NDArray[np.int32]
    value: NDArray[np.float64]
    at_us: Ids
    logged_us: Ids

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True, slots=True)
class Actions:
    """What users did, in order: the rows (k,) of the events that are actions, and of each who,
    on what, how much it says that the item pleased (0 to 1), and when.
    """

    rows: Ids
    user_id: Ids
    item_id: Ids
    reward: NDArray[np.float32]
    at_us: Ids


@dataclass(frozen=True, slots=True)
class Histories:
    """m lists of a user's actions, oldest first: list i is `offsets[i]` to `offsets[i + 1]`."""

    offsets: Ids
    items: Ids
    rewards: NDArray[np.float32]


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
        pc.fill_null(events["position"], NONE).to_numpy(zero_copy_only=False),
        pc.fill_null(events["value"], float("nan")).to_numpy(zero_copy_only=False),
        events["at"].cast(pa.int64()).to_numpy(zero_copy_only=False),
        logged_us,
    )


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
