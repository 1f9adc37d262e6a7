"""Positives that wait for the rest of their list."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.batch import Ids, Items, Jagged, Users
from features.shown import Pairs, Shown
from trainers.positives import Positives

NAN = float("nan")


def samples(groups: Sequence[int], items: Sequence[int], clicks: Sequence[float]) -> Shown:
    count = len(groups)
    numbers = np.arange(count)
    nothing = Jagged.of(np.empty(0, np.int64), np.zeros(count, np.int64))
    users = Users(np.array(groups) + 100, nothing, np.empty(0, np.float32))
    ids = np.array(items, np.int64)
    return Shown(
        Pairs(users, numbers, Items(ids, nothing), numbers.astype(np.int32)),
        {"click": np.array(clicks, np.float32), "buy": np.full(count, NAN, np.float32)},
        np.full(count, 0.5, np.float32),
        np.array(groups, np.int64),
        numbers,
        ["home"],
    )


def added(before: Shown, after: Shown) -> list[tuple[int, int, float]]:
    """(user, item, click) of the pairs that were not there before."""
    first = len(before.pairs)
    users: Ids = after.pairs.users.ids[after.pairs.user_of]
    rows = zip(users, after.pairs.items.ids, after.labels["click"], strict=True)
    found = [(int(user), int(item), float(click)) for user, item, click in rows]
    assert all(len(label) == len(after.pairs) for label in after.labels.values())
    assert np.isnan(after.labels["buy"][first:]).all()
    assert len(after.rates) == len(after.groups) == len(after.at_us) == len(after.pairs)
    return found[first:]


def test_only_lists_of_which_some_came_to_nothing_get_their_positives() -> None:
    positives = Positives(["click"], 8)
    positives.add(samples([1, 2, 3, 4], [10, 20, 30, 40], [1, 1, 0, NAN]))
    later = samples([1, 2, 3, 4, 1], [11, 21, 31, 41, 12], [0, 1, 0, 0, 0])
    assert added(later, positives.joined(later)) == [(101, 10, 1.0)]
    assert positives.joined(samples([9], [1], [0])).groups.tolist() == [9]
    assert positives.joined(samples([1], [1], [1])).groups.tolist() == [1]


def test_the_oldest_are_forgotten() -> None:
    positives = Positives(["click"], 3)
    for group in range(5):
        positives.add(samples([group], [10 + group], [1]))
    later = samples(range(5), range(5), [0] * 5)
    found = added(later, positives.joined(later))
    assert sorted(item for _, item, _ in found) == [12, 13, 14]
    positives.add(samples(range(7), range(20, 27), [1] * 7))
    found = added(later, positives.joined(later))
    assert [item for _, item, _ in found] == [24]


def test_what_is_no_number_is_not_remembered() -> None:
    positives = Positives(["click"], 3)
    positives.add(samples([1, 1], [10, 11], [np.inf, NAN]))
    later = samples([1], [1], [0])
    assert positives.joined(later) is later


@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0, 1])), min_size=1)))
def test_they_are_those_that_a_list_of_all_would_give(steps: list[list[tuple[int, int]]]) -> None:
    positives, seen = Positives(["click"], 6), list[tuple[int, int]]()
    for number, step in enumerate(steps):
        groups, clicks = zip(*step, strict=True)
        items = [100 * number + i for i in range(len(step))]
        now = samples(groups, items, clicks)
        vain = {group for group, click in step if click == 0}
        wanted = [(100 + group, item, 1.0) for group, item in seen[-6:] if group in vain]
        assert sorted(added(now, positives.joined(now))) == sorted(wanted)
        positives.add(now)
        seen += [(g, i) for g, i, click in zip(groups, items, clicks, strict=True) if click]


@pytest.mark.parametrize("count", [2, 20])
def test_a_loaded_state_goes_on(count: int) -> None:
    positives, loaded = Positives(["click"], 5), Positives(["click"], 5)
    positives.add(samples(range(count), range(count), [1] * count))
    loaded.load(positives.state())
    for one in (positives, loaded):
        one.add(samples([1, 2], [50, 51], [1, 1]))
    assert all(np.array_equal(loaded.state()[n], array) for n, array in positives.state().items())
    larger = Positives(["click"], 9)
    larger.load(positives.state())
    assert larger.state()["end"] == 0
