"""The inner loops, compiled by numba: the id map, the birth of rows, the sparse update.

All are serial: they take turns with torch on the same few cores, and one thread makes the bits
of a result independent of the machine's core count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
EMPTY = -1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def compiled(function: F) -> F:
    """numba.njit with its result kept on disk, and the type that the function has in Python."""
    return cast(F, numba.njit(cache=True, nogil=True)(function))


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
def birth_rows(ids: NDArray[np.int64], seed: int, scale: float, out: NDArray[np.float32]) -> None:
    """Fills `out` (n, d) with uniform numbers in ±scale that depend on id, seed and column only."""
    for i in range(ids.size):
        base = mix(np.uint64(ids[i]) ^ mix(np.uint64(seed) + _GOLDEN))
        for j in range(out.shape[1]):
            bits = mix(base + np.uint64(j + 1) * _GOLDEN) >> np.uint64(11)
            out[i, j] = np.float32((float(bits) * 2.0**-52 - 1.0) * scale)


@compiled
def rowwise_adagrad(
    weights: NDArray[np.float32],
    squares: NDArray[np.float32],
    rows: NDArray[np.int64],
    gradients: NDArray[np.float32],
    place: NDArray[np.int64],
    learning_rate: float,
) -> int:
    """Adds up the gradients (n, d) of equal rows in place, then updates each row once.

    `squares` holds one accumulator a row: the running sum of its mean squared gradient. `place`
    is scratch, EMPTY everywhere before and after. Returns the number of distinct rows, which
    are then the first ones of `rows`.
    """
    distinct = 0
    for i in range(rows.size):
        row = rows[i]
        at = place[row]
        if at == EMPTY:
            place[row] = distinct
            rows[distinct] = row
            if distinct != i:
                gradients[distinct] = gradients[i]
            distinct += 1
        else:
            gradients[at] += gradients[i]
    width = gradients.shape[1]
    for i in range(distinct):
        row = rows[i]
        place[row] = EMPTY
        total = np.float32(0.0)
        for j in range(width):
            total += gradients[i, j] * gradients[i, j]
        if total == 0.0:
            continue
        squares[row] += total / np.float32(width)
        rate = np.float32(learning_rate) / (np.sqrt(squares[row]) + np.float32(1e-8))
        for j in range(width):
            weights[row, j] -= rate * gradients[i, j]
    return distinct


@compiled
def ranks_among(
    scores: NDArray[Any],
    targets: NDArray[np.int64],
    hidden: NDArray[np.int64],
    offsets: NDArray[np.int64],
    ranks: NDArray[np.int64],
) -> None:
    """Fills `ranks` (B,) with how many columns of `scores` (B, N) stand before each target.

    A column with the target's own score stands before it. The columns
    `hidden[offsets[i]:offsets[i + 1]]`, in order and perhaps repeated, do not count for row i.
    """
    for i in range(targets.size):
        own = scores[i, targets[i]]
        before = -1  # the target itself
        for j in range(scores.shape[1]):
            before += not (scores[i, j] < own)  # a NaN is on nobody's side
        last = -1
        for at in range(offsets[i], offsets[i + 1]):
            column = hidden[at]
            if column != last and column != targets[i] and not (scores[i, column] < own):
                before -= 1
            last = column
        ranks[i] = before
