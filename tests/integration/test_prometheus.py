"""A real Prometheus over a running system: it finds all processes, and each cause as its alert.

The rules are those that are shipped, with times that are much shorter: a scrape a second, and
windows of some seconds. The monitor within is as impatient, and must find the same.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks._causes import Causes, Planting, storm
from benchmarks._object_store import BUCKET, object_store
from benchmarks._service import Service, free_port, replica, service, toml
from infra.grafana_panels import DASHBOARDS
from infra.home import Home
from infra.monitor.rules import RULES_FILE, prometheus_yaml, rules_yaml
from infra.recipe_file import RECIPES
from infra.visitor_service import VisitorService
from infra.visitors import Crowd, VisitorsConfig
from streaming.log import EVENTS, SAMPLES
from streaming.open_log import open_log
from streaming.sources.population import PopulationConfig
from streaming.sources.world import World, WorldConfig

pytestmark = pytest.mark.timeout(400)
IMPATIENCE = 0.03
REPLAYED = 6_000
PROCESSES = {"run", "joiner", "aggregator", "trainer", "serve"}
# On a machine that is busy with other tests versions are late; and two seconds of a stranger's
# visits are not distributed as the days before them. They count where they are waited for.
ANY_TIME = {"HeadraceFreshnessSLO", "HeadraceDrift", "HeadraceQualityDrop"}


@dataclass(frozen=True)
class Prometheus:
    """Asks a running Prometheus."""

    port: int
    output: Path

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API."""
        asked = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an expression is now: `metric` (its labels) and `value` (time, number as text)."""
        return list(self.get("query", query=expression)["result"])

    def firing(self) -> set[str]:
        """The alerts that fire."""
        alerts = self.get("alerts")["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

    def up(self) -> dict[str, bool]:
        """Whether it can read the processes that it found."""
        found = self.get("targets", state="active")["activeTargets"]
        return {one["labels"]["process"]: one["health"] == "up" for one in found}


@contextmanager
def prometheus(folder: Path, *addresses: str) -> Iterator[Prometheus]:
    """A Prometheus with the shipped configuration and impatient rules, as long as the block."""
    binary = shutil.which("prometheus")
    if binary is None:
        if os.environ.get("HEADRACE_REQUIRE_PROMETHEUS"):
            pytest.fail("prometheus is not there: apt-get install prometheus")
        pytest.skip("prometheus is not there: apt-get install prometheus")
    folder.mkdir()
    (folder / "prometheus.yml").write_text(prometheus_yaml(addresses, interval_s=1.0))
    (folder / RULES_FILE).write_text(rules_yaml(IMPATIENCE))
    port, output = free_port(), folder / "out"
    with output.open("w") as out:
        process = subprocess.Popen(
            [
                *(binary, "--log.level=warn", f"--web.listen-address=127.0.0.1:{port}"),
                *(f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder}"),
            ],
            stdout=out, stderr=out,
        )  # fmt: skip
    try:
        yield Prometheus(port, output)
    finally:
        process.terminate()
        process.wait(30)


@dataclass(frozen=True)
class Watched:
    """A system that is at work, another replica of it, and the Prometheus that watches both."""

    running: Service
    another: Service
    causes: Causes
    prometheus: Prometheus
    versions: Path  # where they are

    def built_in(self) -> set[str]:
        """The alerts that the monitor within finds."""
        return {alert["name"] for alert in self.running.get("/v1/monitor")["alerts"]}

    def wait_until_replicas_have_the_newest_version(self) -> None:
        """Returns when neither has anything to read from the store of versions."""

        def have() -> bool:
            asked = "/v1/recommend?user_id=ada&k=1&shown=false"
            served = {one.get(asked)["version"] for one in (self.running, self.another)}
            return served == {self.running.get("/v1/status")["version"]}

        self.running.wait_for(lambda: self.running.caught_up() and have())

    def wait_until_both_find(self, alerts: set[str], timeout_s: float = 60) -> None:
        """Returns when these alerts are active for both, and none else."""
        until = time.monotonic() + timeout_s
        ignored = ANY_TIME - alerts
        while True:
            found = self.prometheus.firing() - ignored, self.built_in() - ignored
            if found == (alerts, alerts):
                return
            assert time.monotonic() < until, f"Prometheus and the monitor found {found}"
            time.sleep(0.3)

    def wait_until_both_have_found(self, sentences: set[str], timeout_s: float = 60) -> None:
        """Returns when each of these was said by both at a time: as an alert's name, or of it."""
        until, left = time.monotonic() + timeout_s, set(sentences)
        while left:
            assert time.monotonic() < until, f"Prometheus and the monitor have not found {left}"
            time.sleep(0.3)
            firing = [
                one for one in self.prometheus.get("alerts")["alerts"] if one["state"] == "firing"
            ]
            found = self.running.get("/v1/monitor")["alerts"]
            said = {one["annotations"]["summary"] for one in firing} & {
                one["sentence"] for one in found
            }
            left -= said | (self.prometheus.firing() & {one["name"] for one in found})

    def wait_until_neither_finds(self, alerts: set[str], timeout_s: float = 60) -> None:
        """Returns when none of these alerts is active."""
        until = time.monotonic() + timeout_s
        while found := (self.prometheus.firing() | self.built_in()) & alerts:
            assert time.monotonic() < until, f"Prometheus or the monitor still find {found}"
            time.sleep(0.3)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """It has learnt a little, answered visitors, and all is well."""
    home = Home(tmp_path_factory.mktemp("watched") / "home")
    table = tomllib.loads((RECIPES / "world.toml").read_text())
    table["replay"] = {"limit": REPLAYED}
    table["models"] = {}  # alerts are of the model that is asked
    labels = {"click": {"window_s": 3}, "like": {"window_s": 3, "after": "click"}}
    table["joiner"]["impressions"] = {"keep_negatives": 0.5, "labels": labels}
    table["trainer"]["publish_every_s"] = 0.5  # into an object store, which takes some work
    table["trainer"]["snapshot_every"] = 5  # so that there is one to look back at
    # Some hundred likes are enough to say that something is wrong with what is learnt.
    table["trainer"]["gate"] = {
        "warm_up": 300, "enough": 64, "users": 256, "memory": 512, "check_every": 2,
        "good_to_free": 10, "growth": 20.0,
    }  # fmt: skip
    table["quality"] = {"tested_half_life": 50, "share": 0.1}
    table["drift"] = {
        "first": 200, "reference": 1_000, "now": 200, "enough": 400, "look_every": 50, "looks": 2,
    }  # fmt: skip
    table["monitor"] = {"period_s": 0.5, "patience": IMPATIENCE}
    home.make()
    # One rank reads both partitions, of which one can be silent.
    open_log(home.log_url, partitions={EVENTS: 2, SAMPLES: 2}).close()
    file, bucket = home.path.with_name("home.toml"), home.path.with_name("s3")
    with ExitStack() as stack:
        table["versions"] = stack.enter_context(object_store(bucket))
        file.write_text(toml(table))
        running = stack.enter_context(service(home.path, None, str(file)))
        running.wait_until_ready()
        folder, address = home.path.with_name("prometheus"), f"127.0.0.1:{running.port}"
        with replica(home.path) as another, prometheus(folder, address) as found:
            another.wait_until_ready()
            running.wait_for(running.caught_up)
            visit(running)
            causes = Causes(running, home.path, file)
            yield Watched(running, another, causes, found, bucket / BUCKET)


