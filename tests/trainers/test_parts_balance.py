"""Balances: what weights they give, and what a step along them does to each task."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from streaming.errors import ConfigError
from trainers.models.parts.balance import (
    BalanceConfig,
    Pareto,
    make_balance,
    pareto_weights,
)
from trainers.tasks import Task

TASKS = {"click": Task(), "watch": Task("squared", "click"), "buy": Task(after="click", weight=2.0)}
KNOWN = dict.fromkeys(TASKS, torch.ones(4))
Floats = NDArray[np.float64]


def gradients(seed: int, tasks: int) -> Floats:
    """Of sizes that differ as those of losses do, and for some seeds linearly dependent."""
    random = np.random.default_rng(seed)
    made = random.standard_normal((tasks, 2 + seed % 4)) * 10.0 ** random.uniform(-2, 2, (tasks, 1))
    return made + random.standard_normal(made.shape[1])


def by_brute_force(g: Floats, least: Floats, parts: int = 30) -> float:
    """The length of the shortest sum over a grid of weights."""
    steps = np.array(
        [s for s in itertools.product(range(parts + 1), repeat=len(g)) if sum(s) == parts]
    )
    weights = least + (1 - least.sum()) * steps / parts
    return float(np.linalg.norm(weights @ g, axis=1).min())


@pytest.mark.parametrize("seed", range(12))
def test_no_other_weights_make_a_shorter_gradient(seed: int) -> None:
    g = gradients(seed, 3)
    least = np.array([0.0, 0.1, 0.25]) if seed % 2 else np.zeros(3)
    weights = pareto_weights(g @ g.T, least)
    assert weights.sum() == pytest.approx(1.0)
    assert (weights >= least - 1e-12).all()
    assert np.linalg.norm(weights @ g) <= by_brute_force(g, least) * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("tasks", [2, 5, 9])
def test_what_is_above_its_bound_gains_least_and_all_alike(seed: int, tasks: int) -> None:
    """The condition of Karush, Kuhn and Tucker, which is enough where the problem is convex."""
    g = gradients(seed, tasks)
    least = np.full(tasks, 0.5 / tasks) * (seed % 2)
    weights = pareto_weights(g @ g.T, least)
    gains = (g @ g.T @ weights) / np.linalg.norm(g, axis=1).max() ** 2
    above = weights > least + 1e-9
    np.testing.assert_allclose(gains[above], gains.min(), atol=1e-8)


def test_weights_where_little_is_left_to_choose() -> None:
    assert pareto_weights(np.array([[4.0]]), np.zeros(1)).tolist() == [1.0]
    assert pareto_weights(np.zeros((2, 2)), np.zeros(2)).sum() == pytest.approx(1.0)
    assert pareto_weights(np.ones((2, 2)), np.array([0.3, 0.7])) == pytest.approx([0.3, 0.7])
    alike = pareto_weights(np.full((3, 3), 2.0), np.array([0.2, 0.0, 0.1]))
    assert alike.sum() == pytest.approx(1.0)
    assert (alike >= [0.2, 0.0, 0.1]).all()


def losses_of(base: Tensor) -> dict[str, Tensor]:
    """Of each task its distance from a point, on scales of their own."""
    torch.manual_seed(0)
    return {
        name: scale * (base - torch.randn(base.shape)).square().mean()
        for name, scale in (("click", 1.0), ("watch", 30.0), ("buy", 0.1))
    }


def test_a_step_along_the_shortest_gradient_is_good_for_all() -> None:
    base = torch.zeros(4, 1, 3, requires_grad=True)
    made = losses_of(base)
    loss = Pareto(dict.fromkeys(TASKS, 0.0))(made, KNOWN, base)
    (shortest,) = torch.autograd.grad(loss, base, retain_graph=True)
    for task in made.values():
        (own,) = torch.autograd.grad(task, base, retain_graph=True)
        assert float((own * shortest).sum()) >= float(shortest.square().sum()) * (1 - 1e-4)


def test_a_bound_holds() -> None:
    base = torch.zeros(4, 1, 3, requires_grad=True)
    made = losses_of(base)
    loss = Pareto({"click": 0.1, "watch": 0.8, "buy": 0.1})(made, KNOWN, base)
    assert loss.item() == pytest.approx(
        0.1 * made["click"].item() + 0.8 * made["watch"].item() + 0.1 * made["buy"].item()
    )


def test_a_task_that_a_step_tells_nothing_of_has_no_part() -> None:
    base = torch.ones(4, 1, 3, requires_grad=True)
    made = {"click": base.square().mean(), "watch": 0 * base.sum(), "buy": torch.zeros(())}
    made["buy"] = made["buy"].requires_grad_()
    loss = Pareto(dict.fromkeys(TASKS, 0.0))(made, KNOWN, base)
    assert loss.item() == pytest.approx(1.0)
    nothing = Pareto(dict.fromkeys(TASKS, 0.0))({"watch": 0 * base.sum()}, KNOWN, base)
    assert nothing.item() == 0.0


def test_what_is_not_finite_is_left_to_the_trainer_to_refuse() -> None:
    base = torch.ones(4, 1, 3, requires_grad=True)
    made = {"click": base.sum(), "watch": (base * torch.nan).sum()}
    assert not Pareto(dict.fromkeys(TASKS, 0.0))(made, KNOWN, base).isfinite()


def test_vectors_of_tasks_of_their_own_are_compared_as_one() -> None:
    one = torch.randn(4, 1, 3, requires_grad=True)
    each = one.detach().expand(-1, 3, -1).clone().requires_grad_()
    towers = torch.randn(3, 3)
    pareto = Pareto(dict.fromkeys(TASKS, 0.0))

    def losses(base: Tensor) -> dict[str, Tensor]:
        outputs = (base.expand(-1, 3, -1) * towers).sum(2)
        return {name: outputs[:, n].square().mean() for n, name in enumerate(TASKS)}

    shared, own = pareto(losses(one), KNOWN, one), pareto(losses(each), KNOWN, each)
    assert shared.item() == pytest.approx(own.item(), rel=1e-5)


def test_fixed_weights_are_those_of_the_tasks() -> None:
    made = {name: torch.tensor(1.0 + n) for n, name in enumerate(TASKS)}
    loss = make_balance(BalanceConfig(), TASKS)(made, KNOWN, torch.zeros(4, 1, 3))
    assert loss.item() == 1.0 + 2.0 + 2.0 * 3.0


def test_uncertainty_halves_what_is_squared_and_learns_its_noise() -> None:
    balance = make_balance(BalanceConfig("uncertainty"), TASKS)
    made = {"click": torch.tensor(0.2), "watch": torch.tensor(4.0), "buy": torch.tensor(0.05)}
    base = torch.zeros(4, 1, 3)
    assert balance(made, KNOWN, base).item() == pytest.approx(0.2 + 4.0 / 2 + 0.05, abs=1e-3)
    optimiser = torch.optim.Adam(balance.parameters(), lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        balance(made, KNOWN, base).backward()
        optimiser.step()
    # Of a squared error the noise is its root, of -log p it is what makes p / sigma^2 one half.
    sigma = next(iter(balance.parameters())).div(2).exp().tolist()
    assert sigma == pytest.approx([0.4**0.5, 2.0, 0.1**0.5], rel=0.02)


@pytest.mark.parametrize("how", ["fixed", "uncertainty", "pareto"])
def test_bounds_that_cannot_hold_are_named(how: str) -> None:
    with pytest.raises(ConfigError, match="'like' is no task; these are click, watch, buy"):
        make_balance(BalanceConfig(how, {"like": 0.1}), TASKS)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"together 1.2"):
        make_balance(BalanceConfig(how, {"click": 0.9, "buy": 0.3}), TASKS)  # type: ignore[arg-type]
