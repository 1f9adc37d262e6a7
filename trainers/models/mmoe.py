"""MMoE: experts that all tasks share, and for each task a gate that says which of them count.

Ma et al., *Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts*,
KDD 2018. Of a pair x, the concatenated vectors of its fields:

    f_k(x) = sum_i softmax(W_k x)_i  expert_i(x)          y_k = tower_k(f_k(x))

With `gates = "one"` all tasks have the same gate (OMoE); with one expert and that gate it is the
shared bottom (Caruana, *Multitask Learning*, Machine Learning 1997), against which it is measured.

What differs: fields are embedded by tables that grow, and learnt as the stream comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from features.shown import Pairs
from trainers.models import RankingStep, register
from trainers.models.parts.fields import TABLES, Fields
from trainers.models.parts.tables import tables
from trainers.table import TableConfig
from trainers.tasks import Task, check_tasks, task_losses


@register("mmoe", "ranking")
class MMoE(nn.Module):
    """`predict` reads whatever its `fields` are."""

    describes = False
    reads: tuple[str, ...] = (
        "user_id", "item_id", "item_tokens", "item_fields", "scenario", "history",
        "history_rewards", "negative_rate",
    )  # fmt: skip

    @dataclass(frozen=True)
    class Config:
        """`tasks` are labels of samples. `fields` are those of `parts.fields`; `width` is theirs,
        `expert` and `tower` are the widths of the layers.
        """

        tasks: Mapping[str, Task] = field(default_factory=lambda: {"click": Task()})
        fields: tuple[str, ...] = ("user_id", "history", "scenario", "item_id", "genres", "year")
        width: PositiveInt = 16
        history: NonNegativeInt = 50
        experts: PositiveInt = 4
        expert: PositiveInt = 64
        tower: PositiveInt = 32
        gates: Literal["each", "one"] = "each"
        table: TableConfig = field(default_factory=TableConfig)
        seed: int = 0

        def __post_init__(self) -> None:
            check_tasks(self.tasks)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.tasks = config.tasks
        self.tables = tables(config.table, config.width, config.seed, *TABLES)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.fields = Fields(config.fields, config.history)
            inputs = len(self.fields) * config.width
            gates = len(self.tasks) if config.gates == "each" else 1
            self.experts = nn.Linear(inputs, config.experts * config.expert)  # all in one product
            self.gates = nn.Linear(inputs, gates * config.experts, bias=False)
            self.towers = nn.ModuleDict(
                {task: tower(config.expert, config.tower) for task in self.tasks}
            )

    def predict(self, pairs: Pairs) -> dict[str, Tensor]:
        config = self.config
        x = self.fields(self.tables, pairs).flatten(1)  # (n, F d)
        experts = self.experts(x).relu().view(len(x), config.experts, config.expert)
        gates = self.gates(x).view(len(x), -1, config.experts).softmax(2)  # (n, K or 1, E)
        mixed = (gates @ experts).expand(-1, len(self.tasks), -1)  # (n, K, expert)
        return {
            name: made(self.towers[name](mixed[:, k])[:, 0], task)
            for k, (name, task) in enumerate(self.tasks.items())
        }

    def loss(self, step: RankingStep) -> Tensor:
        losses = task_losses(self.tasks, self.predict(step.pairs), step.labels, step.rates)
        return sum_of(losses, self.tasks)


def tower(inputs: int, hidden: int) -> nn.Module:
    """From so many numbers to one."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def made(output: Tensor, task: Task) -> Tensor:
    """A tower's output (n,) as the task is predicted: a probability or a value."""
    return output.sigmoid() if task.is_binary else output


def sum_of(losses: Mapping[str, Tensor], tasks: Mapping[str, Task]) -> Tensor:
    """The losses by the weights of their tasks."""
    return torch.stack([task.weight * losses[name] for name, task in tasks.items()]).sum()
