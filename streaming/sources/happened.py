"""What happened in the planted world, before it is text and after: rows, and events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streaming.arrow_record import filled_columns
from streaming.events import EVENT_SCHEMA
from streaming.sources.chance import Bools, Floats, Ints
from streaming.sources.choice import REACTIONS
from streaming.sources.descriptions import Descriptions
from streaming.sources.population import Population
from streaming.sources.traffic import POLICIES

KINDS = (*REACTIONS, "impression", "search", "user", "item")
NO_NOTE, SUGGESTED = -1, len(POLICIES)

# One event before it is text. `origin` and `row` name it, `origin` and `session` and `ordinal`
# its request, `origin` and `visit` the session during which it happened; -1 and NaN are nulls;
# `note` is a policy that logged a propensity, or `SUGGESTED`.
HAPPENED = np.dtype(
    [
        ("at", np.int64), ("origin", np.int32), ("row", np.int32), ("kind", np.int8),
        ("user", np.int32), ("item", np.int32), ("session", np.int32), ("ordinal", np.int16),
        ("visit", np.int32), ("position", np.int16), ("scenario", np.int8), ("note", np.int8),
        ("query", np.int32), ("value", np.float64), ("propensity", np.float64),
    ]
)  # fmt: skip
Happened = NDArray[np.void]


def happened_rows(kind: str | Ints, size: int, **columns: Ints | Floats) -> Happened:
    """Rows of a kind, by name or by places in `KINDS`; columns that are not given are null."""
    rows = np.full(size, -1, HAPPENED)
    rows["value"] = rows["propensity"] = np.nan
    rows["kind"] = KINDS.index(kind) if isinstance(kind, str) else kind
    for name, column in columns.items():
        rows[name] = column
    return rows


class EventWriter:
    """Turns rows into events with `EVENT_SCHEMA`."""

    def __init__(
        self, name: str, scenarios: Sequence[str], population: Population, words: Descriptions
    ) -> None:
        self._name = name
        self._scenarios = scenarios
        self._population = population
        self._words = words

    def events(self, rows: Happened) -> pa.RecordBatch:
        origin = pa.array(rows["origin"]).cast(pa.string())
        row, session, ordinal, visit = (
            pa.array(rows[name]).cast(pa.string())
            for name in ("row", "session", "ordinal", "visit")
        )
        events = {
            "event_id": pc.binary_join_element_wise(self._name, origin, row, "/"),
            "kind": _named(KINDS, rows["kind"]),
            "at": pa.array(rows["at"], pa.timestamp("us", "UTC")),
            "user_id": _numbered("u", rows["user"]),
            "item_id": _numbered("i", rows["item"]),
            "request_id": _where(
                rows["session"] >= 0,
                pc.binary_join_element_wise(self._name, origin, session, ordinal, "/"),
            ),
            "session_id": _where(
                rows["visit"] >= 0, pc.binary_join_element_wise(self._name, origin, visit, "/")
            ),
            "position": pa.array(rows["position"], pa.int32(), mask=rows["position"] < 0),
            "scenario": _named(self._scenarios, rows["scenario"]),
            "value": pa.array(rows["value"], mask=np.isnan(rows["value"])),
            "query": _named(self._words.queries, rows["query"]),
            "attributes": self._attributes(rows),
        }
        arrays = filled_columns(EVENT_SCHEMA, len(rows), events)
        return pa.RecordBatch.from_arrays(arrays, schema=EVENT_SCHEMA)

    def _attributes(self, rows: Happened) -> pa.Array:
        starts = [f'{{"policy":"{name}","propensity":' for name in POLICIES]
        begun = _named([*starts, '{"suggested":true'], rows["note"])
        number = pa.array(rows["propensity"]).cast(pa.string())
        number = pc.if_else(pa.array(np.isnan(rows["propensity"])), "", number)
        texts = pc.binary_join_element_wise(begun, number, "}", "")
        population, words = self._population, self._words
        users, items = (rows["kind"] == KINDS.index(kind) for kind in ("user", "item"))
        of_users = words.of_users(population.users(rows["user"][users].astype(np.int64)))
        of_items = words.of_items(population.items(rows["item"][items].astype(np.int64)))
        texts = pc.replace_with_mask(texts, pa.array(users), pa.array(of_users, pa.string()))
        return pc.replace_with_mask(texts, pa.array(items), pa.array(of_items, pa.string()))


def _named(names: Sequence[str], codes: NDArray[np.integer[Any]]) -> pa.Array:
    """The names of codes; -1 is null."""
    taken = pc.take(pa.array(names, pa.string()), pa.array(np.maximum(codes, 0)))
    return _where(codes >= 0, taken)


def _numbered(prefix: str, numbers: NDArray[np.integer[Any]]) -> pa.Array:
    texts = pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")
    return _where(numbers >= 0, texts)


def _where(kept: Bools, texts: pa.Array) -> pa.Array:
    return pc.if_else(pa.array(kept), texts, None)
