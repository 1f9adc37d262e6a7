"""How items do where they are shown: their click-through rate, and clicks over expected clicks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.coec import Coec, CoecConfig, CountedBaseline, CountedConfig, Shown
from features.rates import RateConfig, SmoothedRates
from streaming.artefact import Artefact
from streaming.event_columns import NONE, EventColumns

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
_NAME = "items"


@dataclass(frozen=True)
class ResponseConfig:
    """A `shown` event is a trial, a `success` event that has a position comes of one.

    `ctr` says how rates are smoothed, `coec` how ratios are, and `positions` how the CTR of a
    position is counted.
    """

    shown: str = "impression"
    success: str = "click"
    ctr: RateConfig = field(default_factory=RateConfig)
    coec: CoecConfig = field(default_factory=lambda: CoecConfig(strength=1.0))
    positions: CountedConfig = field(default_factory=CountedConfig)


@dataclass(frozen=True, slots=True)
class ResponseColumns:
    """Of n items, each column (n,): the CTR, drawn towards that of all items, the COEC, where 1 is
    what its positions promise, and the event time of the newest impression or click, 0 for none.
    """

    ctr: Floats
    coec: Floats
    newest_us: Ids


class ItemResponse:
    """CTR and COEC by item, from what was shown and clicked.

    A click counts when it comes: it need not find its impression, only say its position. One that
    does not came of something that was not shown here, and does not count.
    """

    def __init__(self, config: ResponseConfig, state: Artefact | None = None) -> None:
        self._config = config
        self._rates = SmoothedRates(_NAME, config.ctr, state)
        self._positions = CountedBaseline(_NAME, config.positions, state)
        self._coec = Coec(_NAME, config.coec, self._positions, state)

    def update(self, events: EventColumns) -> Ids:
        """Takes events in order; returns the distinct items that changed, ascending."""
        shown, clicked = (
            events.of_kind(kind) for kind in (self._config.shown, self._config.success)
        )
        chosen = (shown | clicked) & (events.item_id != NONE) & (events.position != NONE)
        rows = np.flatnonzero(chosen)
        if not len(rows):
            return rows
        items, at_us = events.item_id[rows], events.at_us[rows]
        trials, successes = shown[rows].astype(np.float64), clicked[rows].astype(np.float64)
        self._rates.update(items, at_us, trials, successes)
        position = events.position[rows].astype(np.int64)
        context = events.scenario_code()[rows].astype(np.int64)
        at_random = np.zeros(len(rows), np.bool_)
        self._coec.update(Shown(items, position, successes, at_us, context, at_random, trials))
        return np.unique(items)

    def columns(self, items: Ids, at_us: int) -> ResponseColumns:
        """The figures of many items as of a time that is not past."""
        return ResponseColumns(
            self._rates.get(items, at_us),
            self._coec.get(items, at_us),
            self._rates.newest_us(items),
        )

    def tables(self) -> dict[str, pa.Table]:
        """All of the state."""
        return {**self._rates.tables(), **self._positions.tables(), **self._coec.tables()}
