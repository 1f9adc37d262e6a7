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
from features.newcomers import NewcomersConfig
from features.popularity import ListTrust, Shares
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


def shown(shares: Shares) -> list[int]:
    """The items, best first."""
    items, parts = shares
    return [int(i) for i in items[np.argsort(-parts, kind="stable")]]


def ids(*names: str) -> list[int]:
    return [stable_id(name) for name in names]


def test_items_of_a_declared_interest(as_records: AsRecords) -> None:
    films = catalog(config=CatalogConfig(interests="likes"))
    films.on_batch(
        as_records([
            item("1", genres=["Crime"]), item("2", genres=["crime", "War"]),
            item("3", genres=["War"]), item("4", likes=["Crime"]), item("5", genres=["Crime"]),
            user("u", likes=["Crime"]), user("w"),
        ])
    )  # fmt: skip
    assert films.interests(stable_id("u")) == ["Crime"]
    assert films.interests(stable_id("w")) == films.interests(stable_id("nobody")) == []

    def of_crime() -> list[int]:
        return shown(films.of_interest(["Crime"], ListTrust(), 9))

    assert set(of_crime()) == set(ids("1", "5", "2"))  # by what they say alone
    assert of_crime()[-1] == stable_id("2")
    films.on_batch(as_records([like("3")] * 3 + [like("5")], start=50))
    assert of_crime()[0] == stable_id("5")  # what is liked of it stands first
    assert set(of_crime()) == set(ids("1", "5", "2"))
    assert shown(films.of_interest(["Crime", "War"], ListTrust(), 9))[0] == stable_id("3")
    assert shown(films.of_interest(["Opera"], ListTrust(), 9)) == []


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


# What is hot, and what is new


def hot(films: Catalog, cells: list[list[int]]) -> list[int]:
    return shown(films.hot_for(cells, ListTrust(window=1.0, cell=1.0)))


def test_actions_count_for_everyone_and_for_the_people_of_ones_kind(
    films: Catalog, as_records: AsRecords
) -> None:
    films.on_batch(
        as_records([
            user("ann", gender="F", age=25), user("eve", gender="F", age=35),
            user("bob", gender="M"), user("new", gender="F", age=25), user("odd", gender="X"),
            like("1", "ann"), like("2", "eve"), like("2", "eve"),
            *[like("3", "bob")] * 4, *[like("4", "nobody")] * 9,
        ], start=50)
    )  # fmt: skip
    everyone, of_each, together = films.cells(stable_id("new"))
    assert (len(everyone), len(of_each), len(together)) == (1, 2, 1)
    assert hot(films, [everyone]) == ids("4", "3", "2", "1")
    gender, age = of_each
    assert films.hot.top("hour", 9, gender)[0].tolist() == ids("2", "1")
    assert films.hot.top("hour", 9, age)[0].tolist() == ids("1")
    assert films.hot.top("hour", 9, together[0])[0].tolist() == ids("1")
    assert hot(films, films.cells(stable_id("new")))[0] == stable_id("1")
    assert hot(films, films.cells(stable_id("bob")))[0] == stable_id("3")
    for unknown in ("odd", "nobody", "stranger"):
        assert films.cells(stable_id(unknown)) == [everyone]


def test_what_did_not_please_is_not_hot(films: Catalog, as_records: AsRecords) -> None:
    rates = [("1", 1.0), ("1", 2.0), ("2", 3.0), ("3", 5.0)]
    films.on_batch(
        as_records([
            {"kind": "rate", "user_id": "u", "item_id": name, "value": value}
            for name, value in rates
        ], start=50)
    )  # fmt: skip
    assert films.hot.top("day", 9)[0].tolist() == ids("3", "2")


def test_a_users_field_and_a_category_of_one_name_are_two_cells(as_records: AsRecords) -> None:
    films = catalog(config=CatalogConfig(cells=("genres",)))
    films.on_batch(
        as_records([item("1", genres=["War"]), item("2"), user("u", genres=["War"]), like("2")])
    )
    assert shown(films.of_interest(["War"], ListTrust(), 9)) == ids("1")
    assert hot(films, films.cells(stable_id("u"))) == ids("2")


