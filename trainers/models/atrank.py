"""ATRank: all that a user did, of whatever kind, attending to itself and then to the candidate.

Zhou et al., *ATRank: An Attention-Based User Behavior Modeling Framework for Recommendation*,
AAAI 2018. Behaviours come in groups by what they are about: items that were acted upon, words that
were searched for, items that were passed over. Each is its object, its action and the logarithm of
its age, by a projection of its group; together they attend to each other in several semantic
spaces, and what comes out is read by attention of the candidate.

The paper ranks given candidates. Here each behaviour is a query, and an item's score is that by the
best of them: what attention gives when it is sure. So items are found in an index, and `score`
gives the paper's own soft attention for given ones, which training uses too. A behaviour is read as
the mean of all, tilted towards it by a learnt amount: alone it is too noisy where each sample is
learnt once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from features.batch import Items, Users
from features.tensors import PaddedMoments, pad_history, pad_moments
from trainers.models import RetrievalStep, register
from trainers.models.parts.attention import Transformer, attend
from trainers.models.parts.history import padded_rows
from trainers.models.parts.tables import tables
from trainers.softmax import Precision, sampled_softmax
from trainers.table import EmbeddingTable, TableConfig

_KINDS = 16  # of actions on items, and one for each other group behind them
_AGES = 32  # buckets, each twice as long as the one before
_MODESTY = 0.1  # of weights as they are born


@register("atrank")
class ATRank(nn.Module):
    """`query` reads histories with kinds and times, searches and items that were passed over;
    `items` reads item ids and tokens.
    """

    describes, unit = False, True
    reads: tuple[str, ...] = (
        "item_id", "at", "item_tokens", "history", "history_kinds", "history_at_us",
        "searched", "searched_at_us", "passed_over", "passed_over_at_us",
    )  # fmt: skip

    @dataclass(frozen=True)
    class Config:
        """The newest `history` actions, `words` of searches and `passed_over` items are read, in
        `heads` semantic spaces and `layers` of attention. `sharpness` is how much attention to a
        candidate prefers what fits.
        """

        width: PositiveInt = 64
        heads: PositiveInt = 4
        layers: PositiveInt = 1
        hidden: PositiveInt = 128
        history: PositiveInt = 16
        words: NonNegativeInt = 4
        passed_over: NonNegativeInt = 4
        sharpness: PositiveFloat = 5.0
        temperature: PositiveFloat = 0.07
        table: TableConfig = field(default_factory=TableConfig)
        precision: Precision = "auto"
        seed: int = 0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.temperature = config.temperature
        self.tables = tables(config.table, config.width, config.seed, "item", "token", "word")
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.actions = nn.Embedding(_KINDS + 3, config.width)  # the first: not known
            self.ages = nn.Embedding(_AGES, config.width)
            self.projections = nn.ModuleList(
                nn.Linear(config.width, config.width) for _ in ("items", "words", "passed over")
            )
            self.encoder: nn.Module = Transformer(
                config.width, config.heads, config.layers, config.hidden
            )
            self.tilt = nn.Parameter(torch.ones(()))  # from the mean towards one behaviour
            self.nobody = nn.Parameter(torch.randn(config.width))  # who did nothing
        # In the beginning a behaviour is mostly its object: that is learnt row by row, and quickly.
        for dense in (self.actions, self.ages, self.projections, self.encoder):
            for parameter in dense.parameters():
                parameter.data *= _MODESTY if parameter.ndim > 1 else 1.0

    def query(self, users: Users) -> Tensor:
        keys, mask = self._keys(users)
        return torch.where(mask[..., None], keys, keys[:, :1])  # (B, 1 + L, d)

    def items(self, items: Items) -> Tensor:
        content = self.tables["token"].mean(items.tokens.values, items.tokens.offsets)
        return F.normalize(self.tables["item"](items.ids) + content, dim=-1)  # (N, d)

    def score(self, users: Users, vectors: Tensor) -> Tensor:
        """The paper's score (B,) of one item for each user, by its vector (B, d)."""
        return (self._read(users, vectors) * vectors).sum(-1)

    def loss(self, step: RetrievalStep) -> Tensor:
        candidates = self.items(step.candidates)  # (C, d)
        targets = candidates[step.sampling.positive.to(candidates.device)]  # (B, d)
        return sampled_softmax(
            self._read(step.users, targets),
            torch.cat([candidates, step.remembered]),
            step.sampling,
            step.weights,
            self.temperature,
            precision=self.config.precision,
        )

    def _read(self, users: Users, targets: Tensor) -> Tensor:
        """What a user is in the light of a candidate: (B, d), of unit length."""
        keys, mask = self._keys(users)
        sharp = targets * (self.config.sharpness * math.sqrt(self.width))
        return F.normalize(attend(sharp[:, None], keys, keys, mask)[:, 0], dim=-1)

    def _keys(self, users: Users) -> tuple[Tensor, Tensor]:
        """The mean of what a user did, behind it each of these, (B, 1 + L, d) of unit length, and
        which are there, (B, 1 + L); the mean always is: of who did nothing it is `nobody`.
        """
        behaviours, mask = self._behaviours(users)
        count = mask.sum(1, keepdim=True)  # (B, 1)
        mean = (behaviours * mask[..., None]).sum(1) / count.clamp(min=1)
        first = torch.where(count > 0, mean, self.nobody)
        keys = torch.cat([first[:, None], mean[:, None] + self.tilt * behaviours], 1)
        return F.normalize(keys, dim=-1), F.pad(mask, (1, 0), value=True)

    def _behaviours(self, users: Users) -> tuple[Tensor, Tensor]:
        """What is read of the groups, one behind the other, (B, L, d), and which are there, (B, L).

        What was passed over is attended to, and is nobody's wish.
        """
        config, items, words = self.config, self.tables["item"], self.tables["word"]
        history = pad_history(users, users.at_us, config.history)
        searched = pad_moments(users.searched, users.at_us, config.words)
        passed = pad_moments(users.passed_over, users.at_us, config.passed_over)
        kinds = history.kinds.clamp(-1, _KINDS - 1) + 1
        groups = [
            (padded_rows(items, history.items, history.mask), kinds, history.ages_s, history.mask),
            self._group(words, searched, _KINDS + 1),
            self._group(items, passed, _KINDS + 2),
        ]
        rows = [
            F.normalize(objects, dim=-1)
            + project(objects + self.actions(kinds.to(objects.device)) + self._aged(ages, objects))
            for project, (objects, kinds, ages, _) in zip(self.projections, groups, strict=True)
        ]
        mask = torch.cat([there for *_, there in groups], 1).to(rows[0].device)
        seen = self.encoder(torch.cat(rows, 1), mask)
        read = mask.shape[1] - config.passed_over
        return seen[:, :read], mask[:, :read]

    def _group(
        self, table: EmbeddingTable, moments: PaddedMoments, kind: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kinds = torch.full_like(moments.ids, kind)
        return padded_rows(table, moments.ids, moments.mask), kinds, moments.ages_s, moments.mask

    def _aged(self, ages_s: Tensor, objects: Tensor) -> Tensor:
        buckets = torch.log2(1.0 + ages_s).long().clamp(max=_AGES - 1)
        aged: Tensor = self.ages(buckets.to(objects.device))
        return aged
