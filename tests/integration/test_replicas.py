"""Replicas beside a run, as processes of their own: all answer alike, and none needs another."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks._service import Service, replica, service
from infra.home import Home
from infra.targets import targets

USERS = ("1", "2", "7", "15", "nobody-knows-me")
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replicas") / "home"


@pytest.fixture(scope="module")
def run(home: Path) -> Iterator[Service]:
    with service(home, {"models": {}, "replay.limit": 12_000, "loop.cut_every_s": 1.0}) as running:
        running.wait_until_ready()
        running.wait_for(running.caught_up)
        yield running


@pytest.fixture(scope="module")
def steady(run: Service, home: Path) -> Iterator[Service]:
    with replica(home) as running:
        running.wait_until_ready()
        yield running


def answer(at: Service, user: str) -> tuple[tuple[Any, ...], list[float]]:
    """What the user is shown, without what differs from request to request; and the scores."""
    told = at.get(f"/v1/recommend?user_id={user}&k=10")
    items = [(item["item_id"], item["source"]) for item in told["items"]]
    scores = [item["score"] for item in told["items"]]
    return (items, told["version"], told["watermark"], told["known_actions"]), scores


def alike(one: Service, other: Service, user: str) -> bool:
    """Whether both show the user the same with about the same scores.

    A sum over items in another order has other last digits, and what is hot cools down by the time
    of the newest event, which each looks at once a second.
    """
    (shown, scores), (others, others_scores) = answer(one, user), answer(other, user)
    return shown == others and scores == pytest.approx(others_scores, rel=1e-5)


def agree(one: Service, other: Service) -> None:
    """Returns when both answer each user alike; what is shown is learnt from, so they move on."""
    for user in USERS:
        one.wait_for(lambda user=user: alike(one, other, user), 30)


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


class Clients:
    """Several clients that ask one after another; a request that fails is sent once more."""

    def __init__(self, at: Service, count: int = 3) -> None:
        self._at = at
        self.asked = 0
        self.failed: list[object] = []
        self.lost: list[object] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        client = Service(self._at.port, self._at.process, self._at.output)
        while not self._stopping.wait(0.05):
            self.asked += 1
            if (failure := self._failure(client)) is not None:
                self.failed.append(failure)
                if (again := self._failure(client)) is not None:
                    self.lost.append(again)
        client.close()

    def _failure(self, client: Service) -> object:
        try:
            status, _ = client.request("GET", "/v1/recommend?user_id=1")
        except OSError as error:
            return error
        return None if status == 200 else status

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


def replicas(home: Path) -> dict[str, int]:
    """Name and process of every replica that lives."""
    found = {}
    for file in (home / "logs").glob("serve-*.log"):
        for name, process in re.findall(r"the replica (\w+) is process (\d+)", file.read_text()):
            if psutil.pid_exists(int(process)):
                found[name] = int(process)
    return found


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


def test_replicas_under_ray_serve_are_replaced_and_killed_while_requests_come(
    run: Service, home: Path
) -> None:
    pytest.importorskip("grpc_reflection", reason="Ray Serve needs the extra `ray-serve`")
    with replica(home, "--ray", "--replicas", "2", "--max-replicas", "2") as proxy:
        proxy.wait_until_ready()
        proxy.wait_for(lambda: "Answering" in proxy.output.read_text())
        first = replicas(home)
        assert len(first) == 2
        assert {psutil.Process(one).nice() for one in first.values()} == {psutil.Process().nice()}
        for process in psutil.Process(proxy.process.pid).children(recursive=True):
            for socket in process.net_connections("tcp"):
                if socket.status == psutil.CONN_LISTEN:
                    ip = socket.laddr.ip.removeprefix("::ffff:")  # IPv4 in IPv6
                    assert ip in ("127.0.0.1", "::1"), process.name()

        found = [one for one in targets(Home(home)) if one.process == "serve"]
        assert len(found) == 2
        for one in found:  # not through the proxy, which leads to either of them
            with urllib.request.urlopen(f"http://{one.address}/metrics", timeout=20) as answer:
                assert b"headrace_version_served_timestamp_seconds" in answer.read()

        clients = Clients(proxy)
        proxy.process.send_signal(signal.SIGHUP)
        proxy.wait_for(lambda: "All replicas are new." in proxy.output.read_text(), 300)
        proxy.wait_for(lambda: len(replicas(home)) == 2)
        second = replicas(home)
        assert not first.keys() & second.keys()
        assert clients.failed == []  # not one request, while all were replaced

        os.kill(next(iter(second.values())), signal.SIGKILL)
        time.sleep(0.5)
        proxy.wait_for(lambda: len(replicas(home)) == 2)
        clients.stop()
        assert clients.lost == []  # whom the dead one had taken asks again and is answered
        assert len(clients.failed) <= 3  # at most one for each client, in flight at the kill
        assert set(clients.failed) <= {500}  # which Serve does not try elsewhere
        assert clients.asked > 100


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
