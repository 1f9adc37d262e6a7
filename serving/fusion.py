"""Fusion: what is expected of each candidate, for each task, as one score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streaming.errors import ConfigError

Floats = NDArray[np.float64]
How = Literal["sum", "product", "power"]
SHARE = "share"  # the task that every candidate has a number for: its pooled share
_LEAST = 1e-9  # what 0 counts as where it is raised to a negative power
_MOST = 1e100


@dataclass(frozen=True)
class FusionConfig:
    """How the tasks p_k of a candidate become one score: by their weights w_k the `sum` of w_k p_k,
    or the `product` of p_k^w_k; or as a `power` sum, of w_k p_k^a_k, whose exponents a_k are
    `powers`, 1 where nothing is said. `share` is a task, too. A task that is not known of an
    answer, because its ranker was late, counts in none of its items.

    Raises:
        ConfigError: there is no weight, a number is not finite, or a power is of no use.
    """

    how: How = "product"
    weights: Mapping[str, float] = field(default_factory=lambda: {SHARE: 1.0})
    powers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.weights:
            raise ConfigError("fusion.weights = {}: give a task a weight, such as { share = 1.0 }")
        for name, numbers in (("weights", self.weights), ("powers", self.powers)):
            for task, number in numbers.items():
                if not math.isfinite(number):
                    raise ConfigError(f"fusion.{name}.{task} = {number}: it must be finite")
        if self.powers and self.how != "power":
            raise ConfigError(f'fusion.powers: of a {self.how} there are none; set how = "power"')
        if unknown := sorted(self.powers.keys() - self.weights.keys()):
            raise ConfigError(
                f"fusion.powers.{unknown[0]}: it has no weight; there are weights of"
                f" {', '.join(self.weights)}"
            )


def fused(tasks: Mapping[str, Floats], config: FusionConfig) -> Floats:
    """One score (n,) of what is expected of each candidate; always finite. What is less than 0
    counts as 0 where it is raised to a power.

    >>> tasks = {"share": np.array([0.5, 0.25]), "click": np.array([0.1, 0.4])}
    >>> fused(tasks, FusionConfig("product", {"share": 1.0, "click": 2.0})).tolist()
    [0.005000000000000001, 0.04000000000000001]
    >>> fused(tasks, FusionConfig("sum", {"share": 1.0, "click": 2.0})).tolist()
    [0.7, 1.05]
    >>> fused(tasks, FusionConfig("power", {"share": 4.0, "click": 1.0}, {"share": 2.0})).tolist()
    [1.1, 0.65]
    """
    known = {name: weight for name, weight in config.weights.items() if name in tasks}
    if not known:
        return tasks[SHARE]
    with np.errstate(over="ignore", invalid="ignore"):
        if config.how == "sum":
            parts = [weight * np.nan_to_num(tasks[name]) for name, weight in known.items()]
        elif config.how == "power":
            powers = config.powers
            parts = [w * _powered(tasks[n], powers.get(n, 1.0)) for n, w in known.items()]
        else:
            parts = [_powered(tasks[name], weight) for name, weight in known.items()]
        scores = reduce(np.multiply if config.how == "product" else np.add, parts)
    finite: Floats = np.nan_to_num(scores, posinf=_MOST, neginf=-_MOST)
    return finite


def _powered(task: Floats, power: float) -> Floats:
    # Of a number and NaN, `fmax` gives the number.
    base = np.fmin(np.fmax(task, _LEAST if power < 0 else 0.0), _MOST)
    powered: Floats = np.fmin(base**power, _MOST)
    return powered
