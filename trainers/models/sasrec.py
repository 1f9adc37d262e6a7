"""SASRec: a causal transformer says at each action what comes next.

Kang and McAuley, *Self-Attentive Sequential Recommendation*, ICDM 2018. Each action of a history is
read with those before it, and its state is compared with the items:

    h = Transformer(rows + positions), causal         (B, L, d)
    q_l = x_l + W LayerNorm(h_l)                      (B, L, d), x_l the item of action l
    score of what follows action l = cosine of q_l and the item's row

Serving asks the state of the newest action. Each sample teaches it what came next, by the softmax
over the step's candidates; with `every`, what is known to have followed each action before, among
the candidates that were drawn uniformly, as the paper does: then an item is a target again in every
later sample of its user.

Different from the paper:
- Each sample is learnt once, by a softmax instead of one negative.
- The transformer has rows of its own: with those that items are compared by, what reads and what is
  read pull at the same row, and recall was five points less (DIGINETICA, first period). So the
  newest item is added to the state, which in the paper the residual connections do.
- Positions are counted from the newest, so the same actions give the same answer however many
  stand before them.
- The normalisation stands before each layer, and layers have GELU, as the common transformer has.

Its dense part wants a small rate: on DIGINETICA a `dense_learning_rate` of .0003; with .002 it
finds a third less of what comes next.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from features.batch import Items, Users
from features.tensors import PaddedHistory
from trainers.models import RetrievalStep, register
from trainers.models.parts.attention import Transformer
from trainers.models.parts.chance import generator
from trainers.models.parts.drawn import drawn_softmax
from trainers.models.parts.history import newest, padded_rows, sequence
from trainers.softmax import Precision, sampled_softmax
from trainers.table import EmbeddingTable, TableConfig


@register("sasrec")
class SASRec(nn.Module):
    """`query` reads the order of histories, `items` reads item ids."""

    describes, unit = False, True
    reads = ("item_id", "history")

    @dataclass(frozen=True)
    class Config:
        """`history` actions at most are read; what followed those before the last counts `every`
        times as much as what comes next. `table` says how both tables keep their rows; `width` and
        `seed` are set here.
        """

        width: PositiveInt = 64
        heads: PositiveInt = 1
        layers: PositiveInt = 1
        hidden: PositiveInt = 128
        history: PositiveInt = 20
        every: NonNegativeFloat = 0.0
        dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
        temperature: PositiveFloat = 0.1
        table: TableConfig = field(default_factory=TableConfig)
        precision: Precision = "auto"
        seed: int = 0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.temperature = config.temperature
        self.tables = {
            name: EmbeddingTable(
                replace(config.table, name=name, width=config.width, seed=config.seed + number)
            )
            for number, name in enumerate(("item", "read"))
        }
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.positions = nn.Parameter(torch.randn(config.history, config.width))
            self.blocks = Transformer(
                config.width, config.heads, config.layers, config.hidden, causal=True
            )
            self.norm = nn.LayerNorm(config.width)
            self.state = nn.Linear(config.width, config.width)
            nn.init.normal_(self.state.weight, std=config.table.birth_scale / config.width**0.5)
            self.nobody = nn.Parameter(torch.randn(config.width))

    def query(self, users: Users) -> Tensor:
        rows, padded = sequence(self.tables["item"], users, self.config.history)
        states = self._states(rows, padded, None)
        return self._last(states, padded.mask.to(rows.device)).unsqueeze(1)  # (B, 1, d)

    def items(self, items: Items) -> Tensor:
        return F.normalize(self.tables["item"](items.ids), dim=1)  # (N, d)

    def loss(self, step: RetrievalStep) -> Tensor:
        """What comes next and, with `every`, what followed each action."""
        rows, padded = sequence(self.tables["item"], step.users, self.config.history)
        states = self._states(rows, padded, generator(self.config.seed, step.seed))
        vectors = self.items(step.candidates)
        following = sampled_softmax(
            self._last(states, padded.mask.to(rows.device)),
            torch.cat([vectors, step.remembered]),
            step.sampling,
            step.weights,
            self.config.temperature,
            precision=self.config.precision,
        )
        followed = padded.mask[:, 1:]  # (B, L - 1), where there is an action behind it
        if not self.config.every or not followed.any() or not len(step.drawn):
            return following
        drawn_ids = torch.from_numpy(step.candidates.ids[step.drawn])
        found = drawn_softmax(
            states[:, :-1][followed],
            F.normalize(rows[:, 1:][followed], dim=1),
            vectors[torch.from_numpy(step.drawn)],
            (padded.items[:, 1:][followed][:, None] == drawn_ids).to(rows.device),
            self.config.temperature,
        )
        return following + self.config.every * found.sum() / len(step.weights)

    def _states(self, rows: Tensor, padded: PaddedHistory, chance: Generator | None) -> Tensor:
        """(B, L, d), of unit length: what is expected behind each action."""
        mask = padded.mask
        age = (mask.sum(1, keepdim=True) - 1 - torch.arange(mask.shape[1])).clamp(min=0)
        read = padded_rows(self.tables["read"], padded.items, mask) + self.positions[age]
        h = self.blocks(read, mask.to(rows.device), self.config.dropout, chance)
        return F.normalize(rows + self.state(self.norm(h)), dim=2)

    def _last(self, states: Tensor, mask: Tensor) -> Tensor:
        """(B, d), the state of the newest action; `nobody`'s without one."""
        nobody = F.normalize(self.nobody, dim=0)
        return torch.where(mask.any(1, keepdim=True), newest(states, mask), nobody)
