"""Whole answers: what is late or broken, filters, ranking, explanations, scenarios and arms."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from features.catalog import Catalog
from features.definitions import ITEM_STATISTICS, View
from serving.answers import Answer, BadQuestion, Wanted
from serving.cold_start import Candidates, Proposals, Visit
from serving.experiments import Arm, Experiment
from serving.fusion import FusionConfig
from serving.recommender import OnlineFeatures, RecommendConfig, Recommender
from serving.replica import Replica
from serving.rules import RulesConfig
from streaming.errors import ConfigError
from streaming.ids import stable_id, stable_ids
from trainers.versions import Version

Know = Callable[..., None]
Patient = Callable[..., RecommendConfig]
Make = Callable[..., Recommender]


def names(answer: Answer) -> list[str]:
    return [one.item.item_id for one in answer.items]


@pytest.fixture
def replica(random_version: Callable[..., Version], item_ids: list[int]) -> Replica:
    made = Replica()
    made.take(random_version(item_ids, number=3))
    return made


@pytest.fixture
def make(
    replica: Replica, catalog: Catalog, online_features: OnlineFeatures, patient: Patient
) -> Make:
    """A recommender for which nothing is late, but with what is given in place of its parts."""

    def recommender(features: OnlineFeatures = online_features, **given: Any) -> Recommender:
        own = {name: given.pop(name) for name in ("ranker", "sources", "kinds") if name in given}
        return Recommender(replica, catalog, features, patient(**given), **own)

    return recommender


# What is late or broken


class Broken:
    """A store that is away."""

    is_local = False

    def read(self, view: View, keys: Sequence[int]) -> list[dict[str, Any]]:
        raise ConnectionError("nobody listens there")


class Hanging:
    """A store that answers when it is released."""

    is_local = False

    def __init__(self, store: OnlineFeatures) -> None:
        self.store = store
        self.released = threading.Event()

    def read(self, view: View, keys: Sequence[int]) -> list[dict[str, Any]]:
        self.released.wait()
        return self.store.read(view, keys)


def test_without_the_store_an_answer_is_that_of_a_stranger(
    make: Make, know: Know, item_names: list[str]
) -> None:
    know("u", ["i3", "i4"])
    whole = make().recommend(Wanted("u", 5))
    assert (whole.known_actions, whole.degraded) == (2, [])
    answer = make(Broken()).recommend(Wanted("u", 5, explain=True))
    assert answer.known_actions == 0
    assert list(answer.degraded) == ["features: failed", "statistics: failed"]
    assert names(answer) == item_names[:5]
    assert answer.items[0].statistics == ITEM_STATISTICS.defaults


def test_a_store_that_hangs_costs_its_deadline_and_no_more(
    replica: Replica, catalog: Catalog, online_features: OnlineFeatures, patient: Patient
) -> None:
    store = Hanging(online_features)
    config = replace(patient(), features_within_ms=20.0)
    recommender = Recommender(replica, catalog, store, config)
    try:
        answer = recommender.recommend(Wanted("u", 5, explain=True))
        assert list(answer.degraded) == ["features: late", "statistics: late"]
        assert len(answer.items) == 5
        for _ in range(10):
            answer = recommender.recommend(Wanted("u", 5))
        assert "features: resting" in answer.degraded  # it is not asked each time
    finally:
        store.released.set()


def proposes(item: str, weight: float) -> Callable[[Visit], Proposals]:
    one = np.array(stable_ids([item]))
    return lambda _visit: Proposals("editors", one, np.array([0.9]), "editors", weight)


def test_a_source_from_outside_takes_part(make: Make) -> None:
    answer = make(sources={"editors": proposes("i29", 100.0)}).recommend(Wanted("stranger", 3))
    assert names(answer)[0] == "i29"
    assert answer.items[0].source == "editors"


def test_a_source_that_is_broken_or_hangs_is_left_out(
    replica: Replica, catalog: Catalog, online_features: OnlineFeatures, patient: Patient,
    item_names: list[str],
) -> None:  # fmt: skip
    release = threading.Event()

    def hangs(visit: Visit) -> Proposals | None:
        release.wait()
        return None

    def breaks(visit: Visit) -> Proposals | None:
        raise KeyError("editors")

    config = replace(patient(), source_within_ms=20.0)
    sources = {"hangs": hangs, "breaks": breaks}
    recommender = Recommender(replica, catalog, online_features, config, sources=sources)
    try:
        answer = recommender.recommend(Wanted("stranger", 5))
        assert sorted(answer.degraded) == ["breaks: failed", "hangs: late"]
        assert names(answer) == item_names[:5]
    finally:
        release.set()


def test_a_version_is_not_changed_under_a_source_that_was_left_behind(
    replica: Replica, catalog: Catalog, online_features: OnlineFeatures, patient: Patient,
    random_version: Callable[..., Version], item_ids: list[int],
) -> None:  # fmt: skip
    release, ended = threading.Event(), threading.Event()
    seen: list[np.ndarray[Any, Any]] = []

    def reads_late(visit: Visit) -> Proposals | None:
        assert visit.served is not None
        seen.append(visit.served.vectors(np.array(item_ids))[0])
        release.wait()
        seen.append(visit.served.vectors(np.array(item_ids))[0])
        ended.set()
        return None

    config = replace(patient(), source_within_ms=20.0)
    recommender = Recommender(
        replica, catalog, online_features, config, sources={"late": reads_late}
    )
    assert list(recommender.recommend(Wanted("u", 5)).degraded) == ["late: late"]
    snapshot = random_version(item_ids, number=4, seed=9)
    deltas = [replace(snapshot, info=replace(snapshot.info, number=n, base=n - 1)) for n in (4, 5)]
    follower = threading.Thread(target=lambda: [replica.take(delta) for delta in deltas])
    follower.start()
    release.set()
    follower.join(60)
    assert replica.info is not None
    assert replica.info.number == 5
    assert ended.wait(60)
    assert (seen[0] == seen[1]).all()


# Filters and exclusions


def test_only_what_passes_the_filters_is_shown_and_all_of_it(make: Make, know: Know) -> None:
    know("u", ["i3"])
    recommender = make()
    answer = recommender.recommend(Wanted("u", 40, filters={"title": ["Title i7", "Title i28"]}))
    assert sorted(names(answer)) == ["i28", "i7"]
    assert recommender.recommend(Wanted("u", 5, filters={"title": ["x"]})).items == []
    with pytest.raises(BadQuestion, match="no field 'genre'"):
        recommender.recommend(Wanted("u", 5, filters={"genre": ["War"]}))


def test_what_is_excluded_is_not_shown_and_what_was_seen_if_wanted(
    make: Make, know: Know, item_names: list[str]
) -> None:
    know("u", ["i3"])
    everything = make().recommend(Wanted("u", 100, seen=True, excluded=["i5", "no such item"]))
    assert sorted(names(everything)) == sorted(set(item_names) - {"i5"})


def test_words_that_are_searched_for_come_first(make: Make, know: Know) -> None:
    know("u", ["i3"])
    answer = make().recommend(Wanted("u", 3, words="title i2"))
    assert {one.source for one in answer.items} == {"search"}
    assert all("i2" in name for name in names(answer))


# Ranking what is given


def test_given_items_are_ranked_by_the_scores_that_they_would_have(make: Make, know: Know) -> None:
    know("u", ["i3", "i4"])
    recommender = make()
    everything = recommender.recommend(Wanted("u", 100, seen=True))
    scores = {one.item.item_id: one.score for one in everything.items}
    asked = ["i20", "i3", "nobody knows", "i1", "i20"]
    ranked = recommender.rank(Wanted("u"), asked)
    assert list(ranked.unknown) == ["nobody knows"]
    assert names(ranked) == sorted(["i20", "i3", "i1"], key=lambda name: -scores[name])
    for one in ranked.items:
        assert one.score == pytest.approx(scores[one.item.item_id])


def test_nothing_to_rank_is_an_empty_answer(make: Make) -> None:
    answer = make().rank(Wanted("u"), ["x", "y"])
    assert (list(answer.items), list(answer.unknown)) == ([], ["x", "y"])


# The ranker, fusion, rules, and why


def by_number(visit: Visit, candidates: Candidates) -> Mapping[str, np.ndarray[Any, Any]]:
    """A click on an item is the likelier, the higher its number."""
    numbers = {stable_id(f"i{n}"): n for n in range(30)}
    return {"click": np.array([numbers[i] / 30 for i in candidates.items.tolist()])}


def test_the_ranker_decides_as_the_fusion_weighs_it(make: Make, know: Know) -> None:
    know("u", ["i3"])
    alone = make().recommend(Wanted("u", 5))
    ignored = make(ranker=by_number).recommend(Wanted("u", 5))
    assert names(ignored) == names(alone)  # no weight says that clicks count
    fusion = FusionConfig("product", {"click": 1.0})
    ranked = make(ranker=by_number, fusion=fusion).recommend(Wanted("u", 5))
    assert names(ranked) == ["i29", "i28", "i27", "i26", "i25"]
    assert ranked.items[0].score == pytest.approx(29 / 30)


def test_only_the_best_candidates_are_ranked_and_stand_above_the_others(
    make: Make, know: Know
) -> None:
    know("u", ["i3"])
    best = names(make().recommend(Wanted("u", 4)))
    fusion = FusionConfig("product", {"click": 1.0})
    ranked = make(ranker=by_number, ranked=4, fusion=fusion).recommend(Wanted("u", 30))
    assert names(ranked)[:4] == sorted(best, key=lambda name: -int(name[1:]))
    assert len(ranked.items) == 29


def test_without_the_ranker_the_order_is_that_of_the_sources(make: Make, know: Know) -> None:
    def breaks(visit: Visit, candidates: Candidates) -> Mapping[str, np.ndarray[Any, Any]]:
        raise ZeroDivisionError

    know("u", ["i3"])
    answer = make(ranker=breaks, fusion=FusionConfig("product", {"click": 1.0})).recommend(
        Wanted("u", 5)
    )
    assert names(answer) == names(make().recommend(Wanted("u", 5)))
    assert list(answer.degraded) == ["ranker: failed"]


def test_an_answer_says_why_if_asked(make: Make, know: Know) -> None:
    know("u", ["i3"])
    rules = RulesConfig(boosts={"title=Title i29": 1e6})
    recommender = make(ranker=by_number, rules=rules)
    assert all(one.why is None for one in recommender.recommend(Wanted("u", 3)).items)
    first = recommender.recommend(Wanted("u", 3, explain=True)).items[0]
    assert first.item.item_id == "i29"
    assert first.why is not None
    assert sum(first.why.shares.values()) == pytest.approx(first.score)
    assert first.why.tasks == {"share": pytest.approx(first.score), "click": 29 / 30}
    assert first.why.moved["boosts"] > 0


def test_rules_put_an_answer_in_order(make: Make, know: Know) -> None:
    know("u", ["i3"])
    alone = names(make().recommend(Wanted("u", 29)))
    spread = make(rules=RulesConfig(at_most={"year": 1}, window=3))
    assert names(spread.recommend(Wanted("u", 29))) == alone  # all are of 1999: nobody fits better
    varied = names(make(rules=RulesConfig(varied=0.9)).recommend(Wanted("u", 29)))
    assert varied != alone
    assert sorted(varied) == sorted(alone)


# What is known of a user


def test_what_is_known_of_a_user(make: Make, know: Know) -> None:
    know("u", ["i3", "i4", "gone"], newest_us=7)
    known = make(kinds=("click", "like")).known("u")
    assert [(one.kind, one.at_us, one.value) for one in known.actions] == [("like", 7, None)] * 2
    assert [one.item.item_id for one in known.actions] == ["i4", "i3"]  # newest first
    assert known.features_at_us == 7
    assert known.is_known
    stranger = make().known("stranger")
    assert not stranger.is_known
    assert list(make(Broken()).known("u").degraded) == ["features: failed"]


# Scenarios and arms


def test_a_scenario_has_its_own_settings(make: Make) -> None:
    boosts = {"rules": {"boosts": {"title=Title i9": 1e6}}}
    recommender = make(scenarios={"home": boosts})
    assert names(recommender.recommend(Wanted("v", 3, scenario="home")))[0] == "i9"
    assert names(recommender.recommend(Wanted("v", 3, scenario="cart")))[0] == "i0"
    assert names(recommender.recommend(Wanted("v", 3)))[0] == "i0"


def test_users_of_an_arm_are_answered_its_way(make: Make) -> None:
    boosted = Arm(1.0, {"rules": {"boosts": {"title=Title i9": 1e6}}})
    experiment = Experiment({"as_ever": Arm(), "boosted": boosted}, scenarios=("home",))
    recommender = make(experiments={"titles": experiment})
    answers = [recommender.recommend(Wanted(f"v{n}", 3, scenario="home")) for n in range(40)]
    by_arm = {"as_ever": set[str](), "boosted": set[str]()}
    for answer in answers:
        by_arm[answer.arms["titles"]].add(names(answer)[0])
    assert by_arm == {"as_ever": {"i0"}, "boosted": {"i9"}}
    elsewhere = recommender.recommend(Wanted("v1", 3, scenario="cart"))
    assert elsewhere.arms == {}
    assert recommender.known("v1").arms == answers[1].arms


def test_settings_of_a_scenario_or_an_arm_that_there_are_not_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"recommend\.scenarios\.home\.rule is not a setting"):
        make(scenarios={"home": {"rule": {}}})
    wrong = Experiment({"a": Arm(1.0, {"rules": {"varied": "much"}})})
    where = r"recommend\.experiments\.titles\.arms\.a\.changes\.rules\.varied"
    with pytest.raises(ConfigError, match=where):
        make(experiments={"titles": wrong})
