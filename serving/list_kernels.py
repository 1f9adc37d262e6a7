"""The inner loops that write: vectors as bytes, the nearest list, items that come and go.

All are serial, as those of the trainers: one thread writes while others search.
"""

from __future__ import annotations

from typing import cast

import numba
import numpy as np
from numpy.typing import NDArray

from serving.dot_products import LANES, TOGETHER, best_lanes, nearest
from serving.index_arrays import CHUNK, Centroids, Chunks, Coded, Items, Lists, Queries, Room
from streaming.kernels import F, compiled_in_place, internal_in_place
from streaming.prefetch import AHEAD, prefetch

_QUERY_LARGEST = 127 * 128  # of a query's numbers: two halves, of 8 and of 7 bits
_SIGNS = np.uint32(0x80808080)  # turns four bytes that are 128 too large into signed ones


def _any_order(function: F) -> F:
    """Sums may be added up in any order: else a sum of floats uses no vector instructions."""
    return cast(F, numba.njit(nogil=True, _nrt=False, fastmath={"reassoc", "contract"})(function))


def _inlined(function: F) -> F:
    """As `internal_in_place`, but always a part of its callers.

    A call hands over every array in pieces, which can take longer than the work itself.
    """
    return cast(F, numba.njit(nogil=True, _nrt=False, forceinline=True)(function))


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


@_inlined
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


@_inlined
def _encode(vectors: NDArray[np.float32], row: int, to: Coded, at: int) -> None:
    largest = np.float32(0.0)
    width = vectors.shape[1]
    for j in range(width):
        largest = max(largest, abs(vectors[row, j]))
    step = np.float32(127.0) / largest if largest > 0 else np.float32(0.0)
    for j in range(width):
        to.codes[at, j] = np.int8(np.floor(vectors[row, j] * step + np.float32(0.5)))
    total = 0
    for j in range(width):
        total += to.codes[at, j]
    to.starts[at] = -128 * total
    to.scales[at] = largest / np.float32(127.0)


@compiled_in_place
def encode(vectors: NDArray[np.float32], to: Coded) -> None:
    """Turns vectors (n, d) into bytes."""
    for i in range(len(vectors)):
        _encode(vectors, i, to, i)