def test_the_clock_is_event_time(films: Catalog, as_records: AsRecords) -> None:
    def liked(name: str, at: str) -> dict[str, Any]:
        return like(name) | {"at": at}

    films.on_batch(as_records([liked("1", "2001-01-01T00:00:00Z")] * 5, start=50))
    films.on_batch(as_records([liked("2", "2001-01-03T00:00:00Z")] * 2, start=60))
    assert films.hot.top("week", 1)[0].tolist() == ids("1")
    assert films.hot.top("hour", 1)[0].tolist() == ids("2")
    late = [liked("1", "2023-01-01T01:00:00Z"), liked("2", "2022-12-20T01:00:00Z")]
    films.on_batch(as_records(late, start=70))
    assert films.hot.top("week", 2)[1] == pytest.approx([1.0, np.exp(-12 / 7)], rel=1e-3)


def test_lists_are_made_anew_in_time(as_records: AsRecords) -> None:
    films = catalog()
    declared = [item(f"i{n}") for n in range(2_000)]
    films.on_batch(as_records([*declared, *(like(f"i{n}") for n in range(2_000))]))
    held = films.hot
    films.on_batch(as_records([like("i7")] * 3, start=5_000))
    assert films.hot is held  # 3 changes among 2,000
    before = films.snapshot()
    films.on_time(1_000_000_000)
    assert films.hot is not held
    assert films.hot.top("hour", 1)[0].tolist() == ids("i7")
    made = films.hot
    films.on_time(1_000_000_001)
    assert films.hot is made  # nothing has changed
    films.on_batch(as_records([like("i8")] * 5, start=6_000))
    films.on_time(1_000_500_000)
    assert films.hot is made  # too early
    films.on_time(1_001_000_000)
    assert films.hot.top("hour", 1)[0].tolist() == ids("i8")
    after = films.snapshot()
    films.on_time(1_009_000_000)
    assert films.snapshot().shards["popularity"].equals(after.shards["popularity"])
    assert not before.shards["popularity"].equals(after.shards["popularity"])


def test_lists_cool_down_while_nothing_pleases(films: Catalog, as_records: AsRecords) -> None:
    films.on_batch(as_records([like("1") | {"at": "2023-01-02T00:00:00Z"}] * 5, start=50))
    films.on_time(1_000_000_000)
    before = films.hot.top("week", 1)[1]
    ignored = {"kind": "rate", "user_id": "u", "item_id": "1", "value": 1}
    films.on_batch(as_records([ignored | {"at": "2023-01-09T00:00:00Z"}], start=60))
    films.on_time(1_001_000_000)
    assert films.hot.top("week", 1)[1] == pytest.approx(before / np.e, rel=1e-3)
    held = films.hot
    films.on_time(1_002_000_000)
    assert films.hot is held


YOUNG = CatalogConfig(newcomers=NewcomersConfig(days=1.0, actions=2, most=4, neighbours=2))


def young(films: Catalog) -> list[int]:
    found: list[int] = films.young.items.tolist()
    return found


def test_an_item_is_young_until_it_is_known(as_records: AsRecords) -> None:
    films = catalog(config=YOUNG)
    films.on_batch(as_records([item("1"), item("2"), like("3"), item("1")]))
    assert young(films) == ids("3", "2", "1")  # the newest first, declared or only acted upon
    assert films.young.actions.tolist() == [1, 0, 0]
    films.on_batch(as_records([like("3"), item("4"), item("5")], start=10))
    assert young(films) == ids("5", "4", "2")  # 3 has grown up, and 1 is one too many
    tomorrow = {"at": "2023-01-02T00:00:11Z"}
    films.on_batch(as_records([item("6") | tomorrow], start=20))
    assert young(films) == ids("6", "5")


def test_young_items_know_their_grown_neighbours(as_records: AsRecords) -> None:
    films = catalog(config=YOUNG)
    grown = [like(name) for name in ("a", "b", "c")] * 2
    films.on_batch(
        as_records([
            item("a", "Heat One"), item("b", "Heat Two"), item("c", "Amélie One"),
            item("d", "Heat Zero"), *grown,
            item("x", "Heat Three"), item("y", "Heat Four"), item("z", "Zorba"),
        ])
    )  # fmt: skip
    assert young(films) == ids("z", "y", "x", "d")
    none, *alike = films.young.neighbours.tolist()
    assert none == [-1, -1]
    assert all(sorted(found) == sorted(ids("a", "b")) for found in alike)
    assert films.young.similarity[0].tolist() == [0, 0]
    assert (films.young.similarity[1:] > 0).all()
    films.on_batch(as_records([item("z", "Amélie Two")], start=50))
    films.on_time(1)
    assert stable_id("c") in films.young.neighbours[0]


