"""The inner loops, compiled by numba: the birth of rows, the sparse update, ranks.

All are serial: they take turns with torch on the same few cores, and one thread makes the bits
of a result independent of the machine's core count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaming.kernels import EMPTY, GOLDEN, compiled, get, home, internal, mix, put
from streaming.prefetch import AHEAD, prefetch


@internal
def _birth(base: np.uint64, column: int, scale: float) -> np.float32:
    bits = mix(base + np.uint64(column + 1) * GOLDEN) >> np.uint64(11)
    return np.float32((float(bits) * 2.0**-52 - 1.0) * scale)


@internal
def _birth_base(key: int, seed: int) -> np.uint64:
    return mix(np.uint64(key) ^ mix(np.uint64(seed) + GOLDEN))


@compiled
def birth_rows(ids: NDArray[np.int64], seed: int, scale: float, out: NDArray[np.float32]) -> None:
    """Fills `out` (n, d) with uniform numbers in ±scale that depend on id, seed and column only."""
    for i in range(ids.size):
        base = _birth_base(ids[i], seed)
        for j in range(out.shape[1]):
            out[i, j] = _birth(base, j, scale)


@internal
def _share(key: int, count: int) -> int:
    # Apart from where the key lies in a map: those of one share must not lie close together.
    return int(home(int(mix(np.uint64(key) + GOLDEN) >> np.uint64(1)), np.uint64(count)))


@compiled
def share_rows(ids: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Which of `count` shared rows stands for each id (n,)."""
    rows = np.empty(ids.size, np.int64)
    for i in range(ids.size):
        rows[i] = _share(ids[i], count)
    return rows


@internal
def _owner(key: int, ranks: int, shared: int) -> int:
    if shared == 0:
        return _share(key, ranks)
    return (_share(key, shared) if key >= 0 else -1 - key) % ranks


@compiled
def owners(ids: NDArray[np.int64], ranks: int, shared: int) -> NDArray[np.int64]:
    """Which of `ranks` has the row of each id (n,), and with it the shared row that stands for it.

    The `shared` rows themselves are those of the ids -1, -2, ...
    """
    owner = np.empty(ids.size, np.int64)
    for i in range(ids.size):
        owner[i] = _owner(ids[i], ranks, shared)
    return owner


