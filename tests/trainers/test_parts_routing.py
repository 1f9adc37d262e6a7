"""Routing of behaviours to interests: the paper's algorithm, and what it finds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainers.models.parts.routing import interest_counts, route, squash


def by_the_paper(behaviours: Tensor, logits: Tensor, rounds: int, sharpness: float) -> Tensor:
    """Algorithm 1 for one user, capsule by capsule: (L, d) and (L, K) give (K, d)."""
    b = logits.clone()
    for _ in range(rounds):
        interests = []
        for j in range(b.shape[1]):
            z = torch.zeros(behaviours.shape[1])
            for i in range(len(behaviours)):
                z += math.exp(b[i, j]) / sum(math.exp(x) for x in b[i]) * behaviours[i]
            length = float(z.norm())
            interests.append(length**2 / (1 + length**2) * z / length)
        for i in range(len(behaviours)):
            for j in range(b.shape[1]):
                b[i, j] += sharpness * float(interests[j] @ behaviours[i])
    return torch.stack(interests)


@pytest.mark.parametrize(("rounds", "sharpness"), [(1, 1.0), (3, 1.0), (3, 0.5)])
def test_routes_as_the_paper_does(rounds: int, sharpness: float) -> None:
    torch.manual_seed(0)
    lengths, counts = [9, 3, 6], [4, 1, 2]
    behaviours, logits = torch.randn(3, 9, 5), torch.randn(3, 9, 4)
    for user, length in enumerate(lengths):
        behaviours[user, length:] = 0.0
    found = route(behaviours, logits, torch.tensor(counts), rounds, sharpness)
    for user, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        own, start = behaviours[user, :length], logits[user, :length, :count]
        expected = by_the_paper(own, start, rounds, sharpness)
        torch.testing.assert_close(found[user, :count], expected)
        assert not found[user, count:].any()


def test_who_has_no_behaviours_has_interests_of_zeros_and_gradients_that_are_finite() -> None:
    behaviours = torch.zeros(2, 3, 5, requires_grad=True)
    found = route(behaviours, torch.randn(2, 3, 4), torch.tensor([1, 4]), 3)
    assert not found.any()
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert behaviours.grad is not None
    assert torch.isfinite(behaviours.grad).all()


def test_behaviours_of_two_sorts_come_to_be_two_interests() -> None:
    torch.manual_seed(0)
    users, directions = 200, torch.eye(2, 8)
    sorts = torch.randint(0, 2, (users, 20))
    behaviours = directions[sorts] + 0.1 * torch.randn(users, 20, 8)
    logits = 0.3 * torch.randn(users, 20, 2)
    alike = []
    for rounds in (1, 3, 6):
        counts = torch.full((users,), 2)
        one, other = route(behaviours, logits, counts, rounds, sharpness=8.0).unbind(1)
        alike.append(float(torch.cosine_similarity(one, other, -1).mean()))
    assert alike[0] > 0.9
    assert alike[0] > alike[1] > alike[2]
    assert alike[2] < 0.1
    of_one, of_other = (one @ directions.T).argmax(1), (other @ directions.T).argmax(1)
    assert (of_one != of_other).float().mean() > 0.95


def test_squash_keeps_directions_and_bounds_lengths() -> None:
    x = torch.tensor([[3.0, 4.0], [0.03, 0.04], [0.0, 0.0]])
    lengths = torch.tensor([25 / 26, 0.0025 / 1.0025, 0.0])
    torch.testing.assert_close(squash(x).norm(dim=-1), lengths)
    torch.testing.assert_close(squash(x)[0], x[0] / 5 * lengths[0])


def test_interests_grow_with_the_logarithm_of_behaviours() -> None:
    behaviours = torch.tensor([0, 1, 2, 3, 4, 7, 8, 15, 16, 1000])
    assert interest_counts(behaviours, 4).tolist() == [1, 1, 1, 1, 2, 2, 3, 3, 4, 4]
    assert interest_counts(behaviours, 1).tolist() == [1] * 10
