"""The inner loops that search: which lists, which of their items, which of these are the best.

The bytes only choose which items are worth a look: an item's score from its bytes is off by no
more than a known bound, and those that could be among the best are scored again exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.dot_products import LANES, sum_lanes, upper_lanes
from serving.index_arrays import (
    CHUNK,
    FIRST_LISTS,
    Chunks,
    Filters,
    Items,
    Lists,
    Plan,
    Queries,
    Room,
)
from serving.list_kernels import dot, encode_query, products
from streaming.kernels import compiled_in_place, internal_in_place
from streaming.prefetch import prefetch

NO_ROOM = -1  # what a search returns that needs room for more candidates


@internal_in_place
def _is_open(place: int, filters: Filters) -> bool:
    if filters.allowed.size:
        bits = filters.allowed[place >> 6]
        if not (bits >> np.uint64(place & 63)) & np.uint64(1):
            return False
    low, high = 0, filters.hidden.size
    while low < high:
        middle = (low + high) >> 1
        if filters.hidden[middle] < place:
            low = middle + 1
        else:
            high = middle
    return not (low < filters.hidden.size and filters.hidden[low] == place)


@internal_in_place
def _kth_largest(values: NDArray[np.float32], size: int, k: int) -> np.float32:
    """The k-th largest, from 1, of the first `size` values, which change their order."""
    low, high, wanted = 0, size - 1, k - 1
    while low < high:
        pivot = values[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if wanted <= j:
            high = j
        elif wanted >= i:
            low = i
        else:
            break
    found: np.float32 = values[wanted]
    return found


@internal_in_place
def _prune(room: Room, size: int, count: int, least: np.float32) -> tuple[int, np.float32]:
    """Drops candidates that cannot be among the best; how many are left, and what it takes."""
    if size <= count:
        return size, least
    for i in range(size):
        room.spare[i] = room.lower[i]
    least = max(least, _kth_largest(room.spare, size, count))
    kept = 0
    for i in range(size):
        if room.upper[i] >= least:
            room.places[kept] = room.places[i]
            room.upper[kept] = room.upper[i]
            room.lower[kept] = room.lower[i]
            kept += 1
    return kept, least


@internal_in_place
def _read_list(  # noqa: PLR0913 - what lies where
    number: int,
    lists: Lists,
    chunks: Chunks,
    queries: Queries,
    error: np.float32,
    filters: Filters,
    count: int,
    room: Room,
    size: int,
    least: np.float32,
) -> tuple[int, np.float32]:
    """Adds the items of a list that may be among the best; size and least as of `_prune`."""
    dots, upper = room.lanes.ctypes.data, room.lanes[1]
    chunk = lists.tails[number]
    filled = (lists.sizes[number] - 1) % CHUNK + 1
    while chunk >= 0:
        following = chunks.before[chunk]
        if following >= 0:
            for start in range(following * CHUNK, (following + 1) * CHUNK, LANES):
                prefetch(chunks.codes, start // LANES)
                prefetch(chunks.scales, start)
        for start in range(0, filled, LANES):
            slot = chunk * CHUNK + start
            products(chunks.codes, slot // LANES, queries, room)
            scales = chunks.scales.ctypes.data + 4 * slot
            if upper_lanes(dots, error, scales, least, dots + 4 * LANES) == 0:
                continue
            if size + LANES > room.places.size:
                size, least = _prune(room, size, count, least)
                if size + LANES > room.places.size:
                    return NO_ROOM, least
            for lane in range(min(LANES, filled - start)):
                if upper[lane] >= least:
                    place = chunks.places[slot + lane]
                    if _is_open(place, filters):
                        off = error * chunks.scales[slot + lane]
                        room.places[size] = place
                        room.upper[size] = upper[lane]
                        room.lower[size] = upper[lane] - 2 * off
                        size += 1
        room.read[1] += filled
        chunk, filled = following, CHUNK
    room.read[0] += 1
    return size, least


@internal_in_place
def _promise(lists: Lists, queries: Queries, reach: np.float32, room: Room) -> None:
    """Sets what every list may hold at most; -inf of an empty one."""
    for block in range(len(lists.codes)):
        products(lists.codes, block, queries, room)
        at = 4 * LANES * block
        sum_lanes(
            room.lanes.ctypes.data,
            lists.scales.ctypes.data + at,
            reach,
            lists.spreads.ctypes.data + at,
            room.promises.ctypes.data + at,
        )


@internal_in_place
def _sift(order: NDArray[np.int32], keys: NDArray[np.float32], root: int, size: int) -> None:
    """Makes a heap of what is one but for its root; the largest key on top."""
    while 2 * root + 1 < size:
        child = 2 * root + 1
        if child + 1 < size and keys[order[child + 1]] > keys[order[child]]:
            child += 1
        if keys[order[root]] >= keys[order[child]]:
            return
        order[root], order[child] = order[child], order[root]
        root = child


@internal_in_place
def _heap(room: Room, least: np.float32) -> int:
    """Makes a heap of the lists that promise enough; how many there are."""
    size = 0
    for number in range(room.promises.size):
        if room.promises[number] >= least and room.promises[number] > -np.inf:
            room.order[size] = number
            size += 1
    for root in range(size // 2 - 1, -1, -1):
        _sift(room.order, room.promises, root, size)
    return size


@internal_in_place
def _promised_by_first(room: Room) -> np.float32:
    """What the best FIRST_LISTS lists promise at least."""
    best = room.spare
    best[:FIRST_LISTS] = -np.inf
    for number in range(room.promises.size):
        promise = room.promises[number]
        if promise > best[FIRST_LISTS - 1]:
            at = FIRST_LISTS - 1
            while at > 0 and best[at - 1] < promise:
                best[at] = best[at - 1]
                at -= 1
            best[at] = promise
    last: np.float32 = best[FIRST_LISTS - 1]
    return last


@internal_in_place
def _read_lists(
    queries: Queries, lists: Lists, chunks: Chunks, filters: Filters, plan: Plan, room: Room
) -> int:
    """Fills `room.places` with the items that may be among the best; how many, or NO_ROOM."""
    room.read[:] = 0
    size, least = 0, np.float32(-np.inf)
    norm = np.float32(0.0)
    for k in range(len(queries.norms)):
        norm = max(norm, queries.norms[k])
    error = np.float32(plan.error) * norm
    everything = plan.margin == np.inf
    if everything:
        for number in range(room.promises.size):
            room.promises[number] = np.inf if lists.sizes[number] else -np.inf
    else:
        # Not 0, for a query of zeros: times a spread that is infinite that would be no number.
        reach = max(np.float32(plan.margin) * norm, np.float32(1e-30))
        _promise(lists, queries, reach, room)
    # The best few first: they tell what the others must promise, and most need not be sorted.
    for stage in range(2):
        heap = _heap(room, _promised_by_first(room) if stage == 0 else least)
        for _ in range(FIRST_LISTS if stage == 0 else room.promises.size):
            if heap == 0 or room.promises[room.order[0]] < least:
                break
            number = room.order[0]
            heap -= 1
            room.order[0] = room.order[heap]
            _sift(room.order, room.promises, 0, heap)
            room.promises[number] = -np.inf  # read: not once more
            size, least = _read_list(
                number, lists, chunks, queries, error, filters, plan.wanted, room, size, least
            )
            if size == NO_ROOM:
                return NO_ROOM
            if not everything and size > plan.wanted + plan.wanted // 2:
                size, least = _prune(room, size, plan.wanted, least)
    size, least = _prune(room, size, plan.wanted, least)
    return size


@internal_in_place
def _rank(
    places: NDArray[Any], size: int, queries: Queries, items: Items, count: int, room: Room
) -> int:
    """Fills `room.ids` and `.scores` with the best of the items at places, by exact scores."""
    for i in range(size):
        prefetch(items.vectors, places[i])
        prefetch(items.ids, places[i])
    for i in range(size):
        score = np.float32(-np.inf)
        for k in range(len(queries.norms)):
            score = max(score, dot(items.vectors, places[i], queries.vectors, k))
        room.scores[i], room.spare[i] = score, score
        room.ids[i] = items.ids[places[i]]
    if count < size:
        least = _kth_largest(room.spare, size, count)
        kept = 0
        for i in range(size):
            if room.scores[i] >= least:
                room.scores[kept], room.ids[kept] = room.scores[i], room.ids[i]
                kept += 1
        size = kept
    _sort(room.scores, room.ids, size)
    return min(size, count)


@compiled_in_place
def find_best(  # noqa: PLR0913 - what lies where
    queries: Queries,
    items: Items,
    lists: Lists,
    chunks: Chunks,
    filters: Filters,
    plan: Plan,
    room: Room,
) -> int:
    """Fills `room.ids` and `.scores`, best first, equals by id; how many these are, or NO_ROOM.

    Lists are read in the order of what they promise, until none promises enough.
    """
    for k in range(len(queries.vectors)):
        encode_query(queries.vectors, k, queries, k)
        queries.norms[k] = np.sqrt(dot(queries.vectors, k, queries.vectors, k))
    size = _read_lists(queries, lists, chunks, filters, plan, room)
    if size == NO_ROOM:
        return NO_ROOM
    return _rank(room.places, size, queries, items, plan.wanted, room)


@compiled_in_place
def best_of(
    places: NDArray[np.int64], queries: Queries, items: Items, count: int, room: Room
) -> int:
    """As `find_best`, of the items at those places."""
    return _rank(places, places.size, queries, items, count, room)


@internal_in_place
def _worse(scores: NDArray[np.float32], ids: NDArray[np.int64], a: int, b: int) -> bool:
    return bool(scores[a] < scores[b] or (scores[a] == scores[b] and ids[a] > ids[b]))


@internal_in_place
def _sort(scores: NDArray[np.float32], ids: NDArray[np.int64], size: int) -> None:
    """Heapsort: the best come first."""
    for step in range(size + size // 2 - 1, 0, -1):
        # First a heap of all with the worst on top, then the top goes behind the rest.
        root, end = (step - size, size) if step >= size else (0, step)
        if step < size:
            scores[0], scores[end] = scores[end], scores[0]
            ids[0], ids[end] = ids[end], ids[0]
        while 2 * root + 1 < end:
            child = 2 * root + 1
            if child + 1 < end and _worse(scores, ids, child + 1, child):
                child += 1
            if not _worse(scores, ids, child, root):
                break
            scores[root], scores[child] = scores[child], scores[root]
            ids[root], ids[child] = ids[child], ids[root]
            root = child


@compiled_in_place
def set_bits(
    places: NDArray[np.int64], inside: NDArray[np.bool_], bits: NDArray[np.uint64]
) -> None:
    """Sets or clears the bit of each place; negative places have none."""
    for i in range(places.size):
        if places[i] >= 0:
            bit = np.uint64(1) << np.uint64(places[i] & 63)
            if inside[i]:
                bits[places[i] >> 6] |= bit
            else:
                bits[places[i] >> 6] &= ~bit


@compiled_in_place
def log_total(
    best: NDArray[np.float32], sampled: NDArray[np.float32], items: int, temperature: float
) -> float:
    """The logarithm of the sum of exp(score / temperature) over so many items; -inf of none.

    It is told of the `best` scores and of `sampled` ones of all items; of these, those that are
    below the best stand for all that is.
    """
    if best.size == 0:
        return -np.inf
    worst, top = best[0], best[0]
    for score in best:
        worst, top = min(worst, score), max(top, score)
    known, rest, count = 0.0, 0.0, 0
    for score in best:
        known += np.exp((score - top) / temperature)
    for score in sampled:
        if score < worst:
            rest += np.exp((score - top) / temperature)
            count += 1
    if count:
        known += rest * (items - best.size) / count
    return float(top / temperature + np.log(known))
