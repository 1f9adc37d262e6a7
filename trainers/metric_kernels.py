"""The inner loops of the metrics, compiled by numba: faded sums, pairs of a group, late labels.

Samples are taken one after another, so that no result depends on how a stream was cut into calls.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streaming.kernels import EMPTY, GOLDEN, compiled, get, mix, put, remove

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Newer samples weigh more, instead of older ones less; after so many half-lives all weights are
# divided by two to that power, which costs no bit.
RENEWAL = 64

# The places of a group's `marks` and `pairs`.
SIZE, NEWEST = 0, 1
WEIGHT, WON, PAIRS = 0, 1, 2

# The places of the `meta` of waiting predictions, and the due time of one that waits no more.
FRONT, END, WAITING, NOW, LABELLED, EXPIRED, DISPLACED, REPEATED, UNMATCHED = range(9)
DONE = -(1 << 63)


@compiled
def faded(at: int, clock: int, half_life: int) -> float:
    """The weight of the sample number `at` in the sums of a moment, when `clock` were taken."""
    renewed = clock - clock % (RENEWAL * half_life)
    return float(np.exp2((at - renewed) / half_life))


@compiled
def tick(recent: Floats, clock: Ints, half_life: int) -> float:
    """Counts one more sample; returns its weight in `recent`."""
    clock[0] += 1
    if clock[0] % (RENEWAL * half_life) == 0:
        recent *= 2.0**-RENEWAL
    return faded(clock[0], clock[0], half_life)


@compiled
def accumulate(
    total: Floats, recent: Floats, clock: Ints, half_life: int, places: Ints, values: Floats
) -> None:
    """Adds `values` (n, k) to the rows `places` (n, m) of `total` and, weighted, of `recent`."""
    for i in range(values.shape[0]):
        weight = tick(recent, clock, half_life)
        for j in range(places.shape[1]):
            row = places[i, j]
            for k in range(values.shape[1]):
                total[row, k] += values[i, k]
                recent[row, k] += weight * values[i, k]


@compiled
def close_group(total: Floats, recent: Floats, weight: float, marks: Ints, pairs: Floats) -> None:
    """Adds the AUC of a group, times its size, and its size to the sums; empties the group."""
    if pairs[PAIRS] > 0:
        auc = pairs[WEIGHT] * pairs[WON] / pairs[PAIRS]
        total[0, 0] += auc
        total[0, 1] += pairs[WEIGHT]
        recent[0, 0] += weight * auc
        recent[0, 1] += weight * pairs[WEIGHT]
    marks[:] = 0
    pairs[:] = 0.0


@compiled
def compare(members: Floats, size: int, score: float, signed: float, pairs: Floats) -> None:
    """Adds to `pairs` those of one more sample with the members of the other label.

    A member is its score and its weight, which is negative for a negative one.
    """
    for j in range(size):
        if (members[j, 1] > 0) == (signed > 0):
            continue
        weight = abs(signed * members[j, 1])
        above = score - members[j, 0] if signed > 0 else members[j, 0] - score
        pairs[PAIRS] += weight
        if above > 0:
            pairs[WON] += weight
        elif above == 0:
            pairs[WON] += weight / 2


@compiled
def add_to_groups(  # noqa: PLR0913 - all that is kept of the groups, and what comes in
    sums: tuple[Floats, Floats, Ints],
    half_life: int,
    slots: Ints,
    groups: tuple[Ints, Ints, Floats, Floats, Ints],
    ids: Ints,
    scores: Floats,
    signed: Floats,
) -> None:
    """Adds samples to their groups; a group that is full, or whose place is needed, is closed.

    `sums` is (total, recent, clock) and `groups` (ids, marks, pairs, members, opened); places are
    given in turn, and `slots` leads from a group to its place.
    """
    total, recent, clock = sums
    by_place, marks, pairs, members, opened = groups
    for i in range(ids.size):
        tick(recent, clock, half_life)
        at = get(slots, ids[i])
        new = at == EMPTY
        if new:
            at = opened[0] % by_place.size
            opened[0] += 1
        if new or marks[at, SIZE] == members.shape[1]:
            weight = faded(marks[at, NEWEST], clock[0], half_life)
            close_group(total, recent, weight, marks[at], pairs[at])
        if new:
            if by_place[at] != EMPTY:
                remove(slots, by_place[at])
            put(slots, ids[i], at)
            by_place[at] = ids[i]
        size = marks[at, SIZE]
        compare(members[at], size, scores[i], signed[i], pairs[at])
        members[at, size, 0] = scores[i]
        members[at, size, 1] = signed[i]
        marks[at, SIZE] = size + 1
        marks[at, NEWEST] = clock[0]
        pairs[at, WEIGHT] += abs(signed[i])


@compiled
def index_places(slots: Ints, keys: Ints) -> None:
    """Lays the place of every key into the map; a key EMPTY stands for none."""
    for place in range(keys.size):
        if keys[place] != EMPTY:
            put(slots, keys[place], place)


@compiled
def pair_keys(first: Ints, second: Ints) -> Ints:
    """A stable, non-negative number for each pair of ids: (n,)."""
    keys = np.empty(first.size, np.int64)
    for i in range(first.size):
        mixed = mix(mix(np.uint64(first[i]) + GOLDEN) ^ np.uint64(second[i]))
        keys[i] = np.int64(mixed >> np.uint64(1))
    return keys


@compiled
def expire(slots: Ints, keys: Ints, due: Ints, meta: Ints, decided: Ints, count: int) -> int:
    """Ends the wait of all that are due; returns how many places `decided` then holds."""
    while meta[FRONT] < meta[END] and due[meta[FRONT]] <= meta[NOW]:
        at = meta[FRONT]
        if due[at] != DONE:
            remove(slots, keys[at])
            due[at] = DONE
            meta[WAITING] -= 1
            meta[EXPIRED] += 1
            decided[count] = at
            count += 1
        meta[FRONT] += 1
    return count


@compiled
def displace(slots: Ints, keys: Ints, due: Ints, meta: Ints) -> None:
    """Ends the wait of the one that has waited longest."""
    while due[meta[FRONT]] == DONE:
        meta[FRONT] += 1
    remove(slots, keys[meta[FRONT]])
    due[meta[FRONT]] = DONE
    meta[WAITING] -= 1
    meta[DISPLACED] += 1


@compiled
def await_labels(  # noqa: PLR0913 - the queue, its two bounds, and what comes in
    slots: Ints,
    keys: Ints,
    due: Ints,
    meta: Ints,
    at_us: Ints,
    bounds: tuple[int, int],
    decided: Ints,
) -> int:
    """Lets the predictions whose keys lie behind `meta[END]` wait, one for each `at_us`.

    `bounds` is (window in microseconds, most that may wait). Fills `decided` with the places of
    those that expired and returns their number.
    """
    window_us, most = bounds
    count = 0
    for i in range(at_us.size):
        meta[NOW] = max(meta[NOW], at_us[i])
        count = expire(slots, keys, due, meta, decided, count)
        at = meta[END]
        meta[END] += 1
        if get(slots, keys[at]) != EMPTY:
            due[at] = DONE
            meta[REPEATED] += 1
            continue
        while meta[WAITING] >= most:
            displace(slots, keys, due, meta)
        put(slots, keys[at], at)
        due[at] = meta[NOW] + window_us
        meta[WAITING] += 1
    return count


@compiled
def take_labels(  # noqa: PLR0913 - the queue, and what comes in
    slots: Ints,
    keys: Ints,
    due: Ints,
    meta: Ints,
    wanted: Ints,
    at_us: Ints,
    labels: Floats,
    decided: tuple[Ints, Floats],
) -> int:
    """Ends the wait of those that have a label now.

    Fills `decided`, (places, labels), in the order of time; an expired one has the label NaN.
    """
    places, found = decided
    count = 0
    for i in range(wanted.size):
        meta[NOW] = max(meta[NOW], at_us[i])
        before = count
        count = expire(slots, keys, due, meta, places, count)
        found[before:count] = np.nan
        if np.isnan(labels[i]):
            continue
        at = get(slots, wanted[i])
        if at == EMPTY:
            meta[UNMATCHED] += 1
            continue
        remove(slots, wanted[i])
        due[at] = DONE
        meta[WAITING] -= 1
        meta[LABELLED] += 1
        places[count] = at
        found[count] = labels[i]
        count += 1
    return count
