"""The inner loops over ids, compiled by numba: a hash map, open addressing over one array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
EMPTY = -1
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's step: sets numbers apart before `mix`
# Of the slots of a map, how many are taken when it has grown and when it must grow: probing stays
# short below, and a key costs 26 bytes at most.
ROOMY, FULLEST = 0.62, 0.76


def compiled(function: F) -> F:
    """numba.njit with its result kept on disk, and the type that the function has in Python."""
    return cast(F, numba.njit(cache=True, nogil=True)(function))


def compiled_briefly(function: F) -> F:
    """As `compiled`, for a call that ends so soon that to let go of the interpreter meanwhile, and
    to wait until another thread gives it back, would take longer.
    """
    return cast(F, numba.njit(cache=True)(function))


def internal(function: F) -> F:
    """As `compiled`, for a function that compiled ones call.

    It is not kept on disk itself: what comes from there can only be called, not inlined, which
    costs the callers half their speed.
    """
    return cast(F, numba.njit(nogil=True)(function))


def compiled_in_place(function: F) -> F:
    """As `compiled`, for a function that makes no array and so needs to count no references.

    Where tuples of arrays are passed on, numba counts theirs at every step, with locked
    instructions, which can take longer than the work itself. The arrays that Python hands in live
    until the call returns; slices of them are free, and `np.empty` does not compile.
    """
    return cast(F, numba.njit(cache=True, nogil=True, _nrt=False)(function))


def internal_in_place(function: F) -> F:
    """As `internal`, for a function that `compiled_in_place` ones call."""
    return cast(F, numba.njit(nogil=True, _nrt=False)(function))


@internal
def mix(x: np.uint64) -> np.uint64:
    """splitmix64: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@internal
def home(key: int, count: np.uint64) -> np.uint64:
    """Where a key wants to lie among `count` places, which need be no power of two."""
    return (mix(np.uint64(key)) >> np.uint64(32)) * count >> np.uint64(32)


@internal
def behind(at: np.uint64, count: np.uint64) -> np.uint64:
    """The place after a place; after the last comes the first."""
    at += np.uint64(1)
    return at if at < count else np.uint64(0)


@compiled
def find_rows(slots: NDArray[np.int64], ids: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
    """Fills `rows` with the value under each id, or EMPTY."""
    for i in range(ids.size):
        rows[i] = get(slots, ids[i])


@internal
def get(slots: NDArray[np.int64], key: int) -> int:
    """The value under a key, EMPTY where there is none.

    `slots` interleaves keys and values; a key is kept with its bits turned round, so that zeros,
    which a new array is made of at no cost, are free places. Keys are not negative.
    """
    count, turned = np.uint64(slots.size // 2), ~np.int64(key)
    at = home(key, count)
    while slots[2 * at] != 0:
        if slots[2 * at] == turned:
            return int(slots[2 * at + 1])
        at = behind(at, count)
    return EMPTY


@internal
def put(slots: NDArray[np.int64], key: int, value: int) -> None:
    """Lays a value under a key, in place of the one that may be there; there must be room."""
    count, turned = np.uint64(slots.size // 2), ~np.int64(key)
    at = home(key, count)
    while slots[2 * at] != 0 and slots[2 * at] != turned:
        at = behind(at, count)
    slots[2 * at] = turned
    slots[2 * at + 1] = value


@internal
def remove(slots: NDArray[np.int64], key: int) -> None:
    """Takes a key out; those behind it move up, so that no tombstones pile up."""
    count, turned = np.uint64(slots.size // 2), ~np.int64(key)
    at = home(key, count)
    while slots[2 * at] != turned:
        if slots[2 * at] == 0:
            return
        at = behind(at, count)
    hole = at
    while True:
        at = behind(at, count)
        if slots[2 * at] == 0:
            break
        wanted = home(~slots[2 * at], count)
        from_wanted = at - wanted if at >= wanted else at - wanted + count
        from_hole = at - hole if at >= hole else at - hole + count
        if from_wanted >= from_hole:
            slots[2 * hole] = slots[2 * at]
            slots[2 * hole + 1] = slots[2 * at + 1]
            hole = at
    slots[2 * hole] = 0


def slots_for(count: int) -> NDArray[np.int64]:
    """An empty map with room for `count` keys and some more."""
    return np.zeros(2 * max(16, int(count / ROOMY)), np.int64)


def has_room(slots: NDArray[np.int64], count: int) -> bool:
    """Whether `count` keys fit."""
    return count <= FULLEST * slots.size / 2


@compiled
def rehash(old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
    """Lays every pair of one map into another."""
    for i in range(0, old.size, 2):
        if old[i] != 0:
            put(new, ~old[i], old[i + 1])


def grown(array: NDArray[Any], rows: int) -> NDArray[Any]:
    """The array with zeros behind it, so that it has so many rows."""
    larger = np.zeros((rows, *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger
