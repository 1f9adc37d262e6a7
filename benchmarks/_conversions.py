"""Rankers of several tasks, taught impressions of the planted world: whom they expect to buy.

Of every pair of the last fifth that was shown, clicked on or not, the world knows how likely a
purchase is: a ranker's expectations are held against that, and not against the few that came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from benchmarks._auc import auc
from benchmarks._impressions import (
    FIELDS,
    WORLD,
    Asked,
    Impressions,
    Setting,
    asked,
    impressions,
    predicted,
)
from benchmarks._streams import seeded
from streaming.sources.choice import ChoiceConfig
from trainers.tasks import Space
from trainers.trainer import Trainer, TrainerConfig

CLICK_AND_BUY = {"click": {}, "buy": {"after": "click"}}
WITH_CART = {"click": {}, "cart": {"after": "click"}, "buy": {"after": "click"}}
# One click in ten is followed by a purchase, or one in a hundred.
USUAL = Setting(replace(WORLD, days=12))
RARE = Setting(replace(WORLD, days=12, choice=ChoiceConfig(buy_after_action=-3.0, buy_at_once=-7)))


@dataclass(frozen=True)
class Way:
    """A ranker: a model with its tasks and options. `space` is where it learns, if that is not the
    model's own: a system that keeps to one space is so compared with itself in another.
    """

    model: str
    tasks: Mapping[str, Any]
    options: Mapping[str, Any] | None = None
    space: Space | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """AUCs over all that was shown: `cvr` of buying once clicked, `ctcvr` of buying."""

    cvr: float
    ctcvr: float


def learner(way: Way, seed: int) -> Trainer:
    """The trainer of a ranker that has learnt nothing yet."""
    plain = {"fields": FIELDS, "table": {"optimiser": {"learning_rate": 0.1}}}
    options = {**plain, **(way.options or {}), "tasks": way.tasks}
    trainer = Trainer(seeded(TrainerConfig(model=way.model, options=options), seed), "benchmark")
    if way.space is not None:
        trainer.model.space = way.space
    return trainer


def teach(trainer: Trainer, given: Impressions) -> Trainer:
    for record in given.records:
        trainer.on_batch([record])
    return trainer


@cache
def parts(seed: int, setting: Setting) -> tuple[Impressions, Impressions]:
    """What is learnt, and the last fifth, which is asked about."""
    return impressions(seed, setting).split()


def find(way: Way, seed: int, setting: Setting) -> Found:
    """How well a ranker tells who would buy, after it was taught."""
    learnt, rest = parts(seed, setting)
    trainer = teach(learner(way, seed), learnt)
    return held_against(trainer, asked(rest, trainer))


def held_against(trainer: Trainer, held: Asked) -> Found:
    """By the truth; of a ranker that has no task `click`, nothing is known of conversion."""
    found = predicted(trainer, held.pairs)
    cvr = np.nan
    if "click" in found:
        cvr = auc(found["buy"] / np.maximum(found["click"], 1e-7), held.converts)
    return Found(cvr, auc(found["buy"], held.relevance * held.converts))


def compared(seed: int, setting: Setting, **ways: Way) -> dict[str, float]:
    """Of each way by its name the AUC of conversion, and `NAME_ctcvr`."""
    figures: dict[str, float] = {}
    for name, way in ways.items():
        found = find(way, seed, setting)
        figures |= {name: found.cvr, f"{name}_ctcvr": found.ctcvr}
    return figures
