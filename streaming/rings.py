"""Of every user the newest records, in bounded memory: one ring for each, all in one array.

Rings are arrays, so that compiled code keeps and reads them beside its own state: `rings` there is
(slots, chain, users, records, told), as `Rings.arrays` gives them.

What has changed is told by a clock that counts records. In a cut a user is keyed by his row, and a
record by its *place*, row * length + place in the ring: both are written over and never given back,
so that what changed is what was written, and nobody goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streaming.cuts import KEYED
from streaming.errors import ArtefactError
from streaming.kernels import (
    EMPTY,
    compiled_in_place,
    find_rows,
    get,
    grown,
    has_room,
    internal_in_place,
    put,
    rehash,
    remove,
    slots_for,
)

Ids = NDArray[np.int64]
# What is kept of a user beside the records themselves; `older` and `newer` chain the users in the
# order in which they last got one, so that the one to forget is found at once.
_SAVED = ("user_id", "count", "newest_us", "clock")
_USER = np.dtype(
    [
        ("user_id", np.int64),
        ("older", np.int64),
        ("newer", np.int64),
        ("count", np.int64),  # of records, ever; the newest `length` lie in the ring
        ("newest_us", np.int64),
        ("clock", np.int64),  # at his last record
    ]
)
# The places of `chain`: rows of who got a record longest ago and last, rows in use, most rows,
# records ever.
_OLDEST, _NEWEST, _USED, _MOST, _CLOCK = range(5)
# So many of the newest records can be told apart from all others, a power of two: 8 MB for three
# minutes of 5,000 a second.
_TOLD = 1 << 20
_RECORDS = "-records"  # ends the name of the shard that has them


@dataclass(frozen=True, slots=True)
class Lists:
    """m lists of records, oldest first: list i is `records[offsets[i]:offsets[i + 1]]`."""

    offsets: Ids
    records: NDArray[Any]

    @staticmethod
    def empty(lists: int, dtype: np.dtype[Any]) -> Lists:
        """So many lists without anything in them."""
        return Lists(np.zeros(lists + 1, np.int64), np.empty(0, dtype))

    def columns(self) -> dict[str, pa.ListArray]:
        """Each field of the records as a list column; NaN becomes null."""
        offsets = pa.array(self.offsets, pa.int32())
        fields = {name: self.records[name] for name in self.records.dtype.names or ()}
        return {
            name: pa.ListArray.from_arrays(
                offsets, pa.array(np.ascontiguousarray(values), from_pandas=True)
            )
            for name, values in fields.items()
        }


class Rings:
    """The newest `length` records of each of at most `users` users.

    `dtype` is that of a record; it has a field `at_us`. Who got no record for longest is forgotten
    first. A user with ten million records costs what one with `length` costs. With a `length` of 0
    nothing is kept.

    >>> clicks = Rings(np.dtype([("item", np.int64), ("at_us", np.int64)]), length=2, users=10)
    >>> records = np.array([(7, 100), (8, 200), (9, 300)], clicks.dtype)
    >>> everyone, nobody = np.array([1, 1, 1]), np.empty(0, int)
    >>> before = clicks.take(np.arange(3), everyone, records, np.arange(3), everyone)
    >>> before.offsets.tolist(), before.records["item"].tolist()  # of each just before it
    ([0, 0, 1, 3], [7, 7, 8])
    >>> clicks.get(np.array([1, 2]))[0].records.tolist()
    [(8, 200), (9, 300)]
    """

    def __init__(self, dtype: np.dtype[Any], length: int, users: int) -> None:
        self.dtype = dtype
        self._slots = slots_for(0)  # user -> row
        self._chain = np.array([EMPTY, EMPTY, 0, users if length else 0, 0])
        self._users = np.zeros(0, _USER)
        self._records = np.zeros((0, length), dtype)
        self._told = np.zeros(1, np.int64)  # the places of the newest records, by clock

    def __len__(self) -> int:
        return int(self._chain[_USED])

    @property
    def length(self) -> int:
        """Records that are kept of a user at most."""
        return int(self._records.shape[1])

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """What compiled code works on; to be asked for anew after `make_room`."""
        return self._slots, self._chain, self._users, self._records, self._told

    def take(
        self, rows: Ids, users: Ids, records: NDArray[Any], asked_rows: Ids, asked: Ids
    ) -> Lists:
        """Gives `records[i]` to `users[i]` in order, as what happened in row `rows[i]`; answers
        with the lists of the users `asked`, each as it was just before row `asked_rows[i]`.

        Both kinds of rows ascend.
        """
        if not self.length or len(self) + len(rows) == 0:
            return Lists.empty(len(asked), self.dtype)
        self.make_room(len(rows))
        offsets = np.zeros(len(asked) + 1, np.int64)
        found = np.empty(len(asked) * self.length, self.dtype)
        _take(self.arrays, (rows, users, records), (asked_rows, asked), offsets, found)
        return Lists(offsets, found[: offsets[-1]])

    def get(self, users: Ids) -> tuple[Lists, Ids]:
        """What each user has now, and the newest time (µs) of all that he ever got, 0 for none."""
        rows = np.empty(len(users), np.int64)
        find_rows(self._slots, users, rows)
        return self._gather(rows)

    def newest_us(self, users: Ids) -> Ids:
        """The newest time (µs) of all that each user ever got, 0 for none."""
        rows = np.empty(len(users), np.int64)
        find_rows(self._slots, users, rows)
        found = np.zeros(len(users), np.int64)
        known = rows != EMPTY
        found[known] = self._users["newest_us"][rows[known]]
        return found

    # -- the cut ---------------------------------------------------------------------------

    def mark(self) -> int:
        """A cursor on what has changed so far, for `tables`; the first lets the rings note it.

        It stays good for ever: what changed since one that is too old is everything.
        """
        if len(self._told) < _TOLD:
            self._told = np.zeros(_TOLD, np.int64)
        return int(self._chain[_CLOCK])

    def tables(self, name: str, since: int | None = None) -> dict[str, pa.Table]:
        """Users and records as keyed shards: all of them, or what changed after the mark `since`.

        The tables share no memory with the rings.
        """
        if since is None or self._chain[_CLOCK] - since > len(self._told):
            rows = np.arange(len(self))
            sizes = np.minimum(self._users["count"][: len(self)], self.length)
            places = np.flatnonzero(np.arange(self.length) < sizes[:, None])
        else:
            clocks = np.arange(since, self._chain[_CLOCK]) + 1
            places = _distinct(np.sort(self._told[clocks % len(self._told)]))
            rows = _distinct(places // max(1, self.length))
        users, records = self._users.take(rows), self._records.reshape(-1).take(places)
        user_columns = {field: np.ascontiguousarray(users[field]) for field in _SAVED}
        columns = {
            column: np.ascontiguousarray(records[field])
            for field, column in _columns(self.dtype).items()
        }
        metadata = {**KEYED, "length": str(self.length)}
        return {
            name: pa.table({"id": rows, **user_columns}, metadata=metadata),
            name + _RECORDS: pa.table({"id": places, **columns}, metadata=KEYED),
        }

    def restore(self, name: str, shards: Mapping[str, pa.Table]) -> None:
        """Takes what `tables` gave, in whatever order; nothing was kept yet.

        Where less is kept now, it is the newest records of who got one last.

        Raises:
            ArtefactError: the shards are those of an older release.
        """
        kept = shards[name + _RECORDS] if name + _RECORDS in set(shards) else None
        columns = _columns(self.dtype)
        if kept is None or not {*columns.values()} <= {*kept.column_names}:
            raise ArtefactError(f"the saved state has less of each record in {name!r} than is kept"
                                " now, as an older release left it: start over with"
                                " `headrace run --fresh`")  # fmt: skip
        table = shards[name]
        users = np.zeros(len(table), _USER)
        for field in _SAVED:
            users[field][table["id"].to_numpy()] = table[field].to_numpy()
        length = int(table.schema.metadata[b"length"])
        records = np.zeros((len(users), length), self.dtype)
        for field, column in columns.items():
            records.reshape(-1)[field][kept["id"].to_numpy()] = kept[column].to_numpy()
        self._take_over(users, records)

    def _take_over(self, users: NDArray[Any], records: NDArray[Any]) -> None:
        """Makes users in any number, with rings of any length, those that are kept."""
        most = int(self._chain[_MOST])
        if len(users) > most:
            newest = np.argsort(users["clock"])[len(users) - most :]
            newest.sort()
            users, records = users[newest], records[newest]
        if records.shape[1] != self.length:
            records = _resized(records, users["count"], self.length)
        order = np.argsort(users["clock"])
        ends = np.concatenate([[EMPTY], order, [EMPTY]])
        users["older"][order], users["newer"][order] = ends[:-2], ends[2:]
        self._chain[[_OLDEST, _NEWEST]] = ends[1], ends[-2]
        self._chain[_USED], self._chain[_CLOCK] = len(users), users["clock"].max(initial=0)
        self._slots = slots_for(len(users))
        _index(self._slots, users)
        self._users, self._records = users, records

    def make_room(self, more: int) -> None:
        """For `more` users who are new, as far as the bound on users allows."""
        most = int(self._chain[_MOST])
        needed = min(len(self) + more, most)
        if needed > len(self._users):
            rows = min(max(64, needed, 2 * len(self._users)), most)
            self._users, self._records = grown(self._users, rows), grown(self._records, rows)
        if not has_room(self._slots, len(self._users)):
            roomy = slots_for(len(self._users))
            rehash(self._slots, roomy)
            self._slots = roomy

    def _gather(self, rows: Ids) -> tuple[Lists, Ids]:
        """What is kept in these rows; nothing for EMPTY."""
        known = rows != EMPTY
        users = self._users[rows] if len(self._users) else np.zeros(len(rows), _USER)
        lengths = np.where(known, np.minimum(users["count"], self.length), 0)
        found = np.empty(lengths.sum(), self.dtype)
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        _copy_rows(self.arrays, rows, offsets, found)
        return Lists(offsets, found), np.where(known, users["newest_us"], 0)


def _columns(dtype: np.dtype[Any]) -> dict[str, str]:
    """The column of a shard that each field of the records has; `id` is the key."""
    return {name: f"record_{name}" for name in dtype.names or ()}


def _distinct(places: Ids) -> Ids:
    """Those that ascend, each once: `np.unique` takes several times as long to find them."""
    distinct: Ids = places[np.diff(places, prepend=EMPTY) != 0]
    return distinct


def _resized(records: NDArray[Any], counts: Ids, length: int) -> NDArray[Any]:
    """Rings (n, length) with the newest of what others have, of so many records ever."""
    resized = np.zeros((len(records), length), records.dtype)
    for back in range(min(length, records.shape[1])):
        rows = np.flatnonzero(counts > back)
        numbers = counts[rows] - 1 - back
        resized[rows, numbers % length] = records[rows, numbers % records.shape[1]]
    return resized


# -- compiled --------------------------------------------------------------------------------


@internal_in_place
def are_full(rings: Any) -> bool:
    """Whether there must be made room before the next user who is new."""
    chain, users = rings[1], rings[2]
    return bool(chain[_USED] >= users.size and users.size < chain[_MOST])


@internal_in_place
def new_place(rings: Any, user: int, at_us: int) -> tuple[int, int]:
    """Where in the records the next one of a user belongs, in the place of his oldest; there must
    be room for him if he is new.
    """
    slots, chain, users, records, told = rings
    row = _row_of(user, slots, chain, users)
    place = int(users[row].count % records.shape[1])
    clock = chain[_CLOCK] + 1
    chain[_CLOCK] = users[row].clock = clock
    # Not negative, which numba need not look for: that takes longer than all else here.
    told[np.uint64(clock) & np.uint64(told.size - 1)] = row * records.shape[1] + place
    users[row].count += 1
    users[row].newest_us = max(users[row].newest_us, at_us)
    return row, place


@internal_in_place
def copy_of(rings: Any, user: int, to: Any) -> int:
    """Writes what a user has to `to`, oldest first; returns how many there are."""
    row = get(rings[0], user)
    return 0 if row == EMPTY else _copy(rings, row, to)


@internal_in_place
def _copy(rings: Any, row: int, to: Any) -> int:
    users, records = rings[2], rings[3]
    length, count = records.shape[1], users[row].count
    size = int(min(count, length))
    place = int((count - size) % length)
    for i in range(size):
        to[i] = records[row, place]
        place = place + 1 if place + 1 < length else 0
    return size


@compiled_in_place
def _take(rings: Any, told: Any, asked: Any, offsets: Ids, found: Any) -> None:
    """Writes the lists that are asked for, and gives the records, in the order of rows."""
    told_rows, told_users, told_records = told
    asked_rows, asked_users = asked
    next_asked = 0
    for i in range(told_rows.size + 1):
        until = told_rows[i] if i < told_rows.size else np.iinfo(np.int64).max
        while next_asked < asked_rows.size and asked_rows[next_asked] <= until:
            start = offsets[next_asked]
            size = copy_of(rings, asked_users[next_asked], found[start:])
            next_asked += 1
            offsets[next_asked] = start + size
        if i < told_rows.size:
            record = told_records[i]
            row, place = new_place(rings, told_users[i], record.at_us)
            rings[3][row, place] = record


@internal_in_place
def _row_of(user: int, slots: Ids, chain: Ids, users: Any) -> int:
    """The row of a user who gets a record; a new one may take that of who got none for longest."""
    row = get(slots, user)
    if row != EMPTY and chain[_NEWEST] == row:
        return row
    if row != EMPTY:
        _unchain(row, chain, users)
    else:
        row = int(chain[_USED])
        if row < users.size:
            chain[_USED] += 1
        else:
            row = int(chain[_OLDEST])
            _unchain(row, chain, users)
            remove(slots, users[row].user_id)
        put(slots, user, row)
        users[row].user_id = user
        users[row].count = 0
        users[row].newest_us = 0
    users[row].older = chain[_NEWEST]
    users[row].newer = EMPTY
    if chain[_NEWEST] == EMPTY:
        chain[_OLDEST] = row
    else:
        users[chain[_NEWEST]].newer = row
    chain[_NEWEST] = row
    return row


@internal_in_place
def _unchain(row: int, chain: Ids, users: Any) -> None:
    older, newer = users[row].older, users[row].newer
    if older == EMPTY:
        chain[_OLDEST] = newer
    else:
        users[older].newer = newer
    if newer == EMPTY:
        chain[_NEWEST] = older
    else:
        users[newer].older = older


@compiled_in_place
def _copy_rows(rings: Any, rows: Ids, offsets: Ids, found: Any) -> None:
    for i in range(rows.size):
        if rows[i] != EMPTY:
            _copy(rings, rows[i], found[offsets[i] :])


@compiled_in_place
def _index(slots: Ids, users: Any) -> None:
    for row in range(users.size):
        put(slots, users[row].user_id, row)
