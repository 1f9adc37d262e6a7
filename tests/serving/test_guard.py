"""What stands before the routes: keys, limits, rates, gates; slow clients and storms; odd bytes."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import http.client
import json
import resource
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp

from features.catalog import Catalog, CatalogItem
from serving.answers import Answer, KnownUser, Recommendation, Wanted
from serving.http.api import ApiConfig, ApiKey, GateConfig, Service, create_app
from serving.http.gate import Gate
from serving.http.guard import Rates
from serving.http.refusals import Overloaded
from serving.metrics import ServingMetrics
from streaming.errors import ConfigError
from streaming.events import EventRules
from streaming.file_log import FileLog
from streaming.log import EVENTS, Append, TopicPartition
from streaming.metrics import Metrics
from streaming.settings import fill

Connect = Callable[[ASGIApp], httpx.Client]
Serve = Callable[..., AbstractContextManager[int]]
PLACE = TopicPartition(EVENTS, 0)
ASK = "/v1/recommend?user_id=u"
PATIENCE_S = 20.0


@dataclass
class StandIn:
    """A recommender that takes its time; it works only while `open`."""

    work_s: float = 0.0
    open: threading.Event = field(default_factory=threading.Event)
    now: int = 0
    most: int = 0
    asked: int = 0
    broken: bool = False
    waits: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.open.set()

    def recommend(self, wanted: Wanted) -> Answer:
        with self.lock:
            self.now += 1
            self.asked += 1
            self.most = max(self.most, self.now)
        if self.broken:
            raise RuntimeError("a secret of the house")
        assert self.open.wait(PATIENCE_S)
        time.sleep(self.work_s)
        with self.lock:
            self.now -= 1
        item = CatalogItem(f"for {wanted.user_id}", None, {})
        items = [Recommendation(item, 1.0, "stand-in", {})]
        return Answer(uuid.uuid4().hex, items, None, user_id=wanted.user_id)

    def similar(self, item_id: str, count: int) -> Answer:
        return self.recommend(Wanted(item_id, count))

    def known(self, user_id: str) -> KnownUser:
        return KnownUser(user_id, {}, [], [], 0, None, {})


@pytest.fixture
def recommender() -> StandIn:
    return StandIn()


@pytest.fixture
def service(log: FileLog, catalog: Catalog, recommender: Any) -> Service:
    return Service(
        log, EventRules(), recommender, catalog, ServingMetrics(Metrics()), dict, lambda: None,
        replica_name="replica-7",
    )  # fmt: skip


@pytest.fixture
def client(service: Service, connect: Connect) -> Iterator[Callable[..., httpx.Client]]:
    """Clients of the service, each with a config of its own."""
    made = []

    def make(**config: Any) -> httpx.Client:
        made.append(connect(create_app(service, ApiConfig(**config))))
        return made[-1]

    yield make
    for one in made:
        one.close()


def key(text: str, scope: Any = "all") -> ApiKey:
    return ApiKey(hashlib.sha256(text.encode()).hexdigest(), scope)


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def like(item: object, **more: Any) -> dict[str, Any]:
    return {"kind": "like", "user_id": "u", "item_id": str(item), **more}


def told(service: Service, name: str, **labels: str) -> float:
    """A figure as Prometheus reads it."""
    families = text_string_to_metric_families(service.metrics.exposition()[0].decode())
    samples = (sample for family in families for sample in family.samples)
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


# Names


def test_every_answer_names_itself_and_who_gave_it(client: Callable[..., httpx.Client]) -> None:
    answers = [client().get(path) for path in (ASK, "/healthz", "/nowhere", "/v1/recommend")]
    assert [a.headers["X-Headrace-Replica"] for a in answers] == ["replica-7"] * 4
    assert answers[0].headers["X-Request-Id"] == answers[0].json()["request_id"]
    assert len({answer.headers["X-Request-Id"] for answer in answers}) == 4


def test_what_breaks_inside_is_not_shown(
    service: Service, recommender: StandIn, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    recommender.broken = True
    with serve(create_app(service, ApiConfig())) as port:
        answer = httpx.get(f"http://127.0.0.1:{port}{ASK}")
    assert answer.status_code == 500
    name = answer.headers["X-Request-Id"]
    assert answer.json() == {
        "error": f"something broke inside: look for request {name} in the service's log"
    }
    assert f"request {name}: GET /v1/recommend" in caplog.text
    assert "a secret of the house" in caplog.text
    assert told(service, "headrace_request_seconds_count", status="500") == 1


# Keys


def test_without_keys_in_the_recipe_anybody_may_ask(client: Callable[..., httpx.Client]) -> None:
    assert client().get(ASK).status_code == 200
    assert client().get(ASK, headers=bearer("any")).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 401),
        ([("Authorization", "Bearer wrong")], 401),
        ([("Authorization", "Bearer right")], 200),
        ([("authorization", "bearer  right ")], 200),
        ([("X-Api-Key", "right")], 200),
        ([("X-Api-Key", "right"), ("Authorization", "Bearer right")], 200),
        ([("X-Api-Key", "wrong"), ("Authorization", "Bearer right")], 401),
        ([("Authorization", "Bearer wrong"), ("Authorization", "Bearer right")], 401),
        ([("Authorization", "Basic right")], 401),
        ([("Authorization", "right")], 401),
        ([("X-Api-Key", "")], 401),
        ([("X-Api-Key", "R" + "right")], 401),
        ([("X-Api-Key", hashlib.sha256(b"right").hexdigest())], 401),
    ],
)
def test_a_key_opens_and_nothing_else(
    client: Callable[..., httpx.Client], headers: list[tuple[str, str]], status: int
) -> None:
    guarded = client(api_keys={"shop": key("right"), "other": key("other")})
    for path in (ASK, "/v1/status", "/v1/items", "/", "/web/app.js", "/nowhere", "/healthz/"):
        answer = guarded.get(path, headers=headers)
        assert (answer.status_code == 401) == (status == 401), path
        if status == 401:
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert "Authorization: Bearer KEY" in answer.json()["error"]


def test_health_needs_no_key_unless_it_is_said(client: Callable[..., httpx.Client]) -> None:
    keys = {"shop": key("right")}
    for path in ("/healthz", "/readyz", "/metrics", "/v1/targets", "/openapi.json"):
        assert client(api_keys=keys).get(path).status_code == 200
        assert client(api_keys=keys, open_paths=()).get(path).status_code == 401


@pytest.mark.parametrize(
    ("scope", "asks", "posts"), [("read", 200, 403), ("events", 403, 202), ("all", 200, 202)]
)
def test_a_key_is_for_its_scope(
    client: Callable[..., httpx.Client], scope: str, asks: int, posts: int
) -> None:
    guarded = client(api_keys={"shop": key("right", scope)})
    assert guarded.get(ASK, headers=bearer("right")).status_code == asks
    posted = guarded.post("/v1/events", json=like(1), headers=bearer("right"))
    assert posted.status_code == posts
    if posts == 403:
        assert "the key shop is only for read" in posted.json()["error"]
    escaped = guarded.post("/v1/event%73", json=like(1), headers=bearer("right"))
    assert escaped.status_code == posts
    # Nothing else leads there.
    for path in ("/v1/events/", "/v1//events", "/v1/%2e/events", "/v1/x/%2e%2e/events"):
        assert guarded.post(path, json=like(1), headers=bearer("right")).status_code >= 400


def test_keys_come_from_the_recipe_and_only_as_hashes() -> None:
    digest = hashlib.sha256(b"right").hexdigest()
    config = fill(ApiConfig, {"api_keys": {"shop": {"sha256": digest, "scope": "read"}}}, "serving")
    assert config.api_keys == {"shop": ApiKey(digest, "read")}
    with pytest.raises(ConfigError, match=r"serving.api_keys.shop.sha256 = 'right'"):
        fill(ApiConfig, {"api_keys": {"shop": {"sha256": "right"}}}, "serving")
    with pytest.raises(ConfigError, match="give each client one of its own"):
        ApiConfig(api_keys={"a": key("same"), "b": key("same")})


# Rates


def test_a_bucket_gives_what_has_flowed_in() -> None:
    now = [100.0]
    rates = Rates(2.0, 3, lambda: now[0])
    assert [rates.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert rates.take("b") == 0  # he has one of his own
    now[0] += 0.4
    assert rates.take("a") == pytest.approx(0.1)
    now[0] += 0.1
    assert rates.take("a") == 0
    now[0] += 1_000
    assert [rates.take("a") > 0 for _ in range(4)] == [False, False, False, True]


def test_buckets_of_however_many_askers_stay_few() -> None:
    rates = Rates(1.0, 1, lambda: 0.0)
    for number in range(30_000):
        rates.take(f"asker {number}")
    assert len(rates) == 10_000
    assert rates.take("asker 29999") > 0  # whoever asked lately is remembered


def test_who_asks_too_often_is_told_when_to_come_again(service: Service, connect: Connect) -> None:
    now = [0.0]
    keys = {"a": key("ka"), "b": key("kb")}
    config = ApiConfig(api_keys=keys, rate_per_s=0.1, burst=2)
    with connect(create_app(service, config, clock=lambda: now[0])) as client:
        statuses = [client.get(ASK, headers=bearer("ka")).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        refused = client.get(ASK, headers=bearer("ka"))
        assert refused.headers["Retry-After"] == "10"
        assert "key a asks more than 0.1 times a second" in refused.json()["error"]
        assert client.get(ASK, headers=bearer("kb")).status_code == 200
        # Guessing keys is limited too, by address.
        assert [client.get(ASK).status_code for _ in range(3)] == [401, 401, 429]
        assert client.get("/healthz").status_code == 200
        now[0] += 10
        assert client.get(ASK, headers=bearer("ka")).status_code == 200


# Sizes


def test_long_urls_and_large_headers_are_refused(client: Callable[..., httpx.Client]) -> None:
    long = client().get(f"{ASK}&query={'x' * 20_000}")
    assert long.status_code == 414
    assert "16384 at most" in long.json()["error"]
    large = client().get(ASK, headers={"X-Large": "x" * 40_000})
    assert large.status_code == 431
    many = client().get(ASK, headers=[(f"X-{n}", "x") for n in range(120)])
    assert many.status_code == 431


def test_a_browser_of_another_site_may_not_ask_unless_it_is_said(
    client: Callable[..., httpx.Client],
) -> None:
    asks = {"Origin": "https://shop.example", "Access-Control-Request-Method": "GET"}
    closed, opened = client(), client(cors_origins=("https://shop.example",))
    assert "access-control-allow-origin" not in closed.options(ASK, headers=asks).headers
    assert "access-control-allow-origin" not in closed.get(ASK, headers=asks).headers
    allowed = opened.options(ASK, headers=asks)
    assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
    other = opened.get(ASK, headers={"Origin": "https://evil.example"})
    assert other.headers.get("access-control-allow-origin") != "https://evil.example"


# The gate


def test_a_gate_lets_few_in_and_few_wait() -> None:
    async def run() -> None:
        metrics = ServingMetrics(Metrics())
        gate = Gate("test", GateConfig(concurrent=2, waiting=3, wait_s=PATIENCE_S), metrics)
        go = threading.Event()
        working = [asyncio.create_task(gate.run(lambda: go.wait(PATIENCE_S))) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="too many requests for test"):
            await gate.run(lambda: True)
        patient = asyncio.create_task(gate.run(lambda: "at last", begun=True))
        await asyncio.sleep(0)
        working[3].cancel()  # one that waits gives up: its place is another's
        await asyncio.sleep(0)
        go.set()
        assert await patient == "at last"
        done = await asyncio.gather(*working, return_exceptions=True)
        assert [result is True for result in done] == [True, True, True, False, True]
        # All places are free again.
        go.clear()
        again = [asyncio.create_task(gate.run(lambda: go.wait(PATIENCE_S))) for _ in range(5)]
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(*again) == [True] * 5
        assert metrics.shed.labels("test")._value.get() == 1

    asyncio.run(run())


def test_in_a_queue_that_was_full_and_stands_fewer_may_wait() -> None:
    async def run() -> None:
        gate = Gate(
            "test",
            GateConfig(concurrent=1, waiting=8, wait_s=PATIENCE_S),
            ServingMetrics(Metrics()),
        )
        go = threading.Event()
        asked = [asyncio.create_task(gate.run(lambda: go.wait(PATIENCE_S))) for _ in range(8)]
        await asyncio.sleep(0.3)
        gate.check()  # seven have waited for long, but eight may, and nobody was turned away
        asked.append(asyncio.create_task(gate.run(lambda: go.wait(PATIENCE_S))))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            gate.check()
        for one in asked[3:]:  # two are left, and that is enough now
            one.cancel()
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            gate.check()
        go.set()
        assert await asyncio.gather(*asked[:3]) == [True] * 3
        go.clear()
        again = [asyncio.create_task(gate.run(lambda: go.wait(PATIENCE_S))) for _ in range(9)]
        await asyncio.sleep(0)  # that was over: eight may wait again
        with pytest.raises(Overloaded):
            gate.check()
        go.set()
        assert await asyncio.gather(*again) == [True] * 9

    asyncio.run(run())


def test_who_waits_too_long_is_told_to_come_again() -> None:
    async def run() -> None:
        gate = Gate(
            "test", GateConfig(concurrent=1, waiting=5, wait_s=0.05), ServingMetrics(Metrics())
        )
        go = threading.Event()
        first = asyncio.create_task(gate.run(lambda: go.wait(PATIENCE_S)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await gate.run(lambda: True)
        go.set()
        assert await first
        assert await gate.run(lambda: "in") == "in"

    asyncio.run(run())


def test_work_goes_on_when_its_request_is_given_up_and_keeps_its_place() -> None:
    async def run() -> None:
        gate = Gate("test", GateConfig(concurrent=1, waiting=0), ServingMetrics(Metrics()))
        go = threading.Event()
        task = asyncio.create_task(gate.run(lambda: go.wait(PATIENCE_S)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        with pytest.raises(Overloaded):
            await gate.run(lambda: True)
        go.set()
        while True:
            try:
                assert await gate.run(lambda: "in") == "in"
            except Overloaded:
                await asyncio.sleep(0.01)
            else:
                return

    asyncio.run(run())


def test_what_is_done_here_keeps_the_order_and_counts_who_came_at_the_same_time() -> None:
    async def run() -> None:
        gate = Gate(
            "test",
            GateConfig(concurrent=1, waiting=2, wait_s=PATIENCE_S),
            ServingMetrics(Metrics()),
        )
        loop, done = threading.get_ident(), list[int]()

        def work(number: int) -> int:
            assert threading.get_ident() == loop
            done.append(number)
            return number

        asked = [gate.run(lambda n=n: work(n), here=True) for n in range(5)]  # type: ignore[misc]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert found[:3] == [0, 1, 2] == done
        assert [type(one) for one in found[3:]] == [Overloaded, Overloaded]
        with pytest.raises(ZeroDivisionError):
            await gate.run(lambda: 1 // 0, here=True)
        given_up = asyncio.create_task(gate.run(lambda: work(9), here=True))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        assert await gate.run(lambda: work(3), here=True) == 3  # the place was left each time
        assert done == [0, 1, 2, 3]

    asyncio.run(run())


# Storms


def ask(port: int, users: Sequence[str], found: list[tuple[str, int, Any]]) -> None:
    """Asks for each user over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    for user in users:
        connection.request("GET", f"/v1/recommend?user_id={user}")
        response = connection.getresponse()
        answer = json.loads(response.read())
        found.append((user, response.status, answer))
        if response.status == 429:
            assert int(response.headers["Retry-After"]) >= 1
    connection.close()


