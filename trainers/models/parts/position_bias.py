"""What the place at which an item was shown has to do with what came of it.

A ranker wears one of these. It is learnt with the places that samples tell; where something is to
be ranked, nothing has a place yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt
from torch import Generator, Tensor, nn

from streaming.ids import stable_id
from trainers.models.parts.fields import Tables
from trainers.tasks import Task

Hows = Literal["ignore", "feature"]


@dataclass(frozen=True)
class PositionConfig:
    """How a ranker deals with positions: `ignore` them; take them as a `feature`, and for ranking
    that of the place `served`.
    """

    how: Hows = "ignore"
    served: NonNegativeInt = 0


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

    def outputs(self, outputs: Tensor, tables: Tables, places: Places) -> Tensor:  # noqa: ARG002
        """The outputs (n, K) of the network as they are learnt."""
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


def position_ids(positions: NDArray[np.int32] | NDArray[np.int64]) -> NDArray[np.int64]:
    """The ids (n,) of positions in the table `context`: far from those of other things there."""
    return np.asarray(positions, np.int64) + _POSITIONS


_POSITIONS = stable_id("position") >> 1


def make_position_bias(
    config: PositionConfig,
    width: int,  # noqa: ARG001
    tasks: Mapping[str, Task],  # noqa: ARG001
) -> PositionBias:
    """The one that a config names."""
    if config.how == "feature":
        return PositionField(config.served)
    return PositionBias()
