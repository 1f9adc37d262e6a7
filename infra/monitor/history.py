"""What was told lately: each figure of each process in a ring, an hour of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Key = tuple[str, ...]
MOST = 20_000  # figures; there are some hundreds
_COUNTERS = ("_total", "_bucket", "_count", "_sum")


@dataclass(frozen=True)
class Selection:
    """Figures of a name, whose labels have values; one that begins with `~` is an expression."""

    name: str
    where: tuple[tuple[str, str], ...] = ()

    def takes(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether a figure is one of them."""
        return name == self.name and all(
            pattern.fullmatch(labels.get(label, "")) for label, pattern in self._patterns
        )

    @cached_property
    def _patterns(self) -> list[tuple[str, re.Pattern[str]]]:
        return [
            (label, re.compile(value[1:] if value.startswith("~") else re.escape(value)))
            for label, value in self.where
        ]


class History:
    """Figures over time: `open` begins a moment, `note` tells what a figure is then.

    Of a counter the ring holds what it has grown since it was first seen, whoever counted: one
    that begins anew at 0 goes on from where it stood. A figure that is not told any more keeps
    that; a gauge has no value at the moments at which it was not told.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.moments = 0
        self._times = np.full(slots, np.nan)  # unix seconds, (slots,)
        self._values = np.full((64, slots), np.nan)  # (figures, slots)
        self._labels: list[tuple[str, Mapping[str, str]]] = []  # of the figures
        self._counters: list[bool] = []
        self._raw: list[float] = []  # of a counter, as it was told last
        self._told_at: list[int] = []  # the moment
        self._free: list[int] = []
        self._before: dict[float, int] = {}  # slots of this moment, by how long ago
        self._rows: dict[tuple[Selection, Key], list[tuple[int, Key]]] = {}

    @property
    def now(self) -> float:
        """The newest moment, as a Unix time."""
        return float(self._times[self._slot])

    @property
    def times(self) -> NDArray[np.float64]:
        """The moments that are kept, oldest first."""
        return self._times[self.newest(self.moments)]

    def __len__(self) -> int:
        return len(self._labels) - len(self._free)

    def newest(self, count: int) -> NDArray[np.int64]:
        """The slots of the newest moments, at most so many, oldest first."""
        count = min(count, self.moments, self.slots)
        return np.arange(self.moments - count, self.moments) % self.slots

    # -- telling -------------------------------------------------------------------------------

    def open(self, at: float) -> None:
        """Begins a moment, at a Unix time."""
        before = self._slot
        self.moments += 1
        self._times[self._slot] = at
        self._before.clear()
        for row, is_counter in enumerate(self._counters):
            self._values[row, self._slot] = self._values[row, before] if is_counter else np.nan
        if self.moments % 100 == 0:
            self._forget()

    def add(self, name: str, labels: Mapping[str, str]) -> int | None:
        """A place for one more figure; None if there are too many.

        What a counter is when it is first told it did not grow just now: a trainer, for one, goes
        on counting where its cut was made.
        """
        if self._free:
            row = self._free.pop()
        elif len(self._labels) < MOST:
            row = len(self._labels)
            self._labels.append((name, labels))
            self._counters.append(False)
            self._raw.append(np.nan)
            self._told_at.append(0)
            if row == len(self._values):
                more = np.full_like(self._values, np.nan)
                self._values = np.concatenate([self._values, more])
        else:
            return None
        is_counter = name.endswith(_COUNTERS)
        self._labels[row], self._counters[row] = (name, labels), is_counter
        self._raw[row] = np.nan
        self._told_at[row] = self.moments
        self._values[row] = 0.0 if is_counter else np.nan
        self._rows.clear()
        return row

    def note(self, row: int, value: float) -> None:
        """Tells a figure's value at the newest moment."""
        if self._counters[row]:
            before = self._raw[row]
            # From the second telling on; one that is smaller was counted from 0 again.
            grown = 0.0 if math.isnan(before) else value - before if value >= before else value
            self._values[row, self._slot] += grown
            self._raw[row] = value
        else:
            self._values[row, self._slot] = value
        self._told_at[row] = self.moments

    def _forget(self) -> None:
        """Frees the places of figures of which nothing is left."""
        for row, told_at in enumerate(self._told_at):
            if told_at and self.moments - told_at > self.slots:
                self._labels[row] = ("", {})
                self._told_at[row] = 0
                self._counters[row] = False
                self._free.append(row)
                self._rows.clear()

    # -- asking --------------------------------------------------------------------------------

    def elapsed(self, over_s: float) -> float:
        """How long ago the moment was from which a window of so many seconds is measured."""
        return self.now - float(self._times[self._slot_before(over_s)])

    def last(self, selection: Selection, by: Key) -> Iterator[tuple[Key, float]]:
        """The newest value of each figure, by the values of some labels."""
        slot = self._slot
        return ((key, float(self._values[row, slot])) for row, key in self._found(selection, by))

    def increase(self, selection: Selection, by: Key, over_s: float) -> Iterable[tuple[Key, float]]:
        """By how much each counter has grown."""
        found = self._found(selection, by)
        rows = [row for row, _ in found]
        grown = self._values[rows, self._slot] - self._values[rows, self._slot_before(over_s)]
        return [(key, float(one)) for (_, key), one in zip(found, grown, strict=True)]

    def span(
        self, selection: Selection, by: Key, over_s: float
    ) -> Iterator[tuple[Key, float, float]]:
        """The lowest and the highest value of each gauge that has one."""
        count = int(np.sum(self.times >= self.now - over_s))
        slots = self.newest(count)
        for row, key in self._found(selection, by):
            values = self._values[row, slots]
            values = values[~np.isnan(values)]
            if len(values):
                yield key, float(values.min()), float(values.max())

    def _found(self, selection: Selection, by: Key) -> list[tuple[int, Key]]:
        asked = (selection, by)
        if asked not in self._rows:
            self._rows[asked] = [
                (row, tuple(labels.get(label, "") for label in by))
                for row, (name, labels) in enumerate(self._labels)
                if selection.takes(name, labels)
            ]
        return self._rows[asked]

    @property
    def _slot(self) -> int:
        return (self.moments - 1) % self.slots

    def _slot_before(self, over_s: float) -> int:
        """The last slot that is at least so old, or the oldest."""
        if over_s not in self._before:
            order = self.newest(self.moments)
            later = int(np.searchsorted(self._times[order], self.now - over_s + 1e-3, "right"))
            self._before[over_s] = int(order[max(0, later - 1)])
        return self._before[over_s]
