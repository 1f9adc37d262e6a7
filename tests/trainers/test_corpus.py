"""The corpus: items, what describes them, their vectors in turn, their fading counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from features.batch import Items, Jagged
from trainers.corpus import Corpus


def ids(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def described(tokens: Mapping[int, Sequence[int]]) -> Items:
    values = [token for one in tokens.values() for token in one]
    offsets = np.cumsum([0] + [len(one) for one in tokens.values()])
    return Items(ids(*tokens), Jagged(ids(*values), offsets))


def tokens_of(corpus: Corpus, *items: int) -> list[list[int]]:
    found = corpus.items(corpus.find(ids(*items)))
    assert found.ids.tolist() == list(items)
    bounds = found.tokens.offsets.tolist()
    values = found.tokens.values.tolist()
    return [values[a:b] for a, b in pairwise(bounds)]


def plain(size: int) -> Corpus:
    corpus = Corpus(2)
    corpus.add_unseen(np.arange(size))
    return corpus


def vectors(*values: float) -> Tensor:
    return torch.tensor([[value, -value] for value in values], dtype=torch.float32)


def kept(corpus: Corpus) -> pa.Table:
    """All of the state, as it would be read from a file."""
    state, sink = corpus.table(), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, state.schema) as writer:
        writer.write_table(state)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


# Items


def test_items_have_places_in_the_order_in_which_they_came() -> None:
    corpus = Corpus(2)
    assert corpus.find(ids(7)).tolist() == [-1]
    assert corpus.add(described({7: [1], 3: []})).tolist() == [0, 1]
    assert corpus.add(described({9: [2, 4], 7: [1]})).tolist() == [2, 0]
    assert len(corpus) == 3
    assert corpus.find(ids(9, 3, 8)).tolist() == [2, 1, -1]


def test_what_describes_an_item_is_replaced_when_it_is_added_again() -> None:
    corpus = Corpus(2)
    corpus.add(described({7: [1, 2], 3: [5], 4: []}))
    corpus.add(described({3: [], 4: [8, 9, 8]}))
    assert tokens_of(corpus, 4, 7, 3) == [[8, 9, 8], [1, 2], []]
    assert len(corpus) == 3


def test_unseen_items_are_added_without_a_description_and_seen_ones_keep_theirs() -> None:
    corpus = Corpus(2)
    corpus.add(described({7: [1, 2]}))
    corpus.add_unseen(ids(3, 7, 9))
    assert tokens_of(corpus, 7, 3, 9) == [[1, 2], [], []]
    corpus.add(described({9: [4]}))
    corpus.add_unseen(ids(9))
    assert tokens_of(corpus, 9) == [[4]]


def test_no_items_at_no_places() -> None:
    corpus = plain(3)
    assert corpus.items(ids()).ids.shape == (0,)
    assert corpus.items(ids()).tokens.offsets.tolist() == [0]
    corpus.add_unseen(ids())
    assert len(corpus) == 3


def test_a_corpus_that_grows_keeps_everything() -> None:
    corpus = Corpus(2)
    corpus.add(described({5: [1]}))
    corpus.refresh(ids(0), vectors(3))
    corpus.count(ids(0), 1, 100.0)
    count = corpus.counts[0]
    corpus.add_unseen(np.arange(10, 5_000))
    assert len(corpus) == 4_991
    assert tokens_of(corpus, 5) == [[1]]
    assert corpus.vectors[0].tolist() == [3, -3]
    assert not corpus.vectors[1:].any()
    assert corpus.counts[0] == count
    assert not corpus.counts[1:].any()
    assert corpus.refreshed_since(0).ids.tolist() == [5]


# Vectors


@given(size=st.integers(1, 30), slice_size=st.integers(1, 40), before=st.integers(0, 5))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_item_has_its_turn_within_the_promised_steps(
    size: int, slice_size: int, before: int
) -> None:
    corpus = plain(size)
    for _ in range(before):
        corpus.next_slice(slice_size)
    turns = [corpus.next_slice(slice_size) for _ in range(-(-size // slice_size))]
    assert {place for turn in turns for place in turn.tolist()} == set(range(size))
    assert all(len(set(turn.tolist())) == len(turn) <= slice_size for turn in turns)


def test_items_that_come_in_between_have_their_turn_too() -> None:
    corpus = plain(10)
    corpus.next_slice(4)
    corpus.add_unseen(np.arange(10, 16))
    turns = [corpus.next_slice(4).tolist() for _ in range(4)]
    assert {place for turn in turns for place in turn} == set(range(16))


def test_an_empty_corpus_and_an_empty_slice_have_no_turns() -> None:
    assert Corpus(2).next_slice(8).tolist() == []
    assert plain(3).next_slice(0).tolist() == []


def test_only_what_was_refreshed_after_the_clock_is_told() -> None:
    corpus = plain(4)
    assert corpus.refreshed_since(0).ids.tolist() == []
    corpus.refresh(ids(2, 0), vectors(2, 10))
    first = corpus.clock
    corpus.refresh(ids(3, 0), vectors(3, 11))
    told = corpus.refreshed_since(first)
    assert told.ids.tolist() == [0, 3]
    assert told.rows.tolist() == [[11, -11], [3, -3]]
    assert corpus.refreshed_since(0).ids.tolist() == [0, 2, 3]
    assert corpus.refreshed_since(corpus.clock).ids.tolist() == []


def test_the_vectors_that_were_told_do_not_change_afterwards() -> None:
    corpus = plain(2)
    corpus.refresh(ids(1), vectors(5))
    told = corpus.refreshed_since(0)
    corpus.refresh(ids(1), vectors(6))
    assert told.rows.tolist() == [[5, -5]]


# Counts


@given(steps=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), max_size=12))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_a_sample_that_lies_a_half_life_back_counts_half(steps: list[list[int]]) -> None:
    half_life = 7.0
    corpus = plain(5)
    expected = np.zeros(5)
    for step in steps:
        corpus.count(ids(*step), len(step), half_life)
        expected *= 0.5 ** (len(step) / half_life)
        np.add.at(expected, step, 1.0)
    if steps:
        np.testing.assert_allclose(corpus.counts / corpus.counts.sum(), expected / expected.sum())
    else:
        assert not corpus.counts.any()


def test_counts_keep_their_proportions_and_stay_finite_when_the_weight_is_scaled_back() -> None:
    corpus = plain(3)
    expected = np.zeros(3)
    for step in range(2_000):  # the weight doubles every step: far over 1e100, and over 1e308
        corpus.count(ids(step % 2, 1), 10, 10.0)
        expected *= 0.5
        np.add.at(expected, [step % 2, 1], 1.0)
    assert np.isfinite(corpus.counts).all()
    assert corpus.counts.max() < 1e102
    np.testing.assert_allclose(corpus.counts / corpus.counts.sum(), expected / expected.sum())


# States


@pytest.mark.parametrize("size", [0, 1, 1_500])
def test_a_restored_corpus_goes_on_to_the_same_bits(size: int) -> None:
    unbroken, restored = Corpus(2), Corpus(2)
    rng = np.random.default_rng(0)
    if size:
        sizes = rng.integers(0, 4, size)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        tokens = rng.integers(0, 99, sizes.sum())
        unbroken.add(Items(rng.permutation(size), Jagged(tokens, offsets)))
        for _ in range(3):
            places = unbroken.next_slice(70)
            unbroken.refresh(places, torch.randn(len(places), 2))
            unbroken.count(rng.integers(0, size, 9), 9, 50.0)
    restored.restore(kept(unbroken))
    assert restored.table().equals(unbroken.table(), check_metadata=True)
    assert restored.clock == unbroken.clock
    for corpus in (unbroken, restored):
        corpus.add(described({0: [4], 90_000: [1, 2]}))
        places = corpus.next_slice(5)
        corpus.refresh(places, torch.ones(len(places), 2))
        corpus.count(places, 5, 50.0)
    assert restored.table().equals(unbroken.table(), check_metadata=True)


def test_a_state_stays_as_it_was_taken() -> None:
    corpus = plain(3)
    corpus.refresh(ids(0, 1), vectors(1, 2))
    state, copy = corpus.table(), kept(corpus)
    corpus.refresh(ids(0, 2), vectors(5, 6))
    corpus.count(ids(0), 1, 10.0)
    assert state.equals(copy)
