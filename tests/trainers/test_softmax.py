"""The chunked softmax against a loop and the whole matrix, and what its correction is for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from features.batch import Jagged
from trainers.softmax import Precision, Sampling, sampled_softmax


def lists(*columns: list[int]) -> Jagged:
    values = np.array([column for some in columns for column in some], np.int64)
    return Jagged.of(values, np.array([len(some) for some in columns], np.int64))


class Case:
    """Random terms of the formula; by default 6 queries, 9 candidates, 3 levels."""

    def __init__(
        self,
        size: int = 6,
        columns: int = 9,
        levels: int = 3,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        rng = np.random.default_rng(seed)

        def unit(rows: int) -> Tensor:
            return F.normalize(torch.from_numpy(rng.normal(size=(rows, 4))), dim=1).to(dtype)

        self.queries = unit(size).requires_grad_()
        self.candidates = unit(columns).requires_grad_()
        self.hidden = [
            rng.integers(0, columns, rng.integers(0, columns)).tolist() for _ in range(size)
        ]
        self.sampling = Sampling(
            torch.from_numpy(rng.integers(0, columns, size)),
            torch.from_numpy(np.log(rng.random((levels, columns)))).to(dtype),
            torch.from_numpy(rng.integers(0, levels, size)),
            lists(*self.hidden),
        )
        self.weights = torch.from_numpy(rng.random(size)).to(dtype)
        self.temperature = 0.2

    def loss(self, chunk: int = 4, precision: Precision = "float32") -> Tensor:
        return sampled_softmax(
            self.queries,
            self.candidates,
            self.sampling,
            self.weights,
            self.temperature,
            chunk=chunk,
            precision=precision,
        )

    def gradients(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        queries, candidates = torch.autograd.grad(loss, [self.queries, self.candidates])
        return queries, candidates

    def whole_matrix(self) -> Tensor:
        """The formula as it stands, for autograd."""
        rows, own = torch.arange(len(self.queries)), self.sampling.positive
        logits = self.queries @ self.candidates.T / self.temperature
        logits = logits - self.sampling.log_inclusion[self.sampling.level]
        mask = torch.zeros(logits.shape, dtype=torch.bool)
        for i, columns in enumerate(self.hidden):
            mask[i, columns] = True
        mask[rows, own] = False
        losses = F.cross_entropy(logits.masked_fill(mask, -math.inf), own, reduction="none")
        return (self.weights * losses).sum() / len(self.queries)

    def loop(self) -> float:
        total, cosine = 0.0, (self.queries @ self.candidates.T).tolist()
        for i, own in enumerate(self.sampling.positive.tolist()):
            log_p = self.sampling.log_inclusion[self.sampling.level[i]].tolist()
            logits = {
                j: cosine[i][j] / self.temperature - log_p[j]
                for j in range(len(log_p))
                if j == own or j not in self.hidden[i]
            }
            total -= float(self.weights[i]) * (
                logits[own] - math.log(sum(math.exp(logit) for logit in logits.values()))
            )
        return total / len(self.queries)


# The formula


def test_agrees_with_a_loop() -> None:
    case = Case()
    assert case.loss().item() == pytest.approx(case.loop(), rel=1e-12)


@given(
    size=st.integers(1, 9),
    columns=st.integers(1, 9),
    levels=st.integers(1, 4),
    chunk=st.integers(1, 10),
    seed=st.integers(0, 1 << 20),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_loss_and_gradients_are_those_of_the_whole_matrix(
    size: int, columns: int, levels: int, chunk: int, seed: int
) -> None:
    case = Case(size, columns, levels, seed)
    ours, plain = case.loss(chunk), case.whole_matrix()
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(case.gradients(ours), case.gradients(plain), rtol=1e-10, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences() -> None:
    case = Case()

    def loss(queries: Tensor, candidates: Tensor) -> Tensor:
        return sampled_softmax(
            queries, candidates, case.sampling, case.weights, case.temperature, chunk=4
        )

    assert torch.autograd.gradcheck(loss, (case.queries, case.candidates))


def test_single_precision_agrees_with_double() -> None:
    single, double = Case(50, 70, dtype=torch.float32), Case(50, 70)
    assert single.loss().item() == pytest.approx(double.loop(), rel=1e-5)
    for ours, exact in zip(
        single.gradients(single.loss()), double.gradients(double.loss()), strict=True
    ):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-6)


def test_the_temperature_comes_first_and_then_the_correction() -> None:
    sampling = Sampling(
        torch.tensor([0]), torch.tensor([[0.5, 0.1]]).log(), torch.tensor([0]), lists([])
    )
    loss = sampled_softmax(torch.eye(2)[:1], torch.eye(2), sampling, torch.ones(1), 0.25)
    # exp(1 / .25) / .5 against exp(0 / .25) / .1
    assert loss.item() == pytest.approx(math.log(1 + 10 / (2 * math.exp(4))))


def test_the_positives_column_is_corrected_too() -> None:
    case = Case(levels=1)
    before = case.loss().item()
    case.sampling.log_inclusion[0, case.sampling.positive] += 1.0
    assert case.loss().item() > before + 0.05


def test_a_factor_common_to_all_columns_says_nothing() -> None:
    case = Case()
    before = case.loss().item()
    for common in (100.0, -200.0):  # no exponential of these fits a float32
        case.sampling.log_inclusion.add_(common)
        assert case.loss().item() == pytest.approx(before)


def test_a_positive_far_below_the_others_has_a_finite_loss() -> None:
    case = Case(dtype=torch.float32)
    case.hidden, case.sampling = [[]] * 6, replace(case.sampling, hidden=lists(*[[]] * 6))
    case.temperature = 1e-3
    assert case.loss().item() == pytest.approx(case.whole_matrix().item(), rel=1e-4)
    assert case.loss().item() > 100
    assert all(g.isfinite().all() for g in case.gradients(case.loss()))


def test_a_hidden_candidate_has_no_influence() -> None:
    case = Case()
    case.sampling = replace(
        case.sampling, hidden=lists(*[[3, 3]] * 6), positive=torch.tensor([0, 1, 2, 4, 0, 8])
    )
    before = case.loss().detach()
    _, candidates = case.gradients(case.loss())
    assert not candidates[3].any()
    assert candidates[5].any()
    case.sampling.log_inclusion[:, 3] = -50.0
    with torch.no_grad():
        case.candidates[3] *= 1_000
    assert torch.equal(case.loss().detach(), before)


def test_without_negatives_there_is_nothing_to_learn() -> None:
    case = Case()
    case.sampling = replace(case.sampling, hidden=lists(*[list(range(9))] * 6))
    assert case.loss().item() == 0.0
    assert not any(gradient.any() for gradient in case.gradients(case.loss()))


def test_one_query_with_its_own_item_alone_has_no_loss() -> None:
    case = Case(1, 1, 1)
    assert case.loss().item() == 0.0
    assert not any(gradient.any() for gradient in case.gradients(case.loss()))


def test_a_sample_of_weight_zero_has_no_gradient_but_counts_in_the_mean() -> None:
    case = Case()
    case.weights[1] = 0.0
    queries, _ = case.gradients(case.loss())
    assert not queries[1].any()
    assert all(queries[i].any() for i in (0, 2, 3, 4, 5))
    assert case.loss().item() == pytest.approx(case.loop(), rel=1e-12)


def test_no_queries_have_no_loss() -> None:
    case = Case()
    none = torch.zeros(0, dtype=torch.int64)
    sampling = Sampling(none, case.sampling.log_inclusion, none, lists())
    empty = case.queries[:0]
    loss = sampled_softmax(empty, case.candidates, sampling, case.weights[:0], 0.1)
    assert loss.item() == 0.0
    assert not case.gradients(loss)[1].any()


# As a function of autograd


def test_the_gradient_is_scaled_by_what_comes_after() -> None:
    case = Case()
    for once, thrice in zip(
        case.gradients(case.loss()), case.gradients(3 * case.loss()), strict=True
    ):
        torch.testing.assert_close(thrice, 3 * once)


@pytest.mark.parametrize("side", ["queries", "candidates"])
def test_one_side_alone_gets_the_same_gradient(side: str) -> None:
    case = Case()
    both = dict(zip(("queries", "candidates"), case.gradients(case.loss()), strict=True))
    fixed = {"queries": case.candidates, "candidates": case.queries}[side]
    fixed.requires_grad_(False)
    case.loss().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(getattr(case, side).grad, both[side])
    assert fixed.grad is None


def test_without_gradients_the_loss_is_the_same() -> None:
    case = Case()
    with torch.no_grad():
        loss = case.loss()
    assert not loss.requires_grad
    assert torch.equal(loss, case.loss().detach())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_bits_are_the_same_every_time(precision: Precision) -> None:
    def bits() -> list[bytes]:
        case = Case(300, 400, dtype=torch.float32)
        loss = case.loss(128, precision)
        return [t.detach().numpy().tobytes() for t in (loss, *case.gradients(loss))]

    assert bits() == bits()


# Bad input


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["queries", "candidates", "weights", "log_inclusion"])
def test_what_is_not_finite_makes_the_loss_nan(
    where: str, value: float, precision: Precision
) -> None:
    case = Case(levels=1, dtype=torch.float32)
    target = case.sampling.log_inclusion if where == "log_inclusion" else getattr(case, where)
    with torch.no_grad():
        target.view(-1)[case.sampling.positive[0] if where == "log_inclusion" else 2] = value
    assert not case.loss(precision=precision).isfinite()


def test_a_nan_that_is_hidden_from_all_is_not_overlooked() -> None:
    case = Case()
    case.sampling = replace(
        case.sampling, hidden=lists(*[[3]] * 6), positive=torch.zeros(6, dtype=torch.int64)
    )
    assert case.loss().isfinite()
    with torch.no_grad():
        case.candidates[3, 0] = math.nan
    assert case.loss().isnan()


@pytest.mark.parametrize("column", [-1, 9])
def test_a_hidden_column_that_is_none_is_refused(column: int) -> None:
    case = Case()
    case.sampling = replace(case.sampling, hidden=lists([0, column], [], [], [], [], []))
    with pytest.raises(ValueError, match=f"{column}.*9 candidates"):
        case.loss()


def test_options_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 row, not 0"):
        Case().loss(chunk=0)
    with pytest.raises(ValueError, match="'half'"):
        Case().loss(precision="half")  # type: ignore[arg-type]


# bfloat16


def test_bfloat16_is_close_to_single_precision() -> None:
    case = Case(300, 500, dtype=torch.float32)
    exact, low = case.loss(128), case.loss(128, "bfloat16")
    assert low.item() != exact.item()
    assert low.item() == pytest.approx(exact.item(), rel=1e-3)
    for ours, theirs in zip(case.gradients(low), case.gradients(exact), strict=True):
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_auto_leaves_small_steps_and_double_precision_alone() -> None:
    for case in (Case(dtype=torch.float32), Case(512, 512)):
        assert torch.equal(case.loss(precision="auto"), case.loss(precision="float32"))


def recall(precision: Precision) -> float:
    """Of 200 users of 10 planted kinds, how many have an item of their kind on top after 60 steps.

    An item has a kind, too; users take items of their own kind only.
    """
    rng = np.random.default_rng(0)
    users, items = (
        torch.from_numpy(rng.normal(0, 0.3, (200, 16))).float().requires_grad_() for _ in range(2)
    )
    optimizer = torch.optim.Adam([users, items], lr=0.03)
    none = Jagged.of(np.zeros(0, np.int64), np.zeros(200, np.int64))
    for _ in range(60):
        taken = torch.from_numpy(10 * rng.integers(0, 20, 200) + np.arange(200) % 10)
        level = torch.zeros(200, dtype=torch.int64)
        sampling = Sampling(taken, torch.zeros(1, 200), level, none)
        loss = sampled_softmax(
            F.normalize(users, dim=1),
            F.normalize(items, dim=1),
            sampling,
            torch.ones(200),
            0.1,
            precision=precision,
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    best = (F.normalize(users, dim=1) @ F.normalize(items, dim=1).T).argmax(1)
    return float((best % 10 == torch.arange(200) % 10).float().mean())


def test_bfloat16_learns_as_well() -> None:
    single = recall("float32")
    assert single > 0.9
    assert recall("bfloat16") > single - 0.02


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
        sampling = Sampling(
            torch.from_numpy(positive),
            sign * inclusion[candidates][None],
            torch.zeros(size, dtype=torch.int64),
            lists(*[[]] * size),
        )
        loss = sampled_softmax(
            torch.eye(2)[users],
            logits[torch.from_numpy(candidates)],
            sampling,
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
