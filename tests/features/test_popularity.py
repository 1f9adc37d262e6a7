"""Hot lists: against a sort over all pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.decayed import US
from features.popularity import EVERYONE, ListTrust, Popularity, PopularityConfig, Shares
from streaming.artefact import Artefact
from streaming.errors import ConfigError

HOUR = 3_600 * US
CONFIG = PopularityConfig(length=3)
NONE = -1

ACTIONS = st.lists(
    st.tuples(
        st.integers(1, 8), st.integers(0, 72), st.integers(1, 3), st.sampled_from([NONE, 5, 6])
    ),
    max_size=60,
)


def popularity(actions: list[tuple[int, int, int, int]], most: int = 1_000) -> Popularity:
    """Actions of (item, hour, weight, cell)."""
    found = Popularity(PopularityConfig(length=3, most=most))
    return taken(found, actions)


def taken(to: Popularity, actions: list[tuple[int, int, int, int]]) -> Popularity:
    items, hours, weights, cells = np.array(actions, np.int64).reshape(-1, 4).T
    to.update(items, hours * HOUR, weights.astype(float), cells[:, None])
    return to


@given(ACTIONS)
def test_hot_lists_are_the_best_of_every_cell_and_window(
    actions: list[tuple[int, int, int, int]],
) -> None:
    found = popularity(actions)
    found.refresh(72 * HOUR)
    for window, seconds in CONFIG.windows.items():
        for cell in (EVERYONE, 5, 6):
            scores: dict[int, float] = {}
            for item, hour, weight, its in actions:
                if cell in (EVERYONE, its):
                    faded = weight * math.exp(-(72 - hour) * 3_600 / seconds)
                    scores[item] = scores.get(item, 0.0) + faded
            items, shown = found.hot.top(window, 3, cell)
            assert shown == pytest.approx(sorted(scores.values(), reverse=True)[:3], rel=1e-6)
            assert [scores[item] for item in items.tolist()] == pytest.approx(shown, rel=1e-6)


def test_the_hour_has_its_own_hits_and_so_has_a_cell() -> None:
    found = popularity([(1, 0, 3, 5)] * 20 + [(2, 71, 1, 6)] * 10)
    found.refresh(72 * HOUR)
    tops = {window: found.hot.top(window, 1)[0].tolist() for window in CONFIG.windows}
    assert tops == {"hour": [2], "day": [2], "week": [1]}
    assert found.hot.top("hour", 5, cell=5)[0].tolist() == [1]
    assert found.hot.top("week", 5, cell=6)[0].tolist() == [2]
    assert found.hot.top("week", 5, cell=7)[0].tolist() == []


def test_a_steady_item_scores_its_actions_in_a_window() -> None:
    found = Popularity(CONFIG)
    minutes = np.arange(60 * 24 * 70)
    found.update(
        np.ones_like(minutes),
        minutes * 60 * US,
        np.ones(len(minutes)),
        np.empty((len(minutes), 0), np.int64),
    )
    scores = found.get(np.array([1]), int(minutes[-1]) * 60 * US)
    shown = {name: round(float(score[0]), -1) for name, score in scores.items()}
    assert shown == {"week": 10_080, "day": 1_440, "hour": 60}


def test_lists_that_somebody_holds_do_not_change() -> None:
    found = popularity([(1, 0, 1, 5)])
    assert found.hot.top("hour", 3)[0].tolist() == []
    found.refresh(0)
    held = found.hot
    taken(found, [(2, 0, 3, 5)])
    assert held is found.hot
    found.refresh(0)
    assert held.top("hour", 3)[0].tolist() == [1]
    assert found.hot.top("hour", 3)[0].tolist() == [2, 1]
    assert found.hot.top("hour", 0)[0].tolist() == []


@given(ACTIONS, st.integers(0, 60), st.sampled_from([5, 1_000]))
def test_batches_restarts_and_bounds(
    actions: list[tuple[int, int, int, int]], cut: int, most: int
) -> None:
    whole, parts = popularity(actions, most), popularity(actions[:cut], most)
    parts = Popularity(PopularityConfig(length=3, most=most), Artefact({}, parts.tables()))
    taken(parts, actions[cut:])
    assert parts.tables()["popularity"].equals(whole.tables()["popularity"], check_metadata=True)
    assert len(whole) <= most
    for each in (whole, parts):
        each.refresh(72 * HOUR)
    assert np.array_equal(whole.hot.items, parts.hot.items)


def test_merged_popularity_is_that_of_both_streams() -> None:
    mine, theirs = popularity([(1, 0, 1, 5)]), popularity([(1, 3, 2, 5), (2, 3, 1, 6)])
    mine.merge(theirs)
    both = popularity([(1, 0, 1, 5), (1, 3, 2, 5), (2, 3, 1, 6)])
    for cell in (EVERYONE, 5, 6):
        found = mine.get(np.array([1, 2]), 9 * HOUR, cell)
        expected = both.get(np.array([1, 2]), 9 * HOUR, cell)
        for window, scores in expected.items():
            assert found[window] == pytest.approx(scores)


def test_an_unknown_window_is_named() -> None:
    with pytest.raises(ConfigError, match="no window 'month': ask for week, day, hour"):
        Popularity(CONFIG).hot.top("month", 3)


# Shares


TRUST = ListTrust(window=4.0, cell=2.0)


def shares(found: Popularity, *levels: list[int], prior: Shares | None = None) -> dict[int, float]:
    items, parts = found.hot.shares(levels, TRUST, prior)
    return dict(zip(items.tolist(), parts.tolist(), strict=True))


def expected_share(
    actions: list[tuple[int, int, int, int]], item: int, cells: list[int], window: int
) -> float:
    """The share of an item in the last of a chain of cells, by the formula, action by action."""
    seconds = list(CONFIG.windows.values())[::-1]  # the longest first
    *wider, cell = cells
    faded = [(i, weight * math.exp(-(72 - hour) * 3_600 / seconds[window]))
             for i, hour, weight, its in actions if cell in (EVERYONE, its)]  # fmt: skip
    part, total = sum(w for i, w in faded if i == item), sum(w for _, w in faded)
    if not faded:
        return expected_share(actions, item, wider, window) if wider else 0.0
    if window > 0:
        part += TRUST.window * expected_share(actions, item, cells, window - 1)
        total += TRUST.window
    if wider:
        part += TRUST.cell * expected_share(actions, item, wider, window)
        total += TRUST.cell
    return part / total


@given(ACTIONS)
def test_shares_lean_on_longer_windows_and_wider_cells(
    actions: list[tuple[int, int, int, int]],
) -> None:
    found = taken(Popularity(PopularityConfig(length=8)), actions)
    found.refresh(72 * HOUR)
    for cells in ([EVERYONE], [EVERYONE, 5], [5], [EVERYONE, 5, 6]):
        shown = shares(found, *([cell] for cell in cells))
        for item, share in shown.items():
            assert share == pytest.approx(expected_share(actions, item, cells, 2), rel=1e-6)
        assert sum(shown.values()) == pytest.approx(1.0 if shown else 0.0)


def test_a_cell_speaks_for_itself_the_sooner_the_more_is_done_in_it() -> None:
    last = 0.0
    for actions_in_5 in (1, 3, 30, 300):
        found = popularity([(1, 72, 1, 6)] * 50 + [(2, 72, 1, 5)] * actions_in_5)
        found.refresh(72 * HOUR)
        share = shares(found, [EVERYONE], [5])[2]
        assert last < share < 1.0
        last = share
    assert last > 0.99


def test_a_cell_in_which_nothing_was_counted_leaves_the_shares_as_they_are() -> None:
    found = popularity([(1, 70, 1, 5), (2, 71, 1, 5), (2, 71, 2, 6)])
    found.refresh(72 * HOUR)
    assert shares(found, [EVERYONE], [7]) == shares(found, [EVERYONE])
    assert shares(found, [EVERYONE], [5, 7], [8]) == shares(found, [EVERYONE], [5])
    assert shares(found, [7]) == shares(popularity([]), [EVERYONE]) == {}


def test_a_cell_within_two_leans_on_both() -> None:
    found = popularity([(1, 72, 1, 5), (2, 72, 1, 6)])
    found.refresh(72 * HOUR)
    both = shares(found, [EVERYONE], [5, 6])
    assert both[1] == pytest.approx(both[2]) == pytest.approx(0.5)


def test_a_prior_stands_above_the_lists() -> None:
    found = popularity([(1, 72, 1, 5)])
    found.refresh(72 * HOUR)
    prior = np.array([1, 9]), np.array([0.25, 0.75])
    shown = shares(found, [5], prior=prior)
    assert shown[1] > 0.25
    assert 0 < shown[9] < 0.75
    assert shares(found, [7], prior=prior) == {1: 0.25, 9: 0.75}
