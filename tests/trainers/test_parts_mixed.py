"""Negatives mixed with the right item, against mixing them as vectors, one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from features.batch import Jagged
from trainers.models.parts.chance import generator
from trainers.models.parts.mixed import mixed_softmax
from trainers.softmax import Sampling

HIDDEN: tuple[list[int], ...] = ([4], [], [0, 1, 3, 4, 5])  # who is 2 knows all others


def vectors(count: int, seed: int) -> Tensor:
    drawn = torch.randn(count, 8, generator=generator(seed, 0))
    return F.normalize(drawn, dim=1).requires_grad_()


def sampling(hidden: tuple[list[int], ...] = HIDDEN) -> Sampling:
    values = np.array([column for columns in hidden for column in columns], np.int64)
    return Sampling(
        torch.arange(3),
        torch.zeros(1, 6),
        torch.zeros(3, dtype=torch.int64),
        Jagged.of(values, np.array([len(columns) for columns in hidden], np.int64)),
    )


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_loss_is_that_among_the_mixed_vectors(share: float) -> None:
    queries, candidates = vectors(3, 1), vectors(6, 2)
    found = mixed_softmax(queries, candidates, sampling(), 0.5, 2, (share, share), generator(0, 0))
    for row, hidden in enumerate(HIDDEN):
        others = [c for c in range(6) if c != row and c not in hidden]
        scores = (queries[row] @ candidates.T).tolist()
        best = sorted(others, key=scores.__getitem__)[-2:]
        mixes = [share * candidates[row] + (1 - share) * candidates[c] for c in best]
        logits = torch.stack([queries[row] @ v for v in (candidates[row], *mixes)]) / 0.5
        torch.testing.assert_close(found[row], -logits.log_softmax(0)[0])


def test_more_of_the_right_item_makes_a_negative_harder_to_tell() -> None:
    """Of queries that are near to their own item; at last nothing can tell them apart."""
    candidates = vectors(6, 2)
    shares = [0.0, 0.5, 1.0]
    losses = [
        mixed_softmax(
            candidates[:3], candidates, sampling(([], [], [])), 0.1, 1, (a, a), generator(0, 0)
        )
        for a in shares
    ]
    assert (losses[0] < losses[1]).all()
    assert (losses[1] < losses[2]).all()
    torch.testing.assert_close(losses[2], torch.full((3,), 2.0).log())


def test_where_all_is_hidden_there_is_neither_loss_nor_gradient() -> None:
    queries, candidates = vectors(3, 1), vectors(6, 2)
    everything = tuple([c for c in range(6) if c != row] for row in range(3))
    found = mixed_softmax(
        queries, candidates, sampling(everything), 0.5, 9, (0.4, 0.6), generator(0, 0)
    )
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert not found.any()
    for given in (queries, candidates):
        assert given.grad is None or not given.grad.any()


def test_shares_lie_between_the_two_and_come_from_the_generator() -> None:
    queries, candidates = vectors(3, 1), vectors(6, 2)

    def loss(seed: int, low: float, high: float) -> Tensor:
        some = sampling(([], [], []))
        return mixed_softmax(queries, candidates, some, 0.5, 1, (low, high), generator(seed, 0))

    bounds = torch.stack([loss(1, 0.2, 0.2), loss(1, 0.7, 0.7)])
    drawn = loss(1, 0.2, 0.7)
    assert (bounds.amin(0) <= drawn).all()
    assert (drawn <= bounds.amax(0)).all()
    assert torch.equal(drawn, loss(1, 0.2, 0.7))
    assert not torch.equal(drawn, loss(2, 0.2, 0.7))
