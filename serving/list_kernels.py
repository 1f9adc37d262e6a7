"""The inner loops that write: vectors as bytes, the nearest list, items that come and go.

All are serial, as those of the trainers: one thread writes while others search.
"""

from __future__ import annotations

from typing import cast

import numba
import numpy as np
from numpy.typing import NDArray

from serving.dot_products import LANES, best_lanes, sum_lanes
from serving.index_arrays import CHUNK, Chunks, Items, Lists, Queries, Room
from streaming.kernels import F, compiled_in_place, internal_in_place
from streaming.prefetch import AHEAD, prefetch

_QUERY_LARGEST = 127 * 128  # of a query's numbers: two halves, of 8 and of 7 bits


def _any_order(function: F) -> F:
    """Sums may be added up in any order: else a sum of floats uses no vector instructions."""
    return cast(F, numba.njit(nogil=True, _nrt=False, fastmath={"reassoc", "contract"})(function))


@_any_order
def dot(a: NDArray[np.float32], i: int, b: NDArray[np.float32], j: int) -> np.float32:
    total = np.float32(0.0)
    for at in range(a.shape[1]):
        total += a[i, at] * b[j, at]
    return total


@_any_order
def _square(a: NDArray[np.float32], i: int, b: NDArray[np.float32], j: int) -> np.float32:
    total = np.float32(0.0)
    for at in range(a.shape[1]):
        total += (a[i, at] - b[j, at]) ** 2
    return total


@internal_in_place
def _copy(source: NDArray[np.float32], i: int, to: NDArray[np.float32], j: int) -> None:
    for at in range(source.shape[1]):
        to[j, at] = source[i, at]


# Bytes


@internal_in_place
def encode_query(vectors: NDArray[np.float32], row: int, to: Queries, k: int) -> None:
    largest = np.float32(0.0)
    for j in range(vectors.shape[1]):
        largest = max(largest, abs(vectors[row, j]))
    step = np.float32(_QUERY_LARGEST) / largest if largest > 0 else np.float32(0.0)
    to.codes[k, :] = 0
    high_sum, low_sum = 0, 0
    for j in range(vectors.shape[1]):
        number = int(np.floor(vectors[row, j] * step + np.float32(0.5)))
        high = (number + 64) >> 7
        low = number - 128 * high
        at = (j >> 2) * 8 + (j & 3)
        to.codes[k, at], to.codes[k, at + 4] = high, low
        high_sum += high
        low_sum += low
    to.starts[k, 0], to.starts[k, 1] = -128 * high_sum, -128 * low_sum
    to.scales[k] = largest / np.float32(_QUERY_LARGEST)


