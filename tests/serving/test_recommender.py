"""The recommender: what the sources propose, never what was seen, and who it was answered to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from features.batch import Jagged, Users
from features.catalog import Catalog
from features.definitions import ITEM_STATISTICS, USER_HISTORY
from serving.answers import Answer, Wanted
from serving.cold_start import ColdStartConfig
from serving.recommender import OnlineFeatures, RecommendConfig, Recommender
from serving.replica import Replica
from streaming.ids import stable_id
from trainers.versions import Version

Rows = dict[tuple[str, int], dict[str, object]]
Know = Callable[..., None]
Patient = Callable[..., RecommendConfig]


def names(answer: Answer) -> list[str]:
    return [one.item.item_id for one in answer.items]


def sources(answer: Answer) -> list[str]:
    return [one.source for one in answer.items]


@pytest.fixture
def replica() -> Replica:
    return Replica()


@pytest.fixture
def version(random_version: Callable[..., Version], item_ids: list[int]) -> Version:
    return random_version(item_ids, number=3)


@pytest.fixture
def recommender(
    replica: Replica, catalog: Catalog, online_features: OnlineFeatures, patient: Patient
) -> Recommender:
    return Recommender(replica, catalog, online_features, patient())


# Recommendations


def test_an_unknown_user_gets_what_is_popular(
    recommender: Recommender, replica: Replica, version: Version, item_names: list[str]
) -> None:
    for known_version in (None, version):
        if known_version is not None:
            replica.take(known_version)
        answer = recommender.recommend(Wanted("stranger", 5))
        assert names(answer) == item_names[:5]
        assert sources(answer) == ["popular"] * 5
        assert answer.known_actions == 0
        assert answer.features_at_us is None
        assert answer.version == (known_version.info if known_version else None)


def test_a_known_user_without_a_model_gets_what_is_popular_and_not_seen(
    recommender: Recommender, know: Know, item_names: list[str]
) -> None:
    know("u", ["i0", "i2"], newest_us=123)
    answer = recommender.recommend(Wanted("u", 3))
    assert names(answer) == ["i1", "i3", "i4"]
    assert answer.known_actions == 2
    assert answer.features_at_us == 123
    assert answer.version is None


def test_a_known_user_gets_the_models_best(
    replica: Replica,
    catalog: Catalog,
    online_features: OnlineFeatures,
    version: Version,
    know: Know,
    patient: Patient,
) -> None:
    replica.take(version)
    history = ["i3", "i20"]
    know("u", history)
    # Whose every action says more than all that is hot.
    sure = patient(cold_start=ColdStartConfig(model_trust=1e-9, temperature=1.0))
    recommender = Recommender(replica, catalog, online_features, sure)
    answer = recommender.recommend(Wanted("u", 8))

    seen = np.array([stable_id(item) for item in history])
    users = Users(
        np.array([stable_id("u")]), Jagged(seen, np.array([0, 2])), np.ones(2, np.float32)
    )
    with replica.reading() as served:
        assert served is not None
        ids, scores = served.retrieve(users, 30, np.empty(0, np.int64))
    expected = dict(zip(ids.tolist(), np.exp(scores) / np.exp(scores).sum(), strict=True))
    best = [item for item in ids.tolist() if item not in seen][:8]
    assert [stable_id(item) for item in names(answer)] == best
    assert [one.score for one in answer.items] == pytest.approx([expected[i] for i in best])
    assert sources(answer) == ["two_tower"] * 8
    assert answer.version == version.info


def test_an_answer_tells_what_was_read_of_whom(
    recommender: Recommender, know: Know, feature_rows: Rows
) -> None:
    know("u", ["i3", "i20"])
    answer = recommender.recommend(Wanted("u", 2))
    assert answer.user == stable_id("u")
    assert answer.read == {**USER_HISTORY.defaults, **feature_rows["user_history", answer.user]}
    stranger = recommender.recommend(Wanted("stranger", 2))
    assert (stranger.user, stranger.read) == (stable_id("stranger"), USER_HISTORY.defaults)
    nobody = recommender.similar("i1", 2)
    assert (nobody.user, nobody.read) == (-1, {})


def test_a_history_is_read_in_its_order(
    recommender: Recommender, replica: Replica, version: Version, feature_rows: Rows
) -> None:
    replica.take(version)
    items = [stable_id("i1"), stable_id("i2")]
    answers = []
    for rewards in ([1.0, 0.0], [0.0, 1.0]):
        feature_rows["user_history", stable_id("u")] = {
            "items": items, "rewards": rewards, "newest_us": 1,
        }  # fmt: skip
        answers.append([one.score for one in recommender.recommend(Wanted("u", 5)).items])
    assert answers[0] != answers[1]


@pytest.mark.parametrize("published", [False, True])
def test_what_was_seen_is_never_recommended(
    recommender: Recommender,
    replica: Replica,
    version: Version,
    know: Know,
    item_names: list[str],
    published: bool,
) -> None:
    if published:
        replica.take(version)
    rng = np.random.default_rng(0)
    for number in range(20):
        seen = rng.choice(item_names, size=int(rng.integers(1, 30)), replace=False).tolist()
        know(f"u{number}", seen)
        answer = recommender.recommend(Wanted(f"u{number}", 30))
        assert not set(names(answer)) & set(seen)
        assert len(set(names(answer))) == len(answer.items) == 30 - len(seen)


def test_places_that_the_model_cannot_fill_go_to_what_is_popular(
    recommender: Recommender,
    replica: Replica,
    random_version: Callable[..., Version],
    know: Know,
    item_ids: list[int],
) -> None:
    replica.take(random_version(item_ids[20:24]))
    know("u", ["i0", "i21"])
    answer = recommender.recommend(Wanted("u", 12))
    assert set(names(answer)) >= {"i20", "i22", "i23"}  # the model's
    assert set(names(answer)) >= {f"i{n}" for n in range(1, 10)}  # what is popular
    assert len(answer.items) == 12
    answer = recommender.recommend(Wanted("u", 14))
    assert sources(answer)[12:] == ["popular"] * 2  # and what nobody has acted upon
    assert [one.score for one in answer.items[12:]] == [0.0] * 2


def test_an_item_the_catalog_does_not_know_yet_leaves_its_place_to_another(
    recommender: Recommender,
    replica: Replica,
    random_version: Callable[..., Version],
    know: Know,
    item_ids: list[int],
) -> None:
    replica.take(random_version([*item_ids[:3], stable_id("not in the catalog")]))
    know("u", ["i9"])
    answer = recommender.recommend(Wanted("u", 4))
    assert len(answer.items) == 4
    assert set(names(answer)) >= {"i0", "i1", "i2"}


def test_every_item_is_described_and_with_its_statistics_for_who_asks_why(
    recommender: Recommender, feature_rows: Rows
) -> None:
    feature_rows["item_statistics", stable_id("i1")] = {"actions": 9, "mean_reward": 1.0}
    plain = recommender.recommend(Wanted("stranger", 2)).items
    first, second = recommender.recommend(Wanted("stranger", 2, explain=True)).items
    assert [one.statistics for one in plain] == [{}, {}]
    assert [one.item for one in plain] == [first.item, second.item]
    assert (second.item.title, second.item.attributes) == ("Title i1", {"year": 1999})
    unknown = ITEM_STATISTICS.defaults
    assert second.statistics == {**unknown, "actions": 9, "mean_reward": 1.0}
    assert first.statistics == unknown


def test_every_answer_has_a_request_id_of_its_own(recommender: Recommender) -> None:
    answers = [recommender.recommend(Wanted("u", 1)) for _ in range(50)]
    answers += [recommender.similar("i1", 1) for _ in range(50)]
    assert len({answer.request_id for answer in answers}) == 100


def test_more_than_there_is_gives_all_there_is(
    recommender: Recommender, replica: Replica, version: Version, know: Know, item_names: list[str]
) -> None:
    replica.take(version)
    know("u", ["i4"])
    assert sorted(names(recommender.recommend(Wanted("stranger", 500)))) == sorted(item_names)
    assert sorted(names(recommender.recommend(Wanted("u", 500)))) == sorted(
        set(item_names) - {"i4"}
    )


# Similar items


def test_similar_items_are_the_models_nearest_without_the_item(
    recommender: Recommender, replica: Replica, version: Version
) -> None:
    replica.take(version)
    answer = recommender.similar("i7", 10)
    with replica.reading() as served:
        assert served is not None
        ids, _ = served.similar(stable_id("i7"), 10)
    assert [stable_id(item) for item in names(answer)] == ids.tolist()
    assert "i7" not in names(answer)
    assert sources(answer) == ["two_tower"] * 10
    assert answer.version == version.info


@pytest.mark.parametrize("published", [False, True])
def test_for_an_item_nobody_knows_what_is_popular_is_shown(
    recommender: Recommender,
    replica: Replica,
    version: Version,
    item_names: list[str],
    published: bool,
) -> None:
    if published:
        replica.take(version)
    answer = recommender.similar("nobody knows it", 4)
    assert names(answer) == item_names[:4]
    assert sources(answer) == ["popular"] * 4
    assert answer.version == (version.info if published else None)


def test_without_a_model_an_item_is_similar_to_what_says_the_same(
    recommender: Recommender,
) -> None:
    answer = recommender.similar("i0", 500)
    assert sorted(names(answer)) == sorted(f"i{n}" for n in range(1, 30))  # never to itself
    assert sources(answer)[0] == "content"
    assert answer.version is None
