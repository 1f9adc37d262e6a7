"""NMTR: behaviours in a cascade, each told with the help of the one before it.

Gao et al., *Neural Multi-task Recommendation from Multi-behavior Data*, ICDE 2019. The embedding of
a user p_u and of an item q_i, each the sum of the vectors of its fields, are shared by all
behaviours. Each has an interaction of its own, and what came before it in the order of behaviours
counts for it:

    y_k = sigmoid(f_k(u, i) + w_k y_(k-1) + b_k)
    f_k = h_k . (p_u * q_i)                     GMF
    f_k = mlp_k([p_u, q_i])                     MLP
    f_k = h_k . (p_u * q_i) + mlp_k([p_u, q_i]) NeuMF

What differs: w_k is learnt, from 1 on, which is what it is in the paper. What is a value and no
behaviour reads the behaviour before it, and none reads a value. Negatives are what was shown in
vain, and not drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from features.batch import Users
from features.shown import Pairs
from trainers.models import RANKING, register
from trainers.models.parts.ranker import Inputs, Multitask, RankerConfig, Towers


@register("nmtr", RANKING)
class NMTR(Multitask):
    """`predict` reads whatever its `fields` are."""

    @dataclass(frozen=True)
    class Config(RankerConfig):
        """The behaviours follow each other as the `tasks` do. `interaction` is f_k; `tower` is the
        width of the hidden layer of its MLP.
        """

        space: Literal["shown"] = "shown"
        crossed: tuple[()] = ()  # its interaction is a product already
        interaction: Literal["gmf", "mlp", "neumf"] = "neumf"

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.width)
        count, width = len(self.tasks), config.width
        self._width = width
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            gmf, mlp = config.interaction != "mlp", config.interaction != "gmf"
            self.gmf = nn.Linear(width, count) if gmf else None
            self.mlp = Towers(self.begins, 2 * width, config.tower) if mlp else None
            self.cascade = nn.Parameter(torch.ones(count - 1))
        if self.gmf is not None and self.mlp is None:  # else the MLP begins there
            with torch.no_grad():
                self.gmf.bias.add_(torch.tensor(self.begins))

    def user_part(self, users: Users, fields: Tensor) -> Tensor:  # noqa: ARG002
        return fields.sum(1)  # p_u

    def base(self, inputs: Inputs, pairs: Pairs) -> Tensor:  # noqa: ARG002
        users = inputs.of_pairs(inputs.users)
        items = inputs.items.view(len(users), -1, self._width).sum(1)  # q_i
        return torch.cat([users * items, users, items], 1)[:, None]  # (n, 1, 3 d)

    def outputs(self, base: Tensor) -> Tensor:
        made = base.new_zeros(len(base), len(self.tasks))
        if self.gmf is not None:
            made = made + self.gmf(base[:, 0, : self._width])
        if self.mlp is not None:
            made = made + self.mlp(base[..., self._width :])
        return self.cascaded(made)

    def cascaded(self, own: Tensor) -> Tensor:
        """The logits (n, K) of behaviours that know those before them, by their own ones (n, K)."""
        first, *others = own.unbind(1)
        found = [first]
        before = first
        is_binary = [task.is_binary for task in self.tasks.values()]
        if not is_binary[0]:
            before = torch.full_like(first, -torch.inf)  # no behaviour yet
        for output, weight, binary in zip(others, self.cascade, is_binary[1:], strict=True):
            found.append(output + weight * before.sigmoid())
            before = found[-1] if binary else before
        return torch.stack(found, 1)
