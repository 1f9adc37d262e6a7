"""Filters: which items pass what an answer must keep to.

The items that have a value are looked up in an index of that field, which is made when somebody
first asks for it and made again when items were declared since, but in no more than a twentieth of
the time. So an answer may lag behind the catalog by a second when it looks for candidates; what is
shown is held against the newest description once more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from features.attributes import Attributes
from features.batch import Ids
from serving.answers import BadQuestion
from serving.index import Subset
from streaming.ids import stable_id

_SHARE = 20  # indices may take one in so many seconds
_REMEMBERED = 256  # filters
_FLAGS = {"true": "True", "false": "False"}  # as attributes are written, and as Python writes them

Wanted = Mapping[str, Sequence[str]]  # field -> the values that will do


@dataclass(frozen=True, slots=True)
class _Index:
    """Items by their values in one field: those of token `tokens[i]` are one run of `items`."""

    tokens: Ids
    items: Ids
    changes: int
    due: float  # not to be made again before this time

    def of(self, token: int) -> Ids:
        start, end = np.searchsorted(self.tokens, (token, token + 1))
        return self.items[start:end]


class Filters:
    """Finds the items that pass filters; any number of threads may ask.

    Items whose field `available` is false pass none, and are in no answer.
    """

    def __init__(
        self, items: Attributes, available: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._items = items
        self._available = available
        self._clock = clock
        self._lock = threading.Lock()
        self._indices: dict[str, _Index] = {}
        self._subsets: dict[str, tuple[list[_Index], Subset]] = {}

    def allowed(self, wanted: Wanted) -> Subset | None:
        """The items that pass every filter and are available; None if that is all of them.

        Raises:
            BadQuestion: items have no such field.
        """
        self._check(wanted)
        wanted = {field: sorted(values) for field, values in sorted(wanted.items())}
        gone = self._index(self._available)
        hidden = [gone.of(token) for token in _tokens(self._available, ["false"])]
        if not wanted and not any(len(ids) for ids in hidden):
            return None
        indices = [self._index(field) for field in wanted]
        key = repr(wanted)
        used = [gone, *indices]
        kept = self._subsets.get(key)
        if kept is not None and all(a is b for a, b in zip(kept[0], used, strict=True)):
            return kept[1]
        subset = Subset.of(self._passing(wanted, indices, np.concatenate(hidden)))
        with self._lock:
            if len(self._subsets) >= _REMEMBERED:
                self._subsets.pop(next(iter(self._subsets)))
            self._subsets[key] = used, subset
        return subset

    def passes(self, wanted: Wanted, attributes: Mapping[str, Any]) -> bool:
        """Whether an item of these attributes is to be shown."""
        return attributes.get(self._available) is not False and all(
            any(_as_written(one) in values for one in _listed(attributes.get(field)))
            for field, values in wanted.items()
        )

    def _check(self, wanted: Wanted) -> None:
        if not wanted:
            return
        fields = {field.name: field.type for field in self._items.fields()}
        for name, values in wanted.items():
            if name not in fields:
                known = ", ".join(sorted(fields)) or "none yet, for no item was declared"
                raise BadQuestion(f"filters: items have no field {name!r}; they have {known}")
            if not values:
                raise BadQuestion(f"filters: {name!r} names no value, so that no item could pass")

    def _passing(self, wanted: Wanted, indices: Sequence[_Index], hidden: Ids) -> Ids:
        found = [
            np.concatenate([index.of(token) for token in _tokens(field, values)])
            for index, (field, values) in zip(indices, wanted.items(), strict=True)
        ]
        passing: Ids = reduce(np.intersect1d, found) if found else self._items.ids()
        return np.setdiff1d(passing, hidden)

    def _index(self, field: str) -> _Index:
        index = self._indices.get(field)
        if index is not None and self._is_good(index):
            return index
        with self._lock:
            index = self._indices.get(field)
            if index is None or not self._is_good(index):
                index = self._indices[field] = self._make(field)
        return index

    def _is_good(self, index: _Index) -> bool:
        return index.changes == self._items.changes or self._clock() < index.due

    def _make(self, field: str) -> _Index:
        begun, changes = self._clock(), self._items.changes
        ids = self._items.ids()
        values = self._items.tokens(ids, [field])
        order = np.argsort(values.values, kind="stable")
        ended = self._clock()
        return _Index(
            values.values[order],
            ids[values.owners()[order]],
            changes,
            ended + max(1.0, _SHARE * (ended - begun)),
        )


def _tokens(field: str, values: Iterable[str]) -> list[int]:
    return [stable_id(f"{field}={_FLAGS.get(value, value)}") for value in values]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _as_written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
