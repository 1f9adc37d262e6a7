"""How items do where they are shown, as a field that describes them: `coec`.

It is their clicks over those that their places alone promise (`features.coec`), in steps of a
quarter of a power of two. As part of the description of an item it goes where that goes: a ranker
learns with what was known before a step, and a version serves what it was learnt with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.batch import Ids, Items, Jagged
from features.coec import Coec, CoecConfig, CountedBaseline, CountedConfig, Shown
from streaming.artefact import Artefact
from streaming.event_columns import NONE, field_codes
from streaming.ids import stable_ids
from trainers.arrays import arrays_table, table_arrays

COEC = "coec"  # the name of the field

_STEPS, _FURTHEST = 4, 12  # of a doubling; from an eighth to eight times as much as usual
_TOKENS = stable_ids(f"{COEC}={step}" for step in range(-_FURTHEST, _FURTHEST + 1))
_CODE = int(field_codes([COEC])[0])
_NAME, _CLOCK = "responses", "coec_clock"

OUTCOME = np.dtype(
    [
        ("item_id", np.int64),
        ("at_us", np.int64),
        ("position", np.int32),
        ("scenario", np.int32),  # its code
        ("clicked", np.float32),
        ("stands_for", np.float32),  # so many impressions
    ]
)


@dataclass(frozen=True)
class ItemResponseConfig:
    """`coec` says how ratios are drawn towards 1, `positions` how the CTR of a place is counted."""

    coec: CoecConfig = field(default_factory=lambda: CoecConfig(strength=1.0))
    positions: CountedConfig = field(default_factory=CountedConfig)


class ItemResponses:
    """COEC by item, from what came of impressions, each told once.

    >>> responses = ItemResponses(ItemResponseConfig())
    >>> outcomes = np.zeros(40, OUTCOME)
    >>> outcomes["item_id"], outcomes["stands_for"] = np.tile([1, 2], 20), 1.0
    >>> outcomes["clicked"] = outcomes["item_id"] == 1
    >>> nothing = Jagged.of(np.empty(0, np.int64), np.zeros(3, np.int64))
    >>> responses.update(outcomes)
    >>> responses.on(Items(np.array([1, 2, 3]), nothing)).tokens.lengths  # nobody saw the third
    array([1, 1, 0])
    """

    def __init__(self, config: ItemResponseConfig, state: Artefact | None = None) -> None:
        self._positions = CountedBaseline(_NAME, config.positions, state)
        self._coec = Coec(_NAME, config.coec, self._positions, state)
        self._clock_us = 0
        if state is not None:
            self._clock_us = int(table_arrays(state.shards[_CLOCK])["at_us"][0])

    def update(self, outcomes: NDArray[np.void]) -> None:
        """Counts what came of impressions (n,), of `OUTCOME`, in order."""
        if not len(outcomes):
            return
        self._clock_us = max(self._clock_us, int(outcomes["at_us"].max()))
        self._coec.update(
            Shown(
                outcomes["item_id"],
                outcomes["position"].astype(np.int64),
                outcomes["clicked"].astype(np.float64),
                outcomes["at_us"],
                outcomes["scenario"].astype(np.int64),
                np.zeros(len(outcomes), np.bool_),
                outcomes["stands_for"].astype(np.float64),
            )
        )

    def on(self, items: Items) -> Items:
        """The items, described by how they do by now; by that not at all if none was shown."""
        kept = items.fields != _CODE
        others = items.tokens.where(kept)
        told = self._tokens(items.ids)
        known = told != NONE
        ends = others.offsets[1:][known]
        return Items(
            items.ids,
            Jagged.of(np.insert(others.values, ends, told[known]), others.lengths + known),
            np.insert(items.fields[kept], ends, _CODE),
        )

    def changed(self, items: Items) -> Items:
        """Those of the items that are not described by how they do by now, as they now are."""
        before = items.of_field(_CODE)
        told = np.full(len(items.ids), NONE, np.int64)
        told[before.lengths > 0] = before.values
        return self.on(items.take(np.flatnonzero(told != self._tokens(items.ids))))

    def tables(self) -> dict[str, pa.Table]:
        """All of the state."""
        clock = arrays_table({"at_us": np.array([self._clock_us])})
        return {**self._positions.tables(), **self._coec.tables(), _CLOCK: clock}

    def _tokens(self, items: Ids) -> Ids:
        """Of each item the token (n,), NONE of one of which nothing was expected yet."""
        _, expected = self._coec.counts(items, self._clock_us)
        with np.errstate(divide="ignore"):
            steps = np.rint(_STEPS * np.log2(self._coec.get(items, self._clock_us)))
        told = _TOKENS[np.clip(steps, -_FURTHEST, _FURTHEST).astype(np.int64) + _FURTHEST]
        found: Ids = np.where(expected > 0, told, NONE)
        return found


def saved_responses(config: ItemResponseConfig, shards: Mapping[str, pa.Table]) -> ItemResponses:
    """Those of a cut; new ones if it has none."""
    return ItemResponses(config, Artefact({}, shards) if _CLOCK in shards else None)
