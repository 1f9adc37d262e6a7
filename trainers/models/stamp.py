"""STAMP: what was done last says what of a session counts.

Liu et al., *STAMP: Short-Term Attention/Memory Priority Model for Session-based Recommendation*,
KDD 2018. A user is a weighted sum of the items of his history, where the newest decides by how
much each counts; items are compared with it by the rows that it is made of:

    a_l = softmax over l of (x_l . x_newest + w[age of l])       (B, L)
    q = sum over l of a_l x_l                                    (B, d)
    v = x + tower(x)                                             (N, d)

and the score is their cosine. It learns from few clicks, as there is nothing between the clicked
item's row and those of the clicks before it but two small weights: what is learnt of a pair in one
direction holds in the other, and after one pass.

Different from the paper: attention is a dot product and a weight for each age, in place of a net
with three inputs, and no nets stand behind it, nor does the newest item multiply the sum once more.
Instead items have a tower, which all of them teach. Who has no history has a vector of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from features.batch import Items, Users
from trainers.models import RetrievalStep, register
from trainers.models.parts.history import newest, sequence
from trainers.softmax import Precision, sampled_softmax
from trainers.table import EmbeddingTable, TableConfig


@register("stamp")
class STAMP(nn.Module):
    """`query` reads the order of histories, `items` reads item ids."""

    describes, unit = False, True
    reads = ("item_id", "history")

    @dataclass(frozen=True)
    class Config:
        """`history` actions at most are read. `table` says how the table keeps its rows; `width`
        and `seed` are set here.
        """

        width: PositiveInt = 128
        hidden: PositiveInt = 128
        history: PositiveInt = 20
        temperature: PositiveFloat = 0.14
        table: TableConfig = field(default_factory=TableConfig)
        precision: Precision = "auto"
        seed: int = 0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.temperature = config.temperature
        table = replace(config.table, name="item", width=config.width, seed=config.seed)
        self.tables = {"item": EmbeddingTable(table)}
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.tower = nn.Sequential(
                nn.Linear(config.width, config.hidden),
                nn.ReLU(),
                nn.Linear(config.hidden, config.width),
            )
            self.nobody = nn.Parameter(torch.randn(config.width))
        self.ages = nn.Parameter(torch.zeros(config.history))

    def query(self, users: Users) -> Tensor:
        rows, padded = sequence(self.tables["item"], users, self.config.history)  # (B, L, d)
        mask = padded.mask.to(rows.device)
        age = mask.sum(1, keepdim=True) - 1 - torch.arange(mask.shape[1], device=rows.device)
        logits = (rows @ newest(rows, mask)[..., None])[..., 0]  # (B, L)
        logits = logits + self.ages[age.clamp(min=0)]
        empty = ~mask.any(1, keepdim=True)  # (B, 1)
        weights = logits.masked_fill(~mask & ~empty, -torch.inf).softmax(1)
        pooled = (weights[:, None] @ rows)[:, 0]  # (B, d), zeros of an empty history
        return F.normalize(torch.where(empty, self.nobody, pooled), dim=1).unsqueeze(1)

    def items(self, items: Items) -> Tensor:
        rows = self.tables["item"](items.ids)  # (N, d)
        return F.normalize(rows + self.tower(rows), dim=1)

    def loss(self, step: RetrievalStep) -> Tensor:
        """The first action of a user teaches what nobody in particular is answered, and leaves the
        items alone: they are about what goes together.
        """
        queries = self.query(step.users)[:, 0]  # (B, d)
        vectors = torch.cat([self.items(step.candidates), step.remembered])
        first = step.users.history.lengths == 0  # (B,)
        return self._part(step, ~first, queries, vectors) + self._part(
            step, first, queries, vectors.detach()
        )

    def _part(
        self, step: RetrievalStep, chosen: NDArray[np.bool_], queries: Tensor, vectors: Tensor
    ) -> Tensor:
        """What the chosen (B,) of the samples add to the loss of the step."""
        numbers = np.flatnonzero(chosen)
        rows, given = torch.from_numpy(numbers), step.sampling
        sampling = replace(
            given,
            positive=given.positive[rows],
            level=given.level[rows],
            hidden=given.hidden.take(numbers),
        )
        mean = sampled_softmax(
            queries[rows],
            vectors,
            sampling,
            step.weights[rows],
            self.config.temperature,
            precision=self.config.precision,
        )
        return mean * len(rows) / max(1, len(chosen))
