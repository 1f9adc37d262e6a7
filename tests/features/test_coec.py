"""COEC: with each baseline, on a world whose positions and items are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.coec import (
    Baseline,
    Coec,
    CoecConfig,
    CountedBaseline,
    CountedConfig,
    ModelBaseline,
    Shown,
)
from streaming.artefact import Artefact
from streaming.event_columns import NONE

SEEN = np.array([0.9, 0.6, 0.4, 0.25, 0.1])  # how probably a position is looked at
QUALITY = np.linspace(0.1, 0.5, 5)  # how probably an item is clicked by who sees it
PLAIN = CountedConfig(rate=0.1, strength=2.0)

EVENTS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(-1, 3), st.booleans(), st.booleans()), max_size=40
)


def shown(events: list[tuple[int, int, bool, bool]], start: int = 0) -> Shown:
    items, positions, clicked, randomised = np.array(events, np.int64).reshape(-1, 4).T
    times = np.arange(start, start + len(events))
    contexts = np.where(items % 2 == 0, 7, NONE)
    return Shown(items, positions, clicked.astype(float), times, contexts, randomised > 0)


def world(requests: int, randomised: float = 0.1) -> Shown:
    """The best items are ranked first, but for a slice of requests in random order."""
    random = np.random.default_rng(0)
    slice_ = random.random(requests) < randomised
    ranked = np.argsort(-QUALITY - random.normal(0, 0.1, (requests, 5)), axis=1)
    at_random = random.permuted(np.tile(np.arange(5), (requests, 1)), axis=1)
    items = np.where(slice_[:, None], at_random, ranked).ravel()
    positions = np.tile(np.arange(5), requests)
    clicked = random.random(items.size) < SEEN[positions] * QUALITY[items]
    nowhere = np.full(items.size, NONE)
    times = np.arange(items.size)
    return Shown(items, positions, clicked.astype(float), times, nowhere, np.repeat(slice_, 5))


def spread(coec: Coec) -> float:
    """How far the best item is above the worst: 5 in truth."""
    found = coec.get(np.arange(5), 0)
    return float(found[4] / found[0])


def test_baselines_see_through_positions_as_well_as_they_may() -> None:
    events = world(40_000)
    baselines: dict[str, Baseline] = {
        "model": ModelBaseline(lambda positions, _: SEEN[positions] * QUALITY.mean()),
        "slice": CountedBaseline("slice", CountedConfig(randomised_only=True)),
        "counts": CountedBaseline("counts", CountedConfig()),
    }
    found = {}
    for name, baseline in baselines.items():
        coec = Coec(name, CoecConfig(), baseline)
        coec.update(events)
        found[name] = spread(coec)
    ctr = np.bincount(events.item_id, events.clicked) / np.bincount(events.item_id)
    assert found["model"] == pytest.approx(5, rel=0.1)
    assert found["slice"] == pytest.approx(5, rel=0.15)
    # Counts give the ranking's part of the difference to the positions; CTR the positions' part
    # to the items.
    assert found["counts"] < 4
    assert ctr[4] / ctr[0] > 8


def test_the_promise_of_a_position_is_unbiased_in_the_randomised_slice() -> None:
    events = world(40_000, randomised=0.3)
    both = {}
    for only in (True, False):
        baseline = CountedBaseline("x", CountedConfig(randomised_only=only))
        baseline.expected(events)
        both[only] = baseline.get(np.arange(5), np.full(5, NONE), 0)
    assert both[True] == pytest.approx(SEEN * QUALITY.mean(), rel=0.15)
    assert both[False][0] > 1.2 * both[True][0]
    assert both[False][4] < 0.8 * both[True][4]


@given(EVENTS)
def test_each_impression_is_measured_by_those_before_it(
    events: list[tuple[int, int, bool, bool]],
) -> None:
    """The oracle counts by dictionaries, one impression after another."""
    batch = shown(events)
    found = CountedBaseline("x", PLAIN).expected(batch)
    counts: dict[tuple[int, int], tuple[float, float]] = {}
    for i in range(len(events)):
        position, context = int(batch.position[i]), int(batch.context[i])
        if position == NONE:
            continue
        rate = PLAIN.rate
        levels = [(-9, -9), (position, -9), *([(position, context)] if context != NONE else [])]
        for level in levels:
            impressions, clicks = counts.get(level, (0.0, 0.0))
            rate = (clicks + 2 * rate) / (impressions + 2)
            counts[level] = (impressions + 1, clicks + float(batch.clicked[i]))
        assert found[i] == pytest.approx(rate)


@given(EVENTS, st.integers(0, 40), st.booleans())
def test_the_state_does_not_depend_on_batches_or_restarts(
    events: list[tuple[int, int, bool, bool]], cut: int, randomised_only: bool
) -> None:
    config = CountedConfig(half_life_s=1e-5, randomised_only=randomised_only)
    fading = CoecConfig(half_life_s=1e-5, most=3)
    baseline = CountedBaseline("x", config)
    whole = Coec("x", fading, baseline)
    whole.update(shown(events))
    first = CountedBaseline("x", config)
    before = Coec("x", fading, first)
    before.update(shown(events[:cut]))
    state = Artefact({}, {**before.tables(), **first.tables()})
    second = CountedBaseline("x", config, state)
    parts = Coec("x", fading, second, state)
    parts.update(shown(events[cut:], start=len(events[:cut])))
    for one, other in ((whole, parts), (baseline, second)):
        for name, table in one.tables().items():
            assert table.equals(other.tables()[name], check_metadata=True)
    assert len(whole) <= 3


def test_items_of_which_nothing_is_known_are_usual_and_few_clicks_are_drawn_there() -> None:
    baseline = ModelBaseline(lambda positions, _: np.full(len(positions), 0.5))
    plain, drawn = (Coec("x", CoecConfig(strength=s), baseline) for s in (0.0, 3.0))
    for coec in (plain, drawn):
        coec.update(shown([(1, 0, True, False), (1, 1, True, False), (2, NONE, True, False)]))
    asked = np.array([1, 2, 9])
    assert plain.get(asked, 2).tolist() == [2.0, 1.0, 1.0]
    assert drawn.get(asked, 2).tolist() == [5 / 4, 1.0, 1.0]


def test_merged_counts_are_those_of_both_streams() -> None:
    events = [(1, 0, True, False), (2, 1, False, False), (1, 2, False, True)]
    ctr = np.array([0.5, 0.25, 0.125])
    mine, theirs, both = (
        Coec("x", CoecConfig(), ModelBaseline(lambda positions, _: ctr[positions]))
        for _ in range(3)
    )
    mine.update(shown(events[:1]))
    theirs.update(shown(events[1:]))
    both.update(shown(events))
    mine.merge(theirs)
    assert mine.get(np.array([1, 2]), 0).tolist() == both.get(np.array([1, 2]), 0).tolist()
    assert mine.get(np.array([1]), 0).tolist() == [1 / 0.625]
    baselines = [CountedBaseline("x", PLAIN) for _ in range(3)]
    for baseline, part in zip(baselines, (events[:1], events[1:], events), strict=True):
        baseline.expected(shown(part))
    baselines[0].merge(baselines[1])
    found, expected = (b.get(np.arange(3), np.full(3, 7), 0) for b in (baselines[0], baselines[2]))
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, np.nan])
def test_a_model_that_gives_no_probabilities_is_refused_and_nothing_is_counted(
    wrong: float,
) -> None:
    coec = Coec(
        "x", CoecConfig(), ModelBaseline(lambda positions, _: np.full(len(positions), wrong))
    )
    with pytest.raises(ValueError, match="not between 0 and 1"):
        coec.update(shown([(1, 0, True, False)]))
    assert len(coec) == 0
