"""Sums that fade with time, by key: the one bounded table under all statistics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streaming.errors import ConfigError
from streaming.kernels import (
    EMPTY,
    GOLDEN,
    compiled,
    find_rows,
    get,
    grown,
    has_room,
    internal,
    mix,
    put,
    rehash,
    slots_for,
)

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

US = 1_000_000  # microseconds of a second
_FORGOTTEN_AT_ONCE = 8  # one in so many keys goes when there is no room for another
_FAINTEST = -2_100  # two to this power is 0 for a float


class DecayedSums:
    """Sums of what events bring, by key; each column fades by half in its own half-life.

    An event adds `value * 2 ** (t / half_life)`, and reading divides: exponential decay kept as
    growing weights (Cormode et al., "Forward Decay", ICDE 2009). The weight of an event follows
    from its own time alone: a late one adds what it would have left had it come in time, and no
    result depends on when the table was read or how its events were cut into batches. A half-life
    of infinity counts plainly.

    A key is one id, or several that are named by `key`; where one of them is negative, as an id
    that an event does not have, the row is left out. At most `most` keys are kept: when there is
    one more, an eighth of them goes, those of the smallest first sum (which is never negative), and
    of equal ones those whose newest event is oldest. `forgotten` counts them.

    >>> day = 86_400 * US
    >>> counts = DecayedSums({"day": day, "ever": math.inf}, most=1_000, key=("field", "value"))
    >>> category, scenario = 0, 1
    >>> keys = np.array([[category, 7], [scenario, 3], [category, 7]])
    >>> counts.add(keys, np.array([0, 0, day]), np.ones((3, 2)))
    >>> counts.get(np.array([[category, 7], [scenario, 3], [scenario, 9]]), at_us=2 * day)
    array([[0.75, 2.  ],
           [0.25, 1.  ],
           [0.  , 0.  ]])
    """

    # An era is one half-life of time, counted from zero: a sum is kept in units of an event at the
    # beginning of its era, and moves to a later one by a power of two, which costs no bit.

    def __init__(
        self,
        half_lives_us: Mapping[str, float],
        most: int,
        key: Sequence[str] = ("key",),
        state: pa.Table | None = None,
    ) -> None:
        self.names = tuple(half_lives_us)
        self._half_lives = np.array(list(half_lives_us.values()), np.float64)
        if most < 1 or not (self._half_lives > 0).all():
            raise ConfigError(
                f"sums with half-lives {dict(half_lives_us)} for at most {most} keys cannot be"
                " kept: give positive numbers"
            )
        self._most, self._key = most, tuple(key)
        self.forgotten = 0
        self._size = np.zeros(1, np.int64)
        self._slots = slots_for(0)
        self._ids = np.zeros((0, len(self._key)), np.int64)
        self._newest_us = np.zeros(0, np.int64)
        self._sums = np.zeros((0, len(self.names)), np.float64)
        self._eras = np.zeros((0, len(self.names)), np.int64)
        if state is not None:
            self._restore(state)

    def __len__(self) -> int:
        return int(self._size[0])

    @property
    def ids(self) -> Ids:
        """Every key, (rows, parts of a key), in the order in which they came; a view."""
        return self._ids[: len(self)]

    def add(self, keys: Ids, at_us: Ids, values: Floats, clock: Ids | None = None) -> None:
        """Adds `values` (n, columns) to the sums of `keys` (n,) or (n, parts), event by event.

        Sums fade with `at_us`, or with `clock` where it is given, half-lives being in its unit.

        Raises:
            ValueError: a value is not finite; nothing was added.
        """
        self._add(keys, at_us, values, clock, np.empty((0, 0)))

    def observe(self, keys: Ids, at_us: Ids, values: Floats, clock: Ids | None = None) -> Floats:
        """As `add`; returns the sums as each event found them, at its time, (n, columns)."""
        before = np.zeros((len(at_us), len(self.names)))
        self._add(keys, at_us, values, clock, before)
        return before

    def get(self, keys: Ids, at_us: int) -> Floats:
        """The sums of each key as of a time that is not before its events, (n, columns).

        Zeros for an unknown key; `at_us` is of the clock that the events were added with.
        """
        return self._read(self._find(keys), at_us)

    def get_all(self, at_us: int) -> Floats:
        """As `get`, of all keys, in the order of `ids`."""
        return self._read(np.arange(len(self)), at_us)

    def newest_us(self, keys: Ids) -> Ids:
        """Event time of the newest event of each key, 0 for an unknown one."""
        return np.append(self._newest_us[: len(self)], 0)[self._find(keys)]  # EMPTY is the last

    def has(self, keys: Ids) -> NDArray[np.bool_]:
        """Whether each key is known, (n,)."""
        known: NDArray[np.bool_] = self._find(keys) != EMPTY
        return known

    def ranks(self, column: int) -> Floats:
        """What orders all keys by a sum, (rows,): the binary logarithm of it, as of time zero.

        The order does not change with time, and no sum is too old to have its place.
        """
        with np.errstate(divide="ignore"):
            logarithms: Floats = np.log2(self._sums[: len(self), column])
        return logarithms + self._eras[: len(self), column]

    def merge(self, other: DecayedSums) -> None:
        """Adds what another table counted: the sums of both streams, as if one had held them.

        Raises:
            ConfigError: the other counts something else, or fades in another way.
        """
        if (other._key, other.names) != (self._key, self.names) or not np.array_equal(
            other._half_lives, self._half_lives
        ):
            raise ConfigError(
                f"sums {other._layout()} cannot be added to sums {self._layout()}:"
                " merge tables of one configuration"
            )
        rows = len(other)
        self.forgotten += other.forgotten
        self._absorb(
            other.ids, other._newest_us[:rows],
            (other._sums[:rows], np.ones_like(other._sums[:rows]), other._eras[:rows]),
            np.empty((0, 0)),
        )  # fmt: skip

    def table(self) -> pa.Table:
        """All of the state: of each key its ids, newest event, and sums with their eras."""
        rows = len(self)
        columns: dict[str, NDArray[Any]] = {
            name: self._ids[:rows, j] for j, name in enumerate(self._key)
        }
        columns["newest_us"] = self._newest_us[:rows]
        for k, name in enumerate(self.names):
            columns[name] = self._sums[:rows, k]
            columns[f"{name}_era"] = self._eras[:rows, k]
        metadata = {"layout": json.dumps(self._layout()), "forgotten": str(self.forgotten)}
        return pa.table({n: pa.array(c.copy()) for n, c in columns.items()}, metadata=metadata)

    # -- inside --------------------------------------------------------------------------------

    def _layout(self) -> dict[str, float]:
        return dict(zip(self.names, self._half_lives.tolist(), strict=True))

    def _parts(self, keys: Ids) -> Ids:
        return np.ascontiguousarray(keys, np.int64).reshape(len(keys), len(self._key))

    def _find(self, keys: Ids) -> Ids:
        rows = np.empty(len(keys), np.int64)
        find_rows(self._slots, _hashed(self._parts(keys)), rows)
        return rows

    def _read(self, rows: Ids, at: int) -> Floats:
        found = np.zeros((len(rows), len(self.names)))
        weights, eras = np.empty((1, len(self.names))), np.empty((1, len(self.names)), np.int64)
        _weigh(np.array([at]), self._half_lives, weights, eras)
        _read(rows, (self._sums, self._eras), weights[0], eras[0], found)
        return found

    def _add(
        self, keys: Ids, at_us: Ids, values: Floats, clock: Ids | None, before: Floats
    ) -> None:
        if not np.isfinite(values).all():
            raise ValueError(
                f"a value for the sums {', '.join(self.names)} is not finite: leave such events out"
            )
        weights, eras = np.empty(values.shape), np.empty(values.shape, np.int64)
        times = np.ascontiguousarray(at_us, np.int64)
        _weigh(times if clock is None else clock, self._half_lives, weights, eras)
        amounts = np.ascontiguousarray(values, np.float64)
        self._absorb(self._parts(keys), times, (amounts, weights, eras), before)

    def _absorb(
        self, ids: Ids, newest_us: Ids, amounts: tuple[Floats, Floats, Ids], before: Floats
    ) -> None:
        hashes = _hashed(ids)
        self._make_room(len(ids))
        start = 0
        while start < len(ids):
            start = _absorb(
                start,
                (self._slots, self._size),
                (self._ids, self._newest_us, self._sums, self._eras),
                (hashes, ids, newest_us, *amounts),
                before,
            )
            if start < len(ids):
                self._forget()

    def _make_room(self, more: int) -> None:
        """For `more` new keys, as far as the bound allows."""
        needed = min(len(self) + more, self._most)
        if needed > len(self._newest_us):
            rows = min(max(64, needed, 2 * len(self._newest_us)), self._most)
            self._ids, self._newest_us = grown(self._ids, rows), grown(self._newest_us, rows)
            self._sums, self._eras = grown(self._sums, rows), grown(self._eras, rows)
        if not has_room(self._slots, needed):
            roomy = slots_for(needed)
            rehash(self._slots, roomy)
            self._slots = roomy

    def _forget(self) -> None:
        """Takes out the smallest keys; those that stay keep their order."""
        size = len(self)
        excess = -(-size // _FORGOTTEN_AT_ONCE)
        ranks = self.ranks(0)
        limit = np.partition(ranks, excess - 1)[excess - 1]
        stays = ranks > limit
        equal = np.flatnonzero(ranks == limit)
        equal = equal[np.argsort(self._newest_us[equal], kind="stable")]
        stays[equal[excess - int(np.count_nonzero(ranks < limit)) :]] = True
        kept = int(np.count_nonzero(stays))
        for column in (self._ids, self._newest_us, self._sums, self._eras):
            column[:kept] = column[:size][stays]
        self._size[0] = kept
        self.forgotten += size - kept
        self._slots[:] = 0
        _index(self._slots, _hashed(self.ids))

    def _restore(self, table: pa.Table) -> None:
        """Takes the state; a sum that has another half-life now goes on from what it was."""
        columns = {name: table[name].to_numpy() for name in table.column_names}
        layout = json.loads(table.schema.metadata[b"layout"])
        newest_us = columns["newest_us"]
        shape = (len(newest_us), len(self.names))
        sums, weights, eras = np.zeros(shape), np.ones(shape), np.zeros(shape, np.int64)
        for k, name in enumerate(self.names):
            if name not in layout:
                continue
            sums[:, k], eras[:, k] = columns[name], columns[f"{name}_era"]
            if layout[name] != self._half_lives[k]:
                plain = math.isinf(layout[name])
                begun = newest_us if plain else columns[f"{name}_era"] * layout[name]
                column = slice(k, k + 1)
                _weigh(begun, self._half_lives[column], weights[:, column], eras[:, column])
        ids = np.column_stack([columns[name] for name in self._key])
        self.forgotten = int(table.schema.metadata[b"forgotten"])
        self._absorb(ids, newest_us, (sums, weights, eras), np.empty((0, 0)))


def _hashed(ids: Ids) -> Ids:
    """One number for each row of ids (n, parts): its only one, or 63 bits of them all.

    Two of a million keys of several ids share a number with a probability of 1 in 10^7.
    """
    if ids.shape[1] == 1:
        return ids[:, 0]
    hashes = np.empty(len(ids), np.int64)
    _hash(ids, hashes)
    return hashes


# -- compiled --------------------------------------------------------------------------------


@compiled
def _hash(ids: Ids, hashes: Ids) -> None:
    for i in range(ids.shape[0]):
        hashed, whole = np.uint64(0), True
        for j in range(ids.shape[1]):
            hashed = mix((hashed ^ np.uint64(ids[i, j])) + GOLDEN)
            whole &= ids[i, j] >= 0
        hashes[i] = np.int64(hashed >> np.uint64(1)) if whole else EMPTY


@compiled
def _index(slots: Ids, hashes: Ids) -> None:
    for row in range(hashes.size):
        put(slots, hashes[row], row)


@compiled
def _weigh(clock: Any, half_lives: Floats, weights: Floats, eras: Ids) -> None:
    """What an event at each time adds, in units of one at the beginning of its era."""
    for i in range(clock.size):
        for k in range(half_lives.size):
            passed = clock[i] / half_lives[k]
            era = np.floor(passed)
            eras[i, k] = np.int64(era)
            weights[i, k] = np.exp2(passed - era)


@internal
def _later(amount: float, eras: int) -> float:
    """What is left of an amount so many eras later."""
    return math.ldexp(amount, max(-eras, _FAINTEST)) if eras > 0 else amount


@compiled
def _read(rows: Ids, table: Any, weights: Floats, eras: Ids, found: Floats) -> None:
    sums, kept = table
    for i in range(rows.size):
        if rows[i] != EMPTY:
            for k in range(eras.size):
                found[i, k] = _later(sums[rows[i], k], eras[k] - kept[rows[i], k]) / weights[k]


@compiled
def _absorb(start: int, index: Any, table: Any, taken: Any, before: Floats) -> int:
    """Takes rows in from `start` on; returns the first for whose key there is no room."""
    slots, size = index
    ids, newest_us, sums, eras = table
    hashes, parts, times, amounts, weights, new_eras = taken
    for i in range(start, hashes.size):
        if hashes[i] < 0:
            continue
        row = get(slots, hashes[i])
        if row == EMPTY:
            row = size[0]
            if row == newest_us.size:
                return i
            size[0] += 1
            put(slots, hashes[i], row)
            ids[row] = parts[i]
            newest_us[row] = times[i]
            sums[row] = 0.0
            eras[row] = new_eras[i]
        newest_us[row] = max(newest_us[row], times[i])
        for k in range(sums.shape[1]):
            passed = new_eras[i, k] - eras[row, k]
            if before.size > 0:
                before[i, k] = _later(sums[row, k], passed) / weights[i, k]
            if passed > 0:
                sums[row, k] = _later(sums[row, k], passed)
                eras[row, k] = new_eras[i, k]
            sums[row, k] += _later(amounts[i, k] * weights[i, k], -passed)
    return int(hashes.size)
