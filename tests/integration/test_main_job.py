"""`headrace run` as a newcomer starts it: a real process, real Ray, real Feast, real HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks._service import Service, service
from benchmarks.clicks import time_click

MOVIES = 9_125
REPLAYED = 14_000  # of 109,129 events: all movies and the first ratings


def process_of(home: Path, role: str) -> int:
    """The newest process id that an actor has written to its log."""
    found = re.findall(rf"the {role} is process (\d+)", (home / "logs" / f"{role}.log").read_text())
    return int(found[-1])


def headrace(
    home: Path, *arguments: str, port: int | None = None
) -> subprocess.CompletedProcess[str]:
    """The command, run to its end."""
    environment = {**os.environ, "HEADRACE_HOME": str(home), "HEADRACE_PORT": str(port or 1)}
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *arguments],
        env=environment, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def one_sentence(result: subprocess.CompletedProcess[str]) -> str:
    """What an expected failure prints: a message for people, never a traceback."""
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("headrace: ")
    return result.stderr


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


@pytest.mark.timeout(400)  # four starts of the whole system
def test_it_survives_kills_stops_cleanly_and_goes_on(tmp_path: Path) -> None:
    home = tmp_path / "home"
    recipe = {"replay.limit": REPLAYED, "trainer_loop.cut_every_s": 1.0, "loop.cut_every_s": 1.0}
    with service(home, recipe) as first:
        first.wait_until_ready()
        for role in ("trainer", "joiner", "aggregator"):
            killed = process_of(home, role)
            os.kill(killed, signal.SIGKILL)
            first.wait_for(lambda role=role, killed=killed: process_of(home, role) != killed)
        first.wait_for(first.caught_up)
        status = first.get("/v1/status")
        assert min(status["restarts"].values()) >= 1
        assert status["metrics"]["samples"] == REPLAYED - MOVIES  # every rating once
        assert time_click(first, "survivor", "318")[0] > 0
        first.wait_for(first.caught_up)
        assert first.stop() == 0
        assert "Stopped." in first.output.read_text()

    shown = headrace(home, "status", "--json")
    before = json.loads(shown.stdout)
    assert before["metrics"]["samples"] == REPLAYED - MOVIES + 1
    assert not any(before["lag"].values())
    assert "Where every step stands" in headrace(home, "status").stdout

    with service(home, recipe) as second:
        second.wait_until_ready()
        again = second.get("/v1/status")
        assert again["records"]["events"] == before["records"]["events"]
        second.wait_for(lambda: second.get("/v1/status")["metrics"]["samples"] > 0)
        assert second.get("/v1/status")["metrics"] == before["metrics"]
        assert second.get("/v1/recommend?user_id=survivor")["known_actions"] == 1
        assert second.stop(signal.SIGTERM) == 0
        assert second.output.read_text().count("Stopped.") == 2

    damage_newest_cuts(home / "cuts" / "trainer")
    result = headrace(home, "run", port=second.port)
    message = one_sentence(result)
    assert "no cut in" in message
    assert "--fresh" in message

    with service(home, recipe, "--fresh", "--until-learnt") as third:
        assert third.process.wait(200) == 0  # what was damaged is gone, and so is the survivor
    after = json.loads(headrace(home, "status", "--json").stdout)
    assert after["metrics"]["samples"] == REPLAYED - MOVIES


def damage_newest_cuts(cuts: Path) -> None:
    """Flips a byte in a shard of every cut."""
    for shard in cuts.glob("cut-*/dense.arrow"):
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)


def test_a_port_in_use_is_said_in_a_sentence(running: Service, tmp_path: Path) -> None:
    message = one_sentence(headrace(tmp_path / "other", "run", port=running.port))
    assert str(running.port) in message
    assert "HEADRACE_PORT" in message


def test_a_home_in_use_is_said_in_a_sentence(
    running: Service, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.getbasetemp() / "shared0" / "home"
    message = one_sentence(headrace(home, "run"))
    assert str(running.process.pid) in message


def test_status_of_nothing_says_how_to_start(tmp_path: Path) -> None:
    assert "headrace run" in one_sentence(headrace(tmp_path / "nothing", "status"))


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ("[trainer.negatives]\nuniform = 'many'", "trainer.negatives.uniform = 'many'"),
        ("[trainer]\nmood = 1", "trainer.mood is not a setting"),
        ("[trainer.options]\nwidht = 3", "trainer.options.widht is not a setting"),
        ("source = 'nowhere'", "source = 'nowhere'"),
        ("= 3", "is not TOML"),
    ],
)
def test_a_wrong_recipe_names_the_setting(tmp_path: Path, toml: str, named: str) -> None:
    recipe = tmp_path / "wrong.toml"
    recipe.write_text(toml)
    assert named in one_sentence(headrace(tmp_path / "home", "run", str(recipe))).replace("\n", " ")
