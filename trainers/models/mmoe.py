"""MMoE: experts that all tasks share, and for each task a gate that says which of them count.

Ma et al., *Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts*,
KDD 2018. Of a pair x, the concatenated vectors of its fields:

    f_k(x) = sum_i softmax(W_k x)_i  expert_i(x)          y_k = tower_k(f_k(x))

With `gates = "one"` all tasks have the same gate (OMoE); with one expert and that gate it is the
shared bottom (Caruana, *Multitask Learning*, Machine Learning 1997), against which it is measured.

What differs: fields are embedded by tables that grow, and learnt as the stream comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from features.shown import Pairs
from trainers.models import register
from trainers.models.parts.ranker import Inputs, Multitask, RankerConfig, Towers


@register("mmoe", "ranking")
class MMoE(Multitask):
    """`predict` reads whatever its `fields` are."""

    @dataclass(frozen=True)
    class Config(RankerConfig):
        """`expert` is the width of the hidden layer that is each expert."""

        experts: PositiveInt = 4
        expert: PositiveInt = 64
        gates: Literal["each", "one"] = "each"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        inputs = self.user_width + self.item_width
        gates = len(self.tasks) if config.gates == "each" else 1
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.experts = nn.Linear(inputs, config.experts * config.expert)  # all in one product
            self.gates = nn.Linear(inputs, gates * config.experts, bias=False)
            self.towers = Towers(len(self.tasks), config.expert, config.tower)

    def base(self, inputs: Inputs, pairs: Pairs) -> Tensor:  # noqa: ARG002
        config = self.config
        experts = inputs.through(self.experts).relu()
        experts = experts.view(len(experts), config.experts, config.expert)
        gates = inputs.through(self.gates).view(len(experts), -1, config.experts).softmax(2)
        return gates @ experts  # (n, K or 1, expert)

    def outputs(self, base: Tensor) -> Tensor:
        made: Tensor = self.towers(base)
        return made