@pytest.mark.parametrize("waits", [True, False])
def test_in_a_storm_every_answer_is_right_or_come_again(
    service: Service, recommender: StandIn, serve: Serve, waits: bool
) -> None:
    """Sixty at once, where six find room: in threads, and in that of the event loop."""
    recommender.work_s, recommender.waits = 0.01, waits
    config = ApiConfig(answers=GateConfig(concurrent=2, waiting=4, wait_s=PATIENCE_S))
    found: list[tuple[str, int, Any]] = []
    with serve(create_app(service, config)) as port:
        threads = [
            threading.Thread(target=ask, args=(port, [f"u{n}-{m}" for m in range(10)], found))
            for n in range(60)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 600
    statuses = Counter(status for _, status, _ in found)
    assert set(statuses) == {200, 429}
    for user, status, answer in found:
        if status == 200:
            assert [item["item_id"] for item in answer["items"]] == [f"for {user}"]
        else:
            assert "too many requests for answers" in answer["error"]
    assert recommender.asked == statuses[200] >= 6  # what was shed was not begun
    assert recommender.most == (2 if waits else 1)
    assert told(service, "headrace_requests_shed_total", gate="answers") == statuses[429]
    for status, count in statuses.items():
        counted = told(service, "headrace_request_seconds_count", status=str(status))
        assert counted == count


class StuckLog(FileLog):
    """A log that takes nothing until it is told to."""

    go = threading.Event()

    def append(self, records: Sequence[Append]) -> None:
        assert self.go.wait(PATIENCE_S)
        super().append(records)


def fill_gate(port: int, method: str, path: str, count: int) -> list[http.client.HTTPConnection]:
    """Requests that are on their way and get no answer yet."""
    waiting = []
    for _ in range(count):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        connection.request(method, path, json.dumps(like(1)) if method == "POST" else None)
        waiting.append(connection)
    return waiting


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


SMALL = GateConfig(concurrent=1, waiting=1, wait_s=PATIENCE_S)


def test_stuck_answers_hinder_neither_events_nor_health(
    service: Service, recommender: StandIn, serve: Serve
) -> None:
    recommender.open.clear()
    with serve(create_app(service, ApiConfig(answers=SMALL, events=SMALL))) as port:
        url = f"http://127.0.0.1:{port}"
        waiting = fill_gate(port, "GET", ASK, 2)
        until(lambda: httpx.get(url + ASK).status_code == 429)
        assert httpx.post(url + "/v1/events", json=like(1)).status_code == 202
        for path in ("/healthz", "/readyz", "/metrics", "/v1/status"):
            assert httpx.get(url + path).status_code == 200
        recommender.open.set()
        assert [connection.getresponse().status for connection in waiting] == [200, 200]
        for connection in waiting:
            connection.close()


def test_stuck_events_hinder_neither_answers_nor_health(
    service: Service, serve: Serve, tmp_path: Any
) -> None:
    log = StuckLog(tmp_path / "stuck.db")
    log.go.clear()
    app = create_app(replace(service, log=log), ApiConfig(answers=SMALL, events=SMALL))
    with serve(app) as port:
        url = f"http://127.0.0.1:{port}"
        waiting = fill_gate(port, "POST", "/v1/events", 2)
        until(lambda: told(service, "headrace_requests_waiting", gate="events") == 1)
        for body, kind in ((json.dumps(like(2)), "json"), (json.dumps(like(2)), "x-ndjson")):
            headers = {"Content-Type": f"application/{kind}"}
            refused = httpx.post(url + "/v1/events", content=body, headers=headers)
            assert refused.status_code == 429
            assert refused.headers["Retry-After"] == "1"
        assert httpx.get(url + ASK).status_code == 200
        assert httpx.get(url + "/healthz").status_code == 200
        log.go.set()
        assert [connection.getresponse().status for connection in waiting] == [202, 202]
        for connection in waiting:
            connection.close()
    assert [e["item_id"] for e in events_of(log)] == ["1", "1"]  # of the refused, nothing
    log.close()


def events_of(log: FileLog) -> list[dict[str, Any]]:
    return [json.loads(r.value) for r in log.read({PLACE: 0}, 100_000, 0)]


# Slow clients, large bodies, odd bytes


@pytest.fixture
def talk(service: Service, serve: Serve) -> Iterator[Callable[..., bytes]]:
    """Sends raw bytes on a connection of their own; gives all that comes until it is closed."""
    config = ApiConfig(head_timeout_s=0.3, body_timeout_s=0.3)
    with serve(create_app(service, config), config) as port:

        def exchange(sent: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
                received = b""
                try:
                    connection.sendall(sent)
                    while piece := connection.recv(65_536):
                        received += piece
                except ConnectionResetError:  # whoever refuses does not read to the end
                    pass
                return received

        yield exchange
        alive = httpx.get(f"http://127.0.0.1:{port}/healthz")
        assert alive.status_code == 200


def post(body: bytes, *headers: str) -> bytes:
    head = ["POST /v1/events HTTP/1.1", "Host: h", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize("head", [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: h\r\nX-Slow: "])
def test_a_head_that_does_not_come_is_not_waited_for(
    talk: Callable[..., bytes], head: bytes
) -> None:
    assert talk(head) == b""


def test_a_second_head_that_does_not_come_is_not_waited_for(talk: Callable[..., bytes]) -> None:
    answered = talk(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\nGET /hea")
    assert answered.count(b"HTTP/1.1 200") == 1


def test_a_head_without_end_is_refused(talk: Callable[..., bytes]) -> None:
    answered = talk(b"GET /healthz HTTP/1.1\r\nHost: h\r\nX-Large: " + b"x" * 3_000_000)
    assert answered.startswith(b"HTTP/1.1 431 ") or answered == b""  # reset while still sending


@pytest.mark.parametrize("kind", ["json", "x-ndjson"])
@pytest.mark.parametrize(
    "length", ["Content-Length: 5000", "Content-Length: 900000", "Transfer-Encoding: chunked"]
)
def test_a_body_that_does_not_come_is_not_waited_for(
    talk: Callable[..., bytes], log: FileLog, kind: str, length: str
) -> None:
    line = json.dumps(like(1)).encode() + b"\n"
    body = b"%x\r\n%b\r\n" % (len(line), line) if "chunked" in length else line
    answered = talk(post(body, f"Content-Type: application/{kind}", length))
    assert answered.startswith(b"HTTP/1.1 408 ")
    assert b"the body did not come in time" in answered
    assert events_of(log) == []


def test_a_slow_body_is_taken_as_long_as_it_comes(
    service: Service, serve: Serve, log: FileLog
) -> None:
    """Bytes buy time: 1,000 of them a second."""
    body = json.dumps(like("x" * 200)).encode().ljust(2_000)
    config = ApiConfig(body_timeout_s=0.3)
    with (
        serve(create_app(service, config), config) as port,
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection,
    ):
        connection.sendall(post(b"", f"Content-Length: {len(body)}"))
        for start in range(0, len(body), 500):
            time.sleep(0.2)
            connection.sendall(body[start : start + 500])
        assert connection.recv(100).startswith(b"HTTP/1.1 202 ")
    assert len(events_of(log)) == 1


def pieces(size: int) -> Iterator[bytes]:
    piece = b" " * 1_000_000
    for _ in range(size // len(piece)):
        yield piece


@pytest.mark.parametrize("path", ["/v1/events", "/v1/recommend", "/v1/rank", "/v1/items"])
@pytest.mark.parametrize("length", [True, False])
def test_a_hundred_megabytes_are_refused_in_little_memory(
    service: Service, serve: Serve, path: str, length: bool
) -> None:
    size = 100_000_000
    headers = {"Content-Length": str(size)} if length else {}
    with serve(create_app(service, ApiConfig())) as port:
        url = f"http://127.0.0.1:{port}"
        httpx.get(url + ASK)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = httpx.post(url + path, content=pieces(size), headers=headers, timeout=PATIENCE_S)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert httpx.get(url + "/healthz").status_code == 200
    assert answer.status_code == (405 if path == "/v1/items" else 413)
    assert answer.json()["error"]
    assert grown_kib < 40_000


CLOSE = "Connection: close"
ODD = {
    "two lengths": post(b"{}", "Content-Length: 2", "Content-Length: 3"),
    "length and chunked": post(b"2\r\n{}\r\n0\r\n\r\n", "Content-Length: 2", "Transfer-Encoding: chunked"),  # noqa: E501
    "chunked and length": post(b"2\r\n{}\r\n0\r\n\r\n", "Transfer-Encoding: chunked", "Content-Length: 2"),  # noqa: E501
    "chunked twice": post(b"2\r\n{}\r\n0\r\n\r\n", "Transfer-Encoding: chunked, chunked"),
    "chunked not last": post(b"2\r\n{}\r\n0\r\n\r\n", "Transfer-Encoding: chunked, gzip"),
    "length below zero": post(b"{}", "Content-Length: -2"),
    "length of words": post(b"{}", "Content-Length: two"),
    "length in hex": post(b"{}", "Content-Length: 0x2"),
    "length beyond all": post(b"{}", "Content-Length: " + "9" * 40),
    "more than its length": post(b"{}{}{}{}", "Content-Length: 2"),
    "no length": post(b'{"kind": "like"}'),
    "chunk of no size": post(b"zz\r\n{}\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
    "chunk beyond all": post(b"f" * 40 + b"\r\n{}\r\n", "Transfer-Encoding: chunked"),
    "a header in a header": b"GET /healthz HTTP/1.1\r\nHost: h\r\nX-A: b\rX-Api-Key: k\r\n\r\n",
    "a folded header": b"GET /healthz HTTP/1.1\r\nHost: h\r\nX-A: b\r\n c\r\n\r\n",
    "a nul in a header": b"GET /healthz HTTP/1.1\r\nHost: h\r\nX-A: b\0c\r\n\r\n",
    "a space before the colon": b"GET /healthz HTTP/1.1\r\nHost : h\r\n\r\n",
    "bytes in a header": post(b"{}", "Content-Length: 2", "X-Api-Key: \xff", CLOSE),
    "odd packing": post(b"{}", "Content-Length: 2", "Content-Encoding: \xe9", CLOSE),
    "odd type": post(b"{}", "Content-Length: 2", "Content-Type: ;;;=\xe9", CLOSE),
    "no such method": b"BREW /v1/items HTTP/1.1\r\nHost: h\r\n\r\n",
    "connect": b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n",
    "websocket": b"GET /v1/items HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"  # noqa: E501
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "http/2 at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http/0.9": b"GET /\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xa5" * 64,
    "nothing but lines": b"\r\n" * 50,
}  # fmt: skip
PATHS = [
    b"/v1/users/..", b"/v1/../../etc/passwd", b"/v1/items/%2e%2e/similar", b"//v1//items",
    b"/v1/users/%00", b"/v1/users/%0d%0aX-A:%20b", b"/v1/users/\xff\xfe", b"/v1/users/%ff%fe",
    b"/v1/users/%ed%a0%80", b"/v1/users/%", b"/v1/users/%zz", b"/v1/users/" + b"a" * 15_000,
    b"/v1/items?search=%00&limit=1", b"/v1/items?search=\xff", b"/v1/items?limit=%d9%a3", b"*",
    b"http://elsewhere/v1/items", b"http://[::1", b"http://h:999999/v1/items", b"h",
    b"/v1/items?" + b"&" * 5_000,
    b"/v1/recommend?user_id=%ed%a0%80", b"/v1/recommend?user_id=u&filter=" + b"%3a" * 99,
    b"/v1/recommend?user_id=u&user_id=v&k=1&k=2", b"/web/../api.py", b"/web/%5c%2e%2e",
]  # fmt: skip


@pytest.mark.parametrize("sent", ODD.values(), ids=ODD.keys())
def test_odd_requests_break_nothing(talk: Callable[..., bytes], log: FileLog, sent: bytes) -> None:
    well_answered(talk(sent))
    assert events_of(log) == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: repr(path[:30]))
def test_odd_paths_break_nothing(talk: Callable[..., bytes], path: bytes) -> None:
    well_answered(talk(b"GET " + path + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"))


def well_answered(answered: bytes) -> None:
    """Nothing, or answers of which none is the service's fault, with no header that was put in."""
    head = answered.partition(b"\r\n\r\n")[0]
    assert not answered or head[:9] == b"HTTP/1.1 "
    assert b"HTTP/1.1 5" not in answered
    assert b"\nX-A:" not in head
    assert b"Traceback" not in answered
    assert b"/work/" not in answered


# Nothing is lost, nothing counts twice


@pytest.mark.parametrize("kind", ["json", "x-ndjson", "packed"])
def test_a_request_cut_at_any_byte_can_be_sent_again(
    service: Service, serve: Serve, log: FileLog, kind: str
) -> None:
    events = [like(n, event_id=f"e{n}") for n in range(3)]
    body = b"\n".join(json.dumps(event).encode() for event in events)
    if kind == "json":
        body = json.dumps(events).encode()
    if kind == "packed":
        body = gzip.compress(body)
    headers = ["Content-Type: application/" + ("json" if kind == "json" else "x-ndjson")]
    headers += ["Content-Encoding: gzip"] if kind == "packed" else []
    request = post(body, *headers, f"Content-Length: {len(body)}", CLOSE)
    whole = {"e0", "e1", "e2"}
    config = ApiConfig(max_events=1_000 if kind == "json" else 2)  # lines at a time
    with serve(create_app(service, config)) as port:
        for cut in [*range(0, len(request), 5), len(request)]:
            before = len(events_of(log))
            answered = sent(port, request, cut)
            new = {event["event_id"] for event in events_of(log)[before:]}
            assert new <= whole  # under their own names, so that they count once
            assert (b"HTTP/1.1 202" in answered) == (cut == len(request))
            if kind == "json":
                assert new in (set(), whole)
    assert new == whole


def sent(port: int, request: bytes, cut: int) -> bytes:
    """What is answered to the first bytes of a request, when no more come."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(request[:cut])
        if cut < len(request):
            connection.shutdown(socket.SHUT_WR)
        answered = b""
        while piece := connection.recv(65_536):
            answered += piece
        return answered
