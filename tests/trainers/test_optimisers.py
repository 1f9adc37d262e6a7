"""How rows learn: compiled loops, tensor operations, torch's own optimisers, plain formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.optimisers import LOOPS, Kind, OptimiserConfig, learn_tensors

Floats = NDArray[np.float32]
WIDTH, ROWS = 5, 12
CONFIGS = [
    OptimiserConfig("rowwise_adagrad", learning_rate=0.3),
    OptimiserConfig("rowwise_adagrad", learning_rate=0.3, first_square=0.0),
    OptimiserConfig("adagrad", learning_rate=0.3),
    OptimiserConfig("adam", learning_rate=0.02),
    OptimiserConfig("adam", learning_rate=0.02, beta1=0.5, beta2=0.9),
    OptimiserConfig("ftrl", learning_rate=0.3),
    OptimiserConfig("ftrl", learning_rate=0.3, l1=0.05, l2=0.1, first_square=0.2),
    OptimiserConfig("ftrl", learning_rate=0.3, first_square=0.0),
    OptimiserConfig("ftrl", learning_rate=0.3, l2=0.5, first_square=0.0),
    OptimiserConfig("sgd", learning_rate=0.3),
]
EVERY = pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: f"{c.kind}-{c.l1}-{c.first_square}"
)
Step = tuple[NDArray[np.int64], Floats]


@pytest.fixture
def born() -> Floats:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (ROWS, WIDTH)).astype(np.float32)


@pytest.fixture
def steps() -> list[Step]:
    """Gradients of some of the rows, of very different sizes; some numbers and rows are 0."""
    rng = np.random.default_rng(1)
    made = []
    for _ in range(20):
        rows = rng.permutation(ROWS)[: rng.integers(1, ROWS)]
        gradients = rng.normal(size=(rows.size, WIDTH)) * 10.0 ** rng.uniform(-3, 1, (rows.size, 1))
        gradients[rng.random(gradients.shape) < 0.1] = 0
        gradients[0] *= rng.random() < 0.7
        made.append((rows, gradients.astype(np.float32)))
    return made


def learnt(config: OptimiserConfig, born: Floats, steps: list[Step]) -> tuple[Floats, Floats]:
    """Rows and slots after the compiled loop."""
    weights, slots = born.copy(), config.first_slots(born)
    for rows, gradients in steps:
        LOOPS[config.kind](rows, gradients, weights, slots, config.settings)
    return weights, slots


def close(one: Any, other: Any) -> None:
    np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


@EVERY
def test_tensors_learn_as_the_compiled_loop_does(
    config: OptimiserConfig, born: Floats, steps: list[Step]
) -> None:
    weights, slots = torch.from_numpy(born.copy()), torch.from_numpy(config.first_slots(born))
    for rows, gradients in steps:
        at = torch.from_numpy(rows)
        own = slots[at]
        weights[at] = learn_tensors(config, weights[at], own, torch.from_numpy(gradients))
        slots[at] = own
    expected, expected_slots = learnt(config, born, steps)
    close(weights, expected)
    np.testing.assert_allclose(slots, expected_slots, rtol=1e-4, atol=1e-5)
    assert np.isfinite(expected).all()


def torch_step(kind: Kind, leaf: Tensor) -> torch.optim.Optimizer:
    made: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "adagrad": lambda: torch.optim.Adagrad(
            [leaf], 0.1, initial_accumulator_value=0.01, eps=1e-8
        ),
        "adam": lambda: torch.optim.SparseAdam([leaf], 0.1, eps=1e-8),
        "sgd": lambda: torch.optim.SGD([leaf], 0.1),
    }
    return made[kind]()


@pytest.mark.parametrize("kind", ["adagrad", "adam", "sgd"])
def test_a_row_learns_as_with_the_optimiser_of_torch(
    kind: Kind, born: Floats, steps: list[Step]
) -> None:
    config = OptimiserConfig(kind, learning_rate=0.1, first_square=0.01)
    used = [
        (rows[keep], gradients[keep])
        for rows, gradients in steps
        if (keep := gradients.any(axis=1)).any()
    ]
    weights, _ = learnt(config, born, used)
    for row in range(ROWS):  # each with an optimiser of its own, as only a row's own steps count
        leaf = torch.from_numpy(born[row : row + 1].copy()).requires_grad_()
        optimiser = torch_step(kind, leaf)
        for rows, gradients in used:
            for gradient in gradients[rows == row]:
                dense = torch.from_numpy(gradient)[None]
                leaf.grad = dense.to_sparse(1) if kind == "adam" else dense
                optimiser.step()
        close(weights[row], leaf.detach()[0])


def test_row_wise_adagrad_is_its_formula(born: Floats, steps: list[Step]) -> None:
    config = OptimiserConfig("rowwise_adagrad", learning_rate=0.1, first_square=0.02)
    weights, squares = born.astype(np.float64), np.full(ROWS, 0.02)
    for rows, gradients in steps:
        squares[rows] += (gradients.astype(np.float64) ** 2).mean(1)
        weights[rows] -= 0.1 * gradients / (np.sqrt(squares[rows]) + 1e-8)[:, None]
    actual, slots = learnt(config, born, steps)
    close(actual, weights)
    close(slots[:, 0], squares)


class Ftrl:
    """FTRL-Proximal for one number, as McMahan et al. print it, from a first weight on."""

    def __init__(self, config: OptimiserConfig, weight: float) -> None:
        self.config, self.weight, self.n = config, weight, config.first_square
        sigma = math.sqrt(self.n) / config.learning_rate
        self.z = -weight * (sigma + config.l2) - math.copysign(config.l1, weight)

    def learn(self, g: float) -> None:
        c = self.config
        sigma = (math.sqrt(self.n + g * g) - math.sqrt(self.n)) / c.learning_rate
        self.z += g - sigma * self.weight
        self.n += g * g
        if abs(self.z) <= c.l1:
            self.weight = 0.0
        else:
            scale = math.sqrt(self.n) / c.learning_rate + c.l2
            self.weight = -(self.z - math.copysign(c.l1, self.z)) / scale


@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (0.05, 0.0), (0.0, 0.3), (0.4, 0.3)])
def test_ftrl_is_its_formula_and_l1_makes_zeros(
    l1: float, l2: float, born: Floats, steps: list[Step]
) -> None:
    config = OptimiserConfig("ftrl", learning_rate=0.2, first_square=0.1, l1=l1, l2=l2)
    oracles = [[Ftrl(config, float(weight)) for weight in row] for row in born]
    for rows, gradients in steps:
        for row, gradient in zip(rows, gradients, strict=True):
            for oracle, g in zip(oracles[row], gradient, strict=True):
                oracle.learn(float(g))
    actual, _ = learnt(config, born, steps)
    np.testing.assert_allclose(
        actual, [[oracle.weight for oracle in row] for row in oracles], rtol=1e-3, atol=1e-5
    )
    assert (actual == 0).any() == (l1 > 0.3)


@EVERY
def test_a_row_is_born_with_what_it_was_given_and_a_gradient_of_zero_teaches_nothing(
    config: OptimiserConfig, born: Floats
) -> None:
    rows, nothing = np.arange(ROWS), np.zeros((ROWS, WIDTH), np.float32)
    close(learnt(config, born, [(rows, nothing)] * 3)[0], born)
    slots = torch.from_numpy(config.first_slots(born))
    close(learn_tensors(config, torch.from_numpy(born), slots, torch.from_numpy(nothing)), born)


@pytest.mark.parametrize("kind", ["adam", "sgd", "adagrad", "rowwise_adagrad"])
def test_a_gradient_of_zero_leaves_a_learnt_row_and_its_slots_alone(
    kind: Kind, born: Floats, steps: list[Step]
) -> None:
    """Adam's momentum would go on moving it: only steps with a gradient count."""
    config = OptimiserConfig(kind)
    nothing = np.zeros((ROWS, WIDTH), np.float32)
    before, after = (learnt(config, born, [*steps, *m]) for m in ([], [(np.arange(ROWS), nothing)]))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)

    weights, slots = (torch.from_numpy(part.copy()) for part in before)
    moved = learn_tensors(config, weights, slots, torch.from_numpy(nothing))
    np.testing.assert_array_equal(moved, before[0])
    np.testing.assert_array_equal(slots, before[1])


