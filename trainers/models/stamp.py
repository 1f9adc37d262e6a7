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

Whoever looks at an item comes back to it far more often than he goes on to what is like it, and no
sum of rows can say the one without the other. So, as in Ren et al., *RepeatNet: A Repeat Aware
Neural Recommendation Machine for Session-Based Recommendation*, AAAI 2019, an item of the history
gets a score of its own, r[age of l]. That it stays a dot product each item has a `code` besides, of
random numbers that nobody learns, and the query is the sum of the history's codes, each r times:
codes of different items are as good as orthogonal.

Different from the paper: attention is a dot product and a weight for each age, in place of a net
with three inputs, and no nets stand behind it, nor does the newest item multiply the sum once more.
Instead items have a tower, which all of them teach. Who has no history has a vector of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from features.batch import Ids, Items, Users
from features.tensors import PaddedHistory
from trainers.models import RetrievalStep, register
from trainers.models.parts.history import newest, sequence
from trainers.models.parts.tables import tables
from trainers.rows import Birth
from trainers.softmax import Precision, sampled_softmax
from trainers.table import TableConfig

# Adam moves every number alike. The few that stand for an age are further from where they begin
# than those of a net, and every sample teaches them.
_PACE = 5.0


@register("stamp")
class STAMP(nn.Module):
    """`query` reads the order of histories, `items` reads item ids."""

    describes, unit = False, False
    reads = ("item_id", "history")

    @dataclass(frozen=True)
    class Config:
        """`history` actions at most are read. `code` numbers tell an item from those like it; with
        0, for where nobody is offered what he took before, a repeated item scores as any other.
        `table` says how the table keeps its rows; `width` and `seed` are set here.
        """

        width: PositiveInt = 128
        hidden: PositiveInt = 128
        history: PositiveInt = 20
        code: NonNegativeInt = 0
        temperature: PositiveFloat = 0.14
        table: TableConfig = field(default_factory=TableConfig)
        precision: Precision = "auto"
        seed: int = 0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.width = config.width + config.code
        self.temperature = config.temperature
        self.tables = tables(config.table, config.width, config.seed, "item")
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.tower = nn.Sequential(
                nn.Linear(config.width, config.hidden),
                nn.ReLU(),
                nn.Linear(config.hidden, config.width),
            )
            self.nobody = nn.Parameter(torch.randn(config.width))
        self.ages = nn.Parameter(torch.zeros(config.history))
        if config.code:
            self.again = nn.Parameter(torch.zeros(config.history))

    def query(self, users: Users) -> Tensor:
        rows, padded = sequence(self.tables["item"], users, self.config.history)  # (B, L, d)
        query = self._session(rows, padded)
        if self.config.code:
            codes = self._codes(padded.items.numpy()).to(rows)  # (B, L, c)
            again = self._again(padded) * self.temperature
            query = torch.cat([query, (again[:, None] @ codes)[:, 0]], dim=1)
        return query.unsqueeze(1)

    def items(self, items: Items) -> Tensor:
        vectors = self._vectors(self.tables["item"](items.ids))
        if self.config.code:
            vectors = torch.cat([vectors, self._codes(items.ids).to(vectors)], dim=1)
        return vectors

    def loss(self, step: RetrievalStep) -> Tensor:
        """The first action of a user teaches what nobody in particular is answered, and leaves the
        items alone: they are about what goes together.
        """
        rows, padded = sequence(self.tables["item"], step.users, self.config.history)
        queries = self._session(rows, padded)  # (B, d)
        candidates = self._vectors(self.tables["item"](step.candidates.ids))
        vectors = torch.cat([candidates, step.remembered[:, : self.config.width]])
        first = step.users.history.lengths == 0  # (B,)
        loss = self._part(step, ~first, queries, vectors)
        loss = loss + self._part(step, first, queries, vectors.detach())
        if self.config.code:
            loss = loss + self._repeats(step, rows.detach(), padded, queries.detach(), vectors)
        return loss

    def _session(self, rows: Tensor, padded: PaddedHistory) -> Tensor:
        """(B, d), of unit length."""
        mask = padded.mask.to(rows.device)
        logits = (rows @ newest(rows, mask)[..., None])[..., 0]  # (B, L)
        logits = logits + _PACE * self.ages[_age(mask)]
        empty = ~mask.any(1, keepdim=True)  # (B, 1)
        weights = logits.masked_fill(~mask & ~empty, -torch.inf).softmax(1)
        pooled = (weights[:, None] @ rows)[:, 0]  # (B, d), zeros of an empty history
        return F.normalize(torch.where(empty, self.nobody, pooled), dim=1)

    def _vectors(self, rows: Tensor) -> Tensor:
        return F.normalize(rows + self.tower(rows), dim=-1)

    def _again(self, padded: PaddedHistory) -> Tensor:
        """(B, L), what each action adds to the logit of its item: r of its age."""
        mask = padded.mask.to(self.again.device)
        return _PACE * self.again[_age(mask)] * mask

    def _codes(self, ids: Ids) -> Tensor:
        """(..., c), about of unit length; made from the id, and so kept nowhere."""
        width = self.config.code
        born = Birth(self.config.seed, (3 / width) ** 0.5).rows(ids.ravel(), width)
        return torch.from_numpy(born).view(*ids.shape, width)

    def _repeats(
        self,
        step: RetrievalStep,
        rows: Tensor,
        padded: PaddedHistory,
        queries: Tensor,
        vectors: Tensor,
    ) -> Tensor:
        """The softmax once more, among the candidates and all items of the history: it teaches
        `again` alone, for an item is no less like those that it is looked at with if somebody
        does not come back to it.
        """
        given, mask, items = step.sampling, padded.mask.to(rows.device), padded.items
        with torch.no_grad():
            logits = queries @ vectors.T / self.temperature  # (B, C)
            logits -= given.log_inclusion.to(logits)[given.level]
            column = given.positive.to(rows.device)[:, None]  # (B, 1)
            own = logits.gather(1, column)
            hidden = given.hidden.owners(), given.hidden.values
            logits[tuple(torch.from_numpy(numbers) for numbers in hidden)] = -torch.inf
            logits.scatter_(1, column, own)
            same = (items[:, :, None] == items[:, None]).to(rows.device)
            same &= mask[:, :, None] & mask[:, None]  # (B, L, L)
            newest_of_item = mask & ~same.triu(1).any(2)
            taken = (items == torch.tensor(step.item_ids)[:, None]).to(rows.device)
            taken &= newest_of_item  # (B, L), where the sample's own item is
            repeats = taken.any(1, keepdim=True)  # (B, 1)
            logits.scatter_(1, column, torch.where(repeats, -torch.inf, own))
            alike = (self._vectors(rows) @ queries[..., None])[..., 0] / self.temperature
        history = alike + (same.to(rows) @ self._again(padded)[..., None])[..., 0]  # (B, L)
        of_own = torch.where(taken, history, 0.0).sum(1) + torch.where(repeats, 0.0, own)[:, 0]
        history = history.masked_fill(~newest_of_item, -torch.inf)
        loss = torch.cat([logits, history], dim=1).logsumexp(1) - of_own
        return (step.weights.to(loss) * loss).mean()

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


def _age(mask: Tensor) -> Tensor:
    """How many actions of its history are newer than each, of a mask (B, L)."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return (mask.sum(1, keepdim=True) - 1 - places).clamp(min=0)