@compiled
def distinct_by_owner(
    ids: NDArray[np.int64],
    shared: int,
    distinct: NDArray[np.int64],
    repeats: NDArray[np.int64],
    index: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> int:
    """Of ids (n,) each one once, those of one owner side by side; returns how many that are.

    Args:
        ids: not negative.
        shared: how many rows ids without one share.
        distinct: (n,), filled from the front, by owner and within that in the order of `ids`.
        repeats: (n,), how often each of the distinct ids is there.
        index: (n,), where each id is among the distinct.
        counts: (ranks,), how many of the distinct ids each rank owns.
    """
    slots = np.zeros(2 * max(16, 2 * ids.size), np.int64)
    found = np.empty(ids.size, np.int64)
    owner = np.empty(ids.size, np.int64)
    size = 0
    for i in range(ids.size):
        number = get(slots, ids[i])
        if number == EMPTY:
            number = size
            put(slots, ids[i], number)
            found[number] = ids[i]
            repeats[number] = 0
            owner[number] = _owner(ids[i], counts.size, shared)
            counts[owner[number]] += 1
            size += 1
        repeats[number] += 1
        index[i] = number
    starts = np.zeros(counts.size, np.int64)
    for rank in range(1, counts.size):
        starts[rank] = starts[rank - 1] + counts[rank - 1]
    place = np.empty(size, np.int64)
    times = repeats[:size].copy()
    for number in range(size):
        place[number] = starts[owner[number]]
        starts[owner[number]] += 1
        distinct[place[number]] = found[number]
        repeats[place[number]] = times[number]
    for i in range(ids.size):
        index[i] = place[index[i]]
    return size


@compiled
def gather_rows(
    weights: NDArray[np.float32],
    rows: NDArray[np.int64],
    ids: NDArray[np.int64],
    seed: int,
    scale: float,
    out: NDArray[np.float32],
) -> None:
    """Copies rows to `out` (n, d); for one that is EMPTY, what its id would be born with."""
    for i in range(rows.size):
        if i + AHEAD < rows.size:
            prefetch(weights, rows[i + AHEAD])
        row = rows[i]
        if row == EMPTY:
            base = _birth_base(ids[i], seed)
            for j in range(out.shape[1]):
                out[i, j] = _birth(base, j, scale)
        else:
            for j in range(out.shape[1]):
                out[i, j] = weights[row, j]


@compiled
def pool_rows(  # noqa: PLR0913 - what lies where
    weights: NDArray[np.float32],
    rows: NDArray[np.int64],
    ids: NDArray[np.int64],
    offsets: NDArray[np.int64],
    seed: int,
    scale: float,
    out: NDArray[np.float32],
) -> None:
    """Fills `out` (n, d) with the means of lists of rows, as `gather_rows` would give them."""
    width = out.shape[1]
    for i in range(offsets.size - 1):
        for j in range(width):
            out[i, j] = np.float32(0.0)
        for at in range(offsets[i], offsets[i + 1]):
            if at + AHEAD < rows.size:
                prefetch(weights, rows[at + AHEAD])
            row = rows[at]
            if row == EMPTY:
                base = _birth_base(ids[at], seed)
                for j in range(width):
                    out[i, j] += _birth(base, j, scale)
            else:
                for j in range(width):
                    out[i, j] += weights[row, j]
        if offsets[i + 1] - offsets[i] > 1:
            share = np.float32(1.0) / np.float32(offsets[i + 1] - offsets[i])
            for j in range(width):
                out[i, j] *= share


@compiled
def add_up(  # noqa: PLR0913 - what lies where
    rows: NDArray[np.int64],
    offsets: NDArray[np.int64],
    gradients: NDArray[np.float32],
    place: NDArray[np.int32],
    distinct: NDArray[np.int64],
    sums: NDArray[np.float32],
    count: int,
) -> int:
    """Adds to the sums of distinct rows the gradients of the means of lists of rows.

    `place` holds for each row its place in `distinct` and `sums`, plus 1, and 0 for one that is
    not there yet. Returns how many distinct rows there are now; `count` were there before.
    """
    width = gradients.shape[1]
    for i in range(offsets.size - 1):
        if offsets[i] == offsets[i + 1]:
            continue
        share = np.float32(1.0) / np.float32(offsets[i + 1] - offsets[i])
        for at in range(offsets[i], offsets[i + 1]):
            if at + AHEAD < rows.size:
                prefetch(place, rows[at + AHEAD])
            row = rows[at]
            to = place[row] - 1
            if to < 0:
                to = count
                count += 1
                place[row] = count
                distinct[to] = row
                for j in range(width):
                    sums[to, j] = share * gradients[i, j]
            else:
                for j in range(width):
                    sums[to, j] += share * gradients[i, j]
    return count


@compiled
def oldest_rows(
    ids: NDArray[np.int64], seen: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of the rows whose id is not EMPTY, those that were seen first, `count` of them at least 1.

    Returns the rows before the last moment among them, and all rows of that moment, of which some
    may be too many. A few passes narrow that moment down; no array as long as `seen` is made.
    """
    low, high = np.int64(2**63 - 1), np.int64(-(2**63))
    for row in range(ids.size):
        if ids[row] != EMPTY:
            low, high = min(low, seen[row]), max(high, seen[row])
    before = 0  # rows that were seen before `low`
    bins = np.empty(4096, np.int64)
    while low < high:
        width = (high - low) // bins.size + 1
        bins[:] = 0
        for row in range(ids.size):
            if ids[row] != EMPTY and low <= seen[row] <= high:
                bins[(seen[row] - low) // width] += 1
        at = 0
        while before + bins[at] < count:
            before += bins[at]
            at += 1
        low += at * width
        high = min(high, low + width - 1)
    found, same = 0, 0
    for row in range(ids.size):
        same += ids[row] != EMPTY and seen[row] == low
    older, equals = np.empty(before, np.int64), np.empty(same, np.int64)
    same = 0
    for row in range(ids.size):
        if ids[row] == EMPTY or seen[row] > low:
            continue
        if seen[row] == low:
            equals[same] = row
            same += 1
        else:
            older[found] = row
            found += 1
    return older, equals


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
