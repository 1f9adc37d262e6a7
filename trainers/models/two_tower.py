"""Sampling-bias-corrected two-tower retrieval.

Yi et al., *Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations*,
RecSys 2019. Users and items meet in one space; the item embeddings are shared by both sides:
a user is, before the tower, an id and the mean of the last items, those that pleased apart
from those that did not. Trained by softmax over the batch's own items and uniform negatives,
every logit corrected by the item's estimated frequency, each sample weighted by its reward.

What differs: there are uniform negatives too; a user has no attributes, which samples do not carry;
each tower adds to the mean of what it reads, so that an untrained model already looks for items
that are like those of the history.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from features.batch import Items, Users
from trainers.models import RetrievalStep, register
from trainers.models.parts.tables import tables
from trainers.softmax import Precision, sampled_softmax
from trainers.table import TableConfig

_PLEASED = 0.5  # rewards of actions that pleased


@register("two_tower")
class TwoTower(nn.Module):
    """`query` reads user ids and histories, `items` reads item ids and tokens."""

    describes, unit = False, True
    reads: tuple[str, ...] = ("user_id", "item_id", "item_tokens", "history", "history_rewards")

    @dataclass(frozen=True)
    class Config:
        """`history` actions at most are read; a history item pleased if its reward >= .5.

        `table` says how all three tables keep their rows; `width`, `seed` and the zero birth of
        users are set here.
        """

        width: PositiveInt = 64
        hidden: PositiveInt = 128
        history: NonNegativeInt = 50
        temperature: PositiveFloat = 0.07
        table: TableConfig = field(default_factory=TableConfig)
        precision: Precision = "auto"
        seed: int = 0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.temperature = config.temperature
        self.tables = tables(
            config.table, config.width, config.seed, "user", "item", "token", zero={"user"}
        )
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.user_tower = tower(3 * config.width, config)
            self.item_tower = tower(2 * config.width, config)

    def query(self, users: Users) -> Tensor:
        identity = self.tables["user"](users.ids)  # (B, d)
        pleased, others = users.split(self.config.history, _PLEASED)
        liked = self.tables["item"].mean(pleased.values, pleased.offsets)  # (B, d)
        disliked = self.tables["item"].mean(others.values, others.offsets)  # (B, d)
        u = self.user_tower(torch.cat([liked, disliked, identity], dim=1)) + liked
        return F.normalize(u, dim=1).unsqueeze(1)  # (B, 1, d)

    def items(self, items: Items) -> Tensor:
        identity = self.tables["item"](items.ids)  # (N, d)
        content = self.tables["token"].mean(items.tokens.values, items.tokens.offsets)  # (N, d)
        v = self.item_tower(torch.cat([identity, content], dim=1)) + identity + content
        return F.normalize(v, dim=1)  # (N, d)

    def loss(self, step: RetrievalStep) -> Tensor:
        return sampled_softmax(
            self.query(step.users)[:, 0],
            torch.cat([self.items(step.candidates), step.remembered]),
            step.sampling,
            step.weights,
            self.config.temperature,
            precision=self.config.precision,
        )


def tower(inputs: int, config: TwoTower.Config) -> nn.Module:
    """From so many numbers to `width`."""
    return nn.Sequential(
        nn.Linear(inputs, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.width)
    )
