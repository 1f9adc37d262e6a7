"""YouTube's ranking: only what engages is told by its place, and nothing that is served."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from features.batch import Items, Jagged
from features.shown import Pairs
from streaming.errors import ConfigError
from tests.trainers.contract import described_items, some_users
from trainers.models import RankingStep, create
from trainers.models.parts.chance import generator
from trainers.models.parts.position_bias import Places


def made(**options: Any) -> Any:
    return create("youtube_multitask", {"fields": ("user_id", "item_id"), "width": 4, **options})


def some_pairs() -> Pairs:
    return Pairs(
        some_users(6), np.arange(6), described_items(np.arange(6)), np.arange(6, dtype=np.int32)
    )


def moved(model: Any, pairs: Pairs) -> list[bool]:
    """Of each task whether the places of pairs move its output in training."""
    places = Places(pairs.positions, pairs.users.scenarios, generator(0, 0))
    with torch.no_grad():
        found = model.position.outputs(torch.zeros(6, len(model.tasks)), model.tables, places)
    return [bool(column.any()) for column in found.unbind(1)]


def test_the_place_is_to_blame_for_engagement_alone() -> None:
    model = made()
    assert list(model.tasks) == ["click", "watch", "like"]
    assert moved(model, some_pairs()) == [True, True, False]
    assert moved(made(engagement=("like",)), some_pairs()) == [False, False, True]
    assert moved(made(tasks={"like": {}, "click": {}}), some_pairs()) == [False, True]


def test_another_correction_of_positions_may_stand_in_its_place() -> None:
    assert moved(made(position={"how": "ignore"}), some_pairs()) == [False, False, False]
    named = made(position={"how": "shallow", "tasks": ("like",)})
    assert moved(named, some_pairs()) == [False, False, True]


def test_a_tower_that_learns_places_leaves_what_is_served_alone() -> None:
    """Everything is clicked at the top and nothing below: so no item is any better than another."""
    model = made(tasks={"click": {}})
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    rng = np.random.default_rng(0)
    items = np.arange(64) % 8
    nothing = Jagged.of(np.empty(0, np.int64), np.zeros(64, np.int64))
    base = Pairs(some_users(64), np.arange(64), Items(items, nothing), np.zeros(64, np.int32))
    for number in range(80):
        positions = rng.integers(0, 2, 64).astype(np.int32)
        clicks = torch.from_numpy((positions == 0).astype(np.float32))
        pairs = dataclasses.replace(base, positions=positions)
        step = RankingStep(pairs, {"click": clicks}, torch.ones(64), base.user_of, number)
        optimiser.zero_grad()
        model.loss(step).backward()
        optimiser.step()
    places = Places(np.array([0, 1], np.int32), base.users.scenarios[:2], generator(0, 0))
    with torch.no_grad():
        top, below = model.position.tower(model.tables, places)[:, 0]
        served = model.predict(base)["click"]
    assert top - below > 2
    assert float(served.std()) < 0.1


def test_engagement_in_what_is_no_task_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"engagement = .*'likes'.*click, watch, like"):
        made(engagement=("likes",))
