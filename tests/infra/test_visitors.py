"""Visitors: consistent tastes, reactions that reach the service once, errors survived."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks._service import free_port
from infra.visitor import Visit, Visitors
from infra.visitor_report import Report, line, show
from infra.visitor_service import ServiceError, VisitorService
from infra.visitors import Crowd, VisitorsConfig, wait_until_ready
from streaming.errors import ConfigError
from streaming.sources.choice import REACTIONS
from streaming.sources.population import PopulationConfig
from streaming.sources.truth import Truth
from streaming.sources.world import DAY_US, World, WorldConfig

WORLD = World(WorldConfig(days=2, population=PopulationConfig(users=100, items=100)))
GENRES = ("Comedy", "Drama", "Horror", "Western", "Musical")
FILMS = [
    {"item_id": str(n), "title": f"Film {n}", "attributes": {"genres": [GENRES[n % 5]]}}
    for n in range(100)
]


def world_items(which: list[int]) -> list[dict[str, Any]]:
    """Items of the world as the catalog gives them back."""
    described = WORLD.descriptions.of_items(WORLD.population.items(np.array(which)))
    items = []
    for number, text in zip(which, described, strict=True):
        attributes = json.loads(text)
        items.append({"item_id": f"i{number}", "title": attributes.pop("title"),
                      "attributes": attributes})  # fmt: skip
    return items


class Stub(ThreadingHTTPServer):
    """A service that shows the same items to all; `broken` of its next answers are errors."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, items: list[dict[str, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.items = items
        self.asked: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.posts = 0
        self.broken = 0
        self.refuses = False
        self.not_ready = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def breaks(self) -> bool:
        with self.lock:
            self.broken -= 1
            return self.broken >= 0


