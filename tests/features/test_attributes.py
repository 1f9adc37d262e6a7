"""What entities say of themselves: kept, listed, refused, read as columns, forgotten."""

from __future__ import annotations

import json
import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.attributes import Attributes, AttributesConfig
from streaming.ids import stable_id, stable_ids
from streaming.joiner import item_tokens

Described = tuple[str, dict[str, Any] | None]


def heard(*described: Described, config: AttributesConfig | None = None) -> Attributes:
    attributes = Attributes(config or AttributesConfig())
    hear(attributes, described)
    return attributes


def hear(attributes: Attributes, described: Any) -> None:
    texts = [None if one is None else json.dumps(one) for _, one in described]
    attributes.hear([name for name, _ in described], texts)


def said(attributes: Attributes, name: str) -> dict[str, Any]:
    found = attributes.get(stable_id(name))
    assert found is not None
    assert found[0] == name
    return found[1]


def state_of(attributes: Attributes) -> dict[str, Any]:
    tables = attributes.tables("x")
    return {n: (t.to_pylist(), t.schema.metadata) for n, t in tables.items()}


# Fields and their types


def test_fields_are_listed_with_type_count_and_example() -> None:
    attributes = heard(
        (
            "a",
            {"title": "Heat", "year": 1995, "genres": ["Crime"], "rated": True, "extra": {"x": 1}},
        ),
        ("b", {"year": 1999.5, "sizes": [1, 2.5], "mixed": [1, "a"], "none": None, "later": []}),
        ("c", {"later": ["now"], "genres": []}),
    )
    listed = {f.name: (f.type, f.count, f.example, f.since) for f in attributes.fields()}
    assert listed == {
        "title": ("text", 1, '"Heat"', "a"),
        "year": ("number", 2, "1995", "a"),
        "genres": ("texts", 2, '["Crime"]', "a"),
        "rated": ("flag", 1, "true", "a"),
        "extra": ("nested", 1, '{"x":1}', "a"),
        "sizes": ("numbers", 1, "[1,2.5]", "b"),
        "mixed": ("nested", 1, '[1,"a"]', "b"),
        "later": ("texts", 2, "[]", "b"),
    }
    assert said(attributes, "b") == {
        "year": 1999.5,
        "sizes": [1, 2.5],
        "mixed": [1, "a"],
        "later": [],
    }


def test_a_value_of_another_type_is_refused_and_the_old_one_stays() -> None:
    attributes = heard(
        ("a", {"year": 1995, "cut": "long"}),
        ("a", {"year": "nineteen", "cut": "short"}),
        ("b", {"year": ["x"], "cut": "new"}),
    )
    assert said(attributes, "a") == {"year": 1995, "cut": "short"}
    assert said(attributes, "b") == {"cut": "new"}
    year = attributes.fields()[0]
    assert (year.type, year.count, year.refused) == ("number", 1, 2)
    assert [str(r) for r in attributes.refusals()] == [
        "a: year = 'nineteen': a text, where a was first to send a number: send that, or use a"
        " field of another name",
        "b: year = ['x']: a list of texts, where a was first to send a number: send that, or use a"
        " field of another name",
    ]


def test_only_the_newest_refusals_are_kept_and_all_are_counted() -> None:
    attributes = heard(("a", {"year": 1}), *((f"i{n}", {"year": "x"}) for n in range(250)))
    assert [r.entity for r in attributes.refusals()] == [f"i{n}" for n in range(150, 250)]
    assert attributes.fields()[0].refused == 250


def test_a_title_is_written_as_text_whatever_comes() -> None:
    attributes = heard(("a", {"title": 1984}), ("b", {"title": ["x"]}), ("c", {"title": None}))
    assert [said(attributes, n) for n in "abc"] == [{"title": "1984"}, {"title": "['x']"}, {}]
    assert attributes.fields()[0].refused == 0


def test_ten_thousand_tags_are_cut_and_counted() -> None:
    tags = [f"t{n % 9_000}" for n in range(10_000)]
    attributes = heard(("a", {"tags": tags, "sizes": [5] * 10_000}))
    assert said(attributes, "a") == {"tags": tags[:64], "sizes": [5]}
    assert [f.cut for f in attributes.fields()] == [1, 1]
    ids = stable_ids(["a"])
    assert attributes.tokens(ids, ["tags"]).lengths.tolist() == [64]


