"""Rankers of several tasks, taught impressions of the planted world: whom they expect to buy.

Of every pair of the last fifth that was shown, clicked on or not, the world knows how likely a
purchase is: a ranker's expectations are held against that, and not against the few that came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

SEEDS = tuple(range(11, 19))  # settings were chosen by others; what comes of few purchases differs
# Purchases are rarer than the world has them: some follow three in a hundred clicks.
RARE = Setting(replace(WORLD, days=12, choice=ChoiceConfig(buy_after_action=-1.8, buy_at_once=-5)))


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
    """The trainer that has learnt all of it; without tests on the way, which would take as long."""
    trainer.family.test = lambda *_: None
    for record in given.records:
        trainer.on_batch([record])
    return trainer


@cache
def parts(seed: int, setting: Setting) -> tuple[Impressions, Impressions]:
    """What is learnt, and the last fifth, which is asked about."""
    return impressions(seed, setting).split()


def find(way: Way, seed: int, setting: Setting) -> Found:
    """How well a ranker tells who would buy, after it was taught."""
    trainer = teach(learner(way, seed), parts(seed, setting)[0])
    return held_against(trainer, _held(seed, setting))


def held_against(trainer: Trainer, held: Asked) -> Found:
    """By the truth; of a ranker that has no task `click`, nothing is known of conversion."""
    found = predicted(trainer, held.pairs)
    cvr = np.nan
    if "click" in found:
        cvr = auc(found["buy"] / np.maximum(found["click"], 1e-7), held.converts)
    return Found(cvr, auc(found["buy"], held.relevance * held.converts))


# With less a purchase is learnt more slowly than it could be, and who tells more of it is ahead for
# that alone.
_CART = {"cart": {"after": "click", "weight": 10.0}}
_BUY = {"buy": {"after": "click", "weight": 100.0}}
WAYS: Mapping[str, Way] = {
    "esmm": Way("esmm", {"click": {}, **_BUY}),
    "clicked": Way("esmm", {"click": {}, **_BUY}, space="after"),
    "clicked_alone": Way("esmm", {"click": {"weight": 0.0}, **_BUY}, space="after"),
    "esmm_cart": Way("esmm", {"click": {}, **_CART, **_BUY}),
    "esm2": Way("esm2", {"click": {}, **_CART, **_BUY}),
    "mmoe": Way("mmoe", {"click": {}, **_BUY}),
    "mmoe_esmm": Way("mmoe_esmm", {"click": {}, **_BUY}),
}


def compared(names: Sequence[str], seed: int, setting: Setting = RARE) -> dict[str, float]:
    """Of each of the `WAYS` that are named the AUC of conversion, and `NAME_ctcvr`."""
    figures: dict[str, float] = {}
    for name in names:
        found = _found(name, seed, setting)
        figures |= {name: found.cvr, f"{name}_ctcvr": found.ctcvr}
    return figures


@cache
def _held(seed: int, setting: Setting) -> Asked:
    """What comes last, as any ranker is asked about it that does not describe histories."""
    learnt, rest = parts(seed, setting)
    return asked(rest, teach(learner(Way("shared_bottom", {"click": {}}), seed), learnt))


@cache
def _found(name: str, seed: int, setting: Setting) -> Found:
    return find(WAYS[name], seed, setting)
