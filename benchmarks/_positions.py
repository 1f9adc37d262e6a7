"""MMoE with one task, taught impressions by each way to deal with positions: what it serves then.

Two policies made the lists. `promoted` put items in an order of their own, that has nothing to do
with how they please: clicks then say of an item that it stood at the top. `ranked` is the world's
own, which puts what pleases first: there a position's click rate is that of better items too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._claims import Report
from benchmarks._impressions import (
    ROWS,
    WORLD,
    Setting,
    agreement,
    asked,
    impressions,
    predicted,
    taught,
)
from streaming.event_columns import scenario_codes
from streaming.sources.chance import Floats, Ints
from trainers.models.parts.chance import generator
from trainers.models.parts.position_bias import Places, PositionConfig
from trainers.trainer import Trainer

Policy = Literal["promoted", "ranked"]
_WORLD = replace(WORLD, days=12)
_SETTINGS = {"promoted": Setting(_WORLD, promoted=1.0), "ranked": Setting(_WORLD)}


@dataclass(frozen=True, slots=True)
class Found:
    """`agreement` with the true relevance within lists that were not learnt; for `readable` see
    `_readable`. Of the places of the first scenario `noticed` (p,) is what is learnt, 1 if nothing
    is, `clicked` (p,) how often they were clicked on, and `seen` (p,) the truth, each over that of
    the first place.
    """

    agreement: float
    readable: float
    noticed: Floats
    clicked: Floats
    seen: Floats


@cache
def found(seed: int, policy: Policy, position: PositionConfig) -> Found:
    """What a way to deal with positions comes to; learnt once in a process."""
    given = impressions(seed, _SETTINGS[policy])
    first, rest = given.split()
    options = {"tasks": {"click": {}}, "position": asdict(position), "table": ROWS}
    trainer = taught("mmoe", options, first, seed, dense_learning_rate=0.005)
    model, held = trainer.model, asked(rest, trainer)
    scenario, length = given.scenarios[0], _WORLD.scenarios[0].length
    there = np.arange(length)
    code = scenario_codes([scenario])
    here = held.pairs.users.scenarios == code[0]
    clicks = held.shown.labels["click"][here]
    clicked = np.array([clicks[held.places[here] == place].mean() for place in there])
    with torch.no_grad():
        base = model.base(model._inputs(held.pairs, None), held.pairs).flatten(1)
    noticed = noticed_at(trainer, there, np.repeat(code, length))
    seen = given.truth.examination(there, scenario)
    return Found(
        agreement(predicted(trainer, held.pairs)["click"], held.relevance, held.requests),
        _readable(base.numpy().astype(np.float64), held.places),
        noticed / noticed[0],
        clicked / clicked[0],
        seen / seen[0],
    )


@torch.no_grad()
def noticed_at(trainer: Trainer, places: Ints, scenarios: NDArray[np.int32]) -> Floats:
    """(n,), how likely the ranker thinks that it is to be noticed there; 1 if it learns no such
    thing. `scenarios` (n,) are codes.
    """
    model = trainer.model
    there = Places(places.astype(np.int32), scenarios, generator(0, 0))
    seen = model.position.seen(model.tables, there)
    return np.ones(len(places)) if seen is None else seen.double().numpy()


def orders(seed: int, policy: Policy, report: Report, **ways: PositionConfig) -> dict[str, float]:
    """Of each way by its name the agreement, `ignore` among them."""
    made = {}
    for name, position in {"ignore": PositionConfig(), **ways}.items():
        made[name] = found(seed, policy, position).agreement
        report(f"    {policy}, {name}: {made[name]:.4f}")
    return made


def off(places: Floats, seen: Floats) -> float:
    """How far places are off the truth: the root of the mean squared difference of logarithms."""
    return float(np.sqrt(np.square(np.log(places) - np.log(seen)).mean()))


def _readable(base: Floats, places: Ints) -> float:
    """R^2 of the logarithm of the place, told by the base vectors (n, r) of pairs: by the ridge
    regression of one half, on the other.
    """
    told = np.log1p(places)
    half = len(base) // 2
    x = np.column_stack([base - base[:half].mean(0), np.ones(len(base))])
    ridge = x[:half].T @ x[:half] + 1e-3 * half * np.eye(x.shape[1])
    guessed = x[half:] @ np.linalg.solve(ridge, x[:half].T @ told[:half])
    off = np.square(told[half:] - guessed).mean() / told[half:].var()
    return float(1.0 - off)
