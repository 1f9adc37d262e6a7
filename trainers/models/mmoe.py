"""MMoE: experts that all tasks share, and for each task a gate that says which of them count.

Ma et al., *Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts*,
KDD 2018. Of a pair x, the concatenated vectors of its fields:

    f_k(x) = sum_i softmax(W_k x)_i  expert_i(x)          y_k = tower_k(f_k(x))

It is measured against one gate for all (`omoe`), and against one bottom for all (`shared_bottom`).

What differs: fields are embedded by tables that grow, and learnt as the stream comes. f_k is
multiplied by the root of the number of experts: gates begin nearly even, and a mean of n experts
that know nothing of each other varies by 1/sqrt(n) of what one of them does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from features.shown import Pairs
from trainers.models import RANKING, register
from trainers.models.parts.ranker import Inputs, Layers, Multitask, RankerConfig, Towers


@register("mmoe", RANKING)
class MMoE(Multitask):
    """`predict` reads whatever its `fields` are."""

    @dataclass(frozen=True)
    class Config(RankerConfig):
        """`expert` is the width of the hidden layer that is each expert."""

        experts: PositiveInt = 4
        expert: PositiveInt = 64

    def __init__(self, config: Config, gates: int | None = None) -> None:
        """As many `gates` as tasks, or one for all."""
        super().__init__(config)
        inputs = self.user_width + self.item_width
        gates = len(self.tasks) if gates is None else gates
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.experts = Layers(config.experts, inputs, config.expert)
            self.gates = nn.Linear(inputs, gates * config.experts, bias=False)
            self.towers = Towers(self.begins, config.expert, config.tower)

    def base(self, inputs: Inputs, pairs: Pairs) -> Tensor:  # noqa: ARG002
        experts, gates = inputs.through_all([self.experts.layer, self.gates])
        weights = math.sqrt(self.config.experts) * self.shares(gates)
        return weights @ self.experts.hidden(experts)  # (n, K or 1, expert)

    def shares(self, gates: Tensor) -> Tensor:
        """(n, K or 1, experts), how much each expert counts, by what gates say; together 1."""
        # Along a last dimension of a few numbers torch takes several times as long.
        first = gates.view(len(gates), -1, self.config.experts).movedim(2, 0).contiguous()
        return first.softmax(0).movedim(0, 2)

    def outputs(self, base: Tensor) -> Tensor:
        made: Tensor = self.towers(base)
        return made
