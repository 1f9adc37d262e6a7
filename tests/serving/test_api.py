"""The HTTP interface with a real log and catalog: what it takes, what it refuses, what it says."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp

from features.aggregator import AggregatorConfig
from features.behaviour import BehaviourConfig
from features.catalog import Catalog
from serving.http.api import ApiConfig, Service, create_app
from serving.http.schemas import RankAnswer, RecommendAnswer, UserAnswer
from serving.metrics import ServingMetrics
from serving.recommender import OnlineFeatures, RecommendConfig, Recommender
from serving.replica import Replica
from serving.times import time_text
from streaming.errors import LogError, LogFull
from streaming.events import EventRules
from streaming.file_log import FileLog
from streaming.ids import stable_id
from streaming.log import EVENTS, Append, TopicPartition
from streaming.metrics import Metrics
from trainers.versions import Version

TARGETS = {"targets": ["127.0.0.1:4000"], "labels": {"process": "joiner", "rank": "0"}}
Connect = Callable[[ASGIApp], httpx.Client]
MakeVersion = Callable[..., Version]
Know = Callable[..., None]
Patient = Callable[..., RecommendConfig]
LIKE = {"kind": "like", "user_id": "u1", "item_id": "i1"}
PLACE = TopicPartition(EVENTS, 0)


@dataclass
class Stage:
    """The parts behind a client, for a test to move."""

    service: Service
    log: FileLog
    catalog: Catalog
    replica: Replica
    client: httpx.Client
    reason: str | None = None
    read: int = 0

    def events(self) -> list[dict[str, Any]]:
        """Everything in the log."""
        return [json.loads(r.value) for r in self.log.read({PLACE: 0}, 10_000, 0)]

    def catch_up(self) -> None:
        """Lets the catalog take what is new in the log."""
        records = self.log.read({PLACE: self.read}, 10_000, 0)
        if records:
            self.read = records[-1].offset + 1
            self.catalog.on_batch(records)

    def post(self, body: Any) -> httpx.Response:
        return self.client.post("/v1/events", json=body)


def make_stage(
    log: FileLog, features: OnlineFeatures, connect: Connect, config: RecommendConfig
) -> Stage:
    replica, catalog = Replica(), Catalog(EventRules(), BehaviourConfig(), AggregatorConfig())
    metrics = ServingMetrics(Metrics())
    stage: Stage
    service = Service(
        log=log,
        rules=EventRules(),
        recommender=Recommender(replica, catalog, features, config, proposed=metrics.proposed),
        catalog=catalog,
        metrics=metrics,
        status=lambda: {"lag": {"trainer": 7}, "ready": stage.reason is None},
        not_ready=lambda: stage.reason,
        targets=lambda: [TARGETS],
    )
    stage = Stage(service, log, catalog, replica, connect(create_app(service, ApiConfig())))
    return stage


@pytest.fixture
def stage(
    log: FileLog, online_features: OnlineFeatures, connect: Connect, patient: Patient
) -> Iterator[Stage]:
    made = make_stage(log, online_features, connect, patient())
    with made.client:
        yield made


@pytest.fixture
def client(stage: Stage) -> httpx.Client:
    return stage.client


@pytest.fixture
def stocked(stage: Stage, item_names: list[str]) -> Stage:
    """30 titled items, of which i0 was liked most, then i1, then i2."""
    items = [
        {"kind": "item", "item_id": name, "attributes": {"title": f"Title {name}", "year": 1999}}
        for name in item_names
    ]
    likes = [
        {"kind": "like", "user_id": f"fan{fan}", "item_id": f"i{place}"}
        for place in range(3)
        for fan in range(3 - place)
    ]
    assert stage.post([*items, *likes]).status_code == 202
    stage.catch_up()
    return stage


def shown(response: httpx.Response) -> list[str]:
    assert response.status_code == 200
    return [item["item_id"] for item in response.json()["items"]]


# Recommendations


def test_an_unknown_user_gets_what_is_popular(stocked: Stage) -> None:
    response = stocked.client.get("/v1/recommend", params={"user_id": "stranger", "k": 3})
    assert shown(response) == ["i0", "i1", "i2"]
    answer = response.json()
    assert answer["items"][0] == {
        "item_id": "i0",
        "title": "Title i0",
        "attributes": {"year": 1999},
        "score": pytest.approx(0.5, abs=0.001),  # three of six likes
        "source": "popular",
    }
    assert answer["user_id"] == "stranger"
    assert answer["version"] is answer["watermark"] is answer["features_at"] is None
    assert answer["known_actions"] == 0


def test_a_known_user_gets_the_models_choice_and_the_version_it_came_from(
    stocked: Stage, know: Know, random_version: MakeVersion, item_ids: list[int]
) -> None:
    version = random_version(item_ids, number=12)
    stocked.replica.take(version)
    know("u1", ["i0", "i7"], newest_us=1_000_000)
    response = stocked.client.get("/v1/recommend", params={"user_id": "u1", "k": 28})
    answer = response.json()
    assert set(shown(response)) == {f"i{n}" for n in range(30)} - {"i0", "i7"}
    assert "two_tower" in {item["source"] for item in answer["items"]}
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["version"] == "two_tower/a/12"
    assert answer["watermark"] == time_text(version.info.watermark_us)
    assert answer["known_actions"] == 2
    assert answer["features_at"] == "1970-01-01T00:00:01.000000Z"


@pytest.mark.parametrize("published", [False, True])
def test_what_a_user_has_seen_is_never_recommended(
    stocked: Stage,
    know: Know,
    random_version: MakeVersion,
    item_ids: list[int],
    published: bool,
) -> None:
    if published:
        stocked.replica.take(random_version(item_ids))
    seen = {"i0", "i2", "i13"}
    know("u1", sorted(seen))
    for k in (1, 5, 27, 500):
        answer = shown(stocked.client.get("/v1/recommend", params={"user_id": "u1", "k": k}))
        assert len(answer) == len(set(answer)) == min(k, 27)
        assert not seen & set(answer)


def test_a_user_is_known_by_any_string(stocked: Stage, know: Know) -> None:
    for user in ("a/b?c&d=e", "Zoë 李 🎬", " ", "x" * 256, "../etc/passwd", "%00"):
        know(user, ["i0"])
        response = stocked.client.get("/v1/recommend", params={"user_id": user, "k": 1})
        assert shown(response) == ["i1"]
        assert response.json()["user_id"] == user


@pytest.mark.parametrize("k", [1, 10, 500])
def test_k_may_be_1_to_500(stocked: Stage, k: int) -> None:
    response = stocked.client.get("/v1/recommend", params={"user_id": "u", "k": k})
    assert len(shown(response)) == min(k, 30)


def test_ten_items_are_given_unless_asked_otherwise(stocked: Stage) -> None:
    assert len(shown(stocked.client.get("/v1/recommend?user_id=u"))) == 10
    assert len(shown(stocked.client.get("/v1/items/i1/similar"))) == 10
    assert len(shown(stocked.client.get("/v1/items"))) == 10


@pytest.mark.parametrize("path", ["/v1/recommend?user_id=u&k={}", "/v1/items/i1/similar?k={}"])
@pytest.mark.parametrize("k", ["0", "-1", "501", "1e3", "1.5", "ten", "", "9" * 30])
def test_any_other_k_is_refused_by_name_and_value(client: httpx.Client, path: str, k: str) -> None:
    response = client.get(path.format(k))
    assert response.status_code == 422
    assert re.match(rf"k = '{re.escape(k)}': \S+", response.json()["error"])


@pytest.mark.parametrize(
    ("query", "told"),
    [("", "None"), ("user_id=", "''"), (f"user_id={'x' * 257}", "x" * 257)],
    ids=["missing", "empty", "too long"],
)
def test_a_user_id_that_is_none_is_refused(client: httpx.Client, query: str, told: str) -> None:
    response = client.get(f"/v1/recommend?{query}")
    assert response.status_code == 422
    error = response.json()["error"]
    assert error.startswith("user_id = ")
    assert told in error


def test_every_answer_has_a_request_id_of_its_own(stocked: Stage) -> None:
    paths = ["/v1/recommend?user_id=u1", "/v1/items/i1/similar"] * 20
    ids = {stocked.client.get(path).json()["request_id"] for path in paths}
    assert len(ids) == 40


# Recommendations in context


def test_get_and_post_answer_alike(stocked: Stage) -> None:
    asked: dict[str, Any] = {"user_id": "u1", "k": 3, "scenario": "home", "query": "title"}
    got = stocked.client.get("/v1/recommend", params=asked)
    posted = stocked.client.post("/v1/recommend", json=asked)
    assert shown(got) == shown(posted)
    assert got.json()["scenario"] == posted.json()["scenario"] == "home"


def test_what_is_excluded_is_not_shown_and_what_is_seen_if_asked(
    stocked: Stage, know: Know
) -> None:
    know("u1", ["i0"])

    def ask(**context: Any) -> list[str]:
        asked = {"user_id": "u1", "k": 2, **context}
        return shown(stocked.client.post("/v1/recommend", json=asked))

    assert ask() == ["i1", "i2"]
    assert ask(exclude=["i1", "unknown"])[0] == "i2"
    assert set(ask(seen=True, exclude=["i2"])) == {"i0", "i1"}


def test_items_pass_all_filters_and_any_value_of_each(stage: Stage) -> None:
    stage.post([
        {"kind": "item", "item_id": name, "attributes": {"genre": genre, "land": land}}
        for name, genre, land in [("a", "Drama", "fr"), ("b", "Comedy", "fr"), ("c", "Drama", "it"),
                                  ("d", "War: a film", "fr")]
    ])  # fmt: skip
    stage.catch_up()

    def got(*filters: str) -> set[str]:
        asked = {"user_id": "u", "filter": filters}
        return set(shown(stage.client.get("/v1/recommend", params=asked)))

    def posted(**filters: Any) -> set[str]:
        asked = {"user_id": "u", "filters": filters}
        return set(shown(stage.client.post("/v1/recommend", json=asked)))

    assert got() == posted() == {"a", "b", "c", "d"}
    assert got("genre:Drama") == posted(genre="Drama") == {"a", "c"}
    assert got("genre:Drama", "genre:Comedy", "land:fr") == {"a", "b"}
    assert posted(genre=["Drama", "Comedy"], land=["fr"]) == {"a", "b"}
    assert got("genre:War: a film") == {"d"}
    unknown = stage.client.get("/v1/recommend?user_id=u&filter=colour:red")
    assert unknown.status_code == 422
    assert "'colour'" in unknown.json()["error"]
    assert stage.client.get("/v1/recommend?user_id=u&filter=genre").status_code == 422


def test_why_is_told_if_asked_and_only_then(
    stocked: Stage, random_version: MakeVersion, item_ids: list[int]
) -> None:
    stocked.replica.take(random_version(item_ids))
    plain = stocked.client.get("/v1/recommend?user_id=u1").json()
    assert "took_ms" not in plain
    assert not {"why", "statistics"} & plain["items"][0].keys()
    told = stocked.client.get("/v1/recommend?user_id=u1&explain=true").json()
    assert all(milliseconds >= 0 for milliseconds in told["took_ms"].values())
    assert told["took_ms"]
    assert {"shares", "tasks", "moved"} == told["items"][0]["why"].keys()
    assert told["items"][0]["statistics"] == {
        "actions": 0, "mean_reward": None, "popularity": 0.0, "ctr": None, "coec": 1.0,
    }  # fmt: skip


def test_given_items_are_ranked(
    stocked: Stage, know: Know, random_version: MakeVersion, item_ids: list[int]
) -> None:
    stocked.replica.take(random_version(item_ids))
    know("u1", ["i3"])
    asked = {"user_id": "u1", "item_ids": ["i9", "nobody's", "i3", "i20", "i9"]}
    answer = stocked.client.post("/v1/rank", json=asked)
    assert sorted(shown(answer)) == ["i20", "i3", "i9"]
    assert answer.json()["unknown"] == ["nobody's"]
    assert answer.json()["version"] == "two_tower/a/0"
    only = {"user_id": "u1", "item_ids": ["nobody's"]}
    assert shown(stocked.client.post("/v1/rank", json=only)) == []


def test_what_is_known_of_a_user(stocked: Stage, know: Know) -> None:
    nobody = stocked.client.get("/v1/users/a%2Fb")
    assert nobody.status_code == 404
    assert "nothing is known of the user 'a/b'" in nobody.json()["error"]
    know("a/b", ["i3", "i0"], newest_us=1_000_000)
    stocked.post({"kind": "user", "user_id": "a/b", "attributes": {"age": 25}})
    stocked.catch_up()
    known = stocked.client.get("/v1/users/a%2Fb").json()
    assert known["attributes"] == {"age": 25}
    assert {action["item"]["item_id"] for action in known["actions"]} == {"i0", "i3"}
    assert known["features_at"] == "1970-01-01T00:00:01.000000Z"


def test_answers_have_the_shape_that_is_described(
    stocked: Stage, know: Know, random_version: MakeVersion, item_ids: list[int]
) -> None:
    stocked.replica.take(random_version(item_ids))
    know("u1", ["i3"])
    client = stocked.client
    ranked = client.post("/v1/rank", json={"user_id": "u1", "item_ids": ["i1"], "explain": True})
    for model, answer in (
        (RecommendAnswer, client.get("/v1/recommend?user_id=u1")),
        (RecommendAnswer, client.get("/v1/recommend?user_id=u1&explain=1")),
        (RecommendAnswer, client.get("/v1/items/i1/similar")),
        (RankAnswer, ranked),
        (UserAnswer, client.get("/v1/users/u1")),
    ):
        assert answer.status_code == 200
        model.model_validate_json(answer.content, strict=True, extra="forbid")


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ("", 400, "not JSON"),
        ("{", 400, "not JSON"),
        ("[" * 100_000, 400, "not JSON"),
        ('{"user_id": "\\ud800"}', 400, "not JSON"),
        ("[]", 422, "body = []"),
        ("{}", 422, "user_id = None: Field required"),
        ('{"user_id": 7}', 422, "user_id = 7: Input should be a valid string"),
        ('{"user_id": ""}', 422, "user_id = ''"),
        ('{"user_id": "u", "k": 0}', 422, "k = 0"),
        ('{"user_id": "u", "k": "3"}', 422, "k = '3'"),
        ('{"user_id": "u", "k": NaN}', 422, "k = nan"),
        ('{"user_id": "u", "colour": "red"}', 422, "colour = 'red': Extra inputs"),
        ('{"user_id": "u", "filters": {"x": [1]}}', 422, "filters.x"),
        ('{"user_id": "u", "filters": {"x": []}}', 422, "filters.x"),
        (json.dumps({"user_id": "u", "exclude": ["i"] * 1_001}), 422, "exclude = "),
        (json.dumps({"user_id": "u" * 1_100_000}), 413, "1048576 bytes"),
    ],
    ids=str,
)
def test_a_question_that_does_not_fit_is_told_where(
    client: httpx.Client, body: str, status: int, told: str
) -> None:
    response = client.post("/v1/recommend", content=body)
    assert response.status_code == status, response.text
    assert told in response.json()["error"]
    assert len(response.text) < 600


def test_a_question_may_be_packed(stocked: Stage) -> None:
    body = gzip.compress(b'{"user_id": "u", "k": 1}')
    packed = stocked.client.post(
        "/v1/recommend", content=body, headers={"Content-Encoding": "gzip"}
    )
    assert shown(packed) == ["i0"]
    other = stocked.client.post("/v1/rank", content=body, headers={"Content-Encoding": "br"})
    assert other.status_code == 415


# Items


def test_similar_items_are_those_of_the_model(
    stocked: Stage, random_version: MakeVersion, item_ids: list[int]
) -> None:
    stocked.replica.take(random_version(item_ids))
    response = stocked.client.get("/v1/items/i1/similar", params={"k": 5})
    with stocked.replica.reading() as served:
        assert served is not None
        ids, _ = served.similar(stable_id("i1"), 5)
    assert [stable_id(item) for item in shown(response)] == ids.tolist()


def test_what_nobody_has_acted_upon_yet_is_like_what_says_the_same(
    stocked: Stage, random_version: MakeVersion, item_ids: list[int]
) -> None:
    """A version knows it, but only what others are to each other."""
    stocked.replica.take(random_version(item_ids))
    response = stocked.client.get("/v1/items/i4/similar", params={"k": 5})
    assert {item["source"] for item in response.json()["items"]} == {"content"}


def test_for_an_unknown_item_what_is_popular_is_shown(stocked: Stage) -> None:
    assert shown(stocked.client.get("/v1/items/unknown/similar?k=2")) == ["i0", "i1"]


@pytest.mark.parametrize(
    "item",
    ["a/b/c", "/leading", "trailing/", "x/similar", "Zoë 李 🎬", "a?b#c", "a b%2Fc", "y" * 256],
)  # fmt: skip
def test_items_have_any_string_for_an_id(
    stage: Stage, random_version: MakeVersion, item: str
) -> None:
    assert stage.post([{"kind": "item", "item_id": one} for one in (item, "other")]).is_success
    stage.catch_up()
    stage.replica.take(random_version([stable_id(item), stable_id("other")]))
    response = stage.client.get(f"/v1/items/{quote(item, safe='')}/similar")
    assert shown(response) == ["other"]
    assert response.json()["items"][0]["source"] == "two_tower"


@pytest.mark.parametrize("item", ["z" * 5_000, "%00", "%FF%FE", "%ED%A0%80", ""])
def test_what_cannot_be_an_items_id_is_an_unknown_item(stocked: Stage, item: str) -> None:
    response = stocked.client.get(f"/v1/items/{item}/similar?k=1")
    assert response.status_code in (200, 404)


def test_items_are_found_by_the_words_of_their_title(stocked: Stage) -> None:
    assert shown(stocked.client.get("/v1/items", params={"search": "title I17"})) == ["i17"]
    assert shown(stocked.client.get("/v1/items", params={"search": "no such film"})) == []
    assert shown(stocked.client.get("/v1/items", params={"limit": 2})) == ["i0", "i1"]
    assert shown(stocked.client.get("/v1/items", params={"search": "x" * 10_000})) == []


# Events: what is taken


def test_one_event_is_taken_and_lies_in_the_log_complete(stage: Stage) -> None:
    before = datetime.now(UTC)
    response = stage.post(LIKE)
    assert response.status_code == 202
    (accepted,) = response.json()["accepted"]
    (event,) = stage.events()
    assert {name: event[name] for name in LIKE} == LIKE
    assert event["event_id"] == accepted["event_id"] != ""
    at = datetime.fromisoformat(event["at"])
    assert at == datetime.fromisoformat(accepted["at"])
    assert before - timedelta(milliseconds=1) <= at <= datetime.now(UTC)


def test_what_the_sender_filled_in_is_kept(stage: Stage) -> None:
    sent = {
        **LIKE,
        "event_id": "mine",
        "at": "2020-02-03T04:05:06.789+01:00",
        "request_id": "r",
        "position": 3,
        "scenario": "home",
        "attributes": {"deep": {"er": [1, None, "x"]}, "big": 10**30},
    }
    response = stage.post(sent)
    assert response.json()["accepted"] == [
        {"event_id": "mine", "at": "2020-02-03T03:05:06.789000Z"}
    ]
    (event,) = stage.events()
    assert datetime.fromisoformat(event.pop("at")) == datetime.fromisoformat(str(sent.pop("at")))
    assert event == sent


def test_a_list_is_taken_in_its_order(stage: Stage) -> None:
    sent = [{**LIKE, "item_id": f"i{number}"} for number in range(50)]
    response = stage.post(sent)
    assert response.status_code == 202
    assert [event["item_id"] for event in stage.events()] == [f"i{n}" for n in range(50)]
    told = [accepted["event_id"] for accepted in response.json()["accepted"]]
    assert [event["event_id"] for event in stage.events()] == told
    assert len(set(told)) == 50


def test_of_a_partly_bad_list_the_good_events_are_taken(stage: Stage) -> None:
    response = stage.post([LIKE, {"kind": "like"}, 7, {**LIKE, "item_id": "i2"}])
    assert response.status_code == 202
    answer = response.json()
    assert [event["item_id"] for event in stage.events()] == ["i1", "i2"]
    assert len(answer["accepted"]) == 2
    assert [(r["index"], r["field"]) for r in answer["rejected"]] == [(1, "user_id"), (2, "event")]


def test_of_an_all_bad_list_nothing_is_taken(stage: Stage) -> None:
    response = stage.post([{"kind": "like"}, {"kind": "nope", "user_id": "u"}])
    assert response.status_code == 422
    assert response.json()["accepted"] == []
    assert len(response.json()["rejected"]) == 2
    assert stage.events() == []


def test_an_empty_list_is_nothing_to_do(stage: Stage) -> None:
    response = stage.post([])
    assert response.status_code == 202
    assert response.json() == {"accepted": [], "rejected": []}
    assert stage.events() == []


# Events: what is refused


@pytest.mark.parametrize(
    ("changed", "field", "value", "reason"),
    [
        ({"user_id": 7}, "user_id", "7", "put it in quotes"),
        ({"item_id": None}, "item_id", "None", "missing"),
        ({"user_id": ""}, "user_id", "''", "1 to 256 characters"),
        ({"item_id": "x" * 257}, "item_id", "xxx", "1 to 256 characters"),
        ({"kind": None}, "kind", "None", "str"),
        ({"kind": "lick"}, "kind", "'lick'", "known are"),
        ({"kind": "rate"}, "value", "None", "missing"),
        ({"kind": "rate", "value": "5"}, "value", "'5'", "float"),
        ({"kind": "rate", "value": 5.5}, "value", "5.5", "0 to 5"),
        ({"kind": "rate", "value": True}, "value", "True", "float"),
        ({"kind": "rate", "value": 10**400}, "value", "1000", "range"),
        ({"position": -1}, "position", "-1", "0 (the top) or more"),
        ({"position": 2**31}, "position", str(2**31), "0 (the top) or more"),
        ({"position": 1.5}, "position", "1.5", "int"),
        ({"at": "yesterday"}, "at", "'yesterday'", "2026-11-21T10:00:00Z"),
        ({"at": 1_700_000_000}, "at", "1700000000", "2026-11-21T10:00:00Z"),
        ({"at": "1969-12-31T23:59:59Z"}, "at", "1969", "before 1970"),
        ({"at": "2999-01-01T00:00:00Z"}, "at", "2999", "in the future"),
        ({"at": "0001-01-01T00:00:00+01:00"}, "at", "0001", "before 1970"),
        ({"at": "9999-12-31T23:59:59-01:00"}, "at", "9999", "in the future"),
        ({"attributes": [1]}, "attributes", "[1]", "object"),
        ({"colour": "red"}, "colour", "'red'", "unknown field"),
    ],
)
def test_a_bad_event_is_refused_with_field_value_and_reason(
    stage: Stage, changed: dict[str, Any], field: str, value: str, reason: str
) -> None:
    response = stage.post({**LIKE, **changed})
    assert response.status_code == 422
    (rejected,) = response.json()["rejected"]
    assert (rejected["index"], rejected["field"]) == (0, field)
    assert value in rejected["value"]
    assert len(rejected["value"]) <= 120
    assert reason in rejected["reason"]
    assert stage.events() == []


def test_a_missing_kind_is_named(stage: Stage) -> None:
    (rejected,) = stage.post({"user_id": "u"}).json()["rejected"]
    assert rejected["field"] == "kind"
    assert "missing" in rejected["reason"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_no_number_is_refused(client: httpx.Client, number: str) -> None:
    body = f'{{"kind": "rate", "user_id": "u", "item_id": "i", "value": {number}}}'
    response = client.post("/v1/events", content=body)
    assert response.status_code == 422
    assert response.json()["rejected"][0]["reason"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"like", b'{"kind": "like"', b"\xff\xfe\x00", b'[{"kind": "like"},]', b"\x00",
     b"[" * 200_000, b'{"a":' * 100_000, b"1" * 10_000],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
def test_a_body_that_is_not_json_is_refused(stage: Stage, body: bytes) -> None:
    response = stage.client.post("/v1/events", content=body)
    assert response.status_code == 400
    assert "not JSON" in response.json()["error"]
    assert stage.events() == []


@pytest.mark.parametrize("body", [b"7", b'"like"', b"null", b"true", b"1.5"])
def test_json_that_is_no_event_is_refused(client: httpx.Client, body: bytes) -> None:
    response = client.post("/v1/events", content=body)
    assert response.status_code == 422
    (rejected,) = response.json()["rejected"]
    assert rejected["field"] == "event"
    assert "not a JSON object" in rejected["reason"]


def test_a_body_may_be_as_large_as_the_limit_and_no_larger(stage: Stage) -> None:
    limit = ApiConfig().max_body_bytes
    events = json.dumps([LIKE]).encode()
    fits = stage.client.post("/v1/events", content=events.ljust(limit))
    assert fits.status_code == 202
    large = stage.client.post("/v1/events", content=events.ljust(limit + 1))
    assert large.status_code == 413
    assert str(limit) in large.json()["error"]
    assert len(stage.events()) == 1


def test_a_request_may_bring_as_many_events_as_the_limit_and_no_more(
    stage: Stage, connect: Connect
) -> None:
    with connect(create_app(stage.service, ApiConfig(max_events=3))) as client:
        assert client.post("/v1/events", json=[LIKE] * 3).status_code == 202
        response = client.post("/v1/events", json=[LIKE] * 4)
    assert response.status_code == 413
    assert "4 events: 3 at most" in response.json()["error"]
    assert len(stage.events()) == 3


@pytest.mark.parametrize("depth", [10, 200, 260, 600, 900])
def test_an_event_however_deep_is_refused_or_can_be_answered_with(stage: Stage, depth: int) -> None:
    deep = "[" * depth + "]" * depth
    body = f'{{"kind":"item","item_id":"deep","attributes":{{"title":"deep","x":{deep}}}}}'
    response = stage.client.post("/v1/events", content=body)
    assert response.status_code in (202, 400, 422)
    stage.catch_up()
    expected = ["deep"] if response.status_code == 202 else []
    assert shown(stage.client.get("/v1/items?search=deep")) == expected
    assert shown(stage.client.get("/v1/recommend?user_id=u")) == expected


# When the log cannot take it


class BrokenLog(FileLog):
    """A log whose appends end in an error."""

    error: LogError

    def append(self, records: Sequence[Append]) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status"),
    [(LogFull("no space is left for the log: free some"), 507), (LogError("it is locked"), 503)],
)
def test_an_event_the_log_cannot_take_is_answered_with_the_reason(
    stage: Stage, connect: Connect, tmp_path: Path, error: LogError, status: int
) -> None:
    broken = BrokenLog(tmp_path / "broken.db")
    broken.error = error
    with connect(create_app(replace(stage.service, log=broken), ApiConfig())) as client:
        response = client.post("/v1/events", json=LIKE)
        assert client.get("/healthz").status_code == 200
    broken.close()
    assert response.json() == {"error": str(error)}
    assert response.status_code == status
    assert "accepted" not in stage.client.get("/metrics").text


# Fuzz: whatever comes, it is never a 5xx


@pytest.fixture(scope="module")
def fuzzed(
    tmp_path_factory: pytest.TempPathFactory,
    connect: Connect,
    random_version: MakeVersion,
    patient: Patient,
) -> Iterator[Stage]:
    """A stage that keeps what the examples before have put into it."""

    class Nobody:
        is_local = True

        def read(self, view: Any, keys: Sequence[int]) -> list[dict[str, Any]]:
            return [view.defaults for _ in keys]

    log = FileLog(tmp_path_factory.mktemp("fuzz") / "log.db")
    made = make_stage(log, Nobody(), connect, patient())
    with made.client:
        made.post([{"kind": "item", "item_id": f"i{n}"} for n in range(5)])
        made.catch_up()
        made.replica.take(random_version([stable_id(f"i{n}") for n in range(5)]))
        yield made
    log.close()


def json_of(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )


JSON = json_of(st.none() | st.booleans() | st.integers() | st.floats() | st.text())
FINITE = json_of(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text())
# A newline in an id is taken, but no route can match it in a path.
ID = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=256)
GOOD = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["like", "rate", "item"]),
        "user_id": ID,
        "item_id": ID,
        "value": st.floats(0, 5),
    },
    optional={
        "at": st.datetimes(datetime(1970, 1, 1), datetime(2020, 1, 1)).map(datetime.isoformat),
        "attributes": st.dictionaries(st.sampled_from(["title", "year"]) | st.text(), FINITE),
        "position": st.integers(0, 2**31 - 1),
        "query": st.text(),
    },
)
FIELDS = [
    "event_id",
    "kind",
    "user_id",
    "item_id",
    "value",
    "at",
    "attributes",
    "position",
    "scenario",
    "x",
]
ODD = st.tuples(GOOD, st.sampled_from(FIELDS), JSON).map(lambda odd: {**odd[0], odd[1]: odd[2]})


@given(body=GOOD)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_every_event_that_keeps_the_rules_is_taken_and_can_be_answered_with(
    fuzzed: Stage, body: dict[str, Any]
) -> None:
    assert fuzzed.post(body).status_code == 202
    fuzzed.catch_up()
    assert fuzzed.catalog.get(stable_id(body["item_id"])) is not None
    assert fuzzed.client.get("/v1/items?limit=500").status_code == 200
    similar = fuzzed.client.get(f"/v1/items/{quote(body['item_id'], safe='')}/similar?k=500")
    assert similar.status_code == 200


@given(body=ODD | st.lists(GOOD | ODD | JSON, max_size=4) | JSON)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_no_json_makes_the_service_fail(fuzzed: Stage, body: Any) -> None:
    before = fuzzed.log.ends([EVENTS])[PLACE]
    response = fuzzed.client.post("/v1/events", content=json.dumps(body))
    assert response.status_code in (202, 422)
    answer = response.json()
    sent = len(body) if isinstance(body, list) else 1
    assert len(answer["accepted"]) + len(answer["rejected"]) == sent
    assert fuzzed.log.ends([EVENTS])[PLACE] - before == len(answer["accepted"])
    fuzzed.catch_up()
    assert fuzzed.client.get("/v1/items?limit=500").status_code == 200


@given(body=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(body=b'{"kind": "like", "user_id": "\xed\xa0\x80", "item_id": "i"}')
@example(body=b'{"kind": "like", "user_id": "\\ud800", "item_id": "i"}')
@example(body=b'\xef\xbb\xbf{"kind": "like", "user_id": "u", "item_id": "i"}')
@example(body='{"kind": "like", "user_id": "u", "item_id": "i"}'.encode("utf-16"))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_no_bytes_make_the_service_fail(fuzzed: Stage, body: bytes) -> None:
    response = fuzzed.client.post("/v1/events", content=body)
    assert response.status_code in (202, 400, 422)
    response.json()


ANY_BYTES = st.binary(max_size=20).map(quote)


@given(
    query=st.lists(
        st.tuples(st.sampled_from(["user_id", "k", "search", "limit"]) | ANY_BYTES,
                  ANY_BYTES | st.integers(-2, 600).map(str) | st.text(max_size=9).map(quote)),
        max_size=4,
    ),
    path=st.sampled_from(["/v1/recommend", "/v1/items", "/v1/items/i1/similar"])
    | ANY_BYTES.map("/v1/items/{}/similar".format)
    | ANY_BYTES.map("/{}".format),
)  # fmt: skip
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_query_makes_the_service_fail(
    fuzzed: Stage, query: list[tuple[str, str]], path: str
) -> None:
    response = fuzzed.client.get(f"{path}?{'&'.join(f'{a}={b}' for a, b in query)}")
    assert response.status_code < 500
    if response.status_code == 422:
        assert re.match(r"(user_id|k|limit|search) = .+: \S+", response.json()["error"], re.DOTALL)


# The system's own pages


def test_metrics_are_those_prometheus_reads(stocked: Stage) -> None:
    stocked.client.get("/v1/recommend?user_id=u&k=4")
    stocked.client.get("/v1/recommend?user_id=u&k=0")
    for item in ("a", "b", "c/d"):
        stocked.client.get(f"/v1/items/{item}/similar?k=1")
    for page in range(5):
        stocked.client.get(f"/no/such/page/{page}")
    stocked.post([LIKE, {"kind": "like"}])
    response = stocked.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }

    def requests(route: str, status: int) -> float:
        labels = (("route", route), ("status", str(status)))
        return values["headrace_request_seconds_count", *labels]

    assert requests("/v1/recommend", 200) == 1
    assert requests("/v1/recommend", 422) == 1
    assert requests("/v1/items/{item_id:path}/similar", 200) == 3
    assert requests("other", 404) == 5
    assert requests("/v1/events", 202) == 2
    assert values["headrace_http_events_total", ("outcome", "accepted")] == 36 + 1
    assert values["headrace_http_events_total", ("outcome", "rejected")] == 1
    assert values["headrace_answer_items_total", ("source", "popular")] == 4 + 3
    assert values["headrace_candidates_total", ("source", "popular")] == 3  # of one answer


def test_not_ready_says_why_and_then_ready(stage: Stage) -> None:
    stage.reason = "no model version has been published yet"
    response = stage.client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["reason"] == stage.reason
    assert stage.client.get("/healthz").json() == {"status": "ok"}
    stage.reason = None
    assert stage.client.get("/readyz").status_code == 200
    assert stage.client.get("/readyz").json() == {"status": "ready"}


def test_status_is_that_of_the_system(stage: Stage) -> None:
    assert stage.client.get("/v1/status").json() == {"lag": {"trainer": 7}, "ready": True}


def test_prometheus_is_told_of_all_processes(client: httpx.Client) -> None:
    assert client.get("/v1/targets").json() == [TARGETS]


def test_the_playground_and_its_files_are_served(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    files = re.findall(r'(?:src|href)="(/web/[^"]+)"', page.text)
    assert len(files) >= 2
    for file in files:
        assert client.get(file).status_code == 200, file


@pytest.mark.parametrize(
    "path",
    ["/web/%2e%2e/api.py", "/web/..%2fapi.py", "/web/%2e%2e%2f%2e%2e%2fpyproject.toml",
     "/web//etc/passwd", "/web/%2fetc%2fpasswd", "/web/%5c..%5capi.py", "/web/%00",
     "/web/" + "a" * 5_000, "/web/", "/web/no-such-file"],
)  # fmt: skip
def test_nothing_outside_of_the_playground_is_served(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/no/such/page", 404), ("GET", "/v1/events", 405), ("POST", "/v1/items", 405)],
)
def test_what_is_not_there_is_named(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"].startswith(f"{method} {path}: ")


def test_the_interface_describes_itself(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {path for path in paths if not path.startswith("/v1/monitor")} == {
        "/v1/recommend", "/v1/rank", "/v1/items/{item_id}/similar", "/v1/users/{user_id}",
        "/v1/items", "/v1/events", "/v1/status", "/v1/targets", "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    assert "post" in paths["/v1/events"]


@pytest.mark.parametrize(
    ("at_us", "text"),
    [
        (None, None),
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_700_000_000_000_001, "2023-11-14T22:13:20.000001Z"),
    ],
)
def test_times_are_written_at_one_width(at_us: int | None, text: str | None) -> None:
    assert time_text(at_us) == text
