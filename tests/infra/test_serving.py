"""One replica: what it waits for, how it follows, and how it stops."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks._service import free_port
from features.store import FeastStore
from infra.home import Home
from infra.recipe import Recipe
from infra.serving import Beginning, Serving, answering, one_more
from infra.targets import Target, targets
from infra.threads import Threads
from infra.wiring import catalog_tail, version_store
from serving.answers import Wanted
from streaming.errors import ConfigError
from streaming.events import encode_event, parse_event
from streaming.log import Log
from streaming.open_log import open_log
from trainers.trainer import Trainer, TrainerConfig

RECIPE = Recipe(source="none", trainer=TrainerConfig(options={"width": 4, "hidden": 4}))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.make()
    return made


@pytest.fixture
def log(home: Home) -> Iterator[Log]:
    with closing(open_log(home.log_url)) as opened:
        yield opened


def post(log: Log, item: str) -> None:
    event = {"kind": "item", "item_id": item, "attributes": {"title": item}}
    parsed = parse_event(json.dumps(event).encode(), RECIPE.events, time.time_ns() // 1000)
    log.append([encode_event(parsed)])


def publish(home: Home, log: Log) -> None:
    trainer = Trainer(RECIPE.trainer, "lineage")
    log.append(version_store(RECIPE, home).execute(trainer.on_time(0)))


def comes_true(condition: Callable[[], object], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_begins_to_answer_when_catalog_and_features_are_there(home: Home, log: Log) -> None:
    post(log, "a tale")
    post(log, "a story")
    catalog = catalog_tail(RECIPE, home, log)
    features = FeastStore(home.features, RECIPE.features)
    beginning = Beginning(catalog, features)
    assert beginning.waiting() == "the catalog has still to take in 2 records of events"
    catalog.turn()
    assert "`headrace features apply` makes what is missing" in (beginning.waiting() or "")
    features.apply()
    assert beginning.waiting() is None
    for path in home.features.glob("online.db*"):
        path.unlink()
    assert beginning.waiting() is None  # it degrades then; nobody else is better off


def test_where_nothing_has_run_there_is_nothing_to_follow(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    refused = pytest.raises(ConfigError, match="nothing has run in .*: start with `headrace run`")
    with refused, one_more(RECIPE, home, Threads(tmp_path / "log"), tmp_path / "log"):
        pass
    assert not home.path.exists()


@contextmanager
def following(home: Home) -> Iterator[tuple[Serving, Threads]]:
    FeastStore(home.features, RECIPE.features).apply()
    threads = Threads(home.log_file("serve"))
    with one_more(RECIPE, home, threads, home.log_file("serve")) as serving:
        yield serving, threads


def test_a_version_that_it_cannot_take_is_counted_and_logged(
    home: Home, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    with following(home) as (serving, _):
        publish(home, log)
        comes_true(lambda: serving.not_ready() is None)
        (version,) = Trainer(RECIPE.trainer, "of-tomorrow").on_time(0)
        info = replace(version.info, options={"width": 4, "tomorrow": True})
        log.append(version_store(RECIPE, home).execute([replace(version, info=info)]))
        registry = serving.metrics.registry
        comes_true(lambda: registry.get_sample_value("headrace_versions_refused_total") == 1)
        assert serving.status()["served_version"] == "two_tower/lineage/0"
    assert "version two_tower/of-tomorrow/0 is not served" in caplog.text


def test_it_follows_events_and_versions_and_says_what_it_lacks(home: Home, log: Log) -> None:
    post(log, "a tale")
    with following(home) as (serving, threads):
        service = serving.service(serving.status)
        comes_true(lambda: "no model version" in (serving.not_ready() or ""))
        publish(home, log)
        comes_true(lambda: serving.not_ready() is None)
        post(log, "a story")
        comes_true(lambda: [item.item_id for item in service.catalog.search("story", 5)])
        status = serving.status()
        assert (status["ready"], status["not_ready"]) == (True, None)
        assert status["served_version"] == "two_tower/lineage/0"
        assert status["positions"]["catalog"] == 0  # the group of a run is not its own
    assert threads.failure is None


def test_it_is_found_and_says_which_version_it_serves_since_when(home: Home, log: Log) -> None:
    with following(home) as (serving, _), serving.announced("serve", 8000):
        assert targets(home) == [Target("serve", 0, "127.0.0.1:8000")]
        publish(home, log)
        comes_true(lambda: serving.not_ready() is None)
        value = serving.metrics.registry.get_sample_value
        comes_true(lambda: value("headrace_replica_behind_seconds") == 0)
        assert 0 < time.time() - (value("headrace_version_served_timestamp_seconds") or 0) < 60
    assert targets(home) == []


def test_the_first_answer_of_a_version_tells_its_age_if_it_comes_soon(
    home: Home, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1_800_000_000.0
    monkeypatch.setattr("infra.serving.time", SimpleNamespace(time=lambda: now_s))
    with following(home) as (serving, _):
        service, value = serving.service(serving.status), serving.metrics.registry.get_sample_value
        for lineage, after_s, ages in (
            ("soon", 0.9, [1.15]),
            ("late", 1.1, [1.15]),
            ("at once", 0.0, [1.15, 0.25]),
        ):
            now_s += 100.0
            (version,) = Trainer(RECIPE.trainer, lineage).on_time(0)
            learnt_us = int((now_s - 0.25) * 1e6)
            info = replace(version.info, learnt_logged_us=learnt_us)
            log.append(version_store(RECIPE, home).execute([replace(version, info=info)]))
            comes_true(lambda: value("headrace_version_served_timestamp_seconds") == now_s)  # noqa: B023
            now_s += after_s
            for _ in range(2):
                service.answered(service.recommender.recommend(Wanted("ada")))
            told = "headrace_freshness_seconds"
            assert value(f"{told}_count", {"hop": "answered"}) == len(ages)
            assert value(f"{told}_sum", {"hop": "answered"}) == pytest.approx(sum(ages))


def test_what_fails_in_a_thread_is_told_and_ends_the_others(home: Home) -> None:
    threads = Threads(home.log_file("serve"))

    def fail(_: threading.Event) -> None:
        raise ConfigError("this is how it is")

    def wait(stopping: threading.Event) -> None:
        stopping.wait()

    with threads.running("patient", wait), threads.running("broken", fail):
        assert threads.stopping.wait(10)
    assert threads.failure == "this is how it is"


def ask(port: int, path: str) -> tuple[int, Any, str | None]:
    """Status, JSON, and what becomes of the connection."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers["Connection"]


def test_a_stop_is_announced_and_what_was_accepted_is_answered(home: Home, log: Log) -> None:
    publish(home, log)
    asked = threading.Event()

    def slow_status() -> dict[str, Any]:
        asked.set()
        time.sleep(0.5)
        return {"slow": True}

    port = free_port()
    with following(home) as (serving, threads), ThreadPoolExecutor(1) as pool:
        service = serving.service(slow_status)
        with answering(serving, service, port, threads) as stop:
            comes_true(lambda: ask(port, "/readyz")[0] == 200)
            assert ask(port, "/readyz")[2] is None
            serving.draining.set()
            status, told, connection = ask(port, "/readyz")
            assert (status, told["reason"], connection) == (503, "stopping", "close")
            last = pool.submit(ask, port, "/v1/status")
            assert asked.wait(10)
            stop()
            assert last.result()[:2] == (200, {"slow": True})
            assert not threads.stopping.is_set()  # what notes the last answers is still there
            with pytest.raises(ConnectionRefusedError):
                ask(port, "/readyz")
