"""TransRec: a user is a translation from the last item to the next.

He et al., *Translation-based Recommendation*, RecSys 2017. Items are points of a unit ball and a
user is a vector that leads from one to the next:

    p(j | u, i) ~ beta_j - |g_i + t + t_u - g_j|^2        i the last item, j the next

`t` is what all users have in common; `t_u` is born zero, so of a new user `t` alone is known, and
of one without a history the last item is the middle of the ball. `beta_j` takes up how popular an
item is. Learnt by sequential BPR: the next item is to stand before any that was drawn uniformly.

As `-|x - g|^2 = 2 x.g - |g|^2 - |x|^2`, and the last is the same for all items, the score is the
dot product of `(2 x, 1)` and `(g_j, beta_j - |g_j|^2)`: what serving searches by.

Different from the paper: each sample is learnt once, against all the items that its step has drawn,
not against one; who leaves the ball is put back when it is read, not when it is written; rows are
not pulled to zero, which would touch all of them in every step.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from features.batch import Items, Users
from trainers.models import RetrievalStep, register
from trainers.models.parts.history import newest, sequence
from trainers.softmax import Precision, sampled_softmax
from trainers.table import EmbeddingTable, TableConfig


@register("transrec")
class TransRec(nn.Module):
    """`query` reads user ids and the last item of histories, `items` reads item ids."""

    describes, unit = False, False
    reads = ("user_id", "item_id", "history")

    @dataclass(frozen=True)
    class Config:
        """The space has `width` dimensions; vectors have one more, for what an item is by itself.

        `learns_by` "softmax" is the trainer's usual loss instead of the paper's; `precision` is of
        it. `table` says how all three tables keep their rows; `width`, `seed` and the zero birth of
        users and biases are set here.
        """

        width: PositiveInt = 64
        learns_by: Literal["s-bpr", "softmax"] = "s-bpr"
        table: TableConfig = field(default_factory=TableConfig)
        precision: Precision = "auto"
        seed: int = 0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.width = config.width + 1
        self.temperature = 1.0
        self.tables = {
            "user": self._table("user", config.width, 0.0),
            "item": self._table("item", config.width, config.table.birth_scale),
            "bias": self._table("bias", 1, 0.0),
        }
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.translation = nn.Parameter(torch.randn(config.width) * config.table.birth_scale)

    def _table(self, name: str, width: int, birth_scale: float) -> EmbeddingTable:
        config = replace(
            self.config.table,
            name=name,
            width=width,
            birth_scale=birth_scale,
            seed=self.config.seed,
        )
        return EmbeddingTable(config)

    def query(self, users: Users) -> Tensor:
        rows, padded = sequence(self.tables["item"], users, 1)  # (B, 1, d)
        last = _in_ball(newest(rows, padded.mask))  # (B, d)
        x = last + self.translation + self.tables["user"](users.ids)  # (B, d)
        return F.pad(2 * x, (0, 1), value=1.0).unsqueeze(1)  # (B, 1, d + 1)

    def items(self, items: Items) -> Tensor:
        g = _in_ball(self.tables["item"](items.ids))  # (N, d)
        own = self.tables["bias"](items.ids) - g.square().sum(1, keepdim=True)  # (N, 1)
        return torch.cat([g, own], dim=1)  # (N, d + 1)

    def loss(self, step: RetrievalStep) -> Tensor:
        """S-BPR: the mean of -log sigmoid(p(next) - p(drawn)) over what a user did not take.

        Raises:
            ValueError: the step has no drawn items, which S-BPR cannot do without.
        """
        x, g = self.query(step.users)[:, 0], self.items(step.candidates)
        if self.config.learns_by == "softmax":
            columns = torch.cat([g, step.remembered])
            precision = self.config.precision
            return sampled_softmax(
                x, columns, step.sampling, step.weights, 1.0, precision=precision
            )
        if not len(step.drawn):
            raise ValueError("S-BPR learns from items drawn uniformly: set negatives.uniform")
        scores = x @ g.T  # (B, C)
        positive = step.sampling.positive.to(scores.device)[:, None]  # (B, 1)
        losses = -F.logsigmoid(scores.gather(1, positive) - scores)  # (B, C)
        compared = _compared(step).to(scores.device)
        losses = (losses * compared).sum(1) / compared.sum(1).clamp(min=1)  # (B,)
        loss: Tensor = (step.weights * losses).mean()
        return loss


def _compared(step: RetrievalStep) -> Tensor:
    """(B, C), the candidates that each user's item is to stand before: drawn, and not taken."""
    compared = torch.zeros(len(step.users.ids), len(step.candidates.ids), dtype=torch.bool)
    compared[:, torch.from_numpy(step.drawn)] = True
    compared.scatter_(1, step.sampling.positive[:, None].cpu(), value=False)
    hidden = step.sampling.hidden
    there = hidden.values < len(step.candidates.ids)  # others are columns of remembered vectors
    users, taken = hidden.owners()[there], hidden.values[there]
    compared[torch.from_numpy(users), torch.from_numpy(taken)] = False
    return compared


def _in_ball(points: Tensor) -> Tensor:
    """The points (n, d), those outside of the unit ball moved to where it ends."""
    inside: Tensor = points / points.norm(dim=1, keepdim=True).clamp(min=1.0)
    return inside
