"""Clicks over expected clicks: how well an item does, whatever positions it was shown at.

COEC divides the clicks of an item by those that its positions alone promise (Zhang and Jones,
"Comparing Click Logs and Editorial Labels for Training Query Rewriting", WWW 2007 workshop on query
log analysis): 1 is usual, 2 is twice as good. What a position promises is a *baseline*, of which
there are three: the CTR counted there, which is too low where bad items are shown; the same of a
randomised slice of the traffic only; or a model of position and context.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from features.decayed import US, DecayedSums
from streaming.artefact import Artefact
from streaming.event_columns import NONE

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

_ANY = 0  # any position, any context: those of an event are numbered from 1 in keys
_LEVELS = 3  # at this position in this context, at this position, anywhere


@dataclass(frozen=True, slots=True)
class Shown:
    """n impressions in order and what came of them, each column (n,).

    `clicked` is 0 or 1; `context` is an id (a scenario, a device), NONE where there is none;
    `randomised` tells which were shown in random order. One without a position is left out. A click
    may come as a row of its own after that of its impression: `impressions` is 1, or 0 in such a
    row.
    """

    item_id: Ids
    position: Ids
    clicked: Floats
    at_us: Ids
    context: Ids
    randomised: NDArray[np.bool_]
    impressions: Floats | float = 1.0


class Baseline(Protocol):
    """What positions promise; its state, if any, belongs into the cut beside that of `Coec`."""

    def expected(self, shown: Shown) -> Floats:
        """The CTR of any item at each impression's position, (n,), as known just before it.

        To be called once with every impression, in order: it may learn from them.
        """
        ...


@dataclass(frozen=True)
class CountedConfig:
    """`strength` impressions of the level above are added to those at a position: a position in a
    context is drawn to the same in all contexts, that to any position, and that to `rate`.
    """

    half_life_s: PositiveFloat = math.inf
    most: PositiveInt = 100_000
    rate: PositiveFloat = 0.05
    strength: PositiveFloat = 20.0
    randomised_only: bool = False


class CountedBaseline:
    """The CTR counted at each position, of all impressions or, better, of a randomised slice.

    Counted of all, a position's CTR is also that of the items that a ranking puts there, so those
    at the bottom come out too good; a randomised slice shows every item everywhere.
    """

    def __init__(self, name: str, config: CountedConfig, state: Artefact | None = None) -> None:
        self._name, self._config = f"positions_{name}", config
        half_lives = dict.fromkeys(("impressions", "clicks"), config.half_life_s * US)
        table = None if state is None else state.shards[self._name]
        self._sums = DecayedSums(half_lives, config.most, ("position", "context"), table)

    def expected(self, shown: Shown) -> Floats:
        """As `Baseline`: the CTR as counted before each impression, which then counts too."""
        counted = shown.randomised if self._config.randomised_only else np.ones(len(shown.at_us))
        values = np.column_stack([counted * shown.impressions, counted * shown.clicked])
        before = self._sums.observe(
            _levels(shown.position, shown.context),
            np.repeat(shown.at_us, _LEVELS), np.repeat(values, _LEVELS, axis=0),
        )  # fmt: skip
        return self._ctr(before)

    def get(self, positions: Ids, contexts: Ids, at_us: int) -> Floats:
        """The CTR that each position promises as of a time that is not past, (n,)."""
        return self._ctr(self._sums.get(_levels(positions, contexts), at_us))

    def merge(self, other: CountedBaseline) -> None:
        """Adds what another one counted."""
        self._sums.merge(other._sums)

    def tables(self) -> dict[str, pa.Table]:
        """All of the state, as the shard `positions_<name>`."""
        return {self._name: self._sums.table()}

    def _ctr(self, sums: Floats) -> Floats:
        ctr = np.full(len(sums) // _LEVELS, self._config.rate)
        for level in reversed(range(_LEVELS)):
            impressions, clicks = sums[level::_LEVELS].T
            ctr = (clicks + self._config.strength * ctr) / (impressions + self._config.strength)
        return ctr


def _levels(positions: Ids, contexts: Ids) -> Ids:
    """The keys of every impression, (3n, 2), NONE where it has none."""
    keys = np.full((len(positions), _LEVELS, 2), _ANY, np.int64)
    keys[:, 0, 0] = keys[:, 1, 0] = positions + 1
    keys[:, 0, 1] = contexts + 1
    keys[contexts == NONE, 0] = NONE
    keys[positions == NONE] = NONE
    return keys.reshape(-1, 2)


class ModelBaseline:
    """The CTR that a model expects of positions and contexts, whatever is shown there.

    `predict` gives (n,) of (positions, contexts); it is the model's owner who trains it.
    """

    def __init__(self, predict: Callable[[Ids, Ids], Floats]) -> None:
        self._predict = predict

    def expected(self, shown: Shown) -> Floats:
        """As `Baseline`; nothing is learnt.

        Raises:
            ValueError: the model's answer is no probability.
        """
        found = np.zeros(len(shown.position))
        placed = shown.position != NONE
        found[placed] = self._predict(shown.position[placed], shown.context[placed])
        if not ((found >= 0) & (found <= 1)).all():
            raise ValueError(
                "the model of positions expects a CTR that is not between 0 and 1: do not let it"
                " serve as a baseline before it is trained"
            )
        return found


@dataclass(frozen=True)
class CoecConfig:
    """`most` items are kept, those with the most expected clicks, fading by `half_life_s`.

    `strength` expected clicks, and as many clicks, are added to those of every item, so that one
    with few is drawn towards 1; that is the mean of a Gamma posterior (DuMouchel, 1999).
    """

    half_life_s: PositiveFloat = math.inf
    most: PositiveInt = 1_000_000
    strength: NonNegativeFloat = 0.0


class Coec:
    """Clicks over expected clicks by item (or any other key in `item_id`).

    The example of two advertisements shown ten times each: A, with the higher CTR, was shown
    further up, and is the worse one. (3 / 5.1 and 2 / 2.85 are those of the source; how the ten
    impressions lie on the positions is ours.)

    >>> ctr = np.array([0.6, 0.5, 0.4, 0.3, 0.2, 0.15])
    >>> baseline = ModelBaseline(lambda positions, contexts: ctr[positions])
    >>> coec = Coec("ads", CoecConfig(), baseline)
    >>> a = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    >>> b = [2, 2, 2, 3, 3, 3, 4, 4, 4, 5]
    >>> clicked = np.array([1, 1, 1, *[0] * 7, 1, 1, *[0] * 8], float)
    >>> nothing, nowhere = np.zeros(20, int), np.full(20, NONE)
    >>> coec.update(Shown(
    ...     np.repeat([1, 2], 10), np.array(a + b), clicked, nothing, nowhere, nothing > 0))
    >>> clicks, expected = coec.counts(np.array([1, 2]), at_us=0)
    >>> print(clicks, expected.round(2), coec.get(np.array([1, 2]), at_us=0).round(4))
    [3. 2.] [5.1  2.85] [0.5882 0.7018]
    """

    def __init__(
        self, name: str, config: CoecConfig, baseline: Baseline, state: Artefact | None = None
    ) -> None:
        self._name, self._config, self._baseline = f"coec_{name}", config, baseline
        half_lives = dict.fromkeys(("expected", "clicks"), config.half_life_s * US)
        table = None if state is None else state.shards[self._name]
        self._sums = DecayedSums(half_lives, config.most, ("item_id",), table)

    def __len__(self) -> int:
        return len(self._sums)

    def update(self, shown: Shown) -> None:
        """Counts impressions in order, each against what was known of its position before it."""
        expected = self._baseline.expected(shown) * shown.impressions
        items = np.where(shown.position == NONE, NONE, shown.item_id)
        self._sums.add(items, shown.at_us, np.column_stack([expected, shown.clicked]))

    def counts(self, items: Ids, at_us: int) -> tuple[Floats, Floats]:
        """The clicks and the expected clicks of each item, as of a time that is not past."""
        expected, clicks = self._sums.get(items, at_us).T
        return clicks, expected

    def get(self, items: Ids, at_us: int) -> Floats:
        """COEC of each item, (n,); 1, as is usual, for one of which nothing was expected."""
        clicks, expected = self.counts(items, at_us)
        found = np.ones(len(items))
        below = expected + self._config.strength
        np.divide(clicks + self._config.strength, below, out=found, where=below > 0)
        return found

    def merge(self, other: Coec) -> None:
        """Adds what another one counted; the baselines are merged by their owner."""
        self._sums.merge(other._sums)

    def tables(self) -> dict[str, pa.Table]:
        """All of the state but the baseline's, as the shard `coec_<name>`."""
        return {self._name: self._sums.table()}
