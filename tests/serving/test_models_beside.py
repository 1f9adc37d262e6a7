"""Several models in one answer: as sources beside each other, and as the arms of an experiment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from features.catalog import Catalog
from serving.answers import Answer, Wanted
from serving.cold_start import ColdStartConfig
from serving.experiments import Arm, Experiment
from serving.recommender import OnlineFeatures, RecommendConfig, Recommender
from serving.replica import Replica
from streaming.errors import ConfigError
from trainers.versions import Version

Know = Callable[..., None]
SURE = ColdStartConfig(model_trust=1e-9, temperature=1.0)  # every action says more than what is hot
ARMS = Experiment({"old": Arm(), "new": Arm(changes={"models": {"wide": 1.0}})})


@pytest.fixture
def replicas(random_version: Callable[..., Version], item_ids: list[int]) -> list[Replica]:
    """Of `two_tower`, and of a variant of it that is called `wide`; each has its own opinion."""
    made = []
    for seed, name in enumerate(("two_tower", "wide")):
        version = random_version(item_ids, number=3, seed=seed)
        kind = None if name == "two_tower" else "two_tower"
        replica = Replica(model=name)
        replica.take(replace(version, info=replace(version.info, model=name, kind=kind)))
        made.append(replica)
    return made


@pytest.fixture
def make(
    catalog: Catalog, online_features: OnlineFeatures, know: Know,
    patient: Callable[..., RecommendConfig],
) -> Callable[..., Recommender]:  # fmt: skip
    know("u", ["i3", "i20"])

    def recommender(replicas: list[Replica], **config: object) -> Recommender:
        given = patient(cold_start=SURE, **config)
        return Recommender(replicas[0], catalog, online_features, given, beside=replicas[1:])

    return recommender


def shares(answer: Answer) -> dict[str, float]:
    return {one.item.item_id: one.score for one in answer.items}


def asked(recommender: Recommender, user: str = "u") -> Answer:
    return recommender.recommend(Wanted(user, 28, explain=True))


def test_the_shares_of_both_are_pooled_by_their_parts(
    make: Callable[..., Recommender], replicas: list[Replica]
) -> None:
    one, other = (shares(asked(make([replica]))) for replica in replicas)
    both = asked(make(replicas, models={"two_tower": 1.0, "wide": 3.0}))
    expected = {item: 0.25 * one[item] + 0.75 * other[item] for item in one}
    assert shares(both) == pytest.approx(expected)
    assert {one.source for one in both.items} <= {"two_tower", "wide"}
    explained = both.items[0].why
    assert explained is not None
    assert set(explained.shares) == {"two_tower", "wide"}
    assert both.version is not None
    assert both.version.model == "two_tower"  # the first speaks for the answer


def test_a_model_that_is_not_named_is_not_asked(
    make: Callable[..., Recommender], replicas: list[Replica]
) -> None:
    assert shares(asked(make(replicas))) == shares(asked(make(replicas[:1])))


def test_an_arm_asks_another_model(
    make: Callable[..., Recommender], replicas: list[Replica], know: Know
) -> None:
    recommender = make(replicas, experiments={"which": ARMS})
    old, new = make(replicas[:1]), make(replicas[1:])
    models = {"old": "two_tower", "new": "wide"}
    met = set()
    for number in range(12):
        know(f"v{number}", ["i3", "i20"])
        answer = asked(recommender, f"v{number}")
        arm = answer.arms["which"]
        met.add(arm)
        assert answer.version is not None
        assert answer.version.model == models[arm]
        plain = asked({"old": old, "new": new}[arm], f"v{number}")
        assert shares(answer) == shares(plain)
    assert met == {"old", "new"}


def test_until_a_model_has_a_version_the_others_answer(
    make: Callable[..., Recommender], replicas: list[Replica]
) -> None:
    waiting = [replicas[0], Replica(model="wide")]
    both = {"two_tower": 1.0, "wide": 3.0}
    assert shares(asked(make(waiting, models=both))) == shares(asked(make(replicas[:1])))
    alone = asked(make(waiting, models={"wide": 1.0}))
    assert {one.source for one in alone.items} == {"popular"}
    assert alone.version is None
    assert not alone.degraded


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"models": {"narrow": 1.0}}, r"recommend\.models names narrow"),
        ({"scenarios": {"home": {"models": {"narrow": 1}}}}, r"scenarios\.home\.models names"),
        (
            {"experiments": {"e": Experiment({"a": Arm(changes={"models": {"narrow": 1}})})}},
            r"experiments\.e\.arms\.a\.changes\.models names narrow",
        ),
    ],
)
def test_a_model_that_is_not_trained_is_named(
    make: Callable[..., Recommender], replicas: list[Replica], config: object, where: str
) -> None:
    with pytest.raises(ConfigError, match=f"{where}.*it trains two_tower, wide"):
        make(replicas, **config)  # type: ignore[arg-type]
