"""Drift: the index against a plain account, silence where nothing changes, hysteresis."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from serving.drift import Bins, ColumnDrift, DriftConfig, Hysteresis, psi

CONFIG = DriftConfig(first=500, reference=20_000, now=1_000, enough=3_000, look_every=200)


def fed(column: ColumnDrift, values: Any, *, at_s: float = 0.0, size: int = 50) -> list[float]:
    """What the index is after each part."""
    found = []
    for start in range(0, len(values), size):
        column.update(values[start : start + size], at_s)
        found.append(math.nan if column.index is None else column.index)
    return found


def test_the_index_is_that_of_a_plain_account() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=2_000)
    config = DriftConfig(first=1_000, bins=4)
    bins = Bins("number", numbers[:1_000], config)
    smallest, *others = np.quantile(numbers[:1_000], [0, 0.25, 0.5, 0.75, 1]).tolist()
    edges = [-math.inf, np.nextafter(smallest, -9), smallest, *others, math.inf]
    counts = []
    for part in (numbers[:1_000], numbers[1_000:]):
        of_bins = Counter(
            next(i for i, (a, b) in enumerate(pairwise(edges)) if a < x <= b) for x in part
        )
        counts.append([float(of_bins[i]) for i in range(len(edges))])  # nothing is missing
        assert np.bincount(bins.codes(part), minlength=bins.count).tolist() == counts[-1]
    r, n = ([(c + 0.5) / (1_000 + bins.count / 2) for c in one] for one in counts)
    plain = sum((n[i] - r[i]) * math.log(n[i] / r[i]) for i in range(bins.count))
    assert psi(*map(np.array, counts)) == pytest.approx(plain)


@pytest.mark.parametrize(
    ("kind", "first", "values", "bins"),
    [
        ("number", [0.0, 1.0, 2.0], [-1.0, 0.0, 0.5, 1.0, 3.0, np.nan], [0, 1, 2, 3, 5, 6]),
        ("number", [4.0, 4.0, np.nan], [3.0, 4.0, 5.0, np.nan], [0, 1, 2, 3]),
        ("number", [np.nan], [-1.0, 0.0, 1.0, np.nan], [0, 1, 2, 3]),
        ("value", [7, 7, 9, 9, 8, -1], [7, 9, 8, 1, 99, -1], [0, 1, 2, 2, 2, 3]),
        ("value", [-1], [5, -1], [0, 1]),
    ],
)
def test_every_value_falls_into_a_bin_with_a_name(
    kind: Any, first: list[Any], values: list[Any], bins: list[int]
) -> None:
    made = Bins(kind, np.array(first), DriftConfig(bins=2, values=2))
    if kind == "number" and len(first) == 3 and not np.isnan(first).any():
        assert made.names() == ["below 0", "0", "0 to 1", "1 to 2", "above 2", "missing"]
        bins = [0, 1, 2, 2, 4, 5]
    assert made.codes(np.array(values)).tolist() == bins
    assert len(made.names()) == made.count > max(bins)


def test_what_does_not_change_stays_quiet() -> None:
    """Many columns, each for so long that the reference forgets: none ever drifts, and the index
    is, on average, next to nothing.
    """
    rng = np.random.default_rng(1)
    averages = []
    for made in range(20):
        column = ColumnDrift("number", CONFIG)
        values = rng.exponential(size=30_000) if made % 2 else rng.poisson(3, 30_000).astype(float)
        found = np.array(fed(column, values))
        assert np.isnan(found[: 6_000 // 50 - 1]).all()  # too few to say
        assert not column.active
        assert np.nanmax(found) < 0.1
        averages.append(np.nanmean(found))
    assert np.mean(averages) < 0.005


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(lambda rng, n: rng.exponential(size=n) * 3, id="scale"),
        pytest.param(lambda rng, n: np.full(n, np.nan), id="missing"),
        pytest.param(lambda rng, n: rng.exponential(size=n) - 10, id="below all"),
    ],
)
def test_a_change_is_found_and_is_over_when_all_is_as_it_was(changed: Any) -> None:
    rng = np.random.default_rng(2)
    column = ColumnDrift("number", CONFIG)
    fed(column, rng.exponential(size=20_000), at_s=1.0)
    assert not column.active
    fed(column, changed(rng, 3_000), at_s=2.0)
    assert column.active
    assert column.since == 2.0
    fed(column, rng.exponential(size=8_000), at_s=3.0)
    assert not column.active
    assert column.since is None


def test_what_goes_on_for_long_becomes_usual() -> None:
    rng = np.random.default_rng(2)
    column = ColumnDrift("number", CONFIG)
    fed(column, rng.exponential(size=10_000))
    fed(column, 3 * rng.exponential(size=15_000), at_s=2.0)
    assert column.active
    fed(column, 3 * rng.exponential(size=15_000), at_s=3.0)
    assert not column.active
    assert (column.index or 0) < 0.1
    fed(column, rng.exponential(size=5_000), at_s=4.0)
    assert (column.active, column.since) == (True, 4.0)


def test_a_constant_that_changes_drifts_either_way() -> None:
    for changed in (4.0, 6.0):
        column = ColumnDrift("number", CONFIG)
        fed(column, np.full(7_000, 5.0))
        fed(column, np.full(2_000, changed))
        assert column.active


def test_ids_drift_when_others_come() -> None:
    rng = np.random.default_rng(3)
    column = ColumnDrift("value", CONFIG)
    fed(column, rng.zipf(1.5, 10_000))
    assert not column.active
    fed(column, rng.zipf(1.5, 3_000) + 5)
    assert column.active
    figures = column.figures()
    assert len(figures["edges"]) == len(figures["now"]) == len(figures["reference"])
    assert sum(figures["now"]) == pytest.approx(1)


def test_one_look_is_no_drift() -> None:
    alarm = Hysteresis(0.25, 0.1, looks=3)
    assert not any(alarm.look(index) for index in (0.9, 0.9, 0.2, 0.9, 0.9, 0.0))
    assert [alarm.look(0.9) for _ in range(3)] == [False, False, True]
    assert all(alarm.look(index) for index in (0.05, 0.05, 0.2, 0.05, 0.05))
    assert not alarm.look(0.05)
