"""The planted world's impressions as a ranker's steps, and what is held against their truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks._impressions import (
    WORLD,
    Setting,
    agreement,
    asked,
    impressions,
    once,
    predicted,
    taught,
    true,
)
from streaming.sources.population import PopulationConfig

_SMALL = replace(WORLD, days=1, population=PopulationConfig(users=200, items=60))


def test_what_is_asked_are_the_impressions_that_were_not_learnt_each_once() -> None:
    given = impressions(3, Setting(_SMALL, step_size=128))
    first, rest = given.split(0.5)
    assert [*first.records, *rest.records] == [*given.records]
    trainer = taught("mmoe", {"tasks": {"click": {}}}, first)
    held = asked(rest, trainer)
    assert 0 < len(held.places) == once(rest).num_rows
    pairs = np.column_stack([held.requests, held.pairs.items.ids])
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    clicks = held.shown.labels["click"]
    assert np.isin(clicks, (0.0, 1.0)).all()
    assert predicted(trainer, held.pairs)["click"].shape == clicks.shape
    # What comes of it comes as often as the truth says, less what the items around do.
    assert clicks.mean() == pytest.approx((held.relevance * held.seen).mean(), rel=0.4)


def test_promoted_items_stand_at_the_top_and_please_no_better() -> None:
    by_policy = {}
    for promoted in (0.0, 3.0):
        given = impressions(3, Setting(_SMALL, promoted=promoted))
        rows = once(given)
        relevance, places = true(given, rows).relevance, rows["position"].to_numpy()
        by_policy[promoted] = np.corrcoef(relevance, places)[0, 1]
    assert by_policy[0.0] < -0.2
    assert abs(by_policy[3.0]) < 0.1


def test_agreement_counts_pairs_of_a_group_and_a_tie_half() -> None:
    groups = np.array([1, 2, 1, 1, 2])
    truth = np.array([0.1, 0.5, 0.2, 0.3, 0.5])  # what is alike in truth is not asked
    assert agreement(truth, truth, groups) == 1.0
    assert agreement(-truth, truth, groups) == 0.0
    assert agreement(np.array([1, 1, 1, 2, 1]), truth, groups) == pytest.approx(2.5 / 3)
