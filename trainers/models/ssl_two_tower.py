"""The two-tower with self-supervised items.

Yao et al., *Self-supervised Learning for Large-scale Item Recommendations*, CIKM 2021. Items that
are seldom taken teach their tower little. So the tower also learns to know an item again: of each
of N items two views are made, the features that are hidden in one are seen in the other, and each
first view is to find its second among those of all N:

    L = L_main + a L_ssl,   L_ssl = -1/N sum_i log softmax_j(<z_i, z'_j> / t)[i]

What is hidden together decides how hard that is. "random" splits the features by chance (RFM). With
"correlated" features those that tell of each other are hidden together (CFM): a feature drawn by
chance, and the half of all that has the highest mutual information with it. Of a feature of
several values each value is also left out by chance. Both views go through the one item tower,
which is also that of L_main; L_main learns from the log, where popular items are, and L_ssl from
items drawn uniformly from the corpus.

What differs: mutual information is counted on the stream, of the items that are drawn, instead of
beforehand; it is part of the model's state, so of cuts and versions. A feature is the item's id or
a field of what describes it, and the split is drawn once for a step. The rest is `two_tower`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from features.batch import Ids, Items
from features.mutual_information import MutualInformation
from streaming.event_columns import field_codes
from trainers.losses import info_nce
from trainers.models import RetrievalStep, register
from trainers.models.parts.chance import generator
from trainers.models.two_tower import TwoTower, tower

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
_ID = "id"  # the first feature


@register("ssl_two_tower")
class SelfSupervisedTwoTower(TwoTower):
    """`query` is that of `two_tower`; `items` reads ids and the tokens of some fields."""

    reads = (*TwoTower.reads, "item_fields")

    @dataclass(frozen=True)
    class Config(TwoTower.Config):
        """`fields` are the features beside the id. Of L = L_main + a L_ssl a is `ssl_weight` and t
        `ssl_temperature`. L_ssl learns from the items drawn from the `"corpus"`, or from so many of
        the samples' own (`"log"`), as the paper does to show that this is worse. `dropout` is the
        share of values that a view leaves out. `buckets` are those of the mutual information.
        """

        fields: tuple[str, ...] = ("genres", "year")
        ssl_weight: NonNegativeFloat = 0.1
        ssl_temperature: PositiveFloat = 0.1
        ssl_items: Literal["corpus", "log"] = "corpus"
        masking: Literal["random", "correlated"] = "correlated"
        dropout: Share = 0.2
        buckets: PositiveInt = 32

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.codes = field_codes(config.fields).tolist()
        names = (_ID, *config.fields)
        self.information = MutualInformation(names, config.buckets)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.item_tower = tower(len(names) * config.width, config)
        self.hidden = nn.Parameter(torch.zeros(len(names), config.width))  # stands for a feature

    def items(self, items: Items) -> Tensor:
        return self._encode(self._features(items))

    def loss(self, step: RetrievalStep) -> Tensor:
        drawn_from = generator(self.config.seed, step.seed)
        corpus = step.candidates.take(step.drawn)
        self.information.update(_values(corpus, self.codes))
        main = super().loss(step)
        if self.config.ssl_weight == 0.0:
            return main
        items = corpus if self.config.ssl_items == "corpus" else _taken(step, drawn_from)
        hidden = self._split(drawn_from)
        first, second = (self._view(items, part, drawn_from) for part in (hidden, ~hidden))
        ids = torch.from_numpy(items.ids).to(first.device)
        ssl = info_nce(first, second, self.config.ssl_temperature, ids)
        return main + self.config.ssl_weight * ssl

    def get_extra_state(self) -> Tensor:
        """The counts themselves: what is written into them counts. Never on a GPU."""
        return torch.from_numpy(self.information.counts)

    def set_extra_state(self, state: Tensor) -> None:
        self.information.counts[:] = state.numpy()

    def _features(self, items: Items, dropped_from: Generator | None = None) -> Tensor:
        """(N, k, d): of each item the id's row and the mean of each field's; zeros of no value."""
        found = [self.tables["item"](items.ids)]
        for code in self.codes:
            values = items.of_field(code)
            if dropped_from is not None:
                drawn = torch.rand(len(values.values), generator=dropped_from)
                values = values.where((drawn >= self.config.dropout).numpy())
            found.append(self.tables["token"].mean(values.values, values.offsets))
        return torch.stack(found, 1)

    def _encode(self, features: Tensor) -> Tensor:
        """(N, k, d) to vectors (N, d) of unit length."""
        v = self.item_tower(features.flatten(1)) + features[:, 0] + features[:, 1:].mean(1)
        return F.normalize(v, dim=1)

    def _view(self, items: Items, hidden: Tensor, drawn_from: Generator) -> Tensor:
        """(N, d), of items of which some features are hidden (k,) and some values left out."""
        hidden = hidden[:, None].to(self.hidden.device)
        return self._encode(torch.where(hidden, self.hidden, self._features(items, drawn_from)))

    def _split(self, drawn_from: Generator) -> Tensor:
        """Which features (k,) the first view hides; the second hides the others. Neither all."""
        names = self.information.fields
        order = torch.randperm(len(names), generator=drawn_from)
        hidden = torch.zeros(len(names), dtype=torch.bool)
        if self.config.masking == "random":
            hidden[order[: len(names) // 2]] = True
            return hidden
        seed, many = names[int(order[0])], min(len(names) // 2, len(names) - 2)
        chosen = {seed, *self.information.most_correlated(seed, many)}
        return torch.tensor([name in chosen for name in names])


def _values(items: Items, codes: list[int]) -> Ids:
    """Each item's value in each feature (n, k) as an id: of several one of them all, -1 of none."""
    columns = [items.ids]
    for code in codes:
        of_field = items.of_field(code)
        sums = np.append(np.uint64(0), np.cumsum(of_field.values.astype(np.uint64)))
        together = np.diff(sums[of_field.offsets]) >> np.uint64(1)
        columns.append(np.where(of_field.lengths > 0, together.astype(np.int64), -1))
    return np.column_stack(columns)


def _taken(step: RetrievalStep, drawn_from: Generator) -> Items:
    """As many of the items that were taken as there are drawn ones, popular ones more often."""
    order = torch.randperm(len(step.sampling.positive), generator=drawn_from)[: len(step.drawn)]
    return step.candidates.take(step.sampling.positive[order].numpy())
