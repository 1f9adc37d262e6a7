"""MIND: several interests of each user, found by dynamic routing, and the best of them counts.

Li et al., *Multi-Interest Network with Dynamic Routing for Recommendation at Tmall*, CIKM 2019.
An item is its id and what describes it, pooled; a user's behaviours are routed to K interests by
one bilinear map for all; each interest, beside the user's profile, goes through a net of its own
kind. Learning asks the interests how well they fit the label (label-aware attention); serving
searches with every interest.

Where this differs from the paper, for a stream that is learnt once:
- Routing starts from logits that are drawn for each item and interest, not for each call: the same
  user gets the same answer twice, and with one event more nearly the same.
- Behaviours have length 1 when they are routed: here a length says how often an item was learnt,
  and items that are new would be in no interest at all. How sharply routing tells them apart, which
  was up to their lengths, is `sharpness`.
- The bilinear map begins as the identity, and the net adds to its interest: an untrained model
  already looks for items that are like those of the history.
- Items have length 1 and the softmax a temperature; attention is by what enters that softmax, which
  is sharp enough: interests that no label is nearest to must learn, too, to come apart in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from features.batch import Items, Users
from streaming.sources.chance import normal
from trainers.models import RetrievalStep, register
from trainers.models.parts.described import history_items
from trainers.models.parts.routing import interest_counts, route
from trainers.models.parts.tables import tables
from trainers.softmax import Precision, sampled_softmax
from trainers.table import TableConfig


@register("mind")
class Mind(nn.Module):
    """`query` reads user ids, and histories with what describes their items; `items` reads item
    ids and tokens.
    """

    describes, unit = True, False
    reads = ("user_id", "item_id", "item_tokens", "history")

    @dataclass(frozen=True)
    class Config:
        """The newest `history` actions become up to `interests` in so many `rounds` of routing, of
        that `sharpness`, from logits with deviation `spread`. `power` is that of label-aware
        attention: the larger, the more it is the best interest alone that learns.
        """

        width: PositiveInt = 64
        hidden: PositiveInt = 128
        history: PositiveInt = 50
        interests: PositiveInt = 4
        rounds: PositiveInt = 3
        sharpness: PositiveFloat = 8.0
        spread: NonNegativeFloat = 0.3
        power: PositiveFloat = 1.0
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
        self.bilinear = nn.Parameter(torch.eye(config.width))
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.tower = nn.Sequential(
                nn.Linear(2 * config.width, config.hidden),
                nn.ReLU(),
                nn.Linear(config.hidden, config.width),
            )

    def query(self, users: Users) -> Tensor:
        interests, counts = self._interests(users)
        repeated = _beyond(interests, counts)[..., None]
        return torch.where(repeated, interests[:, :1], interests)  # (B, K, d)

    def items(self, items: Items) -> Tensor:
        return F.normalize(self._pooled(items), dim=-1)  # (N, d)

    def loss(self, step: RetrievalStep) -> Tensor:
        candidates = self.items(step.candidates)  # (C, d)
        labels = candidates[step.sampling.positive.to(candidates.device)]  # (B, d)
        return sampled_softmax(
            self._attended(*self._interests(step.users), labels),
            torch.cat([candidates, step.remembered]),
            step.sampling,
            step.weights,
            self.temperature,
            precision=self.config.precision,
        )

    def _pooled(self, items: Items) -> Tensor:
        identity = self.tables["item"](items.ids)
        content = self.tables["token"].mean(items.tokens.values, items.tokens.offsets)
        return identity + content  # (N, d)

    def _interests(self, users: Users) -> tuple[Tensor, Tensor]:
        """(B, K, d), and how many of the K each user has, (B,)."""
        config = self.config
        history = history_items(users, config.history)
        mapped = F.normalize(self._pooled(history.items) @ self.bilinear, dim=-1)  # (N, d)
        behaviours = history.of_actions(mapped)  # (B, L, d)
        logits = history.of_actions(self._first_logits(history.items).to(mapped))  # (B, L, K)
        counts = interest_counts(history.padded.mask.sum(1), config.interests).to(mapped.device)
        capsules = route(behaviours, logits, counts, config.rounds, config.sharpness)  # (B, K, d)
        profile = self.tables["user"](users.ids)[:, None].expand_as(capsules)
        return capsules + self.tower(torch.cat([capsules, profile], -1)), counts

    def _first_logits(self, items: Items) -> Tensor:
        """(N, K), the same for an item at all times."""
        config = self.config
        drawn = normal(config.seed, "routing", items.ids[:, None], np.arange(config.interests))
        return torch.from_numpy(config.spread * drawn)

    def _attended(self, interests: Tensor, counts: Tensor, labels: Tensor) -> Tensor:
        """Label-aware attention: what a user is to his label, (B, d)."""
        fits = (interests @ labels[..., None])[..., 0] / self.temperature  # (B, K)
        fits = fits.clamp(min=1e-6).pow(self.config.power)
        weights = fits.masked_fill(_beyond(interests, counts), -torch.inf).softmax(-1)
        return (weights[:, None] @ interests)[:, 0]


def _beyond(interests: Tensor, counts: Tensor) -> Tensor:
    """Which of the interests (B, K, d) are more than the user has, (B, K)."""
    return torch.arange(interests.shape[1], device=counts.device) >= counts[:, None]