def test_where_many_items_come_at_once_neighbours_are_found_little_by_little(
    as_records: AsRecords,
) -> None:
    films = catalog(config=CatalogConfig(newcomers=NewcomersConfig(actions=1, most=300)))
    films.on_batch(as_records([item("old", genres=["War"]), like("old")]))
    films.on_batch(as_records([item(f"n{n}", genres=["War"]) for n in range(300)], start=2))

    def have_neighbours() -> int:
        return int((films.young.neighbours[:, 0] == stable_id("old")).sum())

    assert len(films.young.items) == 300
    found = [have_neighbours()]
    for turn in range(1, 4):
        films.on_time(turn * 2_000_000_000_000_000)
        found.append(have_neighbours())
    assert found == [128, 256, 300, 300]


def test_who_had_no_neighbours_finds_them_when_the_catalog_has_grown(
    as_records: AsRecords,
) -> None:
    films = catalog(config=YOUNG)
    films.on_batch(as_records([item("new", "Heat Zero")]))
    assert films.young.neighbours.tolist() == [[-1, -1]]
    films.on_batch(as_records([item("a", "Heat One"), like("a"), like("a")], start=10))
    films.on_batch(as_records([like("a")], start=20))
    assert films.young.neighbours[0].tolist() == [stable_id("a"), -1]


@pytest.mark.parametrize("size", [1, 7, 60, 4_096])
def test_the_state_does_not_depend_on_where_batches_end(as_records: AsRecords, size: int) -> None:
    """Users and items that say something else of themselves between actions, and are forgotten."""
    rng = np.random.default_rng(0)
    bound = AttributesConfig(entities=15)
    config = CatalogConfig(items=bound, users=bound)

    def event() -> dict[str, Any]:
        name = str(rng.integers(40))
        return [
            lambda: item(name, genres=[str(rng.integers(3))]),
            lambda: user(name, gender=str(rng.integers(2)), age=int(rng.integers(2))),
            lambda: like(name, str(rng.integers(40))),
        ][rng.choice(3, p=[0.2, 0.1, 0.7])]()

    quiet = [item(f"i{n}") for n in range(4_000)] + [user(f"u{n}") for n in range(4_000)]
    events = as_records([*quiet, *(event() for _ in range(400))])
    whole, parts = catalog(config=config), catalog(config=config)
    whole.on_batch(events)
    parts.on_batch(events[: len(quiet)])
    for start in range(len(quiet), len(events), size):
        parts.on_batch(events[start : start + size])
    assert len(whole.hot.cells) > 8
    expected = whole.snapshot().shards
    for name, table in parts.snapshot().shards.items():
        assert table.equals(expected[name]), name


def test_an_action_counts_as_what_its_item_was_though_that_is_forgotten(
    as_records: AsRecords,
) -> None:
    films = catalog(config=CatalogConfig(items=AttributesConfig(entities=3)))
    quiet = [item(f"i{n}") for n in range(4_090)]
    acted = [item("war", genres=["War"]), like("war"), *(like(f"x{n}") for n in range(9))]
    films.on_batch(as_records([*quiet, *acted]))
    assert films.get(stable_id("war")) is None
    assert len(films.hot.cells) == 2  # everyone's, and that of war


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
        assert young(again) == young(films)
        for window in films.hot.windows:
            for cell in films.hot.cells.tolist():
                assert again.hot.top(window, 9, cell)[0].tolist() == (
                    films.hot.top(window, 9, cell)[0].tolist()
                )
        assert again.items.fields() == films.items.fields()
        assert again.items.refusals() == films.items.refusals()
        known = np.array(ids(*TITLES))
        for a, b in zip(
            again.content.neighbours(known, 9), films.content.neighbours(known, 9), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_a_cut_of_a_release_without_hot_lists_is_taken_up(
    films: Catalog, as_records: AsRecords
) -> None:
    state = films.snapshot()
    shards = {k: v for k, v in state.shards.items() if k not in ("popularity", "newcomers")}
    again = catalog(Artefact({"items": 5, "users": 0}, shards))
    assert len(again) == 5
    again.on_batch(as_records([like("2")], start=50))
    assert again.hot.top("day", 9)[0].tolist() == ids("2")


def test_the_catalog_emits_nothing(films: Catalog) -> None:
    assert films.on_time(1) == []
    assert films.on_batch([]) == []
