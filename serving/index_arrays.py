"""The arrays of the index, as its inner loops see them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.dot_products import LANES, TOGETHER

CHUNK = 64  # items of a list that lie together: a multiple of LANES
FIRST_LISTS = 8  # that a search reads before it knows what the others must promise

Floats32 = NDArray[np.float32]


class Chunks(NamedTuple):
    """The bytes of items, by slot; a list is a chain of chunks of slots, full but for the last."""

    codes: NDArray[np.uint32]  # (slots / LANES, LANES * quads of a vector): see `dot_products`
    scales: NDArray[np.float32]  # (slots,): what a step of the bytes is worth
    places: NDArray[np.int32]  # (slots,): which item it is
    before: NDArray[np.int32]  # (chunks,): the chunk before it in its list, -1 for the first
    lists: NDArray[np.int32]  # (chunks,): the list it belongs to, negative for a free one
    free: NDArray[np.int32]  # (chunks,): a stack
    counts: NDArray[np.int64]  # (2,): chunks that were ever used, chunks that are free


class Centroids(NamedTuple):
    """Of lists, and of none, so that their number is a multiple of LANES."""

    centroids: NDArray[np.float32]  # (lists, d): exactly what their bytes say
    codes: NDArray[np.uint32]  # (lists / LANES, LANES * quads of a vector)
    scales: NDArray[np.float32]  # (lists,)
    half_squares: NDArray[np.float32]  # (lists,): |c|^2 / 2, infinite for a list that is none


class Lists(NamedTuple):
    """Lists of items that are near the same centroid: the arrays of `Centroids`, and their own."""

    centroids: NDArray[np.float32]
    codes: NDArray[np.uint32]
    scales: NDArray[np.float32]
    half_squares: NDArray[np.float32]
    tails: NDArray[np.int32]  # (lists,): the last chunk, -1 of an empty list
    sizes: NDArray[np.int64]  # (lists,): items
    squares: NDArray[np.float64]  # (lists,): squared distances of the items to the centroid, summed
    spreads: NDArray[np.float32]  # (lists,): the root of their mean


class Items(NamedTuple):
    """By place."""

    ids: NDArray[np.int64]
    vectors: NDArray[np.float32]  # (places, d)
    slots: NDArray[np.int32]  # 1 + chunk * CHUNK + which one of it, 0 for none (see also `lay`)


class Queries(NamedTuple):
    """The interests of one user, as numbers of 15 bits and as they are."""

    vectors: NDArray[np.float32]  # (K, d)
    codes: NDArray[np.int8]  # (K, 8 * quads)
    starts: NDArray[np.int32]  # (K, 2)
    scales: NDArray[np.float32]  # (K,)
    norms: NDArray[np.float32]  # (K,)


class Coded(NamedTuple):
    """Vectors as bytes, and the lists that they go to; their number is a multiple of TOGETHER."""

    codes: NDArray[np.int8]  # (n, 4 * quads)
    quads: NDArray[np.uint32]  # (n, quads): the same memory
    scales: NDArray[np.float32]  # (n,): what a step of the bytes is worth
    starts: NDArray[np.int32]  # (n,): -128 times the sum of the bytes
    numbers: NDArray[np.int32]  # (n,): of the nearest centroids, once these were sought


class Filters(NamedTuple):
    """Which items may be found."""

    allowed: NDArray[np.uint64]  # a bit for every place; empty: all
    hidden: NDArray[np.int64]  # places, in order


class Plan(NamedTuple):
    """How much is read."""

    wanted: int  # items
    # A list is read if its centroid's score, and so many of its spreads, reach the worst of the
    # best items so far. Infinite: every list.
    margin: float
    error: float  # how far, in steps of an item's bytes and norms of the query, scores may be off


class Room(NamedTuple):
    """Memory of one search."""

    places: NDArray[np.int32]  # (candidates,)
    upper: NDArray[np.float32]  # (candidates,): what the score is at most
    lower: NDArray[np.float32]  # (candidates,): what it is at least
    spare: NDArray[np.float32]  # (candidates,)
    ids: NDArray[np.int64]  # (candidates,): the answer
    scores: NDArray[np.float32]  # (candidates,)
    promises: NDArray[np.float32]  # (lists,): the most that a list can be expected to hold
    order: NDArray[np.int32]  # (lists,)
    lanes: NDArray[np.float32]  # (2, LANES)
    read: NDArray[np.int64]  # (2,): lists and items that were read


def empty_queries(vectors: Floats32) -> Queries:
    """Room for what `encode_queries` makes of vectors (K, d)."""
    count, quads = len(vectors), -(-vectors.shape[1] // 4)
    return Queries(
        vectors,
        np.empty((count, 8 * quads), np.int8),
        np.empty((count, 2), np.int32),
        np.empty(count, np.float32),
        np.empty(count, np.float32),
    )


def make_coded(count: int, width: int) -> Coded:
    """Room for so many vectors, or a few more, of so many numbers."""
    size = TOGETHER * -(-count // TOGETHER)
    codes = np.zeros((size, 4 * -(-width // 4)), np.int8)
    return Coded(
        codes,
        codes.view(np.uint32),
        np.zeros(size, np.float32),
        np.zeros(size, np.int32),
        np.zeros(size, np.int32),
    )


def make_room(candidates: int, lists: int) -> Room:
    """Memory for a search that keeps so many candidates in mind."""
    candidates = max(candidates, FIRST_LISTS)
    return Room(
        np.empty(candidates, np.int32),
        np.empty(candidates, np.float32),
        np.empty(candidates, np.float32),
        np.empty(candidates, np.float32),
        np.empty(candidates, np.int64),
        np.empty(candidates, np.float32),
        np.empty(lists, np.float32),
        np.empty(lists, np.int32),
        np.empty((2, LANES), np.float32),
        np.zeros(2, np.int64),
    )