class Answering(BaseHTTPRequestHandler):
    """Answers of the stub."""

    protocol_version = "HTTP/1.1"
    server: Stub

    def do_GET(self) -> None:
        self.server.not_ready -= 1
        self.answer(503 if self.server.not_ready >= 0 else 200, {"reason": "ready or not"})

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/v1/recommend"):
            self.recommend(sent)
        else:
            self.take(sent)

    def recommend(self, asked: dict[str, Any]) -> None:
        if self.server.breaks():
            self.answer(500, {"error": "out of order"})
            return
        with self.server.lock:
            self.server.asked.append(asked)
            name = f"request-{len(self.server.asked)}"
        self.answer(200, {"request_id": name, "items": self.server.items[: asked["k"]]})

    def take(self, sent: list[dict[str, Any]]) -> None:
        self.server.posts += 1
        if self.server.refuses:
            self.answer(422, {"accepted": [], "rejected": [{"index": n} for n in range(len(sent))]})
        elif self.server.breaks():
            self.close_connection = True  # nothing is answered at all
        else:
            with self.server.lock:
                self.server.events += sent
            self.answer(202, {"accepted": sent, "rejected": []})

    def answer(self, status: int, body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(items: list[dict[str, Any]]) -> Iterator[Stub]:
    stub = Stub(items)
    thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stub
    finally:
        stub.shutdown()
        thread.join()
        stub.server_close()


def visit(stub: Stub, **changes: Any) -> Report:
    """A crowd of a second or so."""
    settings = {"rate": 60.0, "duration_s": 1.0, "haste": 1e7, "timeout_s": 5.0, **changes}
    config = VisitorsConfig(**settings)
    crowd = Crowd(WORLD, config, VisitorService(stub.url, config.timeout_s))
    crowd.run(Console(quiet=True), threading.Event())
    return crowd.report


# -- one visitor ---------------------------------------------------------------------------


def many_reactions(
    visitors: Visitors, user: int, items: list[dict[str, Any]], times: int
) -> tuple[np.ndarray, list[Visit]]:
    """How often each place of a home list was clicked."""
    clicks = np.zeros(len(items))
    visits = []
    for number in range(times):
        answer = {"request_id": "r", "items": items}
        rng = np.random.default_rng([5, number])
        events, came = visitors.reacts(user, 0, 2.0, answer, rng)
        clicks[list({e.event["position"] for e in events if e.event["kind"] == "click"})] += 1
        visits.append(came)
    return clicks / times, visits


def test_visitors_react_to_the_worlds_items_as_its_truth_says() -> None:
    at_us = WORLD.start_us + 2 * DAY_US
    truth = Truth(WORLD)
    which = truth.best(3, "home", at_us, 10)[0]
    clicks, visits = many_reactions(Visitors(WORLD, 100, 0), 3, world_items(which.tolist()), 1_500)
    said = truth.clicks_in_lists(np.array([3]), which[None, :], "home", at_us)[0]
    error = np.sqrt(said * (1 - said) / 1_500)
    assert (abs(clicks - said) < 4 * error).all()
    alone = truth.click_probability(np.array([3]), which, np.arange(10), "home", at_us)
    assert visits[0].expected == pytest.approx(alone.sum())
    assert visits[0].best == pytest.approx(alone.sum())  # this was the best list


def test_another_list_than_the_best_has_regret() -> None:
    at_us = WORLD.start_us + 2 * DAY_US
    worst = Truth(WORLD).best(3, "home", at_us, 1_000)[0][-10:]
    visits = many_reactions(Visitors(WORLD, 100, 0), 3, world_items(worst.tolist()), 1)[1]
    assert visits[0].expected < 0.5 * (visits[0].best or 0)


def test_tastes_on_a_foreign_catalog_are_consistent_and_follow_its_attributes() -> None:
    tastes = Visitors(WORLD, 100, 0).tastes
    (items, known), (again, _) = tastes.items(FILMS), Visitors(WORLD, 100, 0).tastes.items(FILMS)
    assert not known
    assert np.array_equal(items.vector, again.vector)
    assert np.linalg.norm(items.vector, axis=1) == pytest.approx(1)
    near = items.vector @ items.vector.T
    genre = np.arange(100) % 5
    alike = genre[:, None] == genre[None, :]
    assert near[alike].mean() > near[~alike].mean() + 0.2
    visits = many_reactions(Visitors(WORLD, 100, 0), 3, FILMS[:10], 1)[1]
    assert visits[0].best is None  # nobody knows what is best there


def test_an_id_alone_makes_no_item_of_the_world() -> None:
    tastes = Visitors(WORLD, 100, 0).tastes
    assert tastes.items(world_items([5, 7]))[1]
    for name in ("i5", "i", "x5", "i-5", "i٣", "i99999999999999999999"):
        assert not tastes.items([{"item_id": name, "title": "Another", "attributes": {}}])[1]
    items, known = tastes.items([*world_items([5]), FILMS[0]])
    assert len(items.number) == 2  # a mixed catalog is no error
    assert not known


def test_events_name_themselves_the_list_and_the_place() -> None:
    visitors = Visitors(WORLD, 100, 0)
    answer = {"request_id": "r7", "items": world_items(list(range(30)))}
    kinds: set[str] = set()
    for number in range(800):
        user, place, rng = visitors.asks(number)
        assert not WORLD.config.scenarios[place].searched
        events, came = visitors.reacts(user, place, 2.0, answer, rng)
        length = WORLD.config.scenarios[place].length
        shown = [e for e in events if e.event["kind"] == "impression"]
        assert [e.event["position"] for e in shown] == list(range(length))
        assert came.shown == length
        assert len({e.event["event_id"] for e in events}) == len(events)
        assert all(e.event["item_id"] == f"i{e.event['position']}" for e in events)
        assert all(e.event["request_id"] == "r7" for e in events)
        assert all(e.delay_s > 0 for e in events[length:])
        kinds |= {e.event["kind"] for e in events}
    assert kinds == {"impression", *REACTIONS}
    assert visitors.reacts(1, 0, 2.0, {"request_id": "r", "items": []}, rng)[0] == []


# -- the crowd -----------------------------------------------------------------------------


def test_a_crowd_asks_at_its_rate_and_posts_each_event_once() -> None:
    with serving(world_items(list(range(10)))) as stub:
        report = visit(stub, rate=80.0)
        figures = report.figures()
    assert 40 < figures["requests"] + figures.get("gave_up", 0) < 130
    assert 0 < figures["requests"] == len(stub.asked)
    names = [event["event_id"] for event in stub.events]
    assert len(set(names)) == len(names) == figures["events"]
    assert sum(e["kind"] == "impression" for e in stub.events) == figures["impressions"]
    clicked = {(e["request_id"], e["item_id"]) for e in stub.events if e["kind"] == "click"}
    assert len(clicked) == figures["clicks"] > 0
    assert figures["latency_ms_p50"] <= figures["latency_ms_p99"]
    assert 0 < figures["expected_ctr"] < figures["best_ctr"] < 1
    assert 0 < figures["regret"] < 1
    assert "errors" not in figures


def test_the_same_seed_is_the_same_crowd() -> None:
    asked = []
    for _ in range(2):
        with serving(FILMS) as stub:
            visit(stub, connections=1, rate=10.0, duration_s=2.0)  # too slow for any to give up
            asked.append([(q["user_id"], q["k"]) for q in stub.asked[:15]])
    assert asked[0] == asked[1]
    assert len(set(asked[0])) > 3


def test_errors_are_counted_and_survived_and_nothing_is_posted_twice() -> None:
    with serving(world_items(list(range(10)))) as stub:
        stub.broken = 6
        report = visit(stub, duration_s=1.5)
        figures = report.figures()
    assert figures["errors"] == 6
    assert report.last_error is not None
    assert figures["requests"] > 5
    assert "events_lost" not in figures
    shown = sum(e["kind"] == "impression" for e in stub.events)
    assert shown == figures["impressions"]


def test_what_the_service_refuses_is_counted() -> None:
    with serving(FILMS) as stub:
        stub.refuses = True
        figures = visit(stub).figures()
    assert figures["events"] == 0
    assert figures["events_refused"] >= figures["impressions"] > 0


def test_what_follows_comes_later_unless_in_haste() -> None:
    with serving(FILMS) as stub:
        figures = visit(stub, haste=1.0).figures()
    assert figures["events_not_due"] > 0
    assert {e["kind"] for e in stub.events} == {"impression"}  # nobody clicks within a second


def test_visitors_wait_until_the_service_is_ready_and_no_longer_than_told() -> None:
    with serving(FILMS) as stub:
        service = VisitorService(stub.url, 5.0)
        stub.not_ready = 2
        wait_until_ready(service, Console(quiet=True), threading.Event(), 10.0)
        stub.not_ready = 10**6
        with pytest.raises(ServiceError, match="is not ready after 0.3 s: 503"):
            wait_until_ready(service, Console(quiet=True), threading.Event(), 0.3)
        service.close()


def test_a_service_that_says_something_else_is_an_error_not_a_crash() -> None:
    with serving(FILMS) as stub:
        service = VisitorService(f"{stub.url}/elsewhere?x=1", 5.0)
        stub.items = "nonsense"  # type: ignore[assignment]
        with pytest.raises(ServiceError, match="something else than recommendations"):
            service.recommend("u 1", 5)
        service.close()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a:b"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="write it like http"):
        VisitorService(url, 1.0)


def test_the_report_tells_now_from_the_start() -> None:
    report = Report()
    assert report.figures()["requests_per_s"] == 0
    for number in range(1_500):
        report.visited(Visit(10, 1 if number < 500 else 4, 3.0, 6.0), 5.0)
    figures = report.figures()
    assert (figures["ctr_at_start"], figures["ctr"]) == (0.1, 0.4)
    assert figures["regret"] == pytest.approx(0.5)
    assert "CTR 40.0% (at the start 10.0%)" in line(figures)
    console = Console(record=True, width=80, file=StringIO())
    show(figures, "it broke", console)
    assert "it broke" in console.export_text()


# -- the command ---------------------------------------------------------------------------


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "infra.cli", "visitors", *options]


def test_the_command_ends_at_ctrl_c_with_a_summary(tmp_path: Path) -> None:
    file = tmp_path / "world.toml"
    file.write_text("days = 1\n[population]\nusers = 50\nitems = 50\n")
    with serving(FILMS) as stub:
        options = ("--url", stub.url, "--rate", "50", "--world-config", str(file), "--json")
        with subprocess.Popen(command(*options), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True) as process:  # fmt: skip
            deadline = time.monotonic() + 60
            while len(stub.asked) < 20 and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            output, shown = process.communicate(timeout=30)
    assert process.returncode == 0
    figures = json.loads(output)
    assert figures["requests"] == len(stub.asked)
    assert "requests/s" in shown
    assert "Traceback" not in shown


def test_a_service_that_is_not_there_is_one_sentence() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = subprocess.run(command("--url", url), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"headrace: {url} does not answer" in done.stderr
    assert "Traceback" not in done.stderr
