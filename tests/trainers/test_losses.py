"""The sampled softmax against a loop, and what its correction is for."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.losses import sampled_softmax


class Case:
    """Random terms of the formula: 6 queries, 9 candidates."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.queries = torch.nn.functional.normalize(random(6, 4) - 0.5, dim=1).requires_grad_()
        self.candidates = torch.nn.functional.normalize(random(9, 4) - 0.5, dim=1).requires_grad_()
        self.positive = torch.tensor([0, 4, 4, 8, 1, 2])
        self.log_inclusion = random(6, 9).log()
        self.hidden = random(6, 9) < 0.3
        self.hidden[torch.arange(6), self.positive] = False
        self.weights = random(6)
        self.temperature = 0.2

    def loss(self) -> Tensor:
        return sampled_softmax(
            self.queries,
            self.candidates,
            self.positive,
            self.log_inclusion,
            self.hidden,
            self.weights,
            self.temperature,
        )

    def gradients(self) -> tuple[Tensor, Tensor]:
        queries, candidates = torch.autograd.grad(self.loss(), [self.queries, self.candidates])
        return queries, candidates


def loop(case: Case) -> float:
    total, similarity = 0.0, case.queries.detach() @ case.candidates.detach().T
    for i in range(6):
        logits = {
            j: float(similarity[i, j]) / case.temperature - float(case.log_inclusion[i, j])
            for j in range(9)
            if not case.hidden[i, j]
        }
        own = int(case.positive[i])
        log_softmax = logits[own] - math.log(sum(math.exp(logit) for logit in logits.values()))
        total -= float(case.weights[i]) * log_softmax
    return total / 6


def test_agrees_with_a_loop() -> None:
    case = Case()
    assert case.loss().item() == pytest.approx(loop(case), rel=1e-12)


def test_agrees_with_a_loop_in_single_precision() -> None:
    assert Case(torch.float32).loss().item() == pytest.approx(loop(Case()), rel=1e-5)


def test_the_temperature_comes_first_and_then_the_correction() -> None:
    case = Case()
    first_corrected = (case.queries @ case.candidates.T - case.log_inclusion) / case.temperature
    wrong = torch.nn.functional.cross_entropy(
        first_corrected.masked_fill(case.hidden, -math.inf), case.positive, reduction="none"
    )
    assert abs((case.weights * wrong).mean().item() - case.loss().item()) > 0.1
    assert case.loss().item() == pytest.approx(loop(case), rel=1e-12)


def test_the_positives_column_is_corrected_too() -> None:
    case = Case()
    before = case.loss().item()
    case.log_inclusion[torch.arange(6), case.positive] += 1.0
    assert case.loss().item() > before + 0.05


def test_a_factor_common_to_all_columns_says_nothing() -> None:
    case = Case()
    before = case.loss().item()
    for common in (100.0, -100.0):  # far over whatever stands in for minus infinity
        case.log_inclusion += common
        assert case.loss().item() == pytest.approx(before)
        case.log_inclusion -= common


def test_a_hidden_candidate_has_no_influence() -> None:
    case = Case()
    case.hidden[:, 3] = True
    case.hidden[2, 5] = True
    before = case.loss().detach()
    _, candidates = case.gradients()
    assert not candidates[3].any()
    assert candidates[5].any()
    case.log_inclusion[:, 3] = -50.0
    with torch.no_grad():
        case.candidates[3] *= 1_000
    assert torch.equal(case.loss().detach(), before)


def test_a_sample_of_weight_zero_has_no_gradient_but_counts_in_the_mean() -> None:
    case = Case()
    case.weights[1] = 0.0
    queries, _ = case.gradients()
    assert not queries[1].any()
    assert all(queries[i].any() for i in (0, 2, 3, 4, 5))
    assert case.loss().item() == pytest.approx(loop(case), rel=1e-12)


def test_twice_the_weight_is_twice_the_gradient() -> None:
    case = Case()
    once, _ = case.gradients()
    case.weights *= 2
    twice, _ = case.gradients()
    torch.testing.assert_close(twice, 2 * once)


def test_the_gradient_is_that_of_finite_differences() -> None:
    case = Case()
    assert torch.autograd.gradcheck(
        lambda queries, candidates: sampled_softmax(
            queries,
            candidates,
            case.positive,
            case.log_inclusion,
            case.hidden,
            case.weights,
            case.temperature,
        ),
        (case.queries, case.candidates),
    )


def test_nothing_to_learn_from_is_no_loss() -> None:
    none = torch.zeros(0, 9)
    loss = sampled_softmax(
        torch.zeros(0, 4),
        torch.ones(9, 4),
        torch.zeros(0, dtype=torch.int64),
        none,
        none.bool(),
        torch.zeros(0),
        0.1,
    )
    assert float(loss) == 0.0


# What the correction is for


def recovered(correction: Literal["right", "none", "wrong sign"]) -> float:
    """How well the learnt logits follow the true log p(item | user), as a correlation.

    Two kinds of users with tastes of their own over 12 items, some a hundred times as popular as
    others; every negative is another sample's positive, so items are drawn by popularity.
    """
    rng = np.random.default_rng(0)
    popularity = np.geomspace(1, 0.01, 12)
    taste = popularity * rng.uniform(0.2, 1.0, (2, 12))
    preference = taste / taste.sum(1, keepdims=True)  # (2, 12)
    drawn_by = preference.mean(0)

    size, logits = 8, torch.zeros(12, 2, requires_grad=True)  # row: item, column: kind of user
    optimizer = torch.optim.Adam([logits], lr=0.02)
    inclusion = torch.from_numpy(np.log(-np.expm1(-(size - 1) * drawn_by))).float()
    sign = {"right": 1.0, "none": 0.0, "wrong sign": -1.0}[correction]
    users = np.arange(size) % 2
    bounds = preference.cumsum(1)
    bounds[:, -1] = 1.0
    average = torch.zeros(12, 2)
    for step in range(1_500):
        items = (rng.random(size)[:, None] > bounds[users]).sum(1)
        candidates, positive = np.unique(items, return_inverse=True)
        loss = sampled_softmax(
            torch.eye(2)[users],
            logits[torch.from_numpy(candidates)],
            torch.from_numpy(positive),
            sign * inclusion[candidates].expand(size, -1),
            torch.zeros(size, len(candidates), dtype=torch.bool),
            torch.ones(size),
            1.0,
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step >= 500:
            average += logits.detach() / 1_000
    truth = np.log(preference).T
    return float(np.corrcoef(average.numpy()[:, 0], truth[:, 0])[0, 1])


def test_the_correction_recovers_the_true_preference_from_popular_negatives() -> None:
    right, none = recovered("right"), recovered("none")
    assert right > 0.95
    assert right > none + 0.2
    assert none > recovered("wrong sign") + 0.2
