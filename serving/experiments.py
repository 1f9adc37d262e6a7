"""Experiments: which users are answered in which of several ways.

An arm is chosen by a hash of the experiment's name and the user's stable id: the same user is in
the same arm wherever and whenever he asks, his arms in different experiments have nothing to do
with each other (Tang et al., *Overlapping Experiment Infrastructure*, KDD 2010), and whoever has a
sample of his can tell in which arm he was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from pydantic import NonNegativeFloat

from streaming.errors import ConfigError
from streaming.ids import stable_id

_IDS = 2.0**63  # stable ids are below


@dataclass(frozen=True)
class Arm:
    """One way to answer: `weight` is its part of the users among those of all arms, `changes` are
    settings that differ from everybody's, such as `{rules = {varied = 0.3}}`.
    """

    weight: NonNegativeFloat = 1.0
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """Arms that are tried against each other, in these `scenarios`; in all if none is named."""

    arms: Mapping[str, Arm]
    scenarios: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not sum(arm.weight for arm in self.arms.values()) > 0:
            raise ConfigError("an experiment needs at least one arm with a weight above 0")


def arm_of(name: str, experiment: Experiment, user: int) -> str:
    """The arm that a user, by his stable id, is in.

    >>> ways = Experiment({"as_ever": Arm(), "varied": Arm()})
    >>> [arm_of("rules", ways, user) for user in (1, 2, 3, 1, 2, 3)]
    ['as_ever', 'varied', 'varied', 'as_ever', 'varied', 'varied']
    """
    ends = list(accumulate(arm.weight for arm in experiment.arms.values()))
    drawn = stable_id(f"{name}/{user}") / _IDS * ends[-1]
    # Only rounding could leave the last one out.
    return next((arm for arm, end in zip(experiment.arms, ends, strict=True) if drawn < end),
                list(experiment.arms)[-1])  # fmt: skip
