"""Items that are alike by what they say of themselves, and first vectors from them."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.attributes import Attributes, AttributesConfig
from features.content import ContentIndex, evidence, handed_over
from features.content_features import ContentConfig, Features
from streaming.ids import stable_id, stable_ids
from streaming.sources.movielens import MovieLens

Ids = NDArray[np.int64]
Described = dict[str, dict[str, Any]]


def features(described: Described, config: ContentConfig | None = None) -> tuple[Ids, Features]:
    """Items and their features, each item once."""
    attributes = Attributes(AttributesConfig())
    attributes.hear(
        ["first"], ['{"g":["a"],"t":"red","n":1}']
    )  # fields have the same numbers always
    (change,) = attributes.hear(list(described), [json.dumps(d) for d in described.values()])
    config = config or ContentConfig()
    return change.declared, Features.of(change.cells, len(change.declared), config)


def index(described: Described, config: ContentConfig | None = None) -> ContentIndex:
    made = ContentIndex(config or ContentConfig())
    if described:
        made.put(*features(described, config))
    return made


def nearest(made: ContentIndex, name: str, count: int = 9, **among: Any) -> list[tuple[int, float]]:
    found, similarity = made.neighbours(stable_ids([name]), count, **among)
    pairs = zip(found[0].tolist(), similarity[0].tolist(), strict=True)
    return [(item, round(like, 4)) for item, like in pairs if item >= 0]


FILMS: Described = {
    "heat": {"title": "Heat", "genres": ["Crime", "Drama"], "year": 1995},
    "casino": {"title": "Casino", "genres": ["Crime", "Drama"], "year": 1995},
    "toys": {"title": "Toy Story", "genres": ["Animation"], "year": 1995},
    "more toys": {"title": "Toy Story 2", "genres": ["Animation"], "year": 1999},
    "alone": {"title": "Alone"},
}


# What is alike


def test_equal_fields_count_alike_and_those_of_one_alone_against() -> None:
    made = index({
        "a": {"genres": ["x", "y", "z"], "brand": "b"},
        "b": {"genres": ["x", "y", "z"], "brand": "other"},
        "c": {"brand": "b"},
    })  # fmt: skip
    # One block of two is the same; one block of two, where the other has but that one.
    assert nearest(made, "a") == [(stable_id("c"), round(math.sqrt(0.5), 4)), (stable_id("b"), 0.5)]


def test_films_of_one_kind_are_neighbours() -> None:
    made = index(FILMS)
    assert nearest(made, "heat")[0][0] == stable_id("casino")
    assert nearest(made, "more toys")[0][0] == stable_id("toys")
    assert nearest(made, "alone") == []
    assert nearest(made, "unheard of") == []
    assert len(nearest(made, "heat", 1)) == 1
    assert nearest(made, "heat", 0) == []


def test_near_numbers_are_alike() -> None:
    made = index({str(year): {"year": year} for year in (1994, 1989, 1962, 2003)})
    like = dict(nearest(made, "1994"))
    assert like[stable_id("1989")] > like.get(stable_id("2003"), 0) > 0
    assert stable_id("1962") not in like or like[stable_id("1962")] < like[stable_id("1989")]


def test_rare_values_say_more_than_common_ones() -> None:
    described: Described = {f"i{n}": {"tags": ["common"]} for n in range(50)}
    described |= {"a": {"tags": ["common", "rare"]}, "b": {"tags": ["rare", "b"]}}
    described |= {"c": {"tags": ["common", "c"]}}
    like = dict(nearest(index(described), "a", 60))
    assert like[stable_id("b")] > 2 * like[stable_id("c")] > 0


def test_ngrams_find_words_in_scripts_without_blanks() -> None:
    described: Described = {
        "a": {"title": "東京物語"},
        "b": {"title": "東京暮色"},
        "c": {"title": "羅生門"},
    }
    assert nearest(index(described), "a") == []
    assert [i for i, _ in nearest(index(described, ContentConfig(ngrams=2)), "a")] == [
        stable_id("b")
    ]


def test_only_those_asked_for_are_found() -> None:
    among = stable_ids(["toys", "alone", "unheard of"])
    found = nearest(index(FILMS), "heat", among=among)
    assert [item for item, _ in found] == [stable_id("toys")]
    assert nearest(index(FILMS), "heat", among=among[:0]) == []


def test_things_that_are_no_items_have_neighbours_too() -> None:
    made = index(FILMS)
    wanted = Features.of_values("genres", ["ANIMATION", "unheard of"], ContentConfig())
    found, similarity = made.like(wanted, 3)
    assert set(found[0].tolist()) == {stable_id("toys"), stable_id("more toys"), -1}
    assert similarity[0, 2] == 0


# Against a slow way to say the same

VALUES = st.fixed_dictionaries({}, optional={
    "g": st.lists(st.sampled_from("abcde"), max_size=4),
    "t": st.sampled_from(["red fox", "red hen", "old hen", "fox"]),
    "n": st.sampled_from([1, 2, 1000, 1001]),
})  # fmt: skip
CATALOGS = st.dictionaries(st.sampled_from([f"i{n}" for n in range(9)]), VALUES, max_size=9)


def blocks_of(ids: Ids, found: Features) -> dict[int, dict[int, set[int]]]:
    items: dict[int, dict[int, set[int]]] = {int(i): {} for i in ids}
    for owner, feature, block in zip(found.owner, found.ids, found.blocks, strict=True):
        items[int(ids[owner])].setdefault(int(block), set()).add(int(feature))
    return items


def slowly(items: dict[int, dict[int, set[int]]], one: int) -> dict[int, float]:
    """The similarity of one item to each other that is at all like it."""
    held = Counter(f for blocks in items.values() for features in blocks.values() for f in features)
    idf = {f: math.log1p(len(items) / n) for f, n in held.items()}

    def length(features: set[int]) -> float:
        return math.sqrt(sum(idf[f] ** 2 for f in features))

    def cosine(a: set[int], b: set[int]) -> float:
        return sum(idf[f] ** 2 for f in a & b) / (length(a) * length(b))

    mine = items[one]
    like = {
        other: sum(cosine(mine[b], theirs[b]) for b in mine.keys() & theirs.keys())
        / math.sqrt(len(mine) * len(theirs))
        for other, theirs in items.items()
        if other != one and mine and theirs
    }
    return {other: value for other, value in like.items() if value > 0}


@pytest.mark.parametrize("lists_first", [False, True])
@given(CATALOGS, CATALOGS, st.lists(st.sampled_from([f"i{n}" for n in range(9)]), max_size=3))
def test_neighbours_are_those_of_the_formula(
    lists_first: bool, before: Described, after: Described, gone: list[str]
) -> None:
    made = index(before)
    if lists_first:
        made._make_lists()  # which otherwise happens after a thousand changes
    if after:
        made.put(*features(after))
    made.remove(stable_ids(gone))
    now = {name: d for name, d in {**before, **after}.items() if name not in gone}
    if not now:
        assert len(made) == 0
        return
    ids, found = features(now)
    expected = {int(i): slowly(blocks_of(ids, found), int(i)) for i in ids}
    neighbours, similarity = made.neighbours(ids, 9)
    for row, item in enumerate(ids.tolist()):
        got = {
            i: s
            for i, s in zip(neighbours[row].tolist(), similarity[row].tolist(), strict=True)
            if i >= 0
        }
        assert got == pytest.approx(expected[item], rel=1e-5)
        ranked = [(-s, i) for i, s in got.items()]
        assert ranked == sorted(ranked)


def test_common_features_are_not_followed_beyond_the_bound() -> None:
    described: Described = {f"i{n}": {"tags": ["common", f"t{n // 2}"]} for n in range(200)}
    bounded = index(described, ContentConfig(postings=10))
    assert len(nearest(bounded, "i0", 99)) == 1
    assert len(nearest(index(described), "i0", 99)) == 99
    # One feature is followed however common it is: else some items had no neighbours at all.
    only_common = index(
        {f"i{n}": {"tags": ["common"]} for n in range(50)}, ContentConfig(postings=10)
    )
    assert len(nearest(only_common, "i0", 99)) == 49


def test_what_an_item_is_compared_by_is_bounded() -> None:
    described: Described = {"a": {"x": " ".join(f"w{n}" for n in range(999))}, "b": {"x": "w1 z"}}
    made = index(described, ContentConfig(features=5))
    assert len(features(described)[1].ids) == 1 + 64 + 3
    assert made._runs.lengths.rows[:2].tolist() == [5, 3]


def test_replacing_items_for_long_costs_no_memory() -> None:
    made = ContentIndex(ContentConfig())
    for turn in range(40):
        made.put(*features({f"i{n}": {"tags": [f"t{turn}-{n}", f"u{turn}"]} for n in range(500)}))
    assert len(made) == 500
    assert len(made._features) < 2_000 + 1_024 + 1_000  # of 20,000 ever
    assert len(nearest(made, "i3", 600)) == 499
    made.remove(stable_ids([f"i{n}" for n in range(500)]))
    assert len(made) == 0


# First vectors


def test_a_first_vector_is_the_weighted_mean_of_the_neighbours() -> None:
    made = index(FILMS)
    known = stable_ids(["toys", "casino"])
    vectors = np.array([[1, 0], [0, 1]], np.float32)
    items = stable_ids(["heat", "alone", "unheard of"])
    first, strength = made.first_vectors(items, known, vectors)
    like = dict(nearest(made, "heat"))
    casino, toys = like[stable_id("casino")], like[stable_id("toys")]
    expected = np.array([toys, casino]) / (toys + casino)
    np.testing.assert_allclose(first[0], expected, atol=1e-3)
    assert strength[0] == pytest.approx((toys + casino) / 2, abs=1e-3)
    assert not first[1:].any()
    assert not strength[1:].any()
    nothing, none = made.first_vectors(items, known[:0], vectors[:0])
    assert not nothing.any()
    assert not none.any()


def test_evidence_hands_over_little_by_little() -> None:
    actions = np.arange(0, 1_000, 10)
    weights = evidence(actions, np.full(100, 0.5, np.float32))
    assert weights[0] == 0
    assert (np.diff(weights) > 0).all()
    assert weights[-1] > 0.99
    first, learnt = np.zeros((100, 3), np.float32), np.ones((100, 3), np.float32)
    mixed = handed_over(first, learnt, weights)
    assert np.abs(np.diff(mixed, axis=0)).max() < 0.7
    np.testing.assert_array_equal(mixed[:, 0], weights)
    alone = evidence(np.array([0, 5]), np.zeros(2, np.float32))
    assert alone.tolist() == [1, 1]


# On films that people rated


@dataclass(frozen=True)
class Movies:
    """The films, their genres, and who liked what: a column for each of `ids`."""

    content: ContentIndex
    ids: Ids
    genres: list[set[str]]
    liked: NDArray[np.float32]  # (users, films): 1 for four stars or more


@pytest.fixture(scope="module")
def movies() -> Movies:
    source = MovieLens()
    events = source.batch(0, source.total)
    declared = events.filter(pc.equal(events["kind"], "item"))
    attributes, content = Attributes(AttributesConfig()), ContentIndex(ContentConfig())
    names, texts = declared["item_id"].to_pylist(), declared["attributes"].to_pylist()
    for change in attributes.hear(names, texts):
        content.put(
            change.declared, Features.of(change.cells, len(change.declared), ContentConfig())
        )
    rated = events.filter(pc.greater_equal(events["value"], 4.0))
    ids = stable_ids(names)
    films = pc.index_in(rated["item_id"], declared["item_id"]).to_numpy()
    users = rated["user_id"].dictionary_encode()
    liked = np.zeros((len(users.dictionary), len(ids)), np.float32)
    liked[users.indices.to_numpy(), films] = 1
    return Movies(content, ids, [set(json.loads(t).get("genres", [])) for t in texts], liked)


def shared(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(1, len(a | b))


def test_neighbours_of_films_share_genres_far_above_chance(movies: Movies) -> None:
    place = {item: n for n, item in enumerate(movies.ids.tolist())}
    some = np.arange(0, len(movies.ids), 40)
    found, _ = movies.content.neighbours(movies.ids[some], 10)
    pairs = [
        (n, place[i]) for n, row in zip(some, found.tolist(), strict=True) for i in row if i >= 0
    ]
    alike = np.mean([shared(movies.genres[a], movies.genres[b]) for a, b in pairs])
    others = np.random.default_rng(0).integers(0, len(movies.ids), len(pairs))
    by_chance = np.mean(
        [
            shared(movies.genres[a], movies.genres[b])
            for (a, _), b in zip(pairs, others, strict=True)
        ]
    )
    assert len(pairs) > 9.5 * len(some)
    assert alike > 0.6
    assert alike > 3.5 * by_chance


def test_hidden_films_are_ranked_by_first_vectors_for_who_likes_them(movies: Movies) -> None:
    """A tenth of the films has no vector of its own; the others have those of a factorisation."""
    rng = np.random.default_rng(1)
    often = np.flatnonzero(movies.liked.sum(axis=0) >= 5)
    hidden = rng.choice(often, len(often) // 10, replace=False)
    known = np.setdiff1d(often, hidden)
    seen = movies.liked[:, known] / np.sqrt(movies.liked[:, known].sum(axis=0))
    values, people = np.linalg.eigh(seen @ seen.T)
    people = people[:, -16:] * np.sqrt(np.maximum(values[-16:], 0))
    vectors = np.asarray(seen.T @ people / np.maximum(values[-16:], 1e-6), np.float32)
    first, strength = movies.content.first_vectors(movies.ids[hidden], movies.ids[known], vectors)
    likes = movies.liked[:, hidden] > 0

    def share_of_pairs_in_order(scores: NDArray[np.float32]) -> float:
        """The AUC of each person's hidden films, liked against not, on average."""
        ranks = scores.argsort(axis=1).argsort(axis=1) + 1
        good = likes.sum(axis=1)
        some = good > 0
        below = (ranks * likes).sum(axis=1)[some] - good[some] * (good[some] + 1) / 2
        return float(np.mean(below / (good[some] * (likes.shape[1] - good[some]))))

    ordered = share_of_pairs_in_order(people @ first.T)
    shuffled = [
        share_of_pairs_in_order(people @ first[rng.permutation(len(hidden))].T) for _ in range(20)
    ]
    assert (strength > 0).all()
    assert ordered > 0.6 > max(shuffled)
    assert abs(np.mean(shuffled) - 0.5) < 0.03
