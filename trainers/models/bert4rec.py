"""BERT4Rec: who is to say what comes next reads what is there from both sides.

Sun et al., *BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from
Transformer*, CIKM 2019. A `[mask]` is appended to the history, and a transformer without a causal
mask says what stands in its place:

    h = Transformer([mask], items + positions)      (B, 1 + L, d)
    q = LayerNorm(GELU(W h + b))                    (B, 1 + L, d)
    score of an item = q . its row, which is also the row that the histories read

It learns by cloze: of each history some items are masked too, and what was there is to be found.

Different from the paper:
- Each sample is learnt once, as it comes: its own item under the `[mask]` at the end, by the
  softmax over the step's candidates, and the masked items of its history by one over those of the
  candidates that were drawn uniformly. The paper's softmax is over all items, in many epochs.
- Positions are counted from the newest, so the same actions give the same answer however many
  stand before them.
- The normalisation stands before each layer, not behind it, as the common transformer has it.
- Items have no bias: that of the last normalisation adds one to each, a product with its row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from features.batch import Items, Users
from trainers.models import RetrievalStep, register
from trainers.models.parts.attention import Transformer
from trainers.models.parts.chance import generator
from trainers.models.parts.drawn import drawn_softmax
from trainers.models.parts.history import sequence
from trainers.models.parts.tables import tables
from trainers.softmax import Precision, sampled_softmax
from trainers.table import TableConfig

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


@register("bert4rec")
class BERT4Rec(nn.Module):
    """`query` reads the order of histories, `items` reads item ids."""

    describes, unit = False, False
    reads = ("item_id", "history")

    @dataclass(frozen=True)
    class Config:
        """`history` actions at most are read; of them a share `masked` is to be found by cloze,
        whose loss counts `cloze` times. `table` says how the table keeps its rows; `width` and
        `seed` are set here.
        """

        width: PositiveInt = 64
        heads: PositiveInt = 2
        layers: PositiveInt = 2
        hidden: PositiveInt = 256
        history: PositiveInt = 50
        masked: Share = 0.2
        cloze: NonNegativeFloat = 1.0
        dropout: Share = 0.1
        temperature: PositiveFloat = 1.0
        table: TableConfig = field(default_factory=TableConfig)
        precision: Precision = "auto"
        seed: int = 0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.temperature = config.temperature
        self.tables = tables(config.table, config.width, config.seed, "item")
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.mask = nn.Parameter(torch.randn(config.width) * config.table.birth_scale)
            self.positions = nn.Parameter(torch.randn(1 + config.history, config.width) * 0.02)
            self.blocks = Transformer(config.width, config.heads, config.layers, config.hidden)
            self.head = nn.Sequential(
                nn.Linear(config.width, config.width), nn.GELU(), nn.LayerNorm(config.width)
            )

    def query(self, users: Users) -> Tensor:
        rows, padded = sequence(self.tables["item"], users, self.config.history)
        return self._read(rows, padded.mask, None)[:, :1]  # (B, 1, d)

    def items(self, items: Items) -> Tensor:
        return self.tables["item"](items.ids)  # (N, d)

    def loss(self, step: RetrievalStep) -> Tensor:
        """What comes next, and the masked of what was."""
        chance = generator(self.config.seed, step.seed)
        rows, padded = sequence(self.tables["item"], step.users, self.config.history)
        masked = torch.rand(padded.mask.shape, generator=chance) < self.config.masked
        masked &= padded.mask  # (B, L)
        left = torch.where(masked[..., None].to(rows.device), self.mask, rows)
        read = self._read(left, padded.mask, chance)
        vectors = self.items(step.candidates)
        following = sampled_softmax(
            read[:, 0],
            torch.cat([vectors, step.remembered]),
            step.sampling,
            step.weights,
            self.config.temperature,
            precision=self.config.precision,
        )
        if not masked.any() or not len(step.drawn):
            return following
        drawn_ids = torch.from_numpy(step.candidates.ids[step.drawn])
        found = drawn_softmax(
            read[:, 1:][masked],
            rows[masked],
            vectors[torch.from_numpy(step.drawn)],
            (padded.items[masked][:, None] == drawn_ids).to(rows.device),
            self.config.temperature,
        )
        return following + self.config.cloze * found.sum() / len(step.weights)

    def _read(self, rows: Tensor, mask: Tensor, chance: torch.Generator | None) -> Tensor:
        """What stands at each place, first at that of the `[mask]` behind all: (B, 1 + L, d)."""
        age = mask.sum(1, keepdim=True) - torch.arange(mask.shape[1])  # 1 is the newest
        age = age.clamp(min=0)
        x = torch.cat([self.mask.expand(len(rows), 1, -1), rows], dim=1)
        x = x + self.positions[torch.cat([torch.zeros_like(age[:, :1]), age], dim=1)]
        there = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        there = there.to(rows.device)
        read: Tensor = self.head(self.blocks(x, there, self.config.dropout, chance))
        return read