@_inlined
def _lay_bytes(coded: Coded, at: int, codes: NDArray[np.uint32], slot: int) -> None:
    """Lays the bytes of a vector into blocks of LANES, each 128 too large."""
    for quad in range(coded.quads.shape[1]):
        codes[slot // LANES, quad * LANES + slot % LANES] = coded.quads[at, quad] ^ _SIGNS


@internal_in_place
def products(codes: NDArray[np.uint32], block: int, queries: Queries, room: Room) -> None:
    """Sets `room.lanes[0]` to the largest product of each of 16 vectors, in their steps."""
    best_lanes(
        codes.ctypes.data + block * codes.strides[0],
        queries.codes.ctypes.data,
        queries.starts.ctypes.data,
        queries.scales.ctypes.data,
        len(queries.scales),
        queries.codes.shape[1] >> 3,
        room.lanes.ctypes.data,
    )


# The nearest list


@compiled_in_place
def lay_centroids(coded: Coded, centroids: Centroids, count: int) -> None:
    """Sets the first `count` centroids to what the bytes say."""
    for at in range(count):
        _lay_bytes(coded, at, centroids.codes, at)
        centroids.scales[at] = coded.scales[at]
        for j in range(centroids.centroids.shape[1]):
            centroids.centroids[at, j] = coded.scales[at] * np.float32(coded.codes[at, j])
        centroids.half_squares[at] = dot(centroids.centroids, at, centroids.centroids, at) / 2


@compiled_in_place
def find_nearest(coded: Coded, centroids: Centroids) -> None:
    """Sets `coded.numbers` to the nearest centroids, by the bytes of both."""
    quads = coded.quads.shape[1]
    for i in range(0, len(coded.scales), TOGETHER):
        nearest(
            centroids.codes.ctypes.data,
            centroids.scales.ctypes.data,
            centroids.half_squares.ctypes.data,
            len(centroids.codes),
            coded.codes.ctypes.data + 4 * quads * i,
            coded.starts.ctypes.data + 4 * i,
            coded.scales.ctypes.data + 4 * i,
            quads,
            coded.numbers.ctypes.data + 4 * i,
        )


@compiled_in_place
def average(
    sample: NDArray[np.float32],
    numbers: NDArray[np.int32],
    sums: NDArray[np.float64],
    sizes: NDArray[np.int64],
    centroids: NDArray[np.float32],
) -> None:
    """Moves every centroid to the middle of those of the sample (n, d) that have its number (n,).

    Sets `sizes` to how many these are, (m,); `sums` is memory, (m, d).
    """
    sums[:] = 0
    sizes[:] = 0
    for i in range(len(sample)):
        sizes[numbers[i]] += 1
        for j in range(sample.shape[1]):
            sums[numbers[i], j] += sample[i, j]
    for number in range(len(sizes)):
        if sizes[number]:
            for j in range(sample.shape[1]):
                centroids[number, j] = sums[number, j] / sizes[number]


# Lists


@_inlined
def _add_slot(lists: Lists, number: int, chunks: Chunks) -> int:
    """Makes a list longer by one; the slot at its end."""
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
    lists.sizes[number] += 1
    return int(lists.tails[number] * CHUNK + offset)


@_inlined
def _drop_slot(lists: Lists, number: int, chunks: Chunks) -> int:
    """Makes a list shorter by one; the slot that was at its end."""
    lists.sizes[number] -= 1
    chunk, offset = lists.tails[number], lists.sizes[number] % CHUNK
    if offset == 0:
        lists.tails[number] = chunks.before[chunk]
        chunks.lists[chunk] = -1
        chunks.free[chunks.counts[1]] = chunk
        chunks.counts[1] += 1
    return int(chunk * CHUNK + offset)


@_inlined
def _fill(  # noqa: PLR0913 - what lies where
    slot: int,
    place: int,
    vectors: NDArray[np.float32],
    row: int,
    coded: Coded,
    at: int,
    items: Items,
    lists: Lists,
    chunks: Chunks,
) -> None:
    """Lays the item at a place, of that vector and these bytes, into a slot of a list."""
    number = chunks.lists[slot // CHUNK]
    lists.squares[number] += _square(vectors, row, lists.centroids, number)
    chunks.scales[slot] = coded.scales[at]
    _lay_bytes(coded, at, chunks.codes, slot)
    chunks.places[slot] = place
    items.slots[place] = 1 + slot


@_inlined
def _close(hole: int, number: int, items: Items, lists: Lists, chunks: Chunks) -> None:
    """Moves the last item of a list into a hole, unless the list ends before it."""
    chunk = hole // CHUNK
    if chunks.lists[chunk] != number:
        return
    if chunk == lists.tails[number] and hole % CHUNK > (lists.sizes[number] - 1) % CHUNK:
        return
    last = _drop_slot(lists, number, chunks)
    while chunks.places[last] < 0 and last != hole:
        last = _drop_slot(lists, number, chunks)
    if last == hole:
        return
    place = chunks.places[last]
    chunks.places[hole] = place
    chunks.scales[hole] = chunks.scales[last]
    for quad in range(chunks.codes.shape[1] // LANES):
        code = chunks.codes[last // LANES, quad * LANES + last % LANES]
        chunks.codes[hole // LANES, quad * LANES + hole % LANES] = code
    items.slots[place] = 1 + hole


@_inlined
def _take_out(items: Items, place: int, lists: Lists, chunks: Chunks) -> None:
    slot = items.slots[place] - 1
    number = chunks.lists[slot // CHUNK]
    lists.squares[number] -= _square(items.vectors, place, lists.centroids, number)
    items.slots[place] = 0
    _close(slot, number, items, lists, chunks)


@_inlined
def _set_spreads(lists: Lists) -> None:
    for number in range(len(lists.sizes)):
        size = lists.sizes[number]
        lists.squares[number] = max(lists.squares[number], 0.0) if size else 0.0
        lists.spreads[number] = np.sqrt(lists.squares[number] / size) if size else -np.inf


@compiled_in_place
def lay(  # noqa: PLR0913 - what lies where
    places: NDArray[np.int64],
    vectors: NDArray[np.float32],
    coded: Coded,
    start: int,
    items: Items,
    lists: Lists,
    chunks: Chunks,
    holes: NDArray[np.int32],
) -> None:
    """Lays vectors (n, d) at places (n,), each into the list `start` + its number.

    Who leaves a list leaves a hole there, and who comes to it fills one. So most lists need not
    be made shorter at the end, nor longer. `holes` is memory, of a number for each list.
    """
    holes[:] = -1
    for i in range(places.size):
        if i + 2 * AHEAD < places.size:
            prefetch(items.slots, places[i + 2 * AHEAD])
        if i + AHEAD < places.size:
            prefetch(items.vectors, places[i + AHEAD])
        _lay_or_leave(i, places[i], vectors, coded, start, items, lists, chunks, holes)
    for i in range(places.size):
        if i + AHEAD < places.size:
            prefetch(chunks.codes, holes[start + coded.numbers[i + AHEAD]] // LANES)
        if items.slots[places[i]] == -1 - i:
            slot = _take_hole(start + coded.numbers[i], lists, chunks, holes)
            _fill(slot, places[i], vectors, i, coded, i, items, lists, chunks)
    for number in range(holes.size):
        hole = holes[number]
        while hole >= 0:
            following = -2 - chunks.places[hole]
            _close(hole, number, items, lists, chunks)
            hole = following
    _set_spreads(lists)


@_inlined
def _lay_or_leave(  # noqa: PLR0913 - what lies where
    i: int,
    place: int,
    vectors: NDArray[np.float32],
    coded: Coded,
    start: int,
    items: Items,
    lists: Lists,
    chunks: Chunks,
    holes: NDArray[np.int32],
) -> None:
    """Lays the i-th vector, and its bytes if it stays in its list.

    Else the item is out of any list, its slot -1 - i. If it comes again, what comes last counts.
    """
    slot = items.slots[place] - 1
    if slot < 0:
        _copy(vectors, i, items.vectors, place)
        items.slots[place] = -1 - i
        return
    number = chunks.lists[slot // CHUNK]
    lists.squares[number] -= _square(items.vectors, place, lists.centroids, number)
    _copy(vectors, i, items.vectors, place)
    if number == start + coded.numbers[i]:
        _fill(slot, place, vectors, i, coded, i, items, lists, chunks)
        return
    # The holes of a list are chained by what stands for their places, which is negative.
    chunks.places[slot] = -2 - holes[number]
    holes[number] = slot
    items.slots[place] = -1 - i


@_inlined
def _take_hole(number: int, lists: Lists, chunks: Chunks, holes: NDArray[np.int32]) -> int:
    """A slot of a list to be filled: a hole, or else one at the end."""
    hole = holes[number]
    if hole < 0:
        return _add_slot(lists, number, chunks)
    holes[number] = -2 - chunks.places[hole]
    return int(hole)


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
    centroids: Centroids,
    start: int,
    items: Items,
    lists: Lists,
    chunks: Chunks,
    some: Coded,
) -> int:
    """Moves so many items from the lists before `start` to those behind; returns how many.

    The lists from `start` on are those of the centroids. `some` is memory, for TOGETHER vectors.
    """
    moved, number = 0, 0
    while moved < limit and number < start:
        if lists.sizes[number] == 0:
            number += 1
            continue
        end = lists.tails[number] * CHUNK + (lists.sizes[number] - 1) % CHUNK
        count = min(TOGETHER, end % CHUNK + 1, limit - moved)
        for at in range(count):
            prefetch(items.vectors, chunks.places[max(end - at - AHEAD, 0)])
            _encode(items.vectors, chunks.places[end - at], some, at)
        find_nearest(some, centroids)
        for at in range(count):
            place = chunks.places[end - at]
            _take_out(items, place, lists, chunks)
            slot = _add_slot(lists, start + some.numbers[at], chunks)
            _fill(slot, place, items.vectors, place, some, at, items, lists, chunks)
        moved += count
    _set_spreads(lists)
    return moved