def test_fields_beyond_the_bound_are_refused_and_counted() -> None:
    config = AttributesConfig(fields=3)
    attributes = heard(
        ("a", {f"f{n}": n for n in range(10)}), ("b", {"f9": 1, "f2": 5}), config=config
    )
    assert said(attributes, "a") == {"f0": 0, "f1": 1, "f2": 2}
    assert said(attributes, "b") == {"f2": 5}
    assert len(attributes.fields()) == 3
    assert attributes.beyond == 8
    assert "raise `fields`" in attributes.refusals()[0].reason


def test_numbers_no_float_can_hold_are_kept_as_they_came() -> None:
    attributes = heard(("a", {"isbn": 10**400, "old": None}), ("b", {"isbn": 12345678901234567}))
    assert said(attributes, "a") == {"isbn": 10**400}
    assert attributes.numbers("isbn", stable_ids(["a", "b"])).tolist() == [
        np.inf,
        12345678901234568.0,
    ]


def test_strings_stay_as_they_are() -> None:
    names = ["a\x00", "漢字", " ", "a" * 256]
    attributes = heard(*((name, {"x": f"{name}\x00"}) for name in names))
    assert attributes.names(stable_ids(names)) == names
    assert attributes.names(stable_ids(["unheard"])) == [None]
    assert [said(attributes, name)["x"] for name in names] == [f"{name}\x00" for name in names]


# Columns

CATALOG: tuple[Described, ...] = (
    ("a", {"year": 1995, "genres": ["Crime", "Drama"], "title": "Heat", "hot": True}),
    ("b", {"genres": ["Drama"], "title": "In the Heat"}),
    ("c", None),
)
IDS = stable_ids(["b", "nobody", "a", "c"])


def test_numbers_are_read_as_a_column() -> None:
    attributes = heard(*CATALOG)
    np.testing.assert_array_equal(attributes.numbers("year", IDS), [np.nan, np.nan, 1995, np.nan])
    np.testing.assert_array_equal(attributes.numbers("hot", IDS), [np.nan, np.nan, 1, np.nan])
    assert np.isnan(attributes.numbers("genres", IDS)).all()
    assert np.isnan(attributes.numbers("unheard of", IDS)).all()
    assert attributes.numbers("year", IDS[:0]).shape == (0,)


def test_tokens_are_those_of_samples() -> None:
    attributes = heard(*CATALOG)
    for fields in (["genres", "year"], ["year", "genres"], ["title", "unheard of", "hot"], []):
        found = attributes.tokens(IDS, fields)
        described: list[dict[str, Any]] = [CATALOG[1][1] or {}, {}, CATALOG[0][1] or {}, {}]
        expected = [item_tokens(one, fields) for one in described]
        assert found.lengths.tolist() == [len(tokens) for tokens in expected]
        assert found.values.tolist() == [token for tokens in expected for token in tokens]


def test_words_and_ngrams_of_a_field() -> None:
    attributes = heard(*CATALOG)
    assert attributes.texts("genres", IDS) == ["Drama", "", "Crime Drama", ""]
    words = attributes.words("title", IDS)
    assert words.lengths.tolist() == [3, 0, 1, 0]
    assert words.values[2] == words.values[3]
    assert attributes.ngrams("title", IDS, 3).lengths.tolist() == [11, 0, 4, 0]


# What does not depend on how events come

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.just(2.5), st.sampled_from(["x", "y"]),
    st.lists(st.sampled_from(["x", "y", "z"]), max_size=4), st.lists(st.integers(0, 5), max_size=4),
    st.just({"deep": [1]}), st.just([1, "x"]),
)  # fmt: skip
EVENTS = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.none() | st.dictionaries(st.sampled_from(["f", "g", "h", "title"]), VALUES, max_size=4),
    ),
    max_size=25,
)
SMALL = AttributesConfig(values=2, fields=3)


def kind_of(value: Any) -> str:
    one = {bool: "flag", int: "number", float: "number", str: "text", dict: "nested"}
    if not isinstance(value, list):
        return one[type(value)]
    inside = {one.get(type(v), "nested") for v in value}
    if not value:
        return "undecided"
    return f"{inside.pop()}s" if inside in ({"text"}, {"number"}) else "nested"


