"""The inner loops over candidates: a few hundred items, for every answer anew."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaming.kernels import EMPTY, compiled_briefly, get, put

Ids = NDArray[np.int64]
_HIDDEN = -2  # the place of an item that is not shown


@compiled_briefly
def places_shown(items: Ids, hidden: Ids, count: int) -> Ids:
    """The places of the first `count` items that are not hidden."""
    slots = _slots(hidden.size)
    for item in hidden:
        put(slots, item, _HIDDEN)
    places = np.empty(min(count, items.size), np.int64)
    found = 0
    for place in range(items.size):
        if found == places.size:
            break
        if get(slots, items[place]) == EMPTY:
            places[found] = place
            found += 1
    return places[:found]


@compiled_briefly
def pool(
    items: Ids, shares: NDArray[np.float64], sizes: Ids, hidden: Ids
) -> tuple[Ids, NDArray[np.float64], NDArray[np.float64]]:
    """Adds up what several proposals, of `sizes`, make of each item that is not hidden.

    `items` and `shares` (n,) are those of all proposals, one after another. Returns the m distinct
    items, best first and of equals the smaller id first, the sum (m,) of each, and what each
    proposal adds to it, (proposals, m).
    """
    slots = _slots(items.size + hidden.size)
    for item in hidden:
        put(slots, item, _HIDDEN)
    distinct = np.empty(items.size, np.int64)
    totals = np.zeros(items.size)
    row_of = np.empty(items.size, np.int64)
    count = 0
    for i in range(items.size):
        row = get(slots, items[i])
        if row == EMPTY:
            row = count
            put(slots, items[i], row)
            distinct[row] = items[i]
            count += 1
        row_of[i] = row
        if row != _HIDDEN:
            totals[row] += shares[i]
    order = np.argsort(-totals[:count], kind="mergesort")
    _settle_equals(order, totals, distinct)
    place_of = np.empty(count, np.int64)
    for place in range(count):
        place_of[order[place]] = place
    parts = np.zeros((sizes.size, count))
    start = 0
    for source in range(sizes.size):
        for i in range(start, start + sizes[source]):
            if row_of[i] != _HIDDEN:
                parts[source, place_of[row_of[i]]] += shares[i]
        start += sizes[source]
    return distinct[order], totals[order], parts


@compiled_briefly
def _settle_equals(order: Ids, totals: NDArray[np.float64], distinct: Ids) -> None:
    """Puts runs of equal totals in the order of their ids."""
    for end in range(1, order.size):
        moved, at = order[end], end
        while (
            at > 0
            and totals[order[at - 1]] == totals[moved]
            and distinct[order[at - 1]] > distinct[moved]
        ):
            order[at] = order[at - 1]
            at -= 1
        order[at] = moved


@compiled_briefly
def _slots(count: int) -> Any:
    """An empty map with room for `count` keys."""
    return np.zeros(4 * max(8, count), np.int64)
