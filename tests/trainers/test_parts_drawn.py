"""A softmax against uniform draws, and that it stands for one over the whole corpus."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from trainers.models.parts.drawn import drawn_softmax


def test_it_is_the_softmax_over_the_corpus_if_all_is_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(5, 8, generator=generator)
    corpus = torch.randn(20, 8, generator=generator)
    items = torch.tensor([3, 3, 0, 19, 7])
    same = items[:, None] == torch.arange(20)
    found = drawn_softmax(queries, corpus[items], corpus, same, 0.5)
    expected = F.cross_entropy(queries @ corpus.T / 0.5, items, reduction="none")
    torch.testing.assert_close(found, expected)


def test_a_target_that_was_drawn_too_counts_once() -> None:
    query, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 1.0]])
    drawn = torch.cat([target, torch.tensor([[0.0, 1.0]])])
    without = drawn_softmax(query, target, drawn[1:], torch.tensor([[False]]), 1.0)
    assert torch.equal(
        drawn_softmax(query, target, drawn, torch.tensor([[True, False]]), 1.0), without
    )
    torch.testing.assert_close(without, torch.tensor([2.0]).exp().add(1).log() - 2)


def test_its_gradient_by_few_drawn_is_that_by_all_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    corpus = torch.randn(400, 4, generator=generator) / 2
    target = torch.tensor([7])

    def gradient(drawn: torch.Tensor) -> torch.Tensor:
        query = torch.ones(1, 4, requires_grad=True)
        same = target[:, None] == drawn
        loss = drawn_softmax(query, corpus[target], corpus[drawn], same, 1.0).sum()
        (found,) = torch.autograd.grad(loss, [query])
        return found[0]

    few = torch.stack(
        [gradient(torch.randperm(400, generator=generator)[:100]) for _ in range(200)]
    )
    torch.testing.assert_close(few.mean(0), gradient(torch.arange(400)), rtol=0.1, atol=0.05)
