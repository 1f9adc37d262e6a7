"""ZEUS: one model of all scenarios, which learns from what users search for of their own accord.

Gu et al., *Self-Supervised Learning on Users' Spontaneous Behaviors for Multi-Scenario Ranking in
E-commerce*, CIKM 2021. What a user searched for and what he acted upon are read by self-attention,
and that by the attention of a target. Three losses, in the paper one stage after the other:

1. Pre-training: the next search, told from what was before it among the searches of others. What is
   shown decides what is clicked, and what is clicked what is shown; nobody shows a search that the
   user types. Suggested ones are shown, and count for nothing.
2. Fine-tuning: the items that were taken, of all scenarios. A scenario without a past is served so.
3. The same for each scenario by itself, with all of the above frozen: a row says how its users
   differ. The rows are small, and travel with everything else, so one model serves all scenarios.

Where this differs from the paper:
- A stream has no stages: each sample is learnt by all three losses at once. The gradient of the
  third reaches the rows of scenarios alone.
- It finds items and does not rank queries. The target is not known then: K learnt vectors stand for
  it, and the best of the K answers counts.
- A search is the mean of its words, and an item that of the words that describe it and a row of its
  own: the words carry to items what was learnt from searches.
- Negatives of the first loss are searches of the step's other users: samples do not tell which
  suggestions were passed over.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from features.batch import Ids, Items, Users
from trainers.models import RetrievalStep, register
from trainers.models.parts.attention import Transformer, attend
from trainers.models.parts.described import history_items
from trainers.models.parts.searches import Searches, padded
from trainers.softmax import Precision, sampled_softmax
from trainers.table import EmbeddingTable, TableConfig

_AGES = 32  # buckets, each twice as long as the one before
_SEQUENCES = ("searches", "actions")


@register("zeus")
class ZEUS(nn.Module):
    """`query` reads searches, histories with times and what describes their items, and scenarios;
    `items` reads item ids and tokens.
    """

    describes, unit = True, True
    reads = (
        *("item_id", "item_tokens", "at", "scenario", "history", "history_at_us"),
        *("searched", "searched_at_us", "searched_suggested"),
    )

    @dataclass(frozen=True)
    class Config:
        """The newest `history` actions and `searches` are read, by `interests` targets.

        `search_weight` is that of the first loss; the rows of scenarios learn at a rate of their
        own, as a few rows that every sample learns.
        """

        width: PositiveInt = 64
        heads: PositiveInt = 4
        hidden: PositiveInt = 128
        history: PositiveInt = 12
        searches: PositiveInt = 8
        interests: PositiveInt = 4
        search_weight: NonNegativeFloat = 0.5
        scenario_learning_rate: PositiveFloat = 0.002
        temperature: PositiveFloat = 0.07
        table: TableConfig = field(default_factory=TableConfig)
        precision: Precision = "auto"
        seed: int = 0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.width = width = config.width
        self.temperature = config.temperature
        common = replace(config.table, width=width, seed=config.seed)
        rate = config.scenario_learning_rate
        self.tables = {
            "item": EmbeddingTable(replace(common, name="item")),
            "token": EmbeddingTable(replace(common, name="token")),
            "scenario": EmbeddingTable(
                replace(
                    common,
                    name="scenario",
                    width=2 * width,
                    birth_scale=0.0,  # a new scenario is like all
                    optimiser=replace(common.optimiser, learning_rate=rate),
                )
            ),
        }
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.ages = nn.ParameterDict(
                {name: 0.05 * torch.randn(_AGES, width) for name in _SEQUENCES}
            )
            self.encoders = nn.ModuleDict(
                {name: Transformer(width, config.heads, 1, config.hidden) for name in _SEQUENCES}
            )
            self.targets = nn.Parameter(torch.randn(config.interests, width))
            self.prediction = nn.Sequential(
                nn.Linear(2 * width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, width)
            )

    def query(self, users: Users) -> Tensor:
        found = self.common(users, Searches.of(users.searched).typed())
        return self._in_scenario(found, users.scenarios)  # (B, K, d)

    def items(self, items: Items) -> Tensor:
        return F.normalize(self._items(items), dim=-1)  # (N, d)

    def common(self, users: Users, searches: Searches) -> Tensor:
        """What users want wherever they are, (B, K, d), by what they searched for."""
        searches = searches.where(searches.newest(self.config.searches))
        found = history_items(users, self.config.history)
        there = found.padded.mask.to(self.targets.device)
        actions = found.of_actions(self._items(found.items))  # (B, L, d)
        asked, said = padded(self._searches(searches), searches.offsets)  # (B, S, d)
        ages_us = np.maximum(users.at_us[searches.owners()] - searches.at_us, 0)
        ages_s, _ = padded(torch.from_numpy(ages_us[:, None] / 1e6).float(), searches.offsets)
        read = [
            self._read("searches", asked, ages_s[..., 0], said),
            self._read("actions", actions, found.padded.ages_s, there),
        ]  # each (B, K, d)
        return F.normalize(sum(read, self.prediction(torch.cat(read, -1))), dim=-1)

    def _read(self, name: str, rows: Tensor, ages_s: Tensor, there: Tensor) -> Tensor:
        """Self-attention finds what matters in a sequence (B, L, d) to each target, (B, K, d)."""
        bucket = torch.log2(1.0 + ages_s).long().clamp(max=_AGES - 1).to(rows.device)
        keys = self.encoders[name](rows + self.ages[name][bucket], there)
        return attend(self.targets.expand(len(rows), -1, -1), keys, rows, there)

    def _in_scenario(self, common: Tensor, scenarios: NDArray[np.int32]) -> Tensor:
        """How users want it there: stretched and moved, each number by itself; (B, K, d)."""
        known = scenarios >= 0
        rows = self.tables["scenario"](scenarios[known].astype(np.int64))  # (n, 2d)
        found = common.new_zeros(len(scenarios), 2 * self.width)
        there = torch.from_numpy(known)[:, None].to(common.device)
        stretched, moved = found.masked_scatter(there, rows).chunk(2, dim=1)
        return F.normalize(common * (1.0 + stretched[:, None]) + moved[:, None], dim=-1)

    def _items(self, items: Items) -> Tensor:
        content = self.tables["token"].mean(items.tokens.values, items.tokens.offsets)
        return self.tables["item"](items.ids) + content  # (N, d)

    def _searches(self, searches: Searches) -> Tensor:
        return self.tables["token"].mean(searches.words.values, searches.words.offsets)  # (s, d)

    # -- the losses ------------------------------------------------------------------------

    def loss(self, step: RetrievalStep) -> Tensor:
        common = self.common(step.users, Searches.of(step.users.searched).typed())
        vectors = self.items(step.candidates)
        loss = self._taken(common, vectors, step)
        here = self._in_scenario(common.detach(), step.users.scenarios)
        loss = loss + self._taken(here, vectors.detach(), step)
        if self.config.search_weight:
            loss = loss + self.config.search_weight * self._next_search(step.users)
        return loss

    def _taken(self, queries: Tensor, vectors: Tensor, step: RetrievalStep) -> Tensor:
        """The softmax of what was taken, each by the query (B, K, d) that is nearest to it."""
        own = vectors[step.sampling.positive.to(vectors.device)].detach()  # (B, d)
        nearest = (queries.detach() @ own[..., None]).argmax(1)  # (B, 1)
        return sampled_softmax(
            queries.gather(1, nearest[..., None].expand(-1, 1, self.width))[:, 0],
            torch.cat([vectors, step.remembered]),
            step.sampling,
            step.weights,
            self.config.temperature,
            precision=self.config.precision,
        )

    def _next_search(self, users: Users) -> Tensor:
        """Of those who have just searched their search, by what was before it, among the others'.

        As a part of the step's loss: who has not searched adds nothing.
        """
        size = len(users.ids)
        users = users.take(_just_searched(users))
        searches = Searches.of(users.searched).typed()
        newest = searches.newest()
        found = searches.where(newest)
        if len(found.at_us) < 2:
            return self.targets.new_zeros(())
        before = self.common(replace(users, at_us=found.at_us), searches.where(~newest))
        wanted = F.normalize(self._searches(found), dim=-1)  # (n, d)
        logits = (before @ wanted.T).amax(1) / self.config.temperature  # (n, n)
        bags = torch.from_numpy(np.add.reduceat(found.words.values, found.words.offsets[:-1]))
        same = (bags[:, None] == bags) & ~torch.eye(len(bags), dtype=torch.bool)
        logits = logits.masked_fill(same.to(logits.device), -torch.inf)
        each = torch.arange(len(logits), device=logits.device)
        return F.cross_entropy(logits, each, reduction="sum") / size


def _just_searched(users: Users) -> Ids:
    """The users, by number, who have searched since their newest action: the first sample behind a
    search learns it, and those of the same step only once.
    """
    searches, history = Searches.of(users.searched).typed(), users.history
    found = searches.where(searches.newest())
    newest = np.where(history.lengths > 0, history.offsets[1:] - 1, -1)
    acted_us = np.append(users.details.at_us, 0)[newest]
    owners = found.owners()
    since = found.at_us > acted_us[owners]
    told = np.stack([users.ids[owners], found.at_us], 1)[since]
    return owners[since][np.unique(told, axis=0, return_index=True)[1]]
