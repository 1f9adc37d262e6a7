"""ESMM: what follows a click, learnt over all that was shown and not only over what was clicked.

Ma et al., *Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click
Conversion Rate*, SIGIR 2018. Who clicks is no fair sample of whom items are shown to, and few
click. So the rate of buying after a click has no loss of its own; it is learnt as a factor:

    pCTCVR = pCTR * pCVR          loss = log loss(click, pCTR) + log loss(buy, pCTCVR)

Each task has a network of its own, and they share the embeddings: those of the rare task are
learnt by every impression.

What differs: any number of tasks, of which each may come after another (`trainers.tasks.Task`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from features.shown import Pairs
from trainers.models import RANKING, register
from trainers.models.parts.ranker import Inputs, Layers, Multitask, RankerConfig, Towers
from trainers.tasks import Task


@register("esmm", RANKING)
class ESMM(Multitask):
    """`predict` reads whatever its `fields` are."""

    @dataclass(frozen=True)
    class Config(RankerConfig):
        """`hidden` is the width of the first layer of each network, `tower` that of the second."""

        tasks: Mapping[str, Task] = field(
            default_factory=lambda: {"click": Task(), "buy": Task(after="click")}
        )
        space: Literal["entire"] = "entire"
        hidden: PositiveInt = 64

    def __init__(self, config: Config, more: Sequence[float] = ()) -> None:
        """A network for each task, and some `more`, which begin there."""
        super().__init__(config)
        begins = [*self.begins, *more]
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.networks = Layers(len(begins), self.user_width + self.item_width, config.hidden)
            self.towers = Towers(begins, config.hidden, config.tower)

    def base(self, inputs: Inputs, pairs: Pairs) -> Tensor:  # noqa: ARG002
        hidden: Tensor = self.networks(inputs)
        return hidden  # (n, networks, hidden)

    def outputs(self, base: Tensor) -> Tensor:
        made: Tensor = self.towers(base)
        return made
