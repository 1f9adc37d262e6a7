"""The client against a real service: what it says, what it repeats, what it never doubles."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from features.catalog import Catalog
from serving.client import Client, ServiceError
from serving.http.api import ApiConfig, ApiKey, Service, create_app
from serving.metrics import ServingMetrics
from serving.recommender import OnlineFeatures, RecommendConfig, Recommender
from serving.replica import Replica
from streaming.errors import ConfigError
from streaming.events import EventRules
from streaming.file_log import FileLog
from streaming.log import EVENTS, TopicPartition
from streaming.metrics import Metrics

Serve = Callable[..., AbstractContextManager[int]]
PLACE = TopicPartition(EVENTS, 0)


def like(item: object) -> dict[str, Any]:
    return {"kind": "like", "user_id": "u", "item_id": str(item)}


class Flaky:
    """Before the service: does one thing after the other to requests, and then lets them pass.

    A number is a status to refuse with; "lost" loses the answer after the service gave it.
    """

    def __init__(self, app: ASGIApp, does: Sequence[int | str] = ()) -> None:
        self.app = app
        self.does = list(does)
        self.met = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.met += 1
        what = self.does.pop(0) if self.does else None
        if what is None:
            await self.app(scope, receive, send)
        elif what == "lost":
            await self.app(scope, receive, _nothing)
            cut_off = [(b"content-length", b"100")]  # uvicorn closes what ends before its length
            await send({"type": "http.response.start", "status": 202, "headers": cut_off})
        else:
            headers = [(b"retry-after", b"0"), (b"content-type", b"application/json")]
            await receive()
            await send({"type": "http.response.start", "status": what, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": "busy"}'})


async def _nothing(message: Any) -> None:
    pass


@pytest.fixture
def service(
    log: FileLog,
    catalog: Catalog,
    online_features: OnlineFeatures,
    patient: Callable[..., RecommendConfig],
) -> Service:
    recommender = Recommender(Replica(), catalog, online_features, patient())
    return Service(
        log, EventRules(), recommender, catalog, ServingMetrics(Metrics()), dict, lambda: None
    )


@pytest.fixture
def flaky(service: Service) -> Flaky:
    return Flaky(create_app(service, ApiConfig()))


@pytest.fixture
def client(flaky: Flaky, serve: Serve) -> Iterator[Client]:
    with serve(flaky) as port, Client(f"http://127.0.0.1:{port}/") as made:
        yield made


def items_of(log: FileLog) -> list[str]:
    return [json.loads(r.value)["item_id"] for r in log.read({PLACE: 0}, 10_000, 0)]


def shown(answer: Any) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_what_is_asked_is_answered(client: Client, know: Callable[..., None]) -> None:
    assert client.ready() is None
    answer = client.recommend("ada", k=3)
    assert shown(answer) == ["i0", "i1", "i2"]
    assert (answer["user_id"], answer["degraded"]) == ("ada", [])
    assert shown(client.recommend("ada", k=3, exclude=["i1"])) == ["i0", "i2", "i3"]
    assert client.recommend("ada", k=1, scenario="home", explain=True)["scenario"] == "home"
    ranked = client.rank("ada", ["i7", "nobody knows it", "i0"])
    assert set(shown(ranked)) == {"i0", "i7"}
    assert ranked["unknown"] == ["nobody knows it"]
    assert len(shown(client.similar("a/b ü", k=4))) == 4
    assert client.user("nobody/at all") is None
    know("ada", ["i3"])
    known = client.user("ada")
    assert known is not None
    assert [action["item"]["item_id"] for action in known["actions"]] == ["i3"]


def test_events_are_taken_and_named(client: Client, log: FileLog) -> None:
    taken = client.events([like(1), {"kind": "liek"}, {**like(2), "event_id": "mine"}])
    assert [one["event_id"] for one in taken["accepted"]][1] == "mine"
    assert [(one["index"], one["field"]) for one in taken["rejected"]] == [(1, "kind")]
    assert items_of(log) == ["1", "2"]
    assert client.events([{"kind": "liek"}])["accepted"] == []
    assert client.events([]) == {"accepted": [], "rejected": []}


@pytest.mark.parametrize("refused", [[429], [503, 429], ["lost"], [429, "lost", 503]])
def test_what_was_not_answered_is_sent_again_and_counts_once(
    client: Client, flaky: Flaky, log: FileLog, refused: list[int | str]
) -> None:
    flaky.does = list(refused)
    taken = client.events([like(1), like(2)])
    assert flaky.met == len(refused) + 1
    records = [json.loads(r.value) for r in log.read({PLACE: 0}, 100, 0)]
    assert {r["event_id"] for r in records} == {one["event_id"] for one in taken["accepted"]}
    assert len(records) == 2 * (1 + refused.count("lost"))  # of one id, all but the first drop out
    assert len({r["event_id"] for r in records}) == 2


def test_it_is_not_asked_for_ever(client: Client, flaky: Flaky) -> None:
    flaky.does = [429] * 9
    with pytest.raises(ServiceError, match="answered 429: busy") as caught:
        client.recommend("u")
    assert caught.value.status == 429
    assert flaky.met == 5


def test_it_waits_as_long_as_it_is_told(
    client: Client, flaky: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("serving.client.time.sleep", waited.append)
    flaky.does = [507]
    with pytest.raises(ServiceError, match="answered 507"):
        client.recommend("u")
    assert waited == []  # that does not pass
    flaky.does = [503, 503]
    client.recommend("u")
    assert len(waited) == 2
    assert all(0 <= seconds < 0.5 for seconds in waited)


def test_an_error_is_the_services_own_sentence(client: Client) -> None:
    with pytest.raises(ServiceError, match="k = 501: Input should be less than or equal") as caught:
        client.recommend("u", k=501)
    assert caught.value.status == 422


def test_it_says_why_the_service_is_not_ready(service: Service, serve: Serve) -> None:
    reasons = ["no version yet", "the log is away"]
    service = replace(service, not_ready=lambda: reasons[0], checks=[lambda: reasons[1]])
    with (
        serve(create_app(service, ApiConfig())) as port,
        Client(f"http://127.0.0.1:{port}") as client,
    ):
        assert client.ready() == "503 no version yet; the log is away"


def test_a_key_is_sent_along(service: Service, serve: Serve) -> None:
    keys = {"shop": ApiKey(hashlib.sha256(b"right").hexdigest())}
    with serve(create_app(service, ApiConfig(api_keys=keys))) as port:
        url = f"http://127.0.0.1:{port}"
        with Client(url, api_key="right") as client:
            assert shown(client.recommend("u", k=1)) == ["i0"]
        with Client(url) as client, pytest.raises(ServiceError, match="a key is needed") as caught:
            client.recommend("u")
        assert caught.value.status == 401


def test_several_threads_may_use_it(client: Client) -> None:
    found: list[str | None] = []

    def ask(user: str) -> None:
        for _ in range(5):
            found.append(client.recommend(user, k=1)["user_id"])
        client.close()

    threads = [threading.Thread(target=ask, args=(f"u{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, found)) == sorted(f"u{n}" for n in range(8) for _ in range(5))


def test_a_service_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{reserved.getsockname()[1]}", attempts=2)
        with pytest.raises(ServiceError, match="does not answer .*: is it running") as caught:
            client.recommend("u")
    assert caught.value.status is None


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a:b"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="write it like http"):
        Client(url)
