"""MGDSPR: what is searched for, and what of the past it is about.

Li et al., *Embedding-based Product Retrieval in Taobao Search*, KDD 2021. A search becomes five
views of its words. Each of them looks through what the user did in this session, within ten days,
and before that, for what it is about; a vector of zeros stands among the things to look at, so that
a past that has nothing to do with the search stays out. One self-attention makes the user of all
this. The item tower is flat: a row, and the words that describe the item.

Where this differs from the paper:
- Words are the finest that is kept of a search: they are the characters too.
- A search is the present one for ten minutes, as long as a session waits. Who searches for nothing
  asks with the newest item, so that the same model recommends without a search.
- What was done longer than a month ago, or at a time that is not known, was done "before" too.
- Vectors have unit length, so that the temperature means the same at all times.
- The mixed negatives have a softmax of their own beside the sampled one, which is one product for
  all queries. Both losses together are at least that of the one softmax over all.
- A stream is learnt in one pass: each attention is added to what it looks at, as in Transformer
  blocks, and the linear layers begin near the identity (`_pass_on`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from features.batch import Items, Users
from features.sessions import GAP_US, LONG, REALTIME, SHORT, periods
from streaming.event_columns import field_codes
from trainers.models import RetrievalStep, register
from trainers.models.parts.attention import SelfAttention, Transformer, attend
from trainers.models.parts.chance import generator
from trainers.models.parts.described import history_items
from trainers.models.parts.history import newest
from trainers.models.parts.mixed import mixed_softmax
from trainers.models.parts.recurrent import Recurrent
from trainers.models.parts.searches import Searches, bigrams, padded
from trainers.models.parts.tables import tables
from trainers.softmax import Precision, sampled_softmax
from trainers.table import TableConfig

_MODESTY = 0.3  # how much of what a layer is born with stays beside the identity


@register("mgdspr")
class MGDSPR(nn.Module):
    """`query` reads searches, and histories with kinds, times, sessions and what describes their
    items; `items` reads item ids and tokens, of which those of texts (`joiner.text_fields`) are the
    words of searches.
    """

    describes, unit = True, True
    reads = (
        *("item_id", "item_tokens", "item_fields", "at", "searched", "searched_at_us"),
        *("history", "history_kinds", "history_at_us", "history_sessions"),
    )

    @dataclass(frozen=True)
    class Config:
        """A search is the present one for `present_s`. The newest `history` actions of a session
        and of ten days are read, and all before.

        `fields` of the items' descriptions are read beside their ids. `bought` and `collected` are
        kinds of actions by their places in `behaviour.rewards`; all others are clicks. `zero`
        leaves attention the way out. Of a step's candidates the `hard` best ones of each query are
        mixed with its own item, from `mixed[0]` to `mixed[1]` of it, and count `hard_weight`.
        """

        width: PositiveInt = 64
        heads: PositiveInt = 4
        hidden: PositiveInt = 128
        present_s: PositiveFloat = GAP_US / 1e6
        history: PositiveInt = 20
        fields: tuple[str, ...] = ("category", "brand")
        bought: tuple[int, ...] = (4,)
        collected: tuple[int, ...] = (1, 2, 3)
        zero: bool = True
        hard: NonNegativeInt = 5
        mixed: tuple[NonNegativeFloat, NonNegativeFloat] = (0.4, 0.6)
        hard_weight: NonNegativeFloat = 0.1
        temperature: PositiveFloat = 0.07
        table: TableConfig = field(default_factory=TableConfig)
        precision: Precision = "auto"
        seed: int = 0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.temperature = config.temperature
        self.tables = tables(config.table, config.width, config.seed, "item", "token")
        self._fields: list[int] = field_codes(config.fields).tolist()
        width, heads = config.width, config.heads
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.words = Transformer(width, heads, 1, config.hidden)
            self.action = nn.Linear((1 + len(config.fields)) * width, width)
            self.session = Recurrent(width, width)
            self.within_session = SelfAttention(width, heads)
            self.within_days = SelfAttention(width, heads)
            self.cls = nn.Parameter(torch.randn(1, 1, width) / width**0.5)
            self.user = SelfAttention(width, heads)
            self.title = nn.Linear(width, width)
        for weight in (self.title.weight, *self.action.weight.chunk(1 + len(config.fields), 1)):
            _pass_on(weight)

    # -- the two sides ---------------------------------------------------------------------

    def query(self, users: Users) -> Tensor:
        views = self._views(users)  # (B, 5, d)
        of = periods(users.details.at_us, users.history, users.details.sessions, users.at_us)
        past = [
            views,
            self._session(views, users.where(of == REALTIME)),
            self._days(views, users.where(of == SHORT)),
            self._before(views, users.where(of >= LONG)),
        ]
        told = torch.cat([self.cls.expand(len(views), -1, -1), *past], 1)  # (B, 21, d)
        there = torch.ones(told.shape[:2], dtype=torch.bool, device=told.device)
        user = self.user(told, there, first=1) + told[:, 1:].mean(1, keepdim=True)
        return F.normalize(user, dim=-1)  # (B, 1, d)

    def items(self, items: Items) -> Tensor:
        words = self.tables["token"].mean(items.tokens.values, items.tokens.offsets)  # (N, d)
        vectors = self.tables["item"](items.ids) + torch.tanh(self.title(words))
        return F.normalize(vectors, dim=-1)  # (N, d)

    # -- the search ------------------------------------------------------------------------

    def _views(self, users: Users) -> Tensor:
        """Of the present search its words, their pairs, the words in the light of each other, the
        searches before that are like it, and the sum of these: (B, 5, d).
        """
        searches, table = Searches.of(users.searched), self.tables["token"]
        age_us = users.at_us[searches.owners()] - searches.at_us
        asked = searches.newest() & (age_us < self.config.present_s * 1e6)
        present, past = searches.where(asked).of_users(), searches.where(~asked)
        words = table.mean(present.values, present.offsets)  # (B, d)
        pairs = bigrams(present)
        paired = table.mean(pairs.values, pairs.offsets)
        sequence, there = padded(table(present.values), present.offsets)
        seen = self.words(sequence, there) * there[..., None]
        together = seen.sum(1) / there.sum(1, keepdim=True).clamp(min=1)
        before, known = padded(table.mean(past.words.values, past.words.offsets), past.offsets)
        alike = attend(words[:, None], before, before, known)[:, 0]
        views = torch.stack([words, paired, together, alike], 1)
        views = torch.cat([views, views.sum(1, keepdim=True)], 1)
        return torch.where(there[:, :1, None], views, self._newest_item(users)[:, None])

    def _newest_item(self, users: Users) -> Tensor:
        actions, there = self._actions(users, 1)
        return newest(actions, there)  # (B, d)

    # -- what was done ---------------------------------------------------------------------

    def _session(self, views: Tensor, users: Users) -> Tensor:
        actions, there = self._actions(users, self.config.history)
        actions = actions + self.within_session(self.session(actions, there), there)
        return attend(views, actions, actions, there, zero=self.config.zero)  # (B, 5, d)

    def _days(self, views: Tensor, users: Users) -> Tensor:
        actions, there = self._actions(users, self.config.history)
        actions = actions + self.within_days(actions, there)
        return attend(views, actions, actions, there, zero=self.config.zero)  # (B, 5, d)

    def _before(self, views: Tensor, users: Users) -> Tensor:
        """Each kind of action pooled, apart for ids and every field, and looked through: too many
        for attention to each. (B, 5, d).
        """
        kinds = users.details.kinds
        bought = np.isin(kinds, self.config.bought)
        collected = np.isin(kinds, self.config.collected)
        groups = [users.where(of) for of in (~(bought | collected), bought, collected)]
        lengths = np.stack([group.history.lengths for group in groups], 1)  # (B, 3)
        there = torch.from_numpy(lengths > 0).to(views.device)
        found = torch.zeros_like(views)
        for pooled in zip(*(self._pooled(group) for group in groups), strict=True):
            keys = torch.stack(pooled, 1)  # (B, 3, d)
            found = found + attend(views, keys, keys, there, zero=self.config.zero)
        return found

    def _pooled(self, users: Users) -> list[Tensor]:
        """The means of what was acted upon, of its ids and of every field, each (B, d)."""
        history, table = users.history, self.tables["token"]
        means = [self.tables["item"].mean(history.values, history.offsets)]
        for code in self._fields:
            tokens = users.history_tokens(code)
            means.append(table.mean(tokens.values, tokens.offsets[history.offsets]))
        return means

    def _actions(self, users: Users, most: int) -> tuple[Tensor, Tensor]:
        """The newest actions, each by its item's id and fields: (B, L, d) and a mask (B, L)."""
        found, table = history_items(users, most), self.tables["token"]
        tokens = [found.items.of_field(code) for code in self._fields]
        fields = [table.mean(of.values, of.offsets) for of in tokens]
        rows = self.action(torch.cat([self.tables["item"](found.items.ids), *fields], 1))
        return found.of_actions(rows), found.padded.mask.to(rows.device)

    # -- the loss --------------------------------------------------------------------------

    def loss(self, step: RetrievalStep) -> Tensor:
        queries = self.query(step.users)[:, 0]
        candidates = torch.cat([self.items(step.candidates), step.remembered])
        loss = sampled_softmax(
            queries,
            candidates,
            step.sampling,
            step.weights,
            self.config.temperature,
            precision=self.config.precision,
        )
        if not self.config.hard or not self.config.hard_weight:
            return loss
        mixed = mixed_softmax(
            queries,
            candidates,
            step.sampling,
            self.config.temperature,
            self.config.hard,
            self.config.mixed,
            generator(self.config.seed, step.seed),
        )
        return loss + self.config.hard_weight * (mixed * step.weights).mean()


@torch.no_grad()
def _pass_on(weight: Tensor) -> None:
    """Makes a layer begin near the identity: rows of words and of items, which each learn quickly,
    then meet from the first sample on, and not when all layers between them have found each other.
    """
    weight.mul_(_MODESTY).diagonal().add_(1.0)
