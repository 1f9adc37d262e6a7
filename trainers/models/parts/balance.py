"""How the losses of several tasks become one: a ranker wears one of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from streaming.errors import ConfigError
from trainers.losses import UncertaintyWeighting
from trainers.tasks import Task

Hows = Literal["fixed", "uncertainty", "pareto"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BalanceConfig:
    """`fixed`: by the weights of the tasks. `uncertainty`: by how noisy each turns out to be, which
    is learnt (`trainers.losses.UncertaintyWeighting`). `pareto`: step by step so that all tasks
    gain, each with at least the weight that `least` says. The last two ask no weights of tasks.
    """

    how: Hows = "fixed"
    least: Mapping[str, NonNegativeFloat] = field(default_factory=dict)

    def bounds(self, tasks: Mapping[str, Task]) -> dict[str, float]:
        """The least weight of each task.

        Raises:
            ConfigError: one is of no task, or all of them together are more than 1.
        """
        if unknown := [name for name in self.least if name not in tasks]:
            raise ConfigError(
                f"balance.least: {unknown[0]!r} is no task; these are {', '.join(tasks)}"
            )
        total = sum(self.least.values())
        if total > 1:
            raise ConfigError(f"balance.least: together {total:g}, and all weights are 1")
        return {name: self.least.get(name, 0.0) for name in tasks}


class Fixed(nn.Module):
    """Each loss times the weight of its task."""

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        self._weights = {name: task.weight for name, task in tasks.items()}

    def forward(
        self,
        losses: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],  # noqa: ARG002
        base: Tensor,  # noqa: ARG002
    ) -> Tensor:
        """The loss to make small. `labels` (n,) are those of the step; `base` (n, K, r) is what all
        tasks share, and what its gradient is taken of.
        """
        return torch.stack([self._weights[name] * loss for name, loss in losses.items()]).sum()


class Uncertain(nn.Module):
    """Each loss by its noise."""

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        squared = {name for name, task in tasks.items() if task.loss == "squared"}
        self.weighting = UncertaintyWeighting(
            {name: "regression" if name in squared else "classification" for name in tasks}
        )

    def forward(
        self,
        losses: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
        base: Tensor,  # noqa: ARG002
    ) -> Tensor:
        """As `Fixed.forward`."""
        loss: Tensor = self.weighting(losses, labels)
        return loss


class Pareto(nn.Module):
    """The weights, at least those bounds and together 1, that make the gradient shortest.

    Lin et al., *A Pareto-Efficient Algorithm for Multiple Objective Optimization in E-Commerce
    Recommendation*, RecSys 2019. A step along the shortest gradient makes no loss larger than it
    was, as far as the bounds allow; where it is 0, no step does, and another choice of bounds finds
    another point of the front. Of the gradient is taken what all tasks share, the base vectors
    (Sener and Koltun, *Multi-Task Learning as Multi-Objective Optimization*, NeurIPS 2018), so that
    it costs no second pass through the tables; where tasks read vectors of their own (MMoE), they
    are compared as if they were of one.

    What differs: they drop the bounds first and then project what they find. Here the problem with
    its bounds is solved as it stands. A task that a step tells nothing of has no part in it. In a
    group each rank weighs its own samples.
    """

    def __init__(self, bounds: Mapping[str, float]) -> None:
        super().__init__()
        self._bounds = dict(bounds)

    def forward(
        self,
        losses: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],  # noqa: ARG002
        base: Tensor,
    ) -> Tensor:
        """As `Fixed.forward`."""
        found = {name: _gradient(loss, base) for name, loss in losses.items()}
        known = [name for name, gradient in found.items() if gradient.any()]
        gradients = torch.stack([found[name] for name in known or found])
        if not known or not gradients.isfinite().all():  # nothing is learnt, or it is refused
            return torch.stack([*losses.values()]).sum()
        least = np.array([self._bounds[name] for name in known])
        weights = pareto_weights((gradients @ gradients.T).cpu().numpy(), least)
        told = torch.from_numpy(weights).to(base)
        return (told * torch.stack([losses[name] for name in known])).sum()


def _gradient(loss: Tensor, base: Tensor) -> Tensor:
    """(n r,) of a loss, by what a tower reads."""
    (found,) = torch.autograd.grad(
        loss, base, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return found.sum(1).flatten()


def pareto_weights(products: NDArray[np.floating], least: Floats) -> Floats:
    """The weights w (K,) with `w >= least` and `sum w = 1` that make `|sum_k w_k g_k|` smallest.

    With `w = least + rest v`, where v is a point of the simplex, it is the shortest vector of a
    convex hull of corners A; and v is, but for its length, what non-negative least squares finds
    for `|A v|^2 + (sum v - 1)^2`.

    Args:
        products: (K, K), of each pair of gradients g.
        least: (K,), not negative, together at most 1.

    >>> opposed = np.array([[1.0, -2.0], [-2.0, 4.0]])  # of gradients 1 and -2
    >>> pareto_weights(opposed, np.zeros(2)).round(3).tolist()
    [0.667, 0.333]
    >>> pareto_weights(opposed, np.array([0.0, 0.5])).tolist()
    [0.5, 0.5]
    """
    size = max(float(np.trace(products)) / len(least), float(np.finfo(np.float32).tiny))
    rest = max(1.0 - float(least.sum()), 0.0)
    corners = least + rest * np.eye(len(least))  # (K, K), each row the weights of a corner
    hull: Floats = corners @ (products.astype(np.float64) / size) @ corners.T
    v = _non_negative(hull + 1.0, np.ones(len(least)))
    weights: Floats = least + rest * v / v.sum()
    return weights


def _non_negative(gram: Floats, target: Floats) -> Floats:
    """The x >= 0 that makes `x gram x / 2 - target x` smallest, by Lawson and Hanson's active sets
    (*Solving Least Squares Problems*, 1974).
    """
    x, free = np.zeros(len(target)), np.zeros(len(target), np.bool_)
    for _ in range(3 * len(target)):
        gain = np.where(free, -np.inf, target - gram @ x)
        if gain.max() <= _TOLERANCE:
            break
        free[gain.argmax()] = True
        while True:
            full = np.zeros(len(target))
            full[free] = np.linalg.lstsq(gram[np.ix_(free, free)], target[free], rcond=None)[0]
            low = free & (full <= 0.0)
            if not low.any():
                break
            x += (x[low] / (x[low] - full[low])).min() * (full - x)
            free &= x > _TOLERANCE
            x[~free] = 0.0
        x = full
    return x


_TOLERANCE = 1e-10


def make_balance(config: BalanceConfig, tasks: Mapping[str, Task]) -> nn.Module:
    """The balancer that a config names.

    Raises:
        ConfigError: as `BalanceConfig.bounds`.
    """
    bounds = config.bounds(tasks)
    match config.how:
        case "fixed":
            return Fixed(tasks)
        case "uncertainty":
            return Uncertain(tasks)
        case "pareto":
            return Pareto(bounds)
