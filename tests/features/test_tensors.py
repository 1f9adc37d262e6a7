"""Histories as padded tensors, against a loop over lists."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from features.batch import Details, Jagged, Moments, Users
from features.tensors import PaddedHistory, pad_history, pad_moments

ACTION = st.tuples(
    st.integers(0, 2**63 - 1), st.integers(-1, 126), st.integers(0, 10**15),
    st.integers(-1, 2**31 - 1), st.sampled_from([0.5, np.nan, 3.0e38]),
)  # fmt: skip
HISTORIES = st.lists(st.lists(ACTION, max_size=5), max_size=5)
NOW_US = 5 * 10**14


def users_of(histories: list[list[Any]]) -> Users:
    columns = list(zip(*(action for one in histories for action in one), strict=True)) or [()] * 5
    lengths = np.array([len(one) for one in histories], np.int64)
    items, kinds, at_us, scenarios, values = (
        np.array(column, dtype)
        for column, dtype in zip(
            columns, (np.int64, np.int8, np.int64, np.int32, np.float32), strict=True
        )
    )
    details = Details(kinds, at_us, scenarios, np.full(len(kinds), -1, np.int32), values)
    history, words = Jagged.of(items, lengths), Moments(Jagged.of(items, lengths), at_us)
    rewards = (items % 8 / 8).astype(np.float32)
    return Users(np.arange(len(lengths)), history, rewards, details, words)


@given(HISTORIES, st.integers(0, 4))
def test_each_row_is_the_newest_of_its_list_and_then_zeros(
    histories: list[list[Any]], length: int
) -> None:
    users = users_of(histories)
    now_us = np.full(len(histories), NOW_US)
    padded, words = pad_history(users, now_us, length), pad_moments(users.searched, now_us, length)
    for row, history in enumerate(histories):
        newest = history[-length:] if length else []
        behind = [0] * (length - len(newest))
        assert padded.items[row].tolist() == [action[0] for action in newest] + behind
        assert padded.kinds[row].tolist() == [action[1] for action in newest] + behind
        assert padded.scenarios[row].tolist() == [action[3] for action in newest] + behind
        ages_s = np.array([max(0, NOW_US - action[2]) / 1e6 for action in newest], np.float32)
        assert padded.ages_s[row].tolist() == ages_s.tolist() + behind
        values = np.array([np.nan_to_num(action[4]) for action in newest], np.float32)
        assert padded.values[row].tolist() == values.tolist() + behind
        assert padded.mask[row].tolist() == [True] * len(newest) + [False] * len(behind)
        assert words.ids[row].tolist() == padded.items[row].tolist()
        assert words.ages_s[row].tolist() == padded.ages_s[row].tolist()
    assert padded.items.shape == words.mask.shape == (len(histories), length)


@given(HISTORIES, st.integers(1, 4))
def test_a_batch_is_its_rows_one_by_one(histories: list[list[Any]], length: int) -> None:
    users = users_of(histories)
    now_us = NOW_US + np.arange(len(histories))
    whole = pad_history(users, now_us, length)
    for row in range(len(histories)):
        single = pad_history(users.take(np.array([row])), now_us[row : row + 1], length)
        for field in fields(PaddedHistory):
            one, other = getattr(single, field.name), getattr(whole, field.name)
            assert one.dtype == other.dtype
            assert torch.equal(one[0], other[row])


def test_what_a_model_embeds_are_long_integers() -> None:
    padded = pad_history(users_of([[(1, 2, 3, 4, 0.5)]]), np.array([NOW_US]), 2)
    assert padded.items.dtype == padded.kinds.dtype == padded.scenarios.dtype == torch.int64
    assert padded.rewards.dtype == padded.ages_s.dtype == padded.values.dtype == torch.float32
    assert padded.mask.dtype == torch.bool


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a device with CUDA")
def test_where_there_is_cuda_memory_is_pinned_and_moves() -> None:
    padded = pad_history(users_of([[(1, 2, 3, 4, 0.5)]]), np.array([NOW_US]), 2)
    assert padded.items.is_pinned()
    moved = padded.to("cuda")
    assert moved.items.device.type == "cuda"
    assert moved.items.tolist() == padded.items.tolist()


def test_moving_to_where_it_is_changes_nothing() -> None:
    padded = pad_history(users_of([[(1, 2, 3, 4, 0.5)]]), np.array([NOW_US]), 2)
    assert torch.equal(padded.to("cpu").items, padded.items)
