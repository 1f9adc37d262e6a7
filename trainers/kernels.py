"""The inner loops, compiled by numba: the birth of rows, the sparse update, ranks.

All are serial: they take turns with torch on the same few cores, and one thread makes the bits
of a result independent of the machine's core count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaming.kernels import EMPTY, compiled, mix

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


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