def visit(running: Service) -> None:
    """Visitors come for some seconds; others do, if those were more than a busy machine answers."""
    world = World(WorldConfig(days=2, population=PopulationConfig(users=100, items=100)))
    config = VisitorsConfig(rate=8.0, duration_s=5.0, haste=1e6, users=30)

    def were_answered() -> bool:
        crowd = Crowd(world, config, VisitorService(running.url, config.timeout_s))
        crowd.run(Console(quiet=True), threading.Event())
        return crowd.report.figures().get("requests", 0) > 10

    running.wait_for(were_answered)


def test_all_processes_are_found_and_nothing_is_wrong(watched: Watched) -> None:
    watched.running.wait_for(lambda: watched.prometheus.up() == dict.fromkeys(PROCESSES, True))
    watched.wait_until_both_find(set())
    assert watched.prometheus.output.read_text() == ""  # no warning, as of a rule


def test_both_know_the_same_figures(watched: Watched) -> None:
    shown = watched.running.get("/v1/monitor")
    assert {one["process"] for one in shown["processes"]} == PROCESSES
    assert all(one["up"] and one["memory_bytes"] > 1e6 for one in shown["processes"])
    ends = 'max by (partition) (headrace_partition_end_records{topic="events"})'

    def agree() -> bool:  # soon, for each looks when it likes
        floors = watched.running.get("/v1/monitor")["floors"]
        figures = {one["name"]: one["value"] for one in floors["streaming"]}
        found = {
            f"end.events.{one['metric']['partition']}": float(one["value"][1])
            for one in watched.prometheus.query(ends)
        }
        return len(found) == 2 and all(figures[name] == end > 0 for name, end in found.items())

    watched.running.wait_for(agree, timeout_s=20)
    hops = {one["hop"]: one["p50_s"] for one in shown["freshness"] if one["p50_s"] is not None}
    recorded = watched.prometheus.query("headrace:freshness_seconds:p50_5m")
    assert {"joined", "stored", "served"} <= hops.keys()
    assert {one["metric"]["hop"] for one in recorded} <= hops.keys()


def test_the_page_gets_all_that_it_shows(watched: Watched) -> None:
    ask, like = watched.running.get, watched.causes.like
    before = ask("/v1/monitor/stream")["next"]
    like()

    def stages() -> set[str]:
        steps = ask(f"/v1/monitor/stream?after={before}")["steps"]
        return {one["stage"] for one in steps if one.get("user_id") == "ada"}

    watched.running.wait_for(lambda: stages() >= {"event", "sample"}, timeout_s=20)
    item = ask("/v1/recommend?user_id=ada&k=5&shown=false")["items"][0]["item_id"]
    neighbours = f"/v1/monitor/neighbours?item_id={item}"
    watched.running.wait_for(lambda: ask(neighbours)["then"], timeout_s=30)
    near = ask(neighbours)
    for picture in (near["now"], near["then"]):
        scores = [one["score"] for one in picture["items"]]
        assert len(scores) == 12
        assert scores == sorted(scores, reverse=True)
        assert len({(one["x"], one["y"]) for one in picture["items"]}) == 12
        assert item not in {one["item_id"] for one in picture["items"]}

    heat = ask("/v1/monitor/interactions?user_id=ada")
    assert heat["rows"][0]["item_id"] == "i1"
    assert [len(heat["columns"])] * len(heat["rows"]) == [len(row) for row in heat["values"]]
    assert all(-1.001 <= one <= 1.001 for row in heat["values"] for one in row if one is not None)

    names = "events_per_s,samples_per_s,freshness_served_p50,cpu_cores"
    series = ask(f"/v1/monitor/series?names={names},nonsense&window_s=20")
    assert series["t"] == sorted(series["t"])
    assert 10 < len(series["t"]) <= 41
    assert set(series["series"]) == set(names.split(","))
    assert {len(values) for values in series["series"].values()} == {len(series["t"])}
    assert all(max(v or 0 for v in values) > 0 for values in series["series"].values())

    for unknown in ("neighbours?item_id=nobody", "interactions?user_id=nobody"):
        assert watched.running.request("GET", f"/v1/monitor/{unknown}")[0] == 404


def test_every_panel_of_grafana_shows_something(watched: Watched) -> None:
    queries = {
        f"{dashboard.name}: {panel.title}: {legend}": query.replace("$__rate_interval", "1m")
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
        for legend, query in panel.queries.items()
    }
    until = time.monotonic() + 30
    while empty := sorted(name for name, q in queries.items() if not watched.prometheus.query(q)):
        assert time.monotonic() < until, "\n".join(empty)
        watched.causes.like()  # time goes on, and with it the windows of labels end
        time.sleep(0.3)


