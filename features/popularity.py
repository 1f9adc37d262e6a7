"""What is popular this hour, this day and this week, for everyone and for people of one kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from features.decayed import US, DecayedSums
from streaming.artefact import Artefact
from streaming.errors import ConfigError
from streaming.kernels import compiled

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Shares = tuple[Ids, Floats]  # items (n,) by rising id, and of all actions the part on each

EVERYONE = 0  # the cell that every action belongs to; no string has this stable id


@dataclass(frozen=True)
class PopularityConfig:
    """`windows` are seconds by name; a hot list has at most `length` items.

    At most `most` pairs of a cell and an item are kept, those with the most actions in the longest
    window.
    """

    windows: Mapping[str, PositiveFloat] = field(
        default_factory=lambda: {"hour": 3_600.0, "day": 86_400.0, "week": 604_800.0}
    )
    length: PositiveInt = 100
    most: PositiveInt = 1_000_000


@dataclass(frozen=True)
class ListTrust:
    """How many actions it takes until a list says as much itself as what stands above it: the list
    of the next longer `window`, those of the cells that its `cell` is a part of, or where there
    were no actions at all, the `content` of the items.
    """

    window: PositiveFloat = 20_000.0
    cell: PositiveFloat = 20_000.0
    content: PositiveFloat = 10.0


@dataclass(frozen=True, slots=True)
class HotLists:
    """The best items of every cell and window, as they were at one moment; never changes.

    List i, of `cells[i]` (ascending), is `offsets[i]` to `offsets[i + 1]` of `items` and `scores`,
    (windows, total), best first. `totals` (windows, cells) are the scores of all items of a cell
    together. Windows are named from the longest to the shortest.
    """

    windows: tuple[str, ...]
    cells: Ids
    offsets: Ids
    items: Ids
    scores: Floats
    totals: Floats

    def top(self, window: str, count: int, cell: int = EVERYONE) -> tuple[Ids, Floats]:
        """The hottest items and their scores, best first; empty for a cell without any."""
        if window not in self.windows:
            raise ConfigError(
                f"hot lists have no window {window!r}: ask for {', '.join(self.windows)}"
            )
        at = self._place(cell)
        if at is None:
            return self.items[0, :0], self.scores[0, :0]
        which = self.windows.index(window)
        part = slice(self.offsets[at], min(self.offsets[at] + count, self.offsets[at + 1]))
        return self.items[which, part], self.scores[which, part]

    def has(self, cell: int) -> bool:
        """Whether anything was counted in the cell."""
        return self._place(cell) is not None

    def shares(
        self, levels: Sequence[Sequence[int]], trust: ListTrust, prior: Shares | None = None
    ) -> Shares:
        """What part of the actions to come falls on which item, by the lists of some cells.

        `levels` are cells from the widest to the narrowest; each is a part of all of the level
        above. A list of S actions, s of them on an item, has `s / S` as its share only if nothing
        stands above it; else a part of it is taken from there:

            (s + trust.window * longer + trust.cell * wider) / (S + trust.window + trust.cell)

        where `longer` is the share in the same cell and the next longer window, and `wider` the
        mean of those of the level above in the same window. The `prior` is what counts as a window
        longer than all at the top. So a cell or an hour of which little is known yet says what is
        known of all, and there is no number of actions at which that changes abruptly. The result
        is the mean over the last level in the shortest window. It is a Dirichlet prior at every
        list (MacKay and Peto, A Hierarchical Dirichlet Language Model, 1995).

        An item counts for 0 in a cell whose list it is not on.
        """
        places = [
            [at for cell in level if (at := self._place(cell)) is not None] for level in levels
        ]
        lists = [self.items[:, self._part(at)].ravel() for level in places for at in level]
        known = np.empty(0, np.int64) if prior is None else prior[0]
        items = np.unique(np.concatenate([*lists, known]))
        longest, wider = None, None
        if prior is not None:
            longest = np.zeros(len(items))
            longest[np.searchsorted(items, prior[0])] = prior[1]
        for level in places:
            if level:  # one of which nothing is known leaves things as they are
                of_each = [self._shrunk(at, items, trust, wider, longest) for at in level]
                wider, longest = np.mean(of_each, axis=0), None
        if wider is not None:
            return items, wider[-1]
        return items, np.zeros(len(items)) if longest is None else longest

    def _place(self, cell: int) -> int | None:
        at = int(np.searchsorted(self.cells, cell))
        return at if at < len(self.cells) and self.cells[at] == cell else None

    def _part(self, at: int) -> slice:
        return slice(self.offsets[at], self.offsets[at + 1])

    def _shrunk(
        self, at: int, items: Ids, trust: ListTrust, wider: Floats | None, longer: Floats | None
    ) -> Floats:
        """The shares of items in one cell, (windows, n), by its lists and what is above them."""
        part = self._part(at)
        found = np.zeros((len(self.windows), len(items)))
        for k in range(len(self.windows)):
            scores, total = np.zeros(len(items)), self.totals[k, at]
            scores[np.searchsorted(items, self.items[k, part])] = self.scores[k, part]
            if longer is not None:
                scores += trust.window * longer
                total += trust.window
            if wider is not None:
                scores += trust.cell * wider[k]
                total += trust.cell
            found[k] = longer = scores / total if total > 0 else scores
        return found


class Popularity:
    """Actions on each item that fade with time, for everyone and for each cell of people.

    A cell is any stable id, such as that of `"age 25-34"` or `"age 25-34, Vienna"`; a user is in
    several. Instead of a window's end, at which an item's count would fall, actions fade with the
    half-life `window * ln 2`: then a window weighs as much as it lasts, and an item with r actions
    an hour has the score r in the window of an hour, 24 r in that of a day.

    `hot` is replaced whole by `refresh`: other threads may read it at any time.

    >>> popularity = Popularity(PopularityConfig(windows={"hour": 3_600.0, "day": 86_400.0}))
    >>> vienna, hour = 17, 3_600 * US
    >>> items, cells = np.array([7, 7, 7, 8]), np.array([[vienna], [-1], [-1], [vienna]])
    >>> popularity.update(items, np.array([0, 0, 0, 5 * hour]), np.ones(4), cells)
    >>> popularity.refresh(5 * hour)
    >>> popularity.hot.top("hour", 2)
    (array([8, 7]), array([1.        , 0.02021384]))
    >>> popularity.hot.top("day", 2)
    (array([7, 8]), array([2.43580904, 1.        ]))
    >>> popularity.hot.top("day", 2, vienna)[0]
    array([8, 7])
    """

    def __init__(self, config: PopularityConfig, state: Artefact | None = None) -> None:
        self._config = config
        # The longest first: by it rows are kept.
        self._windows = tuple(sorted(config.windows, key=lambda name: -config.windows[name]))
        half_lives = {name: config.windows[name] * US * math.log(2) for name in self._windows}
        table = None if state is None else state.shards["popularity"]
        self._sums = DecayedSums(half_lives, config.most, ("cell", "item_id"), table)
        self.hot = HotLists(
            self._windows,
            np.empty(0, np.int64), np.zeros(1, np.int64),
            np.empty((len(self._windows), 0), np.int64), np.empty((len(self._windows), 0)),
            np.empty((len(self._windows), 0)),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._sums)

    @property
    def forgotten(self) -> int:
        """Pairs of a cell and an item that there was no room for."""
        return self._sums.forgotten

    def update(self, items: Ids, at_us: Ids, weights: Floats, cells: Ids) -> None:
        """Counts n actions, each (n,) with its weight, in EVERYONE and in its `cells` (n, m).

        A cell is NONE where an action is in fewer than m.
        """
        every = np.column_stack([np.full(len(items), EVERYONE), cells])
        count = every.shape[1]
        keys = np.column_stack([every.ravel(), np.repeat(items, count)])
        values = np.repeat(np.asarray(weights, np.float64), count)[:, None]
        windows = np.broadcast_to(values, (len(keys), len(self._windows)))
        self._sums.add(keys, np.repeat(at_us, count), windows)

    def get(self, items: Ids, at_us: int, cell: int = EVERYONE) -> dict[str, Floats]:
        """The score of each item in each window, (n,), as of a time that is not past."""
        keys = np.column_stack([np.full(len(items), cell), items])
        return dict(zip(self._windows, self._sums.get(keys, at_us).T, strict=True))

    def refresh(self, at_us: int) -> None:
        """Makes the hot lists anew, with scores as of a time that is not past.

        It looks at every pair of a cell and an item once for each window.
        """
        pairs = self._sums.ids
        cells, place, sizes = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
        offsets = np.zeros(len(cells) + 1, np.int64)
        np.cumsum(np.minimum(sizes, self._config.length), out=offsets[1:])
        rows = np.empty((len(self._windows), offsets[-1]), np.int64)
        for k in range(len(self._windows)):
            _best(place, self._sums.ranks(k), offsets, rows[k])
        every = self._sums.get_all(at_us).T
        totals = np.array([np.bincount(place, scores, len(cells)) for scores in every])
        scores = np.take_along_axis(every, rows, axis=1)
        self.hot = HotLists(self._windows, cells, offsets, pairs[rows, 1], scores, totals)

    def merge(self, other: Popularity) -> None:
        """Adds what another one counted; `refresh` shows it."""
        self._sums.merge(other._sums)

    def tables(self) -> dict[str, pa.Table]:
        """All of the state but the hot lists, which follow from it."""
        return {"popularity": self._sums.table()}


@compiled
def _best(place: Any, ranks: Any, offsets: Any, rows: Any) -> None:
    """Fills the list of each place with its rows of highest rank, best first; the first of equal
    ones goes first.
    """
    filled = offsets[:-1].copy()
    for row in range(place.size):
        begin, end = offsets[place[row]], offsets[place[row] + 1]
        at = filled[place[row]]
        if at == end:
            if ranks[row] <= ranks[rows[end - 1]]:
                continue
            at = end - 1
        else:
            filled[place[row]] += 1
        while at > begin and ranks[rows[at - 1]] < ranks[row]:
            rows[at] = rows[at - 1]
            at -= 1
        rows[at] = row