@internal_in_place
def _encode_item(
    vectors: NDArray[np.float32], row: int, codes: NDArray[np.uint8], block: int, at: int
) -> np.float32:
    """Lays the bytes of a vector into `codes[block]`, as its `at`-th; what a step is worth."""
    largest = np.float32(0.0)
    width = vectors.shape[1]
    for j in range(width):
        largest = max(largest, abs(vectors[row, j]))
    step = np.float32(127.0) / largest if largest > 0 else np.float32(0.0)
    quads = (width + 3) >> 2
    start = (at // LANES) * quads * 4 * LANES + (at % LANES) * 4
    for j in range(4 * quads):
        value = vectors[row, j] * step if j < width else np.float32(0.0)
        to = start + (j >> 2) * 4 * LANES + (j & 3)
        codes[block, to] = int(np.floor(value + np.float32(0.5))) + 128
    return largest / np.float32(127.0)


@compiled_in_place
def encode_centroids(lists: Lists, start: int, count: int) -> None:
    """Turns `count` centroids from `start` on into bytes, and into what these bytes say."""
    for at in range(start, start + count):
        block, lane = at // LANES, at % LANES
        scale = _encode_item(lists.centroids, at, lists.codes, block, lane)
        lists.scales[at] = scale
        for j in range(lists.centroids.shape[1]):
            code = lists.codes[block, (j >> 2) * 4 * LANES + lane * 4 + (j & 3)]
            lists.centroids[at, j] = scale * np.float32(int(code) - 128)
        lists.half_squares[at] = dot(lists.centroids, at, lists.centroids, at) / 2


# Lists


@internal_in_place
def products(
    codes: NDArray[np.uint8], block: int, start: int, queries: Queries, room: Room
) -> None:
    """Sets `room.lanes[0]` to the largest product of each of 16 vectors, in their steps."""
    best_lanes(
        codes.ctypes.data + block * codes.strides[0] + start,
        queries.codes.ctypes.data,
        queries.starts.ctypes.data,
        queries.scales.ctypes.data,
        len(queries.scales),
        queries.codes.shape[1] >> 3,
        room.lanes.ctypes.data,
    )


@internal_in_place
def _nearest(lists: Lists, start: int, query: Queries, room: Room) -> int:
    """The list, from `start` on, with the centroid nearest to the vector that is the query."""
    nearest, most = start, np.float32(-np.inf)
    dots = room.lanes.ctypes.data
    near = dots + 4 * LANES
    for block in range(start // LANES, len(lists.codes)):
        products(lists.codes, block, 0, query, room)
        at = 4 * LANES * block
        largest = sum_lanes(
            dots,
            lists.scales.ctypes.data + at,
            np.float32(-1.0),
            lists.half_squares.ctypes.data + at,
            near,
        )
        if largest > most:
            most = largest
            lane = 0
            while room.lanes[1, lane] < largest:
                lane += 1
            nearest = block * LANES + lane
    return nearest


@internal_in_place
def _append(items: Items, place: int, lists: Lists, number: int, chunks: Chunks) -> None:
    offset = lists.sizes[number] % CHUNK
    if offset == 0:
        if chunks.counts[1] > 0:
            chunks.counts[1] -= 1
            chunk = chunks.free[chunks.counts[1]]
        else:
            chunk = np.int32(chunks.counts[0])
            chunks.counts[0] += 1
        chunks.before[chunk] = lists.tails[number]
        chunks.lists[chunk] = number
        lists.tails[number] = chunk
    chunk = lists.tails[number]
    chunks.scales[chunk, offset] = _encode_item(items.vectors, place, chunks.codes, chunk, offset)
    chunks.places[chunk, offset] = place
    items.slots[place] = 1 + chunk * CHUNK + offset
    lists.sizes[number] += 1
    lists.squares[number] += _square(items.vectors, place, lists.centroids, number)


@internal_in_place
def _take_out(items: Items, place: int, lists: Lists, chunks: Chunks) -> None:
    """Takes an item out of its list; the last one of the list fills the hole."""
    slot = items.slots[place] - 1
    chunk, offset = slot // CHUNK, slot % CHUNK
    number = chunks.lists[chunk]
    items.slots[place] = 0
    lists.sizes[number] -= 1
    rest = lists.squares[number] - _square(items.vectors, place, lists.centroids, number)
    lists.squares[number] = max(rest, 0.0) if lists.sizes[number] else 0.0
    tail, last = lists.tails[number], lists.sizes[number] % CHUNK
    if tail != chunk or last != offset:
        moved = chunks.places[tail, last]
        chunks.places[chunk, offset] = moved
        chunks.scales[chunk, offset] = chunks.scales[tail, last]
        quads = chunks.codes.shape[1] // (4 * CHUNK)
        to = (offset // LANES) * quads * 4 * LANES + (offset % LANES) * 4
        source = (last // LANES) * quads * 4 * LANES + (last % LANES) * 4
        for quad in range(quads):
            for j in range(4):
                at = quad * 4 * LANES + j
                chunks.codes[chunk, to + at] = chunks.codes[tail, source + at]
        items.slots[moved] = 1 + slot
    if last == 0:
        lists.tails[number] = chunks.before[tail]
        chunks.free[chunks.counts[1]] = tail
        chunks.counts[1] += 1


@internal_in_place
def _set_spreads(lists: Lists) -> None:
    for number in range(len(lists.sizes)):
        size = lists.sizes[number]
        lists.spreads[number] = np.sqrt(lists.squares[number] / size) if size else -np.inf


@compiled_in_place
def lay(  # noqa: PLR0913 - what lies where
    places: NDArray[np.int64],
    vectors: NDArray[np.float32],
    items: Items,
    lists: Lists,
    start: int,
    chunks: Chunks,
    query: Queries,
    room: Room,
) -> None:
    """Lays vectors (n, d) at places (n,), each into the nearest of the lists from `start` on."""
    for i in range(places.size):
        if i + AHEAD < places.size:
            prefetch(items.vectors, places[i + AHEAD])
            prefetch(items.slots, places[i + AHEAD])
        place = places[i]
        slot = items.slots[place] - 1
        if slot >= 0:
            prefetch(chunks.codes, slot // CHUNK)
        encode_query(vectors, i, query, 0)
        number = _nearest(lists, start, query, room)
        if slot >= 0 and chunks.lists[slot // CHUNK] == number:
            lists.squares[number] -= _square(items.vectors, place, lists.centroids, number)
            _copy(vectors, i, items.vectors, place)
            chunk, offset = slot // CHUNK, slot % CHUNK
            scale = _encode_item(items.vectors, place, chunks.codes, chunk, offset)
            chunks.scales[chunk, offset] = scale
            rest = lists.squares[number] + _square(items.vectors, place, lists.centroids, number)
            lists.squares[number] = max(rest, 0.0)
            continue
        if slot >= 0:
            _take_out(items, place, lists, chunks)
        _copy(vectors, i, items.vectors, place)
        _append(items, place, lists, number, chunks)
    _set_spreads(lists)


@compiled_in_place
def take_out(places: NDArray[np.int64], items: Items, lists: Lists, chunks: Chunks) -> None:
    """Takes the items at those places out of their lists."""
    for i in range(places.size):
        if items.slots[places[i]] > 0:
            _take_out(items, places[i], lists, chunks)
    _set_spreads(lists)


@compiled_in_place
def move(  # noqa: PLR0913 - what lies where
    limit: int,
    items: Items,
    lists: Lists,
    start: int,
    chunks: Chunks,
    query: Queries,
    room: Room,
) -> int:
    """Moves so many items from the lists before `start` to those behind; returns how many."""
    moved, number = 0, 0
    while moved < limit and number < start:
        if lists.sizes[number] == 0:
            number += 1
            continue
        last = (lists.sizes[number] - 1) % CHUNK
        place = chunks.places[lists.tails[number], last]
        if last >= AHEAD:
            prefetch(items.vectors, chunks.places[lists.tails[number], last - AHEAD])
        _take_out(items, place, lists, chunks)
        encode_query(items.vectors, place, query, 0)
        _append(items, place, lists, _nearest(lists, start, query, room), chunks)
        moved += 1
    _set_spreads(lists)
    return moved


@compiled_in_place
def cluster(
    sample: NDArray[np.float32],
    lists: Lists,
    sums: NDArray[np.float64],
    query: Queries,
    room: Room,
) -> None:
    """One round of k-means: moves every centroid to the middle of those nearest to it."""
    sums[:] = 0
    lists.sizes[:] = 0
    for i in range(len(sample)):
        encode_query(sample, i, query, 0)
        number = _nearest(lists, 0, query, room)
        lists.sizes[number] += 1
        for j in range(sample.shape[1]):
            sums[number, j] += sample[i, j]
    for number in range(len(lists.sizes)):
        if lists.sizes[number]:
            for j in range(sample.shape[1]):
                lists.centroids[number, j] = sums[number, j] / lists.sizes[number]
