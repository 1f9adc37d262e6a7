"""Attention: what is not there counts for nothing, and a way out where nothing fits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainers.models.parts.attention import SelfAttention, attend

THERE = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])


@pytest.fixture
def sequences() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(3, 3, 8)


def test_attention_is_the_softmax_of_scaled_products(sequences: Tensor) -> None:
    queries, values = torch.randn(3, 2, 8), torch.randn(3, 3, 5)
    found = attend(queries, sequences, values, THERE)
    weights = (queries[0] @ sequences[0, :2].T / 8**0.5).softmax(-1)
    torch.testing.assert_close(found[0], weights @ values[0, :2])
    assert not found[1].any()


def test_with_a_zero_attention_goes_there_as_far_as_nothing_fits(sequences: Tensor) -> None:
    queries, values = torch.randn(3, 2, 8), torch.randn(3, 3, 5)
    found = attend(queries, sequences, values, THERE, zero=True)
    keys = torch.cat([torch.zeros(1, 8), sequences[0, :2]])
    weights = (queries[0] @ keys.T / 8**0.5).softmax(-1)
    torch.testing.assert_close(found[0], weights @ torch.cat([torch.zeros(1, 5), values[0, :2]]))
    assert not found[1].any()


@pytest.mark.parametrize("causal", [False, True])
def test_what_the_first_see_is_what_they_see_in_the_whole(sequences: Tensor, causal: bool) -> None:
    torch.manual_seed(1)
    attention = SelfAttention(8, 2, causal=causal)
    whole = attention(sequences, THERE)
    for first in (1, 2, 3):
        torch.testing.assert_close(attention(sequences, THERE, first=first), whole[:, :first])


def test_nobody_sees_what_is_not_there_nor_in_causal_attention_what_comes_later(
    sequences: Tensor,
) -> None:
    torch.manual_seed(1)
    for causal in (False, True):
        attention = SelfAttention(8, 2, causal=causal)
        before = attention(sequences, THERE)
        changed = sequences.clone()
        changed[0, 2] += 1.0  # is not there
        changed[2, 2] += 1.0
        after = attention(changed, THERE)
        torch.testing.assert_close(after[0, :2], before[0, :2])
        assert torch.allclose(after[2, :2], before[2, :2]) is causal
