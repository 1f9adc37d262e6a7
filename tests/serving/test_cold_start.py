"""New users and new items: nothing changes abruptly, and nobody waits for the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.aggregator import AggregatorConfig
from features.behaviour import BehaviourConfig
from features.catalog import Catalog, CatalogConfig
from features.newcomers import NewcomersConfig
from features.popularity import ListTrust
from serving.answers import Answer, Wanted
from serving.cold_start import MODEL, ColdStartConfig, Proposals, pooled
from serving.recommender import OnlineFeatures, RecommendConfig, Recommender
from serving.replica import Replica
from streaming.events import EventRules, encode_event, parse_event
from streaming.ids import stable_ids
from streaming.log import EVENTS, Record
from trainers.arrays import matrix_column
from trainers.versions import Version

Event = dict[str, Any]
Know = Callable[..., None]
Patient = Callable[..., RecommendConfig]
MakeVersion = Callable[..., Version]
NOW_US = 1_700_000_000_000_000
CONFIG = CatalogConfig(newcomers=NewcomersConfig(actions=3, neighbours=2))
SOURCES = {"two_tower", "popular", "hot", "interests", "new", "content"}


def film(name: str, *genres: str) -> Event:
    return {"kind": "item", "item_id": name, "attributes": {"title": name, "genres": genres}}


def likes(name: str, count: int, user: str = "fan") -> list[Event]:
    return [{"kind": "like", "user_id": user, "item_id": name}] * count


def user(name: str, **attributes: Any) -> Event:
    return {"kind": "user", "user_id": name, "attributes": attributes}


class World:
    """A catalog that hears events, a replica, and what was said of users."""

    def __init__(self, features: OnlineFeatures, make: MakeVersion, patient: Patient) -> None:
        self.catalog = Catalog(EventRules(), BehaviourConfig(), AggregatorConfig(), config=CONFIG)
        self.replica = Replica()
        self._features = features
        self._make = make
        self._patient = patient
        self._offset = 0

    def hear(self, *events: Event) -> None:
        for event in events:
            parsed = parse_event(json.dumps(event).encode(), EventRules(), NOW_US)
            append = encode_event(parsed)
            record = Record(EVENTS, 0, self._offset, append.key, append.value, NOW_US)
            self._offset += 1
            self.catalog.on_batch([record])

    def publish(
        self, *items: str, vectors: Mapping[str, list[float]] | None = None, lineage: str = "a"
    ) -> None:
        """A version that knows these items, some of them by the vector that is given."""
        made = self._make(stable_ids(items).tolist())
        matrix = np.stack(made.shards["vectors"]["row"].to_numpy(zero_copy_only=False))
        for name, vector in (vectors or {}).items():
            matrix[items.index(name)] = vector
        ids = made.shards["vectors"]["id"]
        rows = pa.table({"id": ids, "row": matrix_column(matrix.astype(np.float32))})
        info = replace(made.info, lineage=lineage)
        self.replica.take(replace(made, info=info, shards={**made.shards, "vectors": rows}))

    def recommender(self, **config: Any) -> Recommender:
        patient = self._patient(cold_start=ColdStartConfig(**config))
        return Recommender(self.replica, self.catalog, self._features, patient)

    def recommend(self, user: str, count: int, **config: Any) -> Answer:
        return self.recommender(**config).recommend(Wanted(user, count))


def names(answer: Answer) -> list[str]:
    return [one.item.item_id for one in answer.items]


def sources(answer: Answer) -> list[str]:
    return [one.source for one in answer.items]


@pytest.fixture
def world(online_features: OnlineFeatures, random_version: MakeVersion, patient: Patient) -> World:
    """Eight films that fans like, a1 best and a8 least, two genres in turn."""
    made = World(online_features, random_version, patient)
    for n in range(1, 9):
        made.hear(film(f"a{n}", "War" if n % 2 else "Comedy"), *likes(f"a{n}", 13 - n))
    return made


# Pooling

PROPOSALS = st.lists(
    st.builds(
        lambda source, shares, weight: Proposals(
            source, np.array(list(shares)), np.array(list(shares.values())), source, weight
        ),
        st.sampled_from(sorted(SOURCES)),
        st.dictionaries(st.integers(0, 9), st.floats(0.0, 0.1), min_size=1),
        st.floats(0.01, 100.0),
    ),
    max_size=4,
    unique_by=lambda one: one.source,
)


@given(PROPOSALS)
def test_the_pool_is_the_weighted_mean_of_shares(proposals: list[Proposals]) -> None:
    found = pooled(proposals)
    items, shares = found.items, found.shares
    parts: dict[int, dict[str, float]] = {}
    for one in proposals:
        weight = one.weight / sum(other.weight for other in proposals)
        for item, share in zip(one.items.tolist(), one.shares.tolist(), strict=True):
            parts.setdefault(item, {})[one.source] = weight * share
    assert sorted(items.tolist()) == sorted(parts)
    assert (np.diff(shares) <= 0).all()
    for place, (item, share) in enumerate(zip(items.tolist(), shares.tolist(), strict=True)):
        assert share == pytest.approx(sum(parts[item].values()))
        largest = parts[item].get(found.source(place), 0.0)
        assert largest == pytest.approx(max(parts[item].values()))
        contributed = {name: part for name, part in parts[item].items() if part}
        assert found.contributions(place) == pytest.approx(contributed)


def test_one_opinion_counts_once() -> None:
    known = Proposals("two_tower", np.array([1]), np.array([0.5]), MODEL, 3.0)
    new = Proposals("new", np.array([2]), np.array([0.25]), MODEL, 3.0)
    hot = Proposals("popular", np.array([1]), np.array([0.1]), "hot", 1.0)
    shares = pooled([known, new, hot]).shares
    assert shares.tolist() == pytest.approx([0.75 * 0.5 + 0.25 * 0.1, 0.75 * 0.25])


# New users


def test_the_model_takes_over_with_every_action(world: World, know: Know) -> None:
    world.publish(*(f"a{n}" for n in range(1, 9)), "b")
    world.hear(film("b", "Opera"))  # nobody but the model believes in it
    shares = []
    for count in range(5):
        know("u", ["x"] * count)  # so that the model has one opinion all along
        answer = world.recommend("u", 9, model_trust=2.0, newcomers=0.0, vector_trust=1e-9)
        shown = {one.item.item_id: one.score for one in answer.items}
        shares.append([shown["b"], shown["a1"]])
    assert shares[0][0] == 0.0
    of_model, hot = np.array(shares).T
    # Its part is w / (w + 1), w = (n / 2) ** 2.
    assert of_model[1:] / of_model[1] == pytest.approx([1, 5 / 2, 45 / 13, 4])
    assert (np.diff(np.abs(hot - hot[0])) > 0).all()


def test_who_has_done_much_gets_nearly_the_models_order(world: World, know: Know) -> None:
    films = [f"f{n}" for n in range(200)]
    world.hear(*(film(name, "War") for name in films))
    world.publish(*films, *(f"a{n}" for n in range(1, 9)))
    know("u", films[:100])
    config = {"temperature": 0.2}
    pooled_first = names(world.recommend("u", 20, **config))
    alone = names(world.recommend("u", 20, **config, model_trust=1e-9))
    assert pooled_first[:10] == alone[:10]
    assert len(set(pooled_first) & set(alone)) >= 18


def test_people_of_a_kind_get_what_their_kind_likes(world: World) -> None:
    lists = ListTrust(window=1.0, cell=1.0)
    world.hear(user("ann", gender="F"), user("bob", gender="M"), user("new", gender="F"))
    world.hear(*likes("a8", 5, "ann"), *likes("a7", 5, "bob"))
    answer = world.recommend("new", 8, lists=lists)
    assert names(answer)[0] == "a8"
    assert sources(answer) == ["hot"] * 8
    everyones = world.recommend("stranger", 8, lists=lists)
    assert names(everyones)[0] == "a1"
    assert sources(everyones) == ["popular"] * 8


def test_declared_interests_come_first_and_what_is_hot_is_not_forgotten(world: World) -> None:
    world.hear(user("u", interests=["Comedy"]), film("c", "Comedy"))
    answer = world.recommend("u", 9, interests_trust=3.0)
    comedies, others = names(answer)[:4], names(answer)[5:]
    assert comedies == ["a2", "a4", "a6", "a8"]
    assert sources(answer)[:4] == ["interests"] * 4
    assert "c" in names(answer)  # nobody acted upon it: what it says is all there is
    assert set(others) <= {"a1", "a3", "a5", "a7", "c"}


def test_without_any_action_in_the_world_interests_still_say_something(
    online_features: OnlineFeatures, random_version: MakeVersion, patient: Patient
) -> None:
    world = World(online_features, random_version, patient)
    world.hear(film("1", "War"), film("2", "Comedy"), user("u", interests=["Comedy"]))
    answer = world.recommend("u", 2)
    assert names(answer) == ["2", "1"]
    assert sources(answer) == ["interests", "popular"]


# New items


EAST, WEST = [1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]


def test_an_item_that_no_version_knows_is_recommended_to_who_likes_its_like(
    world: World, know: Know
) -> None:
    films = [f"a{n}" for n in range(1, 9)]
    vectors = {name: EAST if n % 2 else WEST for n, name in enumerate(films)}
    world.publish(*films, vectors=vectors)
    know("u", ["x"])
    config = {"model_trust": 1e-9, "temperature": 1.0}
    best, worst = (
        world.recommend("u", 8, **config).items[place].item.attributes["genres"][0]
        for place in (0, 7)
    )
    world.hear(film("good", best), film("bad", worst))
    answer = world.recommend("u", 10, **config)
    places = {name: names(answer).index(name) for name in ("good", "bad")}
    assert places["good"] < 5 <= places["bad"]
    shown = [answer.items[place] for place in places.values()]
    assert [one.source for one in shown] == ["new", "new"]
    assert shown[0].score == pytest.approx(answer.items[0].score)  # as the others of its genre
    world.hear(*likes("good", 2))  # of which the version has learnt nothing
    again = {one.item.item_id: one.score for one in world.recommend("u", 10, **config).items}
    assert again["good"] == pytest.approx(shown[0].score)
    assert set(names(world.recommend("u", 10, **config, newcomers=0.0))[8:]) == {"good", "bad"}


def test_a_new_item_is_handed_over_to_what_is_learnt_of_it(world: World, know: Know) -> None:
    """Its neighbours lie one way, its own vector the other: with every action it goes that way."""
    known = {f"a{n}": EAST for n in range(1, 9)}
    world.publish(*known, "new", vectors={**known, "new": WEST})
    world.hear(film("new", "War", "Comedy"))
    know("u", ["x"])
    apart, by = [], []
    for _ in range(4):
        answer = world.recommend(
            "u", 9, model_trust=1e-9, vector_trust=10.0, newcomers=1.0, temperature=1.0
        )
        shown = {one.item.item_id: one for one in answer.items}
        apart.append(np.log(shown["new"].score / shown["a8"].score))
        by.append(shown["new"].source)
        world.hear(*likes("new", 1))
    steps = np.diff(apart)
    assert apart[0] == pytest.approx(0.0, abs=1e-5)  # just as its neighbours
    assert (steps > 0).all() or (steps < 0).all()
    assert by == ["new"] * 3 + ["two_tower"]  # after three actions it has grown up


def test_what_was_seen_is_hidden_though_it_is_new(world: World, know: Know) -> None:
    world.publish(*(f"a{n}" for n in range(1, 9)))
    world.hear(film("new", "War"))
    know("u", ["new", "a1"])
    answer = world.recommend("u", 20)
    assert sorted(names(answer)) == [f"a{n}" for n in range(2, 9)]


def test_similar_to_what_no_version_knows_is_what_says_the_same(world: World) -> None:
    world.publish(*(f"a{n}" for n in range(1, 9)))
    world.hear(film("new", "War"))
    recommender = world.recommender()
    answer = recommender.similar("new", 8)
    assert set(names(answer)[:4]) == {"a1", "a3", "a5", "a7"}
    assert sources(answer)[:4] == ["content"] * 4
    assert len(set(names(answer))) == 8


# All together


def test_an_answer_follows_what_happens_at_once(world: World, know: Know) -> None:
    """Nothing that is kept between answers outlives what it was made of."""
    recommender = world.recommender()
    world.hear(user("u", interests=["War"]))
    assert names(recommender.recommend(Wanted("stranger", 1))) == ["a1"]
    assert names(recommender.recommend(Wanted("u", 1))) == ["a1"]
    world.hear(*likes("a7", 40))
    assert names(recommender.recommend(Wanted("stranger", 1))) == ["a7"]
    assert names(recommender.recommend(Wanted("u", 1))) == ["a7"]
    know("ann", ["x"])
    films = [f"a{n}" for n in range(1, 9)]
    world.hear(film("new", "War"))
    scores = []
    for war, comedy in ((EAST, WEST), (WEST, EAST)):
        vectors = {name: comedy if n % 2 else war for n, name in enumerate(films)}
        world.publish(*films, vectors=vectors, lineage=f"war is {war}")
        answer = recommender.recommend(Wanted("ann", 9))
        scores.append({one.item.item_id: one.score for one in answer.items}["new"])
    assert scores[0] != pytest.approx(scores[1])
    world.hear(film("newer", "War"))
    shown = {one.item.item_id: one.score for one in recommender.recommend(Wanted("ann", 10)).items}
    assert shown["newer"] == pytest.approx(scores[1])


def test_answers_keep_their_promises_whoever_asks(world: World, know: Know) -> None:
    rng = np.random.default_rng(0)
    films = [f"a{n}" for n in range(1, 9)]
    world.publish(*films, "only the model knows it")
    world.hear(film("new", "War"), *(film(f"n{n}", "Comedy") for n in range(5)))
    everything = {*films, "new", *(f"n{n}" for n in range(5))}
    for number in range(30):
        name = f"u{number}"
        if number % 2:
            world.hear(user(name, gender="F", age=25, interests=["War", "Opera"]))
        seen = rng.choice(sorted(everything), int(rng.integers(0, 10)), replace=False).tolist()
        know(name, seen)
        for count in (1, 5, 50):
            answer = world.recommend(name, count)
            shown = names(answer)
            assert len(shown) == len(set(shown)) == min(count, len(everything) - len(seen))
            assert set(shown) <= everything - set(seen)
            assert set(sources(answer)) <= SOURCES
            scores = [one.score for one in answer.items]
            assert scores == sorted(scores, reverse=True)
            assert all(0 <= score <= 1 for score in scores)