@EVERY
def test_a_row_learns_alone_whatever_is_learnt_beside_it(
    config: OptimiserConfig, born: Floats, steps: list[Step]
) -> None:
    together = learnt(config, born, steps)
    one_by_one = [
        (rows[i : i + 1], gradients[i : i + 1])
        for rows, gradients in steps
        for i in range(rows.size)
    ]
    for one, other in zip(together, learnt(config, born, one_by_one), strict=True):
        np.testing.assert_array_equal(one, other)


@EVERY
def test_there_are_as_many_slots_as_are_kept(config: OptimiserConfig, born: Floats) -> None:
    slots = config.first_slots(born)
    assert slots.shape == (ROWS, config.slots(WIDTH))
    assert slots.dtype == np.float32
    assert config.first_slots(born[:0]).shape == (0, config.slots(WIDTH))


def test_adam_counts_steps_of_each_row_for_itself(born: Floats) -> None:
    """A row that comes late takes a first step as long as that of any other."""
    config = OptimiserConfig("adam", learning_rate=0.01)
    ones = np.ones((1, WIDTH), np.float32)
    early = [(np.array([0]), ones)] * 50
    weights, slots = learnt(config, born, [*early, (np.array([1]), ones)])
    close(born[1] - weights[1], np.full(WIDTH, 0.01))
    assert slots[:3, -1].tolist() == [50, 1, 0]
