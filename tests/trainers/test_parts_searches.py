"""Words as searches: which belong together, whose they are, and which neighbours they have."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from features.batch import Jagged, Moments
from trainers.models.parts.searches import Searches, bigrams, padded

# Of each user his searches, as words with the time of their search.
USERS = st.lists(
    st.lists(st.lists(st.integers(0, 2**62), min_size=1, max_size=4), max_size=4), max_size=5
)


def jagged(lists: list[list[int]]) -> Jagged:
    values = np.array([value for one in lists for value in one], np.int64)
    return Jagged.of(values, np.array([len(one) for one in lists], np.int64))


def moments(users: list[list[list[int]]]) -> Moments:
    """Searches one after the other; users next to each other search at the same time, too."""
    ids = jagged([[word for search in user for word in search] for user in users])
    at_us = [10 + number for user in users for number, search in enumerate(user) for _ in search]
    return Moments(ids, np.array(at_us, np.int64))


def lists(jagged: Jagged) -> list[list[int]]:
    ends = jagged.offsets.tolist()
    return [jagged.values[i:j].tolist() for i, j in pairwise(ends)]


@given(USERS)
def test_words_of_one_time_are_one_search_of_one_user(users: list[list[list[int]]]) -> None:
    found = Searches.of(moments(users))
    assert lists(found.words) == [search for user in users for search in user]
    assert np.diff(found.offsets).tolist() == [len(user) for user in users]
    assert found.at_us.tolist() == [10 + i for user in users for i in range(len(user))]
    assert found.owners().tolist() == [n for n, user in enumerate(users) for _ in user]
    assert lists(found.of_users()) == [[w for search in user for w in search] for user in users]


@given(USERS)
def test_the_newest_and_those_before_it_are_all_there_is(users: list[list[list[int]]]) -> None:
    found = Searches.of(moments(users))
    last, before = found.where(found.newest()), found.where(~found.newest())
    assert lists(last.words) == [user[-1] for user in users if user]
    assert lists(before.words) == [search for user in users for search in user[:-1]]
    assert np.diff(last.offsets).tolist() == [min(1, len(user)) for user in users]
    assert np.diff(before.offsets).tolist() == [max(0, len(user) - 1) for user in users]
    two = found.where(found.newest(2))
    assert lists(two.words) == [search for user in users for search in user[-2:]]


@given(USERS, st.randoms(use_true_random=False))
def test_of_each_search_it_is_known_whether_it_was_suggested(
    users: list[list[list[int]]], chance: Random
) -> None:
    by_search = [[chance.random() < 0.5 for _ in user] for user in users]
    said = [
        flag
        for user, flags in zip(users, by_search, strict=True)
        for search, flag in zip(user, flags, strict=True)
        for _ in search
    ]
    found = Searches.of(replace(moments(users), suggested=np.array(said, np.bool_)))
    assert found.suggested.tolist() == [flag for flags in by_search for flag in flags]
    typed = found.typed()
    assert not typed.suggested.any()
    assert np.diff(typed.offsets).tolist() == [flags.count(False) for flags in by_search]


def test_pairs_are_of_neighbours_in_their_order() -> None:
    pairs = bigrams(jagged([[7, 8, 9], [], [5], [8, 9], [9, 8]]))
    assert pairs.lengths.tolist() == [2, 0, 0, 1, 1]
    first, second, again, turned = pairs.values.tolist()
    assert second == again
    assert len({first, second, turned}) == 3
    assert (pairs.values >= 0).all()


@pytest.mark.parametrize("size", [100_000])
def test_pairs_of_other_words_are_other_ids(size: int) -> None:
    words = np.random.default_rng(0).integers(0, 2**62, size)
    pairs = bigrams(Jagged.of(words, np.array([size])))
    assert len(np.unique(pairs.values)) == size - 1
    assert not np.isin(pairs.values, words).any()


def test_lists_of_rows_stand_side_by_side_with_zeros_behind_them() -> None:
    rows = torch.arange(1.0, 7.0).view(3, 2).requires_grad_()
    found, there = padded(rows, np.array([0, 2, 2, 3]))
    assert found.tolist() == [[[1, 2], [3, 4]], [[0, 0], [0, 0]], [[5, 6], [0, 0]]]
    assert there.tolist() == [[True, True], [False, False], [True, False]]
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert rows.grad is not None
    assert rows.grad.tolist() == [[1, 1]] * 3


def test_of_nothing_there_is_one_empty_place() -> None:
    found, there = padded(torch.empty(0, 3), np.array([0, 0, 0]))
    assert found.shape == (2, 1, 3)
    assert not there.any()
