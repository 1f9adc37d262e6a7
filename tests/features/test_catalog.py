"""The catalog: from ids back to items, search, and what is popular."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.aggregator import AggregatorConfig
from features.attributes import AttributesConfig
from features.behaviour import BehaviourConfig
from features.catalog import Catalog, CatalogConfig, CatalogItem, CatalogUser
from streaming.artefact import Artefact, read_artefact, write_artefact
from streaming.events import EventRules
from streaming.ids import stable_id
from streaming.log import Record

AsRecords = Callable[..., list[Record]]


def item(name: str, title: str | None = None, **attributes: Any) -> dict[str, Any]:
    described = attributes if title is None else {"title": title, **attributes}
    return {"kind": "item", "item_id": name, "attributes": described}


def like(name: str, user: str = "u") -> dict[str, Any]:
    return {"kind": "like", "user_id": user, "item_id": name}


def user(name: str, **attributes: Any) -> dict[str, Any]:
    return {"kind": "user", "user_id": name, "attributes": attributes}


def catalog(state: Artefact | None = None, config: CatalogConfig | None = None) -> Catalog:
    return Catalog(EventRules(), BehaviourConfig(), AggregatorConfig(), state, config)


TITLES = {
    "1": "Heat (1995)",
    "2": "In the Heat of the Night (1967)",
    "3": "Wheat Fields",
    "4": "Amélie",
    "5": "The Night Porter",
}


@pytest.fixture
def films(as_records: AsRecords) -> Catalog:
    filled = catalog()
    filled.on_batch(as_records([item(name, title) for name, title in TITLES.items()]))
    return filled


def found(films: Catalog, text: str, limit: int = 10) -> list[str]:
    return [one.item_id for one in films.search(text, limit)]


# Getting


def test_an_item_is_found_by_its_stable_id(as_records: AsRecords) -> None:
    films = catalog()
    assert films.on_batch(as_records([item("1", "Heat", year=1995, genres=["Crime"])])) == []
    assert films.get(stable_id("1")) == CatalogItem(
        "1", "Heat", {"year": 1995, "genres": ["Crime"]}
    )
    assert len(films) == 1


def test_an_item_that_was_never_heard_of_is_none(films: Catalog) -> None:
    assert films.get(stable_id("unheard of")) is None
    assert films.get(0) is None
    assert len(films) == 5


def test_an_item_that_was_only_acted_upon_has_its_string_and_no_title(
    films: Catalog, as_records: AsRecords
) -> None:
    films.on_batch(as_records([like("new"), {"kind": "user", "user_id": "u"}], start=50))
    assert films.get(stable_id("new")) == CatalogItem("new", None, {})
    assert len(films) == 6
    assert "new" not in found(films, "n")


def test_a_later_declaration_replaces_the_earlier_one_whole(
    films: Catalog, as_records: AsRecords
) -> None:
    films.on_batch(as_records([item("1", "Heat, restored", cut="long")], start=50))
    assert films.get(stable_id("1")) == CatalogItem("1", "Heat, restored", {"cut": "long"})
    assert len(films) == 5


def test_an_action_does_not_take_the_title_away(films: Catalog, as_records: AsRecords) -> None:
    films.on_batch(as_records([like("1")], start=50))
    one = films.get(stable_id("1"))
    assert one is not None
    assert one.title == "Heat (1995)"


@pytest.mark.parametrize(
    ("attributes", "title"), [(None, None), ({}, None), ({"title": 1984}, "1984")]
)
def test_a_title_is_text_or_absent(
    as_records: AsRecords, attributes: dict[str, Any] | None, title: str | None
) -> None:
    films = catalog()
    films.on_batch(as_records([{"kind": "item", "item_id": "1", "attributes": attributes}]))
    assert films.get(stable_id("1")) == CatalogItem("1", title, {})


def test_a_repeated_event_is_not_counted_again(films: Catalog, as_records: AsRecords) -> None:
    once = like("5") | {"event_id": "once"}
    films.on_batch(as_records([once, like("4")] + [once] * 3, start=50))
    films.on_batch(as_records([once, like("4")], start=60))
    assert films.popular(1) == [stable_id("4")]


# Searching


def test_search_wants_every_word_and_ignores_case(films: Catalog) -> None:
    assert set(found(films, "heat")) == {"1", "2", "3"}
    assert found(films, "HEAT night") == ["2"]
    assert found(films, "night HEAT") == ["2"]
    assert found(films, "AMÉLIE") == ["4"]
    assert found(films, "heat porter") == []


def test_a_word_that_begins_a_word_comes_before_one_inside(films: Catalog) -> None:
    assert found(films, "heat") == ["1", "2", "3"]


def test_among_equals_the_popular_one_comes_first(films: Catalog, as_records: AsRecords) -> None:
    films.on_batch(as_records([like("2"), like("3"), like("3")], start=50))
    assert found(films, "heat") == ["2", "1", "3"]


def test_search_gives_no_more_than_the_limit(films: Catalog) -> None:
    assert found(films, "heat", limit=2) == ["1", "2"]
    assert found(films, "heat", limit=0) == []


@pytest.mark.parametrize("text", ["", "  ", "\t"])
def test_an_empty_text_gives_what_is_popular(
    films: Catalog, as_records: AsRecords, text: str
) -> None:
    films.on_batch(as_records([like("4"), like("2"), like("2")], start=50))
    assert found(films, text, limit=2) == ["2", "4"]


# What is popular


def test_popular_items_come_best_first(films: Catalog, as_records: AsRecords) -> None:
    films.on_batch(as_records([like("4"), like("2"), like("2")], start=50))
    assert films.popular(2) == [stable_id("2"), stable_id("4")]
    assert films.popular(1) == [stable_id("2")]
    assert films.popular(0) == []


def test_where_nothing_is_popular_yet_declared_items_fill_up(
    films: Catalog, as_records: AsRecords
) -> None:
    films.on_batch(as_records([like("3")], start=50))
    popular = films.popular(10)
    assert popular[0] == stable_id("3")
    assert sorted(popular) == sorted(stable_id(name) for name in TITLES)


def test_at_most_a_thousand_items_are_ranked(as_records: AsRecords) -> None:
    films = catalog()
    films.on_batch(as_records([item(f"i{n}") for n in range(1_200)] + [like("i1100")]))
    assert len(films.popular(5_000)) == 1_000
    assert films.popular(1) == [stable_id("i1100")]


# Fields, users and what is alike


def test_a_value_that_does_not_fit_is_refused_and_the_rest_is_taken(
    as_records: AsRecords,
) -> None:
    films = catalog()
    films.on_batch(as_records([item("1", "Heat", year=1995), item("2", "Casino", year="long ago")]))
    films.on_batch(as_records([item("1", "Heat, restored", year=[1995])], start=50))
    assert films.get(stable_id("1")) == CatalogItem("1", "Heat, restored", {"year": 1995})
    assert films.get(stable_id("2")) == CatalogItem("2", "Casino", {})
    assert [(r.entity, r.field) for r in films.items.refusals()] == [("2", "year"), ("1", "year")]
    year = films.items.fields()[1]
    assert (year.name, year.type, year.count, year.refused) == ("year", "number", 1, 2)


def test_users_are_known_by_what_they_declared(films: Catalog, as_records: AsRecords) -> None:
    films.on_batch(as_records([user("u", interests=["Crime", "War"], age=30), like("1", "v")], 50))
    u = stable_id("u")
    assert films.user(u) == CatalogUser("u", {"interests": ["Crime", "War"], "age": 30})
    assert films.interests(u) == ["Crime", "War"]
    assert films.user(stable_id("v")) is None
    assert films.interests(stable_id("v")) == []
    assert films.users.numbers("age", np.array([u])).tolist() == [30]
    assert [f.name for f in films.users.fields()] == ["interests", "age"]
    assert len(films) == 5


def test_items_of_a_declared_interest(as_records: AsRecords) -> None:
    films = catalog(config=CatalogConfig(interests="likes"))
    films.on_batch(
        as_records([
            item("1", genres=["Crime"]), item("2", genres=["crime", "War"]),
            item("3", genres=["War"]), item("4", likes=["Crime"]),
            user("u", likes=["Crime"]), user("v", likes="Crime"), user("w"),
        ])
    )  # fmt: skip
    assert films.of_interest(stable_id("u"), 9) == [stable_id("1"), stable_id("2")]
    assert films.of_interest(stable_id("u"), 1) == [stable_id("1")]
    assert films.of_interest(stable_id("w"), 9) == []
    assert films.of_interest(stable_id("nobody"), 9) == []


def test_a_new_item_has_neighbours_at_once(films: Catalog, as_records: AsRecords) -> None:
    assert films.content.neighbours(np.array([stable_id("6")]), 1)[0].tolist() == [[-1]]
    films.on_batch(as_records([item("6", "The Night Watch")], start=50))
    found, similarity = films.content.neighbours(np.array([stable_id("6")]), 5)
    assert found[0].tolist() == [stable_id("5"), stable_id("2"), -1, -1, -1]
    assert similarity[0, 0] > similarity[0, 1] > 0


def test_forgotten_items_are_gone_everywhere(as_records: AsRecords) -> None:
    bounded = CatalogConfig(items=AttributesConfig(entities=10))
    films = catalog(config=bounded)
    films.on_batch(as_records([item("old", "Old Heat", genres=["x"]), like("old")]))
    more = [item(f"i{n}", f"Heat {n}", genres=["x"]) for n in range(4_094)]
    films.on_batch(as_records(more, start=50))
    assert len(films) == 10
    assert films.get(stable_id("old")) is None
    assert found(films, "old") == []
    assert sorted(found(films, "heat", 99)) == [f"i{n}" for n in range(4_084, 4_094)]
    assert sorted(films.popular(99)) == sorted(stable_id(f"i{n}") for n in range(4_084, 4_094))
    neighbours, _ = films.content.neighbours(np.array([stable_id("i4090")]), 99)
    assert (neighbours >= 0).sum() == 9


def test_search_finds_the_same_in_many_titles_as_one_by_one(as_records: AsRecords) -> None:
    words = ["heat", "wheat", "night", "Night", "porter"]
    titles = {f"i{n}": f"{words[n % 5]} {words[n // 5 % 5]} {n % 7}" for n in range(1_500)}
    films = catalog()
    films.on_batch(as_records([item(name, title) for name, title in titles.items()]))
    changed = {f"i{n}": f"new {words[n % 5]}" for n in range(100)}
    films.on_batch(as_records([item(name, title) for name, title in changed.items()], start=2_000))
    for text in ("heat", "eat night", "new", "NEW wheat", "3", "porter porter 6"):
        expected = []
        for name, title in {**titles, **changed}.items():
            folded = title.casefold()
            if all(word in folded for word in text.casefold().split()):
                starts = sum(f" {word}" in f" {folded}" for word in text.casefold().split())
                expected.append((-starts, folded, stable_id(name), name))
        assert found(films, text, 50) == [name for *_, name in sorted(expected)[:50]], text


# Restarting


def test_a_restored_catalog_answers_the_same(
    films: Catalog, as_records: AsRecords, tmp_path: Path
) -> None:
    films.on_batch(as_records([like("4"), like("2"), like("2"), like("new")], start=50))
    films.on_batch(as_records([item("1", "Heat", year=1995, nested={"a": [1, None]})], start=60))
    films.on_batch(as_records([item("5", year="x"), user("u", interests=["Crime"])], start=70))
    state = films.snapshot()
    write_artefact(tmp_path / "cut", state.meta, state.shards)
    again = catalog(read_artefact(tmp_path / "cut"))
    for later in ([], [like("2")], [like("4") | {"event_id": "e50"}], [like("5"), item("6", "Hi")]):
        for one in (films, again):
            one.on_batch(as_records(later, start=100))
        assert len(again) == len(films)
        for name in [*TITLES, "new", "6"]:
            assert again.get(stable_id(name)) == films.get(stable_id(name))
        assert again.popular(99) == films.popular(99)
        assert found(again, "heat") == found(films, "heat")
        assert found(again, "") == found(films, "")
        assert again.interests(stable_id("u")) == ["Crime"]
        assert again.items.fields() == films.items.fields()
        assert again.items.refusals() == films.items.refusals()
        ids = np.array([stable_id(name) for name in TITLES])
        for a, b in zip(
            again.content.neighbours(ids, 9), films.content.neighbours(ids, 9), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_the_catalog_emits_nothing(films: Catalog) -> None:
    assert films.on_time(1) == []
    assert films.on_batch([]) == []
