"""`headrace run` as a newcomer starts it: a real process, real Ray, real Feast, real HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from typer.testing import CliRunner

from benchmarks._service import Service, free_port
from benchmarks.clicks import time_click
from infra.cli import app
from infra.visitor_service import VisitorService
from infra.visitors import Crowd, VisitorsConfig
from streaming.decode import decode_events
from streaming.errors import HeadraceError
from streaming.events import EventRules
from streaming.log import EVENTS, Log, TopicPartition
from streaming.metrics import parse
from streaming.open_log import open_log
from streaming.sources.population import PopulationConfig
from streaming.sources.world import World, WorldConfig

MOVIES = 9_125


def refusal(*arguments: str) -> str:
    """The sentence with which `headrace run` refuses to start."""
    error = CliRunner().invoke(app, ["run", *arguments]).exception
    assert isinstance(error, HeadraceError), error
    return str(error)


def test_the_replay_is_learnt_and_beats_nothing_at_all(running: Service) -> None:
    status = running.get("/v1/status")
    assert status["replay"]["finished"]
    assert status["replay"]["done"] == status["replay"]["total"]
    assert status["metrics"]["samples"] >= status["replay"]["total"] - MOVIES
    assert status["metrics"]["items"] >= MOVIES
    assert status["records"]["dead-letters"] == 0
    assert status["metrics"]["recall@50"] > 50 / MOVIES * 5  # chance, five times over


def test_a_stranger_gets_what_is_popular(running: Service) -> None:
    answer = running.get("/v1/recommend?user_id=nobody-knows-me&k=5")
    assert [item["source"] for item in answer["items"]] == ["popular"] * 5
    assert all(item["title"] for item in answer["items"])
    assert answer["known_actions"] == 0


def test_a_click_changes_the_answer_and_the_model(running: Service) -> None:
    changed_ms, learnt_ms = time_click(running, "clicker", "318")
    assert 0 < changed_ms <= learnt_ms
    answer = running.get("/v1/recommend?user_id=clicker&k=10")
    assert answer["known_actions"] == 1
    stranger = running.get("/v1/recommend?user_id=nobody-knows-me&k=10")
    order = [item["item_id"] for item in stranger["items"] if item["item_id"] != "318"]
    assert [item["item_id"] for item in answer["items"]][: len(order)] != order
    assert "318" not in {item["item_id"] for item in answer["items"]}
    assert len({item["item_id"] for item in answer["items"]}) == 10


def test_the_same_event_twice_counts_once(running: Service) -> None:
    event = {"kind": "like", "user_id": "twice", "item_id": "1", "event_id": "once-and-for-all"}
    other = {"kind": "like", "user_id": "twice", "item_id": "2"}
    assert running.post_events(event)[0] == running.post_events(event)[0] == 202
    assert running.post_events(other)[0] == 202
    path = "/v1/recommend?user_id=twice"
    running.wait_for(lambda: running.get(path)["known_actions"] >= 2)
    assert running.get(path)["known_actions"] == 2


def test_a_new_item_is_found_and_has_neighbours(running: Service) -> None:
    declared = {
        "kind": "item",
        "item_id": "brand-new",
        "attributes": {"title": "The Headrace (2026)", "genres": ["Drama"], "year": 2026},
    }
    assert running.post_events(declared)[0] == 202
    running.wait_for(lambda: running.get("/v1/items?search=headrace")["items"])
    path = "/v1/items/brand-new/similar?k=5"
    running.wait_for(lambda: running.get(path)["items"][0]["source"] == "content")
    assert len(running.get(path)["items"]) == 5


def test_bad_events_are_refused_one_by_one_and_the_loop_goes_on(running: Service) -> None:
    good = {"kind": "rate", "user_id": "mixed", "item_id": "318", "value": 4}
    status, answer = running.post_events(
        [good, {**good, "item_id": 318}, {**good, "kind": "dance"}, {**good, "value": 9}]
    )
    assert status == 202
    assert len(answer["accepted"]) == 1
    assert [(r["index"], r["field"], r["value"]) for r in answer["rejected"]] == [
        (1, "item_id", "318"), (2, "kind", "'dance'"), (3, "value", "9.0"),
    ]  # fmt: skip
    path = "/v1/recommend?user_id=mixed"
    running.wait_for(lambda: running.get(path)["known_actions"] == 1)


def test_metrics_are_for_prometheus(running: Service) -> None:
    running.get("/v1/recommend?user_id=counted")
    text = running.request("GET", "/metrics")[1].decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    answered = families["headrace_request_seconds"].samples
    assert any(s.labels.get("route") == "/v1/recommend" and s.value > 0 for s in answered)
    assert families["headrace_versions_applied"].samples[0].value > 0
    figures = {s.labels["figure"]: s.value for s in families["headrace_model_figure"].samples}
    assert figures["recall@50"] > 0


def test_all_processes_are_found_and_tell_figures_by_the_rules(running: Service) -> None:
    running.get("/v1/recommend?user_id=watched")
    told = {}
    for process, address in targets(running).items():
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
            told[process] = answer.read().decode()
    assert told.keys() == {"run", "joiner", "aggregator", "trainer", "trainer-mmoe"}
    for process, exposition in told.items():
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=exposition, text=True, capture_output=True,
            check=False,
        )  # fmt: skip
        assert checked.returncode == 0, (process, checked.stderr)
        names = {one.name for one in parse(exposition)}
        assert "process_cpu_seconds_total" in names, process
        # Nothing that users or clients may invent makes a figure of its own.
        most = Counter(one.name for one in parse(exposition) if "le" not in one.labels)
        assert max(most.values()) < 200, (process, most.most_common(3))
    hops = {
        process: {
            one.labels["hop"]
            for one in parse(exposition)
            if one.name == "headrace_freshness_seconds_count" and one.value > 0
        }
        for process, exposition in told.items()
    }
    assert hops["joiner"] >= {"joined"}
    assert hops["aggregator"] == {"stored"}
    assert hops["run"] - {"answered"} == {"served"}  # answered only where somebody asks in time
    figures = {(one.name, *one.labels.values()): one.value for one in parse(told["run"])}
    assert figures["headrace_replica_behind_seconds",] < 60
    assert figures["headrace_loop_records_total", "catalog"] > 0
    lags = [one for one in parse(told["run"]) if one.name == "headrace_group_lag_records"]
    groups = {one.labels["group"] for one in lags}
    assert groups == {"joiner", "aggregator", "catalog", "trainer", "trainer-mmoe"}
    assert {one.labels["partition"] for one in lags} == {"0"}


def test_visitors_leave_their_events_in_the_log(running: Service) -> None:
    config = VisitorsConfig(rate=20.0, duration_s=4.0, haste=1e6, users=30)
    world = World(WorldConfig(days=2, population=PopulationConfig(users=100, items=100)))
    crowd = Crowd(world, config, VisitorService(running.url, config.timeout_s))
    crowd.run(Console(quiet=True), threading.Event())
    figures = crowd.report.figures()
    assert figures["requests"] > 20
    assert "errors" not in figures, crowd.report.last_error
    assert figures.get("events_refused", 0) == 0
    with closing(open_log((home_of(running) / "log.db").as_uri())) as log:
        # The service logs impressions itself, a little after its answers.
        running.wait_for(lambda: len(impressions(of_visitors(log))) >= figures["impressions"])
        found = of_visitors(log)
    assert len(impressions(found)) == figures["impressions"]
    assert len(found) == figures["events"] + figures["impressions"]
    assert len({event["event_id"] for event in found}) == len(found)
    assert all(event["position"] is not None and event["scenario"] for event in found)


def of_visitors(log: Log) -> list[dict[str, Any]]:
    """What visitors have left."""
    records = log.read({TopicPartition(EVENTS, 0): 0}, 1_000_000, 0.0)
    events: list[dict[str, Any]] = decode_events(records, EventRules()).events.to_pylist()
    return [e for e in events if (e["user_id"] or "").startswith("u") and e["request_id"]]


def impressions(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["kind"] == "impression"]


def test_a_killed_actor_is_gone_and_its_successor_is_found(running: Service) -> None:
    before = targets(running)
    killed = process_at(before["aggregator"])
    os.kill(killed, signal.SIGKILL)
    running.wait_for(lambda: targets(running).get("aggregator") != before["aggregator"])
    running.wait_for(lambda: "aggregator" in targets(running))
    after = targets(running)
    assert process_at(after["aggregator"]) != killed
    assert {**after, "aggregator": ""} == {**before, "aggregator": ""}
    running.wait_for(running.caught_up)


def targets(running: Service) -> dict[str, str]:
    """Where the figures of each process are."""
    found = json.loads(running.request("GET", "/v1/targets")[1])
    addresses = {one["labels"]["process"]: one["targets"][0] for one in found}
    assert len(addresses) == len(found)
    return addresses


def process_at(address: str) -> int:
    """Which process listens at a port of this machine."""
    port = int(address.rpartition(":")[2])
    return next(
        connection.pid or 0
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1] == port
    )


def test_a_port_in_use_is_said_in_a_sentence(running: Service, tmp_path: Path) -> None:
    message = refusal("--home", str(tmp_path / "other"), "--port", str(running.port))
    assert str(running.port) in message
    assert "HEADRACE_PORT" in message


def test_a_home_in_use_is_said_in_a_sentence(running: Service) -> None:
    message = refusal("--home", str(home_of(running)), "--port", str(free_port()))
    assert str(running.process.pid) in message


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("status",), "nothing has run in .* yet: start with `headrace run`"),
        (("run", "{wrong}"), "trainer.mood is not a setting"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[trainer]\nmood = 1")
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", *(a.format(wrong=wrong) for a in arguments)],
        env={**os.environ, "HEADRACE_HOME": str(tmp_path / "home")},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.match(f"headrace: .*{sentence}", done.stderr.replace("\n", " "))
    assert "Traceback" not in done.stderr


def home_of(running: Service) -> Path:
    return running.output.with_suffix("")
