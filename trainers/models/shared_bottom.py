"""Shared bottom: one hidden layer that all tasks share, and for each task a tower of its own.

Caruana, *Multitask Learning*, Machine Learning 1997. Of a pair x, the concatenated vectors of its
fields:

    f(x) = relu(W x + b)          y_k = tower_k(f(x))

It is the baseline of every other way to share: what tasks do not have in common, they fight over.

What differs: fields are embedded by tables that grow, and learnt as the stream comes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import PositiveInt
from torch import Tensor

from features.shown import Pairs
from trainers.models import RANKING, register
from trainers.models.parts.ranker import Inputs, Layers, Multitask, RankerConfig, Towers


@register("shared_bottom", RANKING)
class SharedBottom(Multitask):
    """`predict` reads whatever its `fields` are."""

    @dataclass(frozen=True)
    class Config(RankerConfig):
        """`bottom` is the width of the layer that is shared."""

        bottom: PositiveInt = 128

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.bottom = Layers(1, self.user_width + self.item_width, config.bottom)
            self.towers = Towers(self.begins, config.bottom, config.tower)

    def base(self, inputs: Inputs, pairs: Pairs) -> Tensor:  # noqa: ARG002
        shared: Tensor = self.bottom(inputs)
        return shared  # (n, 1, bottom)

    def outputs(self, base: Tensor) -> Tensor:
        made: Tensor = self.towers(base)
        return made
