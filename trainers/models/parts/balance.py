"""How the losses of several tasks become one: a ranker wears one of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainers.tasks import Task


@dataclass(frozen=True)
class BalanceConfig:
    """`fixed`: by the weights of the tasks."""

    how: Literal["fixed"] = "fixed"


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


def make_balance(config: BalanceConfig, tasks: Mapping[str, Task]) -> nn.Module:  # noqa: ARG001
    """The balancer that a config names."""
    return Fixed(tasks)
