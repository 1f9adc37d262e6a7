"""The second stage: what a ranker expects of candidates, by weights, is their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from features.catalog import Catalog
from serving.answers import Answer, Wanted
from serving.experiments import Arm, Experiment
from serving.fusion import FusionConfig
from serving.recommender import OnlineFeatures, RecommendConfig, Recommender
from serving.replica import Replica, ServedRanker, ranker
from streaming.errors import ConfigError
from tests.serving.lessons import taught, versions
from trainers.versions import Version

BY_CLICKS = FusionConfig("product", {"share": 0.01, "click": 1.0})


@pytest.fixture(scope="module")
def clicked(item_ids: list[int]) -> set[int]:
    """Items that are clicked: every third."""
    return set(item_ids[::3])


@pytest.fixture(scope="module")
def rankers(item_ids: list[int], clicked: set[int]) -> list[Replica[ServedRanker]]:
    others = [item for item in item_ids if item not in clicked]
    replica = Replica(model="mmoe", make=ranker)
    replica.take(versions(taught(sorted(clicked), others, 40), 10.0)[-1])
    return [replica]


@pytest.fixture
def make(
    catalog: Catalog, online_features: OnlineFeatures, know: Callable[..., None],
    patient: Callable[..., RecommendConfig], random_version: Callable[..., Version],
    item_ids: list[int], rankers: list[Replica[ServedRanker]],
) -> Callable[..., Recommender]:  # fmt: skip
    know("u", ["i3", "i20"])
    replica = Replica(model="two_tower")
    replica.take(random_version(item_ids))

    def recommender(more: Mapping[str, Any] | None = None, **config: object) -> Recommender:
        given = patient(**{"ranker_from": 0, "fusion": BY_CLICKS, **config})
        return Recommender(
            replica, catalog, online_features, given, rankers=rankers, **(more or {})
        )

    return recommender


def asked(recommender: Recommender, count: int = 5, **more: Any) -> Answer:
    return recommender.recommend(Wanted("u", count, explain=True, **more))


def first(answer: Answer) -> list[str]:
    return [one.item.item_id for one in answer.items]


def are_clicked(
    answer: Answer, clicked: set[int], item_names: list[str], item_ids: list[int]
) -> bool:
    ids = dict(zip(item_names, item_ids, strict=True))
    return all(ids[name] in clicked for name in first(answer))


def test_candidates_are_ordered_by_what_is_expected_of_them(
    make: Callable[..., Recommender], clicked: set[int], item_names: list[str], item_ids: list[int]
) -> None:
    answer = asked(make())
    assert are_clicked(answer, clicked, item_names, item_ids)
    assert answer.ranker is not None
    assert answer.ranker.model == "mmoe"
    assert answer.degraded == []
    for one in answer.items:
        assert one.why is not None
        assert set(one.why.tasks) == {"share", "click", "like"}
        assert one.score == pytest.approx(one.why.tasks["share"] ** 0.01 * one.why.tasks["click"])


def test_given_items_are_ranked_by_it_too(
    make: Callable[..., Recommender], clicked: set[int], item_names: list[str], item_ids: list[int]
) -> None:
    names = [f"i{number}" for number in range(9)]
    ranked = make().rank(Wanted("u", explain=True), names)
    best = [names.index(name) for name in first(ranked)[:3]]
    assert {item_ids[number] for number in best} <= clicked


def test_weights_are_taken_as_they_are_when_it_is_asked(
    make: Callable[..., Recommender], clicked: set[int], item_names: list[str], item_ids: list[int]
) -> None:
    in_force: dict[str | None, FusionConfig] = {}
    recommender = make({"fusion": lambda scenario, _arms: in_force.get(scenario)})
    assert are_clicked(asked(recommender), clicked, item_names, item_ids)
    in_force["home"] = FusionConfig("sum", {"click": -1.0})
    home = asked(recommender, scenario="home")
    assert not {item_ids[item_names.index(name)] for name in first(home)} & clicked
    assert home.fusion == in_force["home"]
    assert are_clicked(asked(recommender), clicked, item_names, item_ids)  # elsewhere as before


def test_it_is_asked_only_once_it_has_learnt_enough(make: Callable[..., Recommender]) -> None:
    answer = asked(make(ranker_from=1_000_000))
    assert answer.ranker is None
    assert all(one.why is not None and set(one.why.tasks) == {"share"} for one in answer.items)


def test_without_a_version_of_it_answers_do_without(
    make: Callable[..., Recommender], catalog: Catalog
) -> None:
    recommender = make()
    recommender._rankers = {"mmoe": Replica(model="mmoe", make=ranker)}
    answer = asked(recommender)
    assert len(answer.items) == 5
    assert answer.ranker is None
    assert answer.degraded == []


def test_an_arm_can_do_without_it(make: Callable[..., Recommender]) -> None:
    arms = Experiment({"with": Arm(), "without": Arm(changes={"ranker": "none"})})
    recommender = make(experiments={"second stage": arms})
    for user in map(str, range(30)):
        answer = recommender.recommend(Wanted(user, 3, explain=True))
        assert (answer.ranker is None) == (answer.arms["second stage"] == "without")


def test_a_ranker_that_is_not_trained_is_refused(make: Callable[..., Recommender]) -> None:
    with pytest.raises(ConfigError, match=r"recommend\.ranker = 'esmm': the recipe trains mmoe"):
        make(ranker="esmm")


def test_one_that_breaks_costs_only_its_part(
    make: Callable[..., Recommender], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(ServedRanker, "rank", broken)
    answer = asked(make())
    assert len(answer.items) == 5
    assert answer.degraded == ["ranking: failed"]
