"""Replicas beside a run, as processes of their own: all answer alike, and none needs another."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks._service import Service, replica, service

USERS = ("1", "2", "7", "15", "nobody-knows-me")
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replicas") / "home"


@pytest.fixture(scope="module")
def run(home: Path) -> Iterator[Service]:
    with service(home, {"replay.limit": 12_000, "loop.cut_every_s": 1.0}) as running:
        running.wait_until_ready()
        running.wait_for(running.caught_up)
        yield running


@pytest.fixture(scope="module")
def steady(run: Service, home: Path) -> Iterator[Service]:
    with replica(home) as running:
        running.wait_until_ready()
        yield running


def answer(at: Service, user: str) -> tuple[Any, ...]:
    """What the user is shown, without what differs from request to request.

    A sum over items in another order has other last digits: those of scores are left out.
    """
    told = at.get(f"/v1/recommend?user_id={user}&k=10")
    items = [(item["item_id"], round(item["score"], 6), item["source"]) for item in told["items"]]
    return items, told["version"], told["watermark"], told["known_actions"]


def agree(one: Service, other: Service) -> None:
    """Returns when both answer each user alike; what is shown is learnt from, so they move on."""
    for user in USERS:
        one.wait_for(lambda user=user: answer(one, user) == answer(other, user), 30)


class Load:
    """Requests in a thread, one after another; what did not answer with 200 is kept."""

    def __init__(self, at: Service) -> None:
        self._client = Service(at.port, at.process, at.output)  # a connection of its own
        self.asked = 0
        self.failed: list[object] = []
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(0.02):
            self.asked += 1
            user = USERS[self.asked % len(USERS)]
            try:
                status, body = self._client.request("GET", f"/v1/recommend?user_id={user}")
            except OSError as error:
                self.failed.append(error)
            else:
                if status != 200:
                    self.failed.append(body)

    @contextmanager
    def going(self) -> Iterator[None]:
        self._stopping.clear()
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join()
            self._client.close()


def click(at: Service, user: str) -> str:
    """Posts a rating; returns its event time."""
    status, answer = at.post_events({"kind": "rate", "user_id": user, "item_id": "318", "value": 5})
    assert status == 202
    return str(answer["accepted"][0]["at"])


def stops_when_all_is_answered(at: Service) -> None:
    """A stop is announced first; all that is asked meanwhile is answered."""
    probe = Service(at.port, at.process, at.output)
    at.process.send_signal(signal.SIGTERM)
    probe.wait_for(lambda: probe.request("GET", "/readyz")[0] == 503)
    assert b'"reason":"stopping"' in probe.request("GET", "/readyz")[1]
    assert probe.request("GET", "/v1/recommend?user_id=1")[0] == 200
    probe.close()
    assert at.process.wait(30) == 0
    assert "Stopped." in at.output.read_text()


def test_what_is_posted_to_one_replica_changes_the_answers_of_all(
    run: Service, steady: Service
) -> None:
    at = click(steady, "7")
    for one in (run, steady):
        one.wait_for(lambda one=one: (one.get("/v1/recommend?user_id=7")["watermark"] or "") >= at)
    agree(steady, run)


def test_a_replica_is_killed_under_load_and_its_successor_answers_as_the_others_do(
    run: Service, steady: Service, home: Path
) -> None:
    load = Load(steady)
    with load.going(), replica(home) as victim:
        victim.wait_until_ready()
        victims_load = Load(victim)
        with victims_load.going():
            time.sleep(0.3)
            assert victim.stop(signal.SIGKILL) == -signal.SIGKILL
            click(run, "15")  # while one is away
            time.sleep(0.2)
        assert victims_load.failed  # so it was under load when it died
    with replica(home) as successor:
        with load.going():
            successor.wait_until_ready()
        agree(successor, run)
        agree(steady, run)
        stops_when_all_is_answered(successor)
    assert load.failed == []
    assert load.asked > 50


def test_the_run_does_not_notice_its_replicas(run: Service, steady: Service, home: Path) -> None:
    before = run.get("/v1/status")
    cuts = {path.name for path in (home / "cuts").iterdir()}
    click(steady, "2")
    run.wait_for(lambda: run.get("/v1/status")["positions"]["catalog"]
                 > before["positions"]["catalog"])  # fmt: skip
    assert {path.name for path in (home / "cuts").iterdir()} == cuts
    assert run.get("/v1/status")["restarts"] == before["restarts"]
