"""Ranks and progressive recall, by hand and against a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.batch import Jagged
from trainers.evaluation import RankingQuality, best_scores, full_ranks


def ranks(scores: list[list[float]], targets: list[int], hidden: list[list[int]]) -> list[int]:
    values = np.array([column for columns in hidden for column in columns], np.int64)
    offsets = np.cumsum([0] + [len(columns) for columns in hidden])
    found = full_ranks(np.array(scores, np.float32), np.array(targets), Jagged(values, offsets))
    ranked: list[int] = found.tolist()
    return ranked


# Ranks


def test_the_best_item_ranks_first_and_the_worst_last() -> None:
    scores = [[0.1, 0.9, 0.5, 0.2]] * 4
    assert ranks(scores, [0, 1, 2, 3], [[]] * 4) == [3, 0, 1, 2]


def test_ties_count_against_the_target() -> None:
    assert ranks([[0.5, 0.5, 0.1, 0.5]], [0], [[]]) == [2]
    assert ranks([[0.0] * 5] * 2, [0, 4], [[], []]) == [4, 4]


def test_hidden_items_do_not_count_not_even_in_a_tie() -> None:
    scores = [[0.9, 0.5, 0.5, 0.1]]
    assert ranks(scores, [1], [[]]) == [2]
    assert ranks(scores, [1], [[0]]) == [1]
    assert ranks(scores, [1], [[2, 0]]) == [0]
    assert ranks(scores, [1], [[0, 3, 0]]) == [1]  # once, however often it was seen


def test_a_target_is_ranked_even_if_it_was_seen_before() -> None:
    assert ranks([[0.9, 0.5, 0.1]], [1], [[1]]) == [1]
    assert ranks([[0.9, 0.5, 0.1]], [1], [[1, 0]]) == [0]


@pytest.mark.parametrize("broken", [[[np.nan] * 3], [[0.1, np.nan, 0.3]], [[np.nan, 0.1, np.nan]]])
def test_scores_that_are_no_numbers_count_against_the_target(broken: list[list[float]]) -> None:
    assert ranks(broken, [1], [[]]) == [2]


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_ranks_agree_with_a_loop(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    level = st.lists(st.integers(0, 3), min_size=columns, max_size=columns)
    scores = data.draw(st.lists(level, min_size=rows, max_size=rows))
    targets = [data.draw(st.integers(0, columns - 1)) for _ in range(rows)]
    hidden = data.draw(
        st.lists(st.lists(st.integers(0, columns - 1)), min_size=rows, max_size=rows)
    )
    expected = [
        sum(
            other != target and other not in skipped and row[other] >= row[target]
            for other in range(columns)
        )
        for row, target, skipped in zip(scores, targets, hidden, strict=True)
    ]
    assert ranks([[float(s) for s in row] for row in scores], targets, hidden) == expected


def test_constant_scores_give_recall_zero_and_not_one() -> None:
    recall = RankingQuality([1, 10])
    nothing = Jagged(np.empty(0, np.int64), np.zeros(21, np.int64))
    recall.update(full_ranks(np.zeros((20, 100), np.float32), np.arange(20), nothing))
    assert recall.get()["recall@1"] == recall.get()["recall@10"] == 0


@pytest.mark.parametrize("interests", [1, 3])
def test_an_item_scores_by_the_best_of_a_users_interests(interests: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(4, interests, 5, generator=generator)
    vectors = torch.randn(6, 5, generator=generator)
    scores = best_scores(queries, vectors)
    for user in range(4):
        for item in range(6):
            best = max(float(interest @ vectors[item]) for interest in queries[user])
            assert scores[user, item].item() == pytest.approx(best, rel=1e-5)


# Recall and gain, progressively


def test_recall_counts_the_hits_of_all_samples_by_hand() -> None:
    recall = RankingQuality([1, 10])
    recall.update(np.array([0, 9, 10]))
    recall.update(np.array([5]))
    assert recall.get()["recall@1"] == 1 / 4
    assert recall.get()["recall@10"] == 3 / 4


def test_recent_recall_fades_by_half_over_the_half_life() -> None:
    recall = RankingQuality([1], half_life=4)
    recall.update(np.array([0, 0, 0, 0]))
    recall.update(np.array([7, 7, 7, 7]))
    # The four hits lie one half-life back: 2 of 6 that count.
    assert recall.get()["recent_recall@1"] == pytest.approx(2 / 6)
    assert recall.get()["recall@1"] == 1 / 2


def test_before_the_first_sample_there_is_no_figure() -> None:
    recall = RankingQuality([1, 10])
    assert recall.get() == {}
    recall.update(np.array([], np.int64))
    assert recall.get() == {}


def test_figures_carry_the_name_they_were_given() -> None:
    recall = RankingQuality([3], "popularity_")
    recall.update(np.array([2]))
    assert recall.get() == {
        "popularity_recall@3": 1.0,
        "recent_popularity_recall@3": 1.0,
        "popularity_ndcg@3": 0.5,
        "recent_popularity_ndcg@3": 0.5,
    }


def test_a_loaded_state_goes_on_where_it_was_taken() -> None:
    unbroken, loaded = RankingQuality([1, 5]), RankingQuality([1, 5])
    unbroken.update(np.array([0, 3, 9]))
    state = {name: array.copy() for name, array in unbroken.state().items()}
    loaded.load(unbroken.state())
    unbroken.update(np.array([1]))
    loaded.update(np.array([1]))
    assert loaded.get() == unbroken.get()
    again = RankingQuality([1, 5])
    again.load(state)
    again.update(np.array([1]))
    assert again.get() == unbroken.get()
