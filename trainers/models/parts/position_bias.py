"""What the place at which an item was shown has to do with what came of it.

A ranker wears one of these. It is learnt with the places that samples tell; where something is to
be ranked, nothing has a place yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from streaming.errors import ConfigError
from streaming.ids import stable_id
from trainers.losses import binary_cross_entropy
from trainers.models.parts.fields import Tables
from trainers.tasks import Task, roots

Hows = Literal["ignore", "feature", "pal", "shallow", "adversarial"]


@dataclass(frozen=True)
class PositionConfig:
    """How a ranker deals with positions.

    `ignore` them; take them as a `feature`; learn how likely each is to be noticed (`pal`); add a
    `shallow` tower of theirs to the outputs; or keep them out of what the network makes of a pair
    (`adversarial`), with `strength`. `served` is the place that what is ranked is taken to stand
    at, by a `feature` or a bypass. The last two have to do with the outputs of `tasks`, those that
    come first if none is named. Towers and the adversary have `hidden` units; `dropout` is the
    share of pairs that the shallow tower is left out of.
    """

    how: Hows = "ignore"
    served: NonNegativeInt = 0
    tasks: tuple[str, ...] = ()
    hidden: PositiveInt = 16
    dropout: NonNegativeFloat = 0.1
    strength: NonNegativeFloat = 1.0

    def __post_init__(self) -> None:
        if not self.dropout < 1:
            raise ConfigError(f"position.dropout = {self.dropout:g}: a share of the pairs, below 1")

    def columns(self, tasks: Mapping[str, Task]) -> list[int]:
        """The numbers of its tasks among all that the ranker has.

        Raises:
            ConfigError: there is none of a name.
        """
        if unknown := [name for name in self.tasks if name not in tasks]:
            raise ConfigError(
                f"position.tasks: {unknown[0]!r} is no task; these are {', '.join(tasks)}"
            )
        named = self.tasks or [name for name in roots(tasks) if name in tasks]
        return [list(tasks).index(name) for name in named]


@dataclass(frozen=True, slots=True)
class Places:
    """Where n pairs were shown: `positions` (n,), NONE where not known, and in which scenario
    (n,). What is drawn is `drawn_from` a generator.
    """

    positions: NDArray[np.int32]
    scenarios: NDArray[np.int32]
    drawn_from: Generator


class PositionBias(nn.Module):
    """The place has nothing to do with it."""

    fields = 0  # how many vectors it adds to those of a pair

    def field(self, tables: Tables, places: Places | None, count: int) -> Tensor | None:  # noqa: ARG002
        """(n, d), what the network is told of the places of `count` pairs; None where they have
        none yet.
        """
        return None

    def outputs(self, outputs: Tensor, tables: Tables, places: Places | None) -> Tensor:  # noqa: ARG002
        """The outputs (n, K) of the network as they are learnt; as they are served without
        `places`.
        """
        return outputs

    def seen(self, tables: Tables, places: Places) -> Tensor | None:  # noqa: ARG002
        """(n,), how likely it is that a pair is noticed at its place; None if that is sure."""
        return None

    def penalty(
        self,
        base: Tensor,
        tables: Tables,  # noqa: ARG002
        places: Places,  # noqa: ARG002
        labels: Sequence[Tensor],  # noqa: ARG002
    ) -> Tensor:
        """What is added to the loss; `base` (n, r) is what the network makes of the pairs, and
        `labels` (n,) are those of the tasks that come first.
        """
        return torch.zeros((), device=base.device)


class PositionField(PositionBias):
    """The place as a feature; what is ranked is taken to stand at one and the same."""

    fields = 1

    def __init__(self, served: int) -> None:
        super().__init__()
        self._served = served

    def field(self, tables: Tables, places: Places | None, count: int) -> Tensor | None:
        if places is None:
            ids = np.full(count, position_ids(np.array([self._served]))[0])
        else:
            ids = position_ids(places.positions)
        return tables["context"](ids)


class PAL(PositionBias):
    """A click takes being noticed, which is the place's doing, and then the item's.

    Guo et al., *PAL: A Position-bias Aware Learning Framework for CTR Prediction in Live
    Recommender Systems*, RecSys 2019: p(click) = p(seen | position, scenario) p(click | seen), both
    learnt by the one loss, only the second served. Nothing tells them apart but the place: so both
    are known up to a factor, and what is served is about a click's probability at the best place.
    """

    # The logit to begin with. All that is shown is noticed, but where the place says otherwise: if
    # it began lower, the factor would soon take up that clicks are rare, and hide what is liked.
    _SEEN = 5.0

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.tower = _PlaceTower(width, hidden, 1)
        nn.init.constant_(self.tower.last.bias, self._SEEN)

    def seen(self, tables: Tables, places: Places) -> Tensor | None:
        seen: Tensor = self.tower(tables, places).sigmoid()[:, 0]
        return seen


class ShallowTower(PositionBias):
    """A small tower of position and scenario, whose logits are added to those of some tasks.

    Zhao et al., *Recommending What Video to Watch Next: A Multitask Ranking System*, RecSys 2019:
    it is left out in serving, and in training of a share of the pairs, so that the network gets
    used to do without.
    """

    def __init__(self, width: int, hidden: int, columns: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.tower = _PlaceTower(width, hidden, len(columns))
        self._columns, self._dropout = list(columns), dropout

    def outputs(self, outputs: Tensor, tables: Tables, places: Places | None) -> Tensor:
        if places is None:
            return outputs
        kept = torch.rand((len(outputs), 1), generator=places.drawn_from) >= self._dropout
        return _added(outputs, self._columns, self.tower(tables, places) * kept.to(outputs.device))


class Adversarial(PositionBias):
    """Another network tries to tell the place by what the ranker makes of a pair, and may not.

    Moore et al., *Modeling and Simultaneously Removing Bias via Adversarial Neural Networks*, 2018.
    b is how much is clicked on at a position, here as a logit. A bypass of b is added to the
    outputs; a bias network guesses b by the base vector z, with the squared error; and the ranker
    has the penalty `strength * cov(bias(z), b)^2`. Served is with the b of the place `served`.

    What differs: they learn the bias network and then the others, step by step. A trainer has one
    loss, so here both are learnt in one step, each from the other as it stood: the bias network's
    error stops at z, and the penalty at the bias network. Nor is b counted beforehand: it is what a
    log loss of its own makes of each position, among the samples, so that it follows the stream.
    """

    _BASE = 512  # numbers of z that the bias network tells apart; a wider one is folded

    def __init__(self, hidden: int, columns: Sequence[int], strength: float, served: int) -> None:
        super().__init__()
        self.bypass = nn.Linear(1, len(columns))
        nn.init.ones_(self.bypass.weight)  # b is a logit, and so is what it is added to
        nn.init.zeros_(self.bypass.bias)
        self.bias = nn.Sequential(nn.Linear(self._BASE, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self._columns, self._strength, self._served = list(columns), strength, served

    def outputs(self, outputs: Tensor, tables: Tables, places: Places | None) -> Tensor:
        positions = np.array([self._served]) if places is None else places.positions
        made = self.bypass(_click_logits(tables, positions).detach()[:, None])
        return _added(outputs, self._columns, made.expand(len(outputs), -1))

    def penalty(
        self, base: Tensor, tables: Tables, places: Places, labels: Sequence[Tensor]
    ) -> Tensor:
        clicks = _click_logits(tables, places.positions)
        told = binary_cross_entropy(clicks, labels[0])
        clicks = clicks.detach()
        base = F.pad(base, (0, -base.shape[1] % self._BASE)).view(len(base), -1, self._BASE).sum(1)
        off: Tensor = (self.bias(base.detach())[:, 0] - clicks).square().mean()
        fixed = {name: weight.detach() for name, weight in self.bias.named_parameters()}
        guessed: Tensor = functional_call(self.bias, fixed, base)[:, 0]
        together = ((guessed - guessed.mean()) * (clicks - clicks.mean())).mean()
        return told + off + self._strength * together.square()


class _PlaceTower(nn.Module):
    """A small network of where pairs were shown: (n, outputs).

    Beside its hidden layer the rows also go straight to the output, at first their sum over its own
    root: so what a place does is learnt as soon as the tables learn, and not when the network has
    found a use for their rows. The plain sum would take as many steps at once as it has numbers:
    where rows learn fast, nobody is seen any more before anything is known.
    """

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(2 * width, hidden), nn.Linear(hidden, outputs)
        self.straight = nn.Linear(2 * width, outputs, bias=False)
        nn.init.constant_(self.straight.weight, 1.0 / math.sqrt(2 * width))

    def forward(self, tables: Tables, places: Places) -> Tensor:
        context = tables["context"]
        scenarios = places.scenarios.astype(np.int64) + _SCENARIOS
        read = torch.cat([context(position_ids(places.positions)), context(scenarios)], 1)
        made: Tensor = self.last(self.hidden(read).relu()) + self.straight(read)
        return made


def _click_logits(tables: Tables, positions: NDArray[np.int32]) -> Tensor:
    """(n,), how much is clicked on at each position: a row of the table, all of it one number."""
    rows: Tensor = tables["context"](position_ids(positions))
    return rows.sum(1) / math.sqrt(rows.shape[1])  # else d numbers take d steps at once


def _added(outputs: Tensor, columns: Sequence[int], more: Tensor) -> Tensor:
    """(n, K), with more (n, k) in some of the columns."""
    index = torch.tensor(columns, device=outputs.device)
    return outputs.index_add(1, index, more.to(outputs.dtype))


def position_ids(positions: NDArray[np.int32] | NDArray[np.int64]) -> NDArray[np.int64]:
    """The ids (n,) of positions in the table `context`: far from those of other things there."""
    return np.asarray(positions, np.int64) + _POSITIONS


_POSITIONS = stable_id("position") >> 1
_SCENARIOS = stable_id("scenario of a position") >> 1


def make_position_bias(
    config: PositionConfig, width: int, tasks: Mapping[str, Task]
) -> PositionBias:
    """The one that a config names.

    Raises:
        ConfigError: as `PositionConfig.columns`.
    """
    columns = config.columns(tasks)
    match config.how:
        case "ignore":
            return PositionBias()
        case "feature":
            return PositionField(config.served)
        case "pal":
            return PAL(width, config.hidden)
        case "shallow":
            return ShallowTower(width, config.hidden, columns, config.dropout)
        case "adversarial":
            return Adversarial(config.hidden, columns, config.strength, config.served)
