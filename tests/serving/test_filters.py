"""Filters: just the items that pass, as the catalog knows them now."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.attributes import Attributes, AttributesConfig
from serving.answers import BadQuestion
from serving.filters import Filters
from streaming.ids import stable_id


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Shop:
    """Items that are declared, and filters over them, in a time that stands still."""

    def __init__(self) -> None:
        self.items = Attributes(AttributesConfig())
        self.clock = Clock()
        self.filters = Filters(self.items, "available", self.clock)
        self.said: dict[str, Mapping[str, Any]] = {}

    def declare(self, **items: Mapping[str, Any]) -> None:
        self.items.hear(list(items), [json.dumps(attributes) for attributes in items.values()])
        self.said |= items

    def passing(self, **wanted: Sequence[str]) -> list[str] | None:
        """The names of the allowed items; None if all are."""
        allowed = self.filters.allowed(wanted)
        if allowed is None:
            return None
        names = {stable_id(name): name for name in self.said}
        return sorted(names[item] for item in allowed.ids.tolist())


@pytest.fixture
def shop() -> Shop:
    made = Shop()
    made.declare(
        a={"genres": ["War", "Drama"], "year": 1999, "kids": False},
        b={"genres": ["Drama"], "year": 2001, "kids": True},
        c={"genres": ["Comedy"], "year": 1999, "kids": True},
        d={"year": 1999},
    )
    return made


def test_an_item_passes_with_any_of_the_values_of_every_field(shop: Shop) -> None:
    assert shop.passing() is None
    assert shop.passing(genres=["War", "Comedy"]) == ["a", "c"]
    assert shop.passing(genres=["Drama"], year=["1999"]) == ["a"]
    assert shop.passing(kids=["true"]) == ["b", "c"]
    assert shop.passing(genres=["Western"]) == []


def test_what_is_not_available_is_in_no_answer(shop: Shop) -> None:
    shop.declare(e={"genres": ["War"], "available": False}, f={"available": True})
    shop.clock.now_s += 60
    assert shop.passing() == ["a", "b", "c", "d", "f"]
    assert shop.passing(genres=["War"]) == ["a"]


def test_a_field_that_no_item_has_is_named_with_those_that_they_have(shop: Shop) -> None:
    with pytest.raises(BadQuestion, match=r"no field 'genre'; they have genres, kids, year"):
        shop.passing(genre=["War"])
    with pytest.raises(BadQuestion, match=r"'genres' names no value"):
        shop.passing(genres=[])
    with pytest.raises(BadQuestion, match="none yet"):
        Shop().passing(genre=["War"])


def test_what_is_declared_anew_counts_a_second_later(shop: Shop) -> None:
    assert shop.passing(genres=["War"]) == ["a"]
    shop.declare(d={"genres": ["War"]}, a={"genres": ["Drama"]})
    assert shop.passing(genres=["War"]) == ["a"]
    shop.clock.now_s += 1.1
    assert shop.passing(genres=["War"]) == ["d"]
    # In the meantime what is shown is held against the newest description.
    assert not shop.filters.passes({"genres": ["War"]}, shop.said["a"])
    assert shop.filters.passes({"genres": ["War"]}, shop.said["d"])


def test_the_same_filter_is_the_same_subset_until_something_changes(shop: Shop) -> None:
    first = shop.filters.allowed({"genres": ["War", "Drama"], "year": ["1999"]})
    again = shop.filters.allowed({"year": ["1999"], "genres": ["Drama", "War"]})
    assert first is again
    shop.declare(z={"genres": ["War"], "year": 1999})
    shop.clock.now_s += 60
    assert shop.filters.allowed({"genres": ["War", "Drama"], "year": ["1999"]}) is not first


VALUES = st.one_of(st.booleans(), st.integers(0, 2), st.sampled_from(["x", "y"]))


@given(
    st.lists(st.dictionaries(st.sampled_from(["p", "q", "available"]), VALUES), max_size=6),
    st.dictionaries(
        st.sampled_from(["p", "q"]),
        st.lists(st.sampled_from(["x", "y", "0", "1", "true", "false"]), min_size=1, max_size=2),
    ),
)
def test_the_index_agrees_with_the_descriptions(
    said: list[dict[str, Any]], wanted: dict[str, list[str]]
) -> None:
    shop = Shop()
    # The type of a field is that of its first value; others are refused.
    first = {"p": True, "q": 1, "available": True}
    kept = [{k: v for k, v in one.items() if type(v) is type(first[k])} for one in [first, *said]]
    shop.declare(**{f"i{n}": one for n, one in enumerate(kept)})
    passing = shop.passing(**wanted)
    expected = [name for name, one in shop.said.items() if shop.filters.passes(wanted, one)]
    assert sorted(shop.said if passing is None else passing) == sorted(expected)
