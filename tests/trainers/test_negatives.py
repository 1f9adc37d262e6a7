"""Candidates: where they come from, how likely each was to come up, and from whom they hide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.batch import Jagged
from trainers.negatives import Candidates, Negatives, NegativesConfig

FREQUENCY = np.array([1 / 2, 1 / 4, 1 / 4, 1 / 8, 0.0, 0.0, 0.0, 0.0])


def sampler(**config: Any) -> Negatives:
    return Negatives(NegativesConfig(**config), np.random.default_rng(0))


def jagged(lists: Sequence[Sequence[int]]) -> Jagged:
    values = np.array([value for one in lists for value in one], np.int64)
    return Jagged.of(values, np.array([len(one) for one in lists], np.int64))


def choose(
    negatives: Negatives,
    users: Sequence[int],
    places: Sequence[int],
    history: Sequence[Sequence[int]] | None = None,
) -> Candidates:
    taken = jagged(history or [[]] * len(users))
    size = len(FREQUENCY)
    return negatives.choose(
        np.array(users), np.array(places), taken, size, lambda at: FREQUENCY[at]
    )


def log_inclusion(found: Candidates) -> NDArray[np.float32]:
    """(B, C + R)."""
    sampling = found.sampling
    table: NDArray[np.float32] = sampling.log_inclusion[sampling.level].numpy()
    return table


def hidden(found: Candidates) -> list[set[int]]:
    """For each sample the places, not columns, that are hidden from it."""
    columns = np.concatenate([found.places, found.remembered])
    lists = found.sampling.hidden
    bounds = zip(lists.offsets, lists.offsets[1:], strict=False)
    return [set(columns[lists.values[start:end]].tolist()) for start, end in bounds]


def test_candidates_are_the_steps_own_items_and_the_drawn_each_once() -> None:
    found = choose(sampler(uniform=40), [1, 2, 3], [5, 2, 5])
    assert found.places.tolist() == list(range(8))  # with 40 draws of 8
    assert found.places[found.sampling.positive.numpy()].tolist() == [5, 2, 5]
    assert found.remembered.size == 0
    assert choose(sampler(uniform=0), [1, 2, 3], [5, 2, 5]).places.tolist() == [2, 5]


@pytest.mark.parametrize("remembered", [0, 3])
def test_the_probability_of_being_a_candidate_by_hand(remembered: int) -> None:
    negatives = sampler(uniform=2, remembered=remembered)
    choose(negatives, [7, 8, 9, 7, 7], [0, 1, 2, 3, 4])
    users = [1, 2, 1, 3]
    found = choose(negatives, users, [0, 1, 2, 3])
    others = np.array([2, 3, 2, 3])  # samples that are not the user's own
    columns = np.concatenate([found.places, found.remembered])
    expected = (others[:, None] + remembered) * FREQUENCY[columns] + 2 / 8
    np.testing.assert_allclose(log_inclusion(found), np.log(1 - np.exp(-expected)), rtol=1e-5)
    assert len(found.sampling.log_inclusion) == 2  # one row a level
    assert log_inclusion(found).dtype == np.float32


def test_without_the_correction_every_logit_stays() -> None:
    found = choose(sampler(corrected=False, remembered=4), [1, 2, 1], [0, 1, 2])
    assert not log_inclusion(found).any()


def test_without_anything_to_compare_with_the_probability_is_not_zero() -> None:
    found = choose(sampler(uniform=0), [1, 1], [4, 5])
    assert np.isfinite(log_inclusion(found)).all()


def test_what_a_user_took_at_another_time_is_no_negative_of_his() -> None:
    found = choose(sampler(uniform=40), [1, 2, 1], [0, 1, 2], [[3, 0, -1], [], [3]])
    own = [0, 1, 2]
    # His own item may be named: the loss keeps it. Item 2 is another of his samples, 3 history.
    assert [h - {o} for h, o in zip(hidden(found), own, strict=True)] == [{2, 3}, set(), {0, 3}]


def test_the_items_of_the_last_samples_are_remembered_and_no_candidate_is_there_twice() -> None:
    negatives = sampler(uniform=0, remembered=3)
    assert choose(negatives, [1, 2, 3, 4], [0, 1, 2, 3]).remembered.size == 0
    found = choose(negatives, [5, 6], [2, 6], [[1], []])
    assert found.places.tolist() == [2, 6]
    assert found.remembered.tolist() == [1, 3]  # 0 lies too far back, 2 is the step's own
    assert hidden(found) == [{1, 2}, {6}]  # remembered ones hide from who took them as well
    found = choose(negatives, [7], [7])
    assert found.remembered.tolist() == [2, 3, 6]  # the samples 3, 2 and 6


STEP = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 7), st.lists(st.integers(-1, 7), max_size=4)),
    min_size=1,
    max_size=9,
)


@given(steps=st.lists(STEP, min_size=1, max_size=4), uniform=st.integers(0, 6))
def test_agrees_with_sets(steps: list[list[tuple[int, int, list[int]]]], uniform: int) -> None:
    negatives = sampler(uniform=uniform, remembered=5)
    past: list[int] = []
    for step in steps:
        users, places, history = map(list, zip(*step, strict=True))
        found = choose(negatives, users, places, history)
        columns = [*found.places.tolist(), *found.remembered.tolist()]
        assert len(columns) == len(set(columns))
        assert set(places) <= set(found.places.tolist())
        assert len(found.places) <= len(set(places)) + uniform
        assert set(found.remembered.tolist()) == set(past) - set(found.places.tolist())
        for i, (user, place, took) in enumerate(step):
            own = {p for u, p, _ in step if u == user}
            assert hidden(found)[i] - {place} == ((own | set(took)) & set(columns)) - {place}
        past = (past + places)[-5:]


def test_it_goes_on_from_its_state() -> None:
    one = sampler(uniform=0, remembered=3)
    choose(one, [1, 2, 3], [0, 1, 2])
    other = sampler(uniform=0, remembered=3)
    other.load(one.state())
    assert choose(other, [4], [5]).remembered.tolist() == [0, 1, 2]
    fewer = sampler(uniform=0, remembered=2)
    fewer.load(one.state())
    assert choose(fewer, [4], [5]).remembered.tolist() == [1, 2]
