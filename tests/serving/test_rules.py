"""Rules: what is boosted, varied and spread, and that nobody is lost on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.rules import RulesConfig, Slate, all_rules, at_most, boosted, varied

Attributes = Sequence[Mapping[str, Any]]


def slate(
    scores: Sequence[float],
    attributes: Attributes | None = None,
    vectors: Sequence[Sequence[float]] | None = None,
) -> Slate:
    count = len(scores)
    said: Attributes = [{}] * count if attributes is None else attributes
    matrix = np.eye(count) if vectors is None else np.array(vectors)
    return Slate(
        np.arange(count), np.array(scores), lambda: said, lambda: matrix.astype(np.float32)
    )


def test_boosts_multiply_the_scores_of_every_value_that_an_item_has() -> None:
    said: Attributes = [{"genres": ["War"]}, {"genres": ["Comedy", "Kids"]}, {}, {"new": True}]
    rule = boosted({"genres=Comedy": 2.0, "genres=Kids": 3.0, "new=true": 5.0, "genres=War": 0.1})
    # .9 * .1, .3 * 2 * 3, .5, .2 * 5
    assert rule(slate([0.9, 0.3, 0.5, 0.2], said), 4).tolist() == [1, 3, 2, 0]


def test_variety_prefers_what_is_unlike_what_stands_above() -> None:
    vectors: list[list[float]] = [[1, 0], [0.99, 0.141], [0, 1]]
    alike = slate([1.0, 0.9, 0.5], vectors=vectors)
    assert varied(0.01)(alike, 3).tolist() == [0, 1, 2]
    # .7 * .9 - .3 * .99 = .333 against .7 * .5 = .35
    assert varied(0.3)(alike, 3).tolist() == [0, 2, 1]


def test_variety_is_asked_of_what_is_shown_only() -> None:
    order = varied(1.0)(slate([1.0, 0.9, 0.5], vectors=[[1, 0], [1, 0], [0, 1]]), 1)
    assert order.tolist() == [0, 1, 2]


def test_at_most_so_many_of_one_value_in_any_window() -> None:
    said = [{"genres": genre} for genre in ("War", "War", "War", "Comedy", "Kids", "War")]
    order = at_most("genres", 1, 3)(slate([6, 5, 4, 3, 2, 1], said), 6).tolist()
    assert order == [0, 3, 4, 1, 2, 5]  # no other is left for the places after the fourth


@given(
    st.lists(st.sampled_from("abc"), max_size=12),
    st.integers(1, 3), st.integers(1, 6), st.integers(0, 12),
)  # fmt: skip
def test_at_most_moves_an_item_only_for_one_that_fits(
    values: list[str], most: int, window: int, shown: int
) -> None:
    said = [{"genres": [value]} for value in values]
    order = at_most("genres", most, window)(slate([1.0] * len(values), said), shown).tolist()
    assert sorted(order) == list(range(len(values)))
    for place in range(min(shown, len(order))):
        above = [values[item] for item in order[max(0, place - window + 1) : place]]
        left = order[place:]
        fit = [item for item in sorted(left) if above.count(values[item]) < most]
        assert order[place] == (fit[0] if fit else min(left))


def test_the_rules_of_a_recipe_are_applied_in_one_order() -> None:
    config = RulesConfig(boosts={"a=b": 2.0}, varied=0.2, at_most={"genres": 2, "brand": 1})
    assert list(all_rules(config)) == ["boosts", "varied", "at_most.genres", "at_most.brand"]
    assert all_rules(RulesConfig()) == {}


def test_settings_that_make_no_sense_are_named() -> None:
    with pytest.raises(ValueError, match="varied = 1.5"):
        RulesConfig(varied=1.5)
    with pytest.raises(ValueError, match="genres=Comedy"):
        RulesConfig(boosts={"Comedy": 2.0})
