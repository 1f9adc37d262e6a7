"""Drift: whether a column of samples is spread as it was a while ago.

The population stability index of shares in bins, now against a reference,
PSI = sum (now_i - reference_i) ln(now_i / reference_i), is the symmetric Kullback-Leibler
divergence of the two (Lin, "Examining Distributional Shifts by Using Population Stability Index",
SAS 2017). By custom below 0.1 nothing has changed, and above 0.25 much has. Of samples without any
drift it is on average (bins - 1) (1 / n_reference + 1 / n_now) (Yurdakul, "Statistical Properties
of Population Stability Index", 2018); that is taken off, and of few samples nothing is said.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Kind = Literal["number", "value"]  # what is measured, or one of several (an id, a name)
_LAG = 3  # half-lives of what is so now, after which samples belong to the reference


@dataclass(frozen=True)
class DriftConfig:
    """What is looked at and when it is called drift.

    At most `rows_per_s` samples are looked at. Bins are made of the first `first` values: of
    numbers `bins` of about equal share, of ids and names the `values` most frequent ones. The
    reference fades by half every `reference` samples and what is so now every `now`; until
    it is of `enough` samples nothing is said. A column drifts once its PSI was above `above` in
    `looks` looks in a row, one every `look_every` samples, and no more once it was below `below`
    in as many. Of the newest `ids` users and items it is known that they are not new; how many a
    minute are, and the rates of labels, are those of about the last `rate_s`. Prometheus is told
    every `tell_every_s`.
    """

    enabled: bool = True
    rows_per_s: PositiveInt = 256
    first: PositiveInt = 10_000
    bins: PositiveInt = 10
    values: PositiveInt = 20
    reference: PositiveInt = 50_000
    now: PositiveInt = 5_000
    enough: PositiveInt = 100_000
    look_every: PositiveInt = 1_000
    looks: PositiveInt = 3
    above: PositiveFloat = 0.25
    below: NonNegativeFloat = 0.1
    ids: PositiveInt = 2_000_000
    rate_s: PositiveFloat = 60.0
    tell_every_s: PositiveFloat = 2.0


def psi(reference: Floats, now: Floats) -> float:
    """The index of counts (bins,); half a sample is added to every bin, so that none is empty.

    >>> round(psi(np.array([50.0, 50.0]), np.array([50.0, 50.0])), 3)
    0.0
    >>> round(psi(np.array([900.0, 100.0]), np.array([500.0, 500.0])), 2)
    0.88
    """
    r, n = ((counts + 0.5) / (counts + 0.5).sum() for counts in (reference, now))
    return float(((n - r) * np.log(n / r)).sum())


class Hysteresis:
    """Turns on above one bound and off below a lower one, each only after some looks in a row.

    >>> alarm = Hysteresis(above=0.25, below=0.1, looks=2)
    >>> [alarm.look(index) for index in (0.3, 0.2, 0.3, 0.3, 0.2, 0.05, 0.05)]
    [False, False, False, True, True, True, False]
    """

    def __init__(self, above: float, below: float, looks: int) -> None:
        self._above, self._below, self._looks = above, below, looks
        self._against = 0  # looks in a row that say that it should change
        self.active = False

    def look(self, index: float) -> bool:
        """Takes the newest index; whether it is on now."""
        against = index < self._below if self.active else index > self._above
        self._against = self._against + 1 if against else 0
        if self._against >= self._looks:
            self.active, self._against = not self.active, 0
        return self.active


class Bins:
    """Where values fall: the last bin is that of missing ones.

    The bins of numbers end at quantiles of the first ones; the smallest of these has a bin of its
    own, and what lies beyond them on either side another. Of ids and names, which are numbered,
    each of the most frequent has one, and the others one together.
    """

    def __init__(self, kind: Kind, first: NDArray[Any], config: DriftConfig) -> None:
        self._kind = kind
        self._edges: NDArray[Any]
        if kind == "number":
            known = first[~np.isnan(first)]
            shares = np.linspace(0, 1, config.bins + 1)
            edges = np.unique(np.quantile(known, shares)) if len(known) else np.zeros(1)
            self._edges = np.append(np.nextafter(edges[0], -np.inf), edges)
        else:
            found, times = np.unique(first[first >= 0], return_counts=True)
            self._edges = np.sort(found[np.argsort(-times, kind="stable")[: config.values]])

    @property
    def count(self) -> int:
        return len(self._edges) + 2

    def codes(self, values: NDArray[Any]) -> Codes:
        """The bin (n,) of each value; NaN among numbers, or what is negative else, is missing."""
        places = np.searchsorted(self._edges, values, side="left")
        if self._kind == "number":
            return np.where(np.isnan(values), self.count - 1, places)
        others = len(self._edges)
        frequent = np.append(self._edges, -1)[places] == values
        return np.where(values < 0, others + 1, np.where(frequent, places, others))

    def names(self) -> list[str]:
        """What each bin is called."""
        if self._kind == "value":
            return [*map(str, self._edges.tolist()), "others", "missing"]
        edges = [f"{edge:.4g}" for edge in self._edges[1:].tolist()]
        between = [f"{a} to {b}" for a, b in pairwise(edges)]
        return [f"below {edges[0]}", edges[0], *between, f"above {edges[-1]}", "missing"]


class ColumnDrift:
    """How one column is spread, lately and in the long run; bounded memory.

    The reference takes samples in only some time after they came, and none while there is drift:
    when that is over all is as it was. What goes on for a half-life of the reference is the new
    reference.
    """

    def __init__(self, kind: Kind, config: DriftConfig) -> None:
        self._kind = kind
        self._config = config
        self._first: list[NDArray[Any]] = []
        self._bins: Bins | None = None
        self._now, self._block = np.zeros(0), np.zeros(0)
        self._reference = np.zeros(0)
        self._counted = self._referred = 0  # samples in either
        self._blocks: deque[Floats] = deque()  # on their way into the reference, oldest first
        self._lag = math.ceil(_LAG * config.now / config.look_every)
        self._alarm = Hysteresis(config.above, config.below, config.looks)
        self._drifting = 0  # looks
        self.index: float | None = None  # of the last look
        self.since: float | None = None  # when it began to drift

    @property
    def active(self) -> bool:
        """Whether it drifts."""
        return self._alarm.active

    def update(self, values: NDArray[Any], at_s: float) -> None:
        """Takes values (n,): numbers, NaN for a missing one, or ids, negative for a missing one;
        `at_s` is the time of a change that they bring about.
        """
        if self._bins is None:
            self._first.append(values)
            values = np.concatenate(self._first)
            if len(values) < self._config.first:
                return
        bins = self._bins or self._begin(values)
        codes, start = bins.codes(values), 0
        while start < len(codes):
            room = self._config.look_every - int(self._block.sum())
            self._count(codes[start : start + room], at_s)
            start += room

    def figures(self) -> dict[str, Any]:
        """`psi`, None while too little is known; the shares in either window by `edges`."""
        return {
            "psi": self.index,
            "active": self.active,
            "since": self.since,
            "reference": _shares(self._reference),
            "now": _shares(self._now),
            "edges": [] if self._bins is None else self._bins.names(),
        }

    def _begin(self, values: NDArray[Any]) -> Bins:
        self._bins, self._first = Bins(self._kind, values, self._config), []
        self._now, self._block, self._reference = np.zeros((3, self._bins.count))
        return self._bins

    def _count(self, codes: Codes, at_s: float) -> None:
        """Takes bins, of one block at most."""
        counts = np.bincount(codes, minlength=len(self._now))
        self._now = self._now * 0.5 ** (len(codes) / self._config.now) + counts
        self._block += counts
        self._counted += len(codes)
        if self._block.sum() >= self._config.look_every:
            self._close_block()
            if self._referred >= self._config.enough:
                self._look(at_s)

    def _close_block(self) -> None:
        self._blocks.append(self._block)
        self._block = np.zeros_like(self._block)
        if len(self._blocks) > self._lag:
            old = self._blocks.popleft()
            if not self.active:
                fade = 0.5 ** (self._config.look_every / self._config.reference)
                self._reference = self._reference * fade + old
                self._referred += self._config.look_every

    def _look(self, at_s: float) -> None:
        # So many samples of equal weight make the faded shares as sure.
        reference = _size(self._referred, self._config.reference)
        now = _size(self._counted, self._config.now)
        by_chance = (len(self._now) - 1) * (1 / reference + 1 / now)
        self.index = max(0.0, psi(self._reference, self._now) - by_chance)
        was = self.active
        if self._alarm.look(self.index) != was:
            self.since = None if was else at_s
            self._blocks.clear()  # some are from during the drift
        self._drifting = self._drifting + 1 if self.active else 0
        if self._drifting * self._config.look_every >= self._config.reference:
            self._become_usual()

    def _become_usual(self) -> None:
        self._reference, self._referred = self._now, min(self._counted, 3 * self._config.now)
        self._alarm = Hysteresis(self._config.above, self._config.below, self._config.looks)
        self._blocks.clear()
        self.index = self.since = None
        self._drifting = 0


def _size(seen: int, half_life: int) -> float:
    """How many of equal weight `seen` samples amount to that fade: (sum w)^2 / sum w^2."""
    fade = 0.5 ** (1 / half_life)
    one, two = (1 - fade**seen) / (1 - fade), (1 - fade ** (2 * seen)) / (1 - fade**2)
    return float(one**2 / two)


def _shares(counts: Floats) -> list[float]:
    total = counts.sum()
    return (counts / total).tolist() if total > 0 else []


class Rate:
    """How many a second, of about the last `window_s`.

    >>> rate = Rate(window_s=10)
    >>> for second in range(100):
    ...     rate.update(5, second)
    >>> round(rate.get(99), 1)
    5.3
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._sum, self._at_s = 0.0, -math.inf

    def update(self, count: float, at_s: float) -> None:
        """So many at a time."""
        self._sum = self._faded(at_s) + count
        self._at_s = max(self._at_s, at_s)

    def get(self, at_s: float) -> float:
        """How many a second, as of a time."""
        return self._faded(at_s) / self._window_s

    def _faded(self, at_s: float) -> float:
        return self._sum * math.exp(-max(0.0, at_s - self._at_s) / self._window_s)
