"""The inner loops over ids, compiled by numba: a hash map, open addressing over one array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
EMPTY = -1
FULLEST = 0.6  # of the slots of a map; linear probing stays short below it


def compiled(function: F) -> F:
    """numba.njit with its result kept on disk, and the type that the function has in Python."""
    return cast(F, numba.njit(cache=True, nogil=True)(function))


def internal(function: F) -> F:
    """As `compiled`, for a function that only compiled ones call: half the time to compile."""
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(F, numba.njit(cache=True, nogil=True, **options)(function))


@compiled
def mix(x: np.uint64) -> np.uint64:
    """splitmix64: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled
def find_rows(slots: NDArray[np.int64], ids: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
    """Fills `rows` with the row of each id, or EMPTY. `slots` interleaves keys and rows."""
    mask = np.uint64(slots.size // 2 - 1)
    for i in range(ids.size):
        at = mix(np.uint64(ids[i])) & mask
        while True:
            key = slots[2 * at]
            if key == ids[i]:
                rows[i] = slots[2 * at + 1]
                break
            if key == EMPTY:
                rows[i] = EMPTY
                break
            at = (at + np.uint64(1)) & mask


@compiled
def insert_ids(slots: NDArray[np.int64], ids: NDArray[np.int64], first_row: int) -> None:
    """Gives the ids, none of them present, the rows `first_row`, `first_row + 1`, ..."""
    mask = np.uint64(slots.size // 2 - 1)
    for i in range(ids.size):
        at = mix(np.uint64(ids[i])) & mask
        while slots[2 * at] != EMPTY:
            at = (at + np.uint64(1)) & mask
        slots[2 * at] = ids[i]
        slots[2 * at + 1] = first_row + i


@compiled
def get(slots: NDArray[np.int64], key: int) -> int:
    """The value under a key, EMPTY where there is none. `slots` interleaves keys and values."""
    mask = np.uint64(slots.size // 2 - 1)
    at = mix(np.uint64(key)) & mask
    while slots[2 * at] != EMPTY:
        if slots[2 * at] == key:
            return int(slots[2 * at + 1])
        at = (at + np.uint64(1)) & mask
    return EMPTY


@compiled
def put(slots: NDArray[np.int64], key: int, value: int) -> None:
    """Lays a value under a key, in place of the one that may be there; there must be room."""
    mask = np.uint64(slots.size // 2 - 1)
    at = mix(np.uint64(key)) & mask
    while slots[2 * at] != EMPTY and slots[2 * at] != key:
        at = (at + np.uint64(1)) & mask
    slots[2 * at] = key
    slots[2 * at + 1] = value


@compiled
def remove(slots: NDArray[np.int64], key: int) -> None:
    """Takes a key out; those behind it move up, so that no tombstones pile up."""
    mask = np.uint64(slots.size // 2 - 1)
    one = np.uint64(1)
    at = mix(np.uint64(key)) & mask
    while slots[2 * at] != key:
        if slots[2 * at] == EMPTY:
            return
        at = (at + one) & mask
    hole = at
    while True:
        at = (at + one) & mask
        if slots[2 * at] == EMPTY:
            break
        home = mix(np.uint64(slots[2 * at])) & mask
        if ((at - home) & mask) >= ((at - hole) & mask):
            slots[2 * hole] = slots[2 * at]
            slots[2 * hole + 1] = slots[2 * at + 1]
            hole = at
    slots[2 * hole] = EMPTY


def slots_for(count: int) -> NDArray[np.int64]:
    """An empty map with room for `count` keys, so roomy that probing stays short."""
    return np.full(2 << max(7, int(np.ceil(np.log2(max(1, count) / FULLEST)))), EMPTY, np.int64)


def has_room(slots: NDArray[np.int64], count: int) -> bool:
    """Whether `count` keys fit."""
    return count <= FULLEST * slots.size / 2


@compiled
def rehash(old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
    """Lays every pair of one map into another."""
    for i in range(0, old.size, 2):
        if old[i] != EMPTY:
            put(new, old[i], old[i + 1])


def grown(array: NDArray[Any], rows: int) -> NDArray[Any]:
    """The array with zeros behind it, so that it has so many rows."""
    larger = np.zeros((rows, *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger
