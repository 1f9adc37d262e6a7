"""All of Headrace on a log in Kafka: it learns, serves, stops, and goes on where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from benchmarks._broker import Broker
from benchmarks._service import service
from streaming.log import SAMPLES, TopicPartition
from streaming.open_log import open_log

ROOT = Path(__file__).parents[2]
REPLAYED = 11_000  # all movies and some 1,000 ratings


def headrace(*arguments: str, log: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.cli", *arguments]
    environment = {**os.environ, "HEADRACE_LOG": log}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def samples(log: str) -> list[bytes]:
    with closing(open_log(log)) as opened:
        return [r.value for r in opened.read({TopicPartition(SAMPLES, 0): 0}, 100_000, 0)]


@pytest.mark.timeout(300)
def test_it_learns_serves_stops_and_goes_on_without_learning_anything_twice(
    broker: Broker, tmp_path: Path
) -> None:
    log = f"{broker.url}?session_timeout_ms=6000&heartbeat_interval_ms=500&topic_prefix=shop."
    home = tmp_path / "home"
    recipe = {"models": {}, "replay.limit": REPLAYED, "log": log}

    refused = headrace("run", "--home", str(home), log=log)
    assert refused.returncode == 1
    assert "headrace topics --apply" in refused.stderr.replace("\n", " ")
    assert headrace("topics", "--apply", "--partitions", "2", log=log).returncode == 0

    with service(home, recipe) as running:
        running.wait_until_ready(200)
        running.wait_for(running.caught_up)
        before = running.get("/v1/status")
        status, _ = running.post_events({"kind": "like", "user_id": "ada", "item_id": "318"})
        assert status in (200, 202)
        running.wait_for(lambda: running.get("/v1/status")["served_version"] != before["version"])
        running.wait_for(running.caught_up)
        assert running.stop() == 0
    learnt = samples(log)
    assert len(learnt) > 0

    shown = headrace("status", "--json", log=log)
    assert shown.returncode == 0, shown.stderr
    assert set(json.loads(shown.stdout)["lag"].values()) == {0}

    with service(home, recipe) as running:
        running.wait_until_ready(200)
        running.wait_for(running.caught_up)
        after = running.get("/v1/status")
        assert running.stop() == 0
    assert samples(log) == learnt
    assert after["newest_version"]["step"] == len(learnt)

    fresh = headrace("run", "--fresh", "--home", str(home), log=log)
    assert fresh.returncode == 1
    assert "--fresh cannot empty a log in Kafka" in fresh.stderr.replace("\n", " ")


def test_the_compose_file_is_one_that_starts_kafka_then_topics_then_headrace() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    services = compose["services"]
    kafka = services["kafka"]["environment"]
    assert all(name.startswith("KAFKA_") and isinstance(kafka[name], str) for name in kafka)
    assert services["topics"]["depends_on"]["kafka"]["condition"] == "service_healthy"
    assert services["headrace"]["depends_on"]["topics"]
    for name in ("topics", "headrace"):
        url = services[name]["environment"]["HEADRACE_LOG"]
        address = url.removeprefix("kafka://")
        assert f"INSIDE://{address}" in kafka["KAFKA_ADVERTISED_LISTENERS"].split(",")
    mounted = {v.split(":")[0] for s in services.values() for v in s.get("volumes", [])}
    named = {name for name in mounted if not name.startswith("./")}
    assert all((ROOT / name).exists() for name in mounted - named)
    assert named == compose["volumes"].keys()