def slowly(
    events: list[Described], config: AttributesConfig
) -> tuple[dict[str, Any], dict[str, str]]:
    """The descriptions and the types that a catalog which takes one value at a time ends with."""
    known: dict[str, Any] = {}
    types: dict[str, str] = {}
    for name, described in events:
        old = known.setdefault(name, {})
        if described is None:
            continue
        new: dict[str, Any] = {}
        known[name] = new
        for field, value in described.items():
            if value is None:
                continue
            if field == "title":
                types.setdefault("title", "text")
                new["title"] = value if isinstance(value, str) else str(value)
                continue
            if field in types or len(types) < config.fields:
                kind = kind_of(value)
                if types.setdefault(field, kind) == "undecided":
                    types[field] = kind
                both_lists = types[field] == "nested" and isinstance(value, list)
                if kind in (types[field], "undecided") or both_lists:
                    few = kind in ("texts", "numbers") and len(value) > config.values
                    new[field] = list(dict.fromkeys(value))[: config.values] if few else value
                    continue
            if field in old:
                new[field] = old[field]
    return known, types


@given(EVENTS, st.lists(st.integers(0, 25), max_size=4))
def test_any_split_into_batches_leaves_the_same_state(
    events: list[Described], cuts: list[int]
) -> None:
    whole = heard(*events, config=SMALL)
    split = Attributes(SMALL)
    bounds = [0, *sorted(cuts), len(events)]
    for start, end in pairwise(bounds):
        hear(split, events[start:end])
    assert state_of(split) == state_of(whole)
    known, types = slowly(events, SMALL)
    assert {name: said(whole, name) for name in known} == known
    assert {f.name: f.type for f in whole.fields()} == types


@given(EVENTS, EVENTS)
def test_a_restored_one_goes_on_as_if_nothing_had_been(
    before: list[Described], after: list[Described]
) -> None:
    whole = heard(*before, config=SMALL)
    again = Attributes(SMALL)
    again.restore("x", whole.tables("x"))
    assert state_of(again) == state_of(whole)
    for one in (whole, again):
        hear(one, after)
    assert state_of(again) == state_of(whole)
    assert again.newest(3).tolist() == whole.newest(3).tolist()
    ids = stable_ids("abcd")
    np.testing.assert_array_equal(again.numbers("f", ids), whole.numbers("f", ids))
    assert (
        again.tokens(ids, ["g", "f"]).values.tolist()
        == whole.tokens(ids, ["g", "f"]).values.tolist()
    )


# Bounds


@pytest.mark.parametrize("at_once", [1_000, 4_096, 20_000])
def test_who_was_heard_of_longest_ago_is_forgotten(at_once: int) -> None:
    attributes = Attributes(AttributesConfig(entities=500))
    names = [f"i{n}" for n in range(9_000)]
    for n in range(0, 9_000, 3):
        names[n] = "i0"  # is mentioned again and again
    texts = [json.dumps({"n": n}) if n < 3 or n % 3 else None for n in range(9_000)]
    forgotten: list[int] = []
    for start in range(0, len(names), at_once):
        changes = attributes.hear(names[start : start + at_once], texts[start : start + at_once])
        forgotten += [i for change in changes for i in change.forgotten.tolist()]
    assert len(attributes) < 500 + 4_096
    assert said(attributes, "i0") == {"n": 0}
    assert attributes.get(stable_id("i1")) is None
    assert stable_id("i1") in forgotten
    assert said(attributes, "i8999") == {"n": 8999}
    assert np.isnan(attributes.numbers("n", stable_ids(["i1"])))[0]
    # 9,000 heard: the last look was at the 8,192nd, since when every third was the old one.
    assert len(attributes) == 500 + len({n for n in names[8_192:] if n != "i0"})
    assert len(forgotten) + len(attributes) == len(set(names))


def test_another_thread_sees_every_entity_whole() -> None:
    attributes = heard(("a", {"x": 0, "y": [0, 0]}))
    stop, wrong, seen = threading.Event(), [], set()

    def read() -> None:
        while not stop.is_set():
            found = said(attributes, "a")
            seen.add(found["x"])
            if (
                found["y"] != [found["x"]] * 2
                or attributes.numbers("x", stable_ids(["a"]))[0] < found["x"]
            ):
                wrong.append(found)

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(300):
        hear(
            attributes,
            [("a", {"x": n, "y": [n, n]}), *((f"i{n}-{k}", {"x": k}) for k in range(20))],
        )
    stop.set()
    reader.join()
    assert wrong == []
    assert seen


def test_nothing_is_heard_of_nobody() -> None:
    attributes = heard()
    assert len(attributes) == 0
    assert attributes.get(0) is None
    assert attributes.fields() == []
    assert attributes.newest(5).tolist() == []
    assert isinstance(attributes.tables("x")["x"], pa.Table)
