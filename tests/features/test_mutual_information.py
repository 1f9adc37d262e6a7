"""Mutual information: exact counts, a known truth, and the two biases."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.mutual_information import MutualInformation
from streaming.artefact import Artefact
from streaming.errors import ConfigError

FIELDS = ["a", "b", "c"]
ROWS = st.lists(st.tuples(*[st.integers(-1, 3)] * 3), max_size=40)


def counted(rows: list[tuple[int, int, int]]) -> MutualInformation:
    information = MutualInformation(FIELDS, buckets=16)
    information.update(np.array(rows, np.int64).reshape(-1, 3))
    return information


@given(ROWS)
def test_it_is_the_plug_in_estimate_less_the_part_of_chance(
    rows: list[tuple[int, int, int]],
) -> None:
    information = MutualInformation(FIELDS, buckets=64)  # no two of these values share one
    values = np.array(rows, np.int64).reshape(-1, 3)
    information.update(values * 1_000)  # -1 stays negative
    found = information.get()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        pairs = [(row[i], row[j]) for row in rows if row[i] >= 0 and row[j] >= 0]
        n, joint = len(pairs), Counter(pairs)
        left, right = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
        told = sum(c / n * math.log(c * n / (left[a] * right[b])) for (a, b), c in joint.items())
        chance = (len(joint) - len(left) - len(right) + 1) / (2 * n) if n else 0.0
        assert found[i, j] == found[j, i] == pytest.approx(max(0.0, told - chance), abs=1e-12)
    assert (found.diagonal() == 0).all()


def test_the_truth_is_found_and_chance_is_taken_off() -> None:
    random = np.random.default_rng(0)
    a = random.integers(50, size=20_000)
    b = np.where(random.random(20_000) < 0.5, a, random.integers(50, size=20_000))
    values = np.column_stack([a, b, random.integers(50, size=20_000)])
    information = MutualInformation(FIELDS, buckets=1_024)
    information.update(values)
    same, other = 0.5 + 0.5 / 50, 0.5 / 50
    truth = math.log(50) + same * math.log(same) + 49 * other * math.log(other)
    found = information.get()
    assert found[0, 1] == pytest.approx(truth, rel=0.05)
    assert found[0, 2] < 0.01  # the plug-in estimate is 49 * 49 / 40,000 = 0.06
    assert information.most_correlated("a", 1) == ["b"]
    assert information.most_correlated("c", 9)[-1] != "c"


def test_hashing_into_few_buckets_only_takes_information_away() -> None:
    values = np.repeat(np.random.default_rng(0).integers(1 << 62, size=200), 100)
    found = []
    for buckets in (1_024, 64, 8, 2):
        information = MutualInformation(["a", "b"], buckets)
        information.update(np.column_stack([values, values + 1]))
        found.append(information.get()[0, 1])
        assert found[-1] <= math.log(buckets)
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(math.log(200), rel=0.05)


@given(ROWS, ROWS)
def test_batches_restarts_and_merges_count_the_same_to_the_bit(
    mine: list[tuple[int, int, int]], theirs: list[tuple[int, int, int]]
) -> None:
    whole = counted(mine + theirs)
    merged, other = counted(mine), counted(theirs)
    merged.merge(other)
    parts = MutualInformation(FIELDS, 16, Artefact({}, counted(mine).tables()))
    parts.update(np.array(theirs, np.int64).reshape(-1, 3))
    for one in (merged, parts):
        table = one.tables()["mutual_information"]
        assert table.equals(whole.tables()["mutual_information"], check_metadata=True)
        assert np.array_equal(one.get(), whole.get())


def test_other_fields_or_buckets_are_refused() -> None:
    information = MutualInformation(FIELDS, 16)
    with pytest.raises(ConfigError, match="cannot be added"):
        information.merge(MutualInformation(FIELDS, 32))
    with pytest.raises(ConfigError, match="in 16 buckets, not of"):
        MutualInformation(["a", "b"], 16, Artefact({}, information.tables()))
    with pytest.raises(ConfigError, match="two different fields"):
        MutualInformation(["a", "a"])