def test_what_is_wrong_with_data_is_found_and_ends(watched: Watched) -> None:
    """Refused events, samples that are no numbers, features that are not what training got or that
    cannot be read, a partition that gets nothing, a store of versions that is away, and more
    questions than there are answers: all at once, as nobody else is there.
    """
    watched.wait_until_replicas_have_the_newest_version()
    with Planting() as planting:
        planting.take_away(watched.versions)
        watched.causes.damage_features("damaged")
        planting.often(lambda: storm(watched.another, "damaged"))
        planting.often(watched.causes.refused_events)
        planting.often(watched.causes.samples_that_are_no_numbers)
        planting.often(watched.causes.wrong_features)
        watched.wait_until_both_find(
            {
                "HeadraceAnswersDegraded",
                "HeadraceDeadLetters",
                "HeadraceErrors",
                "HeadraceMicroBatchesRefused",
                "HeadraceNothingPublished",
                "HeadraceFeatureSkew",
                "HeadracePartitionSilent",
            }
        )
    letters = watched.running.get("/v1/monitor/dead-letters?limit=3")
    assert letters["waiting"] > 10
    assert [one["excerpt"] for one in letters["letters"]][-1]
    watched.wait_until_both_find(set())


def test_processes_that_stand_still_are_found_and_go_on(watched: Watched) -> None:
    causes = watched.causes
    with Planting() as planting:
        planting.stop(causes.process("trainer"))
        planting.often(causes.like)
        watched.wait_until_both_find({"HeadraceProcessDown", "HeadraceTrainerFrozen"})
        causes.version_that_is_nowhere()  # and nothing newer is announced
        planting.stop(causes.process("joiner"))
        planting.stop(watched.another.process.pid)
        watched.wait_until_both_find(
            {
                "HeadraceProcessDown",
                "HeadraceTrainerFrozen",
                "HeadracePartitionStuck",
                "HeadraceReplicaStuck",
            }
        )
        alerts = watched.prometheus.get("alerts")["alerts"]
        down = {one["labels"].get("process") for one in alerts if one["state"] == "firing"}
        assert {"trainer", "joiner", "serve"} <= down
    watched.wait_until_both_find(set())
    assert watched.prometheus.up() == dict.fromkeys(PROCESSES, True)


def test_answers_that_come_late_to_know_are_found(watched: Watched) -> None:
    watched.wait_until_neither_finds({"HeadraceFreshnessSLO"})
    with Planting() as planting:
        planting.often(watched.causes.held_up)
        watched.wait_until_both_find({"HeadraceFreshnessSLO"})
    watched.wait_until_neither_finds({"HeadraceFreshnessSLO"})


def test_lies_are_found_and_end(watched: Watched) -> None:
    """They are held back, and they come from where nobody came from."""
    causes = watched.causes
    found = {"HeadraceVersionHeld"}

    def scenario_drifts() -> bool:
        columns = watched.running.get("/v1/monitor/drift")["features"]
        return any(one["active"] for one in columns if one["feature"] == "scenario")

    with Planting() as planting:
        planting.often(causes.likes)
        watched.running.wait_for(lambda: causes.tastes_are_known)
        watched.wait_until_neither_finds(found)
        watched.running.wait_for(lambda: not scenario_drifts(), timeout_s=60)
    with Planting() as planting:
        planting.often(causes.lies)
        # What lasts becomes usual.
        watched.wait_until_both_have_found(
            found | {"scenario is not distributed as it was"}, timeout_s=120
        )
    with Planting() as planting:
        planting.often(causes.likes)
        watched.wait_until_neither_finds(found)


def test_an_old_version_is_found_when_the_world_has_moved_on(watched: Watched) -> None:
    """Who counts knows at once what is liked now, and the version that is pinned never does."""
    causes = watched.causes
    found = {"HeadraceQualityDrop"}
    with Planting() as planting:
        planting.often(causes.likes)
        watched.running.wait_for(lambda: causes.tastes_are_known)
        watched.wait_until_neither_finds(found)
    with Planting() as planting:
        planting.pin(causes)
        planting.often(causes.newcomers)
        watched.wait_until_both_have_found(found)
    with Planting() as planting:
        planting.often(causes.likes)
        watched.wait_until_neither_finds(found)
