"""Candidates put together, against a plain account of the same."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.candidate_kernels import places_shown
from serving.cold_start import Proposals, pooled

IDS = st.integers(0, 30)
# Eighths and whole weights add up exactly, in any order.
PROPOSALS = st.lists(
    st.tuples(
        st.lists(IDS, unique=True, max_size=12),
        st.sampled_from(["model", "hot", "search"]),
        st.sampled_from([0.0, 1.0, 3.0]),
    ),
    max_size=5,
)


@settings(max_examples=100)
@given(PROPOSALS, st.lists(IDS, max_size=10), st.integers(0, 99))
def test_shares_are_added_up_and_put_in_order(
    drawn: list[tuple[list[int], str, float]], hidden: list[int], seed: int
) -> None:
    weights = {opinion: weight for _, opinion, weight in drawn}  # one weight an opinion
    rng = np.random.default_rng(seed)
    proposals = [
        Proposals(
            str(number), np.array(items, np.int64), rng.integers(0, 8, len(items)) / 8, opinion,
            weights[opinion],
        )
        for number, (items, opinion, _) in enumerate(drawn)
    ]  # fmt: skip
    total = sum(weights.values()) or 1.0
    expected: dict[int, float] = {}
    for one in proposals:
        for item, share in zip(one.items.tolist(), one.shares.tolist(), strict=True):
            if item not in hidden:
                expected[item] = expected.get(item, 0.0) + share * (one.weight / total)
    found = pooled(proposals, np.array(hidden, np.int64))
    assert dict(zip(found.items.tolist(), found.shares.round(12).tolist(), strict=True)) == {
        item: round(share, 12) for item, share in expected.items()
    }
    keys = [(-share, item) for share, item in zip(found.shares, found.items, strict=True)]
    assert keys == sorted(keys)
    np.testing.assert_allclose(found.parts.sum(axis=0), found.shares)
    for place, item in enumerate(found.items.tolist()):
        theirs = {
            one.source: float(one.shares[one.items == item][0]) * one.weight / total
            for one in proposals
            if item in one.items
        }
        for name, part in zip(found.names, found.parts[:, place].tolist(), strict=True):
            assert part == theirs.get(name, 0.0) or abs(part - theirs[name]) < 1e-12


@given(st.lists(IDS, unique=True), st.lists(IDS), st.integers(0, 20))
def test_the_first_places_that_are_shown(items: list[int], hidden: list[int], count: int) -> None:
    found = places_shown(np.array(items, np.int64), np.array(hidden, np.int64), count)
    expected = [place for place, item in enumerate(items) if item not in hidden][:count]
    assert found.tolist() == expected
