"""The items that are young: heard of lately and seldom acted upon; and what each is like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from features.content import ContentIndex
from features.decayed import US
from features.statistics import ItemStatistics
from streaming.kernels import EMPTY

Ids = NDArray[np.int64]
_SEARCHED = 3  # times as many neighbours as are wanted: those that are young themselves do not help
_AT_ONCE = 128  # items that are searched for in one refresh, which others wait for
_LARGER = 1.25  # a catalog that has become so much larger may have neighbours for who had none


@dataclass(frozen=True)
class NewcomersConfig:
    """An item is young until `days` after it was first heard of, while it has fewer than `actions`
    actions. The `most` that were heard of last are looked at, each with its `neighbours`.
    """

    days: PositiveFloat = 30.0
    actions: PositiveInt = 50
    most: PositiveInt = 1_000
    neighbours: PositiveInt = 20


@dataclass(frozen=True, slots=True)
class Young:
    """n young items, the newest first; never changes.

    `actions` (n,) were counted on each. `neighbours` (n, k) are those items most like it that are
    not young, best first, and `similarity` (n, k) how like they are: -1 and 0 where there are no
    more.
    """

    items: Ids
    actions: Ids
    neighbours: Ids
    similarity: NDArray[np.float32]


@dataclass(slots=True)
class _Alike:
    """What a search found (k,), and among how many items."""

    items: Ids
    similarity: NDArray[np.float32]
    among: int


class Newcomers:
    """The items that were heard of last, and when.

    `young` is replaced whole by `refresh`: other threads may read it at any time. Neighbours are
    searched for once: again only if an item says something else of itself, or if none was of use
    and the catalog has grown. Where many items are new at once, some are `pending`, and have no
    neighbours until another refresh.
    """

    def __init__(self, config: NewcomersConfig, state: pa.Table | None = None) -> None:
        self._config = config
        self._items = np.empty(0, np.int64)  # the oldest first
        self._since_us = np.empty(0, np.int64)
        self._alike: dict[int, _Alike] = {}
        self.pending = 0
        nobody = np.empty((0, config.neighbours), np.int64)
        self.young = Young(self._items, self._items, nobody, nobody.astype(np.float32))
        if state is not None:
            self.hear(state["item_id"].to_numpy(), state["since_us"].to_numpy())

    def hear(self, items: Ids, at_us: Ids) -> None:
        """Takes distinct items (n,) that nothing is known of, in order, with their event times."""
        forgotten = np.isin(self._items, items)  # since they were heard of before
        self._items = np.append(self._items[~forgotten], items)[-self._config.most :]
        self._since_us = np.append(self._since_us[~forgotten], at_us)[-self._config.most :]

    def declared(self, items: Ids) -> None:
        """These say something else of themselves now."""
        if self._alike:
            for item in items.tolist():
                self._alike.pop(item, None)

    def refresh(self, now_us: int, statistics: ItemStatistics, content: ContentIndex) -> None:
        """Makes `young` anew, as of an event time."""
        late = now_us - int(self._config.days * 86_400 * US)
        items = self._items[self._since_us > late][::-1]
        actions = statistics.columns(items).actions
        items, actions = (column[actions < self._config.actions] for column in (items, actions))
        found, similarity = self._neighbours(items, content)
        grown = statistics.columns(found.ravel()).actions.reshape(found.shape)
        unfit = (grown < self._config.actions) | (found == EMPTY)
        self._search_again(items[unfit.all(axis=1)], len(content))
        best = np.argsort(unfit, axis=1, kind="stable")[:, : self._config.neighbours]
        found, similarity = np.where(unfit, EMPTY, found), np.where(unfit, 0, similarity)
        self.young = Young(
            items, actions,
            np.take_along_axis(found, best, 1),
            np.take_along_axis(similarity, best, 1).astype(np.float32),
        )  # fmt: skip

    def table(self) -> pa.Table:
        """All of the state; neighbours follow from the catalog."""
        return pa.table({"item_id": self._items, "since_us": self._since_us})

    def _neighbours(self, items: Ids, content: ContentIndex) -> tuple[Ids, NDArray[np.float32]]:
        """What is most like each item, (n, k), searched for where it is not known."""
        count = _SEARCHED * self._config.neighbours
        unknown = np.array([i for i in items.tolist() if i not in self._alike], np.int64)
        self.pending = max(0, len(unknown) - _AT_ONCE)
        if len(unknown):
            found, similarity = content.neighbours(unknown[:_AT_ONCE], count)
            for item, theirs, like in zip(unknown.tolist(), found, similarity, strict=False):
                self._alike[item] = _Alike(theirs, like, len(content))
        nothing = _Alike(np.full(count, EMPTY), np.zeros(count, np.float32), len(content))
        kept = [self._alike.get(item, nothing) for item in items.tolist()]
        among = set(items.tolist())  # the others grew up
        self._alike = {item: alike for item, alike in self._alike.items() if item in among}
        return (
            np.array([one.items for one in kept], np.int64).reshape(len(items), count),
            np.array([one.similarity for one in kept], np.float32).reshape(len(items), count),
        )

    def _search_again(self, items: Ids, among: int) -> None:
        """Forgets what was found for items that it does not help, if there may be more now."""
        for item in items.tolist():
            if item in self._alike and among > _LARGER * self._alike[item].among:
                del self._alike[item]
