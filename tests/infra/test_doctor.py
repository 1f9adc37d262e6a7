"""The doctor: every check is really broken once, and says what is wrong and how to mend it."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks._broker import Broker
from benchmarks._service import free_port
from features.store import FeastStore
from infra import doctor_machine as machine
from infra.cli import app
from infra.doctor import Doctor
from infra.doctor_findings import Finding
from infra.home import Home
from infra.recipe import Recipe
from infra.wiring import catalog_loop, version_store
from streaming.events import encode_event, parse_event
from streaming.log import SAMPLES, Append
from streaming.open_log import open_log
from streaming.topics import Topics, TopicsConfig
from trainers.group import GroupConfig
from trainers.trainer import Trainer, TrainerConfig

RECIPE = Recipe(source="none", trainer=TrainerConfig(options={"width": 4, "hidden": 4}))
EVENT = b'{"kind": "like", "user_id": "ada", "item_id": "318"}'


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home in which a run has been: features, an event, a cut and a version."""
    made = Home(tmp_path / "home")
    made.make()
    FeastStore(made.features, RECIPE.features).apply()
    with closing(open_log(made.log_url)) as log:
        event = parse_event(EVENT, RECIPE.events, time.time_ns() // 1000)
        log.append([encode_event(event)])
        catalog = catalog_loop(RECIPE, made, log)
        catalog.turn()
        catalog.cut()
        trainer = Trainer(RECIPE.trainer, "lineage")
        log.append(version_store(RECIPE, made).execute(trainer.on_time(0)))
    return made


def findings(home: Home, recipe: Recipe = RECIPE, *urls: str, ahead_s: float = 0) -> list[Finding]:
    doctor = Doctor(recipe, home, urls, free_port(), None, lambda: time.time() + ahead_s)
    return list(doctor.findings())


def found(check: str, findings: list[Finding]) -> tuple[str, str]:
    """Outcome, and reason with mend, of one check."""
    one = next(finding for finding in findings if finding.check == check)
    return one.outcome, f"{one.reason}; {one.mend}"


def test_a_running_system_is_well(home: Home) -> None:
    with home.locked():
        seen = findings(home)
    machines = {"disk", "memory", "processors", "ray"}  # whatever this one is
    bad = [one for one in seen if one.outcome != "ok" and one.check not in machines]
    assert bad == []
    assert {one.check for one in seen} == machines | {
        "recipe", "home", "port", "log", "partitions", "clock", "versions", "retention", "cuts",
        "features",
    }  # fmt: skip


def test_a_home_in_which_nobody_runs_or_nobody_ran(home: Home, tmp_path: Path) -> None:
    outcome, told = found("home", findings(home))
    assert outcome == "warn"
    assert "nothing is learnt; start `headrace run`" in told
    outcome, told = found("home", findings(Home(tmp_path / "another")))
    assert outcome == "fail"
    assert "nothing has run in" in told
    assert not (tmp_path / "another").exists()  # a doctor leaves no trace


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_home_that_may_not_be_written_to(home: Home) -> None:
    home.path.chmod(0o500)
    try:
        assert found("home", findings(home))[0] == "fail"
    finally:
        home.path.chmod(0o700)


def test_a_log_that_is_none(home: Home) -> None:
    (home.path / "log.db").write_bytes(b"no log" * 1000)
    outcome, told = found("log", findings(home))
    assert outcome == "fail"
    assert "is damaged or is not a log" in told


def test_partitions_that_are_too_few_for_the_ranks(home: Home) -> None:
    outcome, told = found("partitions", findings(home, replace(RECIPE, group=GroupConfig(ranks=3))))
    assert outcome == "warn"
    assert "2 of the trainer's 3 ranks learn nothing" in told


@pytest.mark.parametrize(("days", "outcome"), [(1.0, "fail"), (7.0, "ok")])
def test_events_that_are_kept_for_less_than_a_label_takes(
    home: Home, broker: Broker, days: float, outcome: str
) -> None:
    config = TopicsConfig(events_retention_days=days)
    with closing(Topics(broker.url, config)) as topics:
        topics.apply(topics.plan())
    seen = findings(Home(home.path, broker.url))
    assert found("log", seen)[0] == "ok"
    said, told = found("retention", seen)
    assert said == outcome
    assert "72.0 h" in told  # of `buy`


def test_a_log_without_its_topics_or_away(home: Home, broker: Broker) -> None:
    there = Home(home.path, broker.url)
    outcome, told = found("log", findings(there))
    assert outcome == "fail"
    assert "`headrace topics --apply` makes them" in told
    away = Home(home.path, f"kafka://127.0.0.1:{free_port()}?bootstrap_timeout_ms=300")
    assert found("log", findings(away))[0] == "fail"


def test_a_clock_that_is_behind_the_logs(home: Home) -> None:
    outcome, told = found("clock", findings(home, ahead_s=-60))
    assert outcome == "fail"
    assert "in the future of this machine; let NTP" in told


def test_a_damaged_cut(home: Home) -> None:
    shard = next((home.cuts("catalog") / "cut-00000001").glob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    outcome, told = found("cuts", findings(home))
    assert outcome == "fail"
    assert "no cut in" in told


def test_no_cuts(home: Home) -> None:
    shutil.rmtree(home.path / "cuts")
    assert found("cuts", findings(home))[0] == "warn"


def test_a_version_that_is_gone_or_old_or_held(home: Home) -> None:
    assert found("versions", findings(home, ahead_s=3600))[0] == "ok"  # nothing waits to be learnt
    with closing(open_log(home.log_url)) as log:
        log.append([Append(SAMPLES, b"")])
    outcome, told = found("versions", findings(home, ahead_s=3600))
    assert outcome == "fail"
    assert "samples wait to be learnt" in told
    store = version_store(RECIPE, home)
    store.pin("two_tower", "two_tower/lineage/0")
    outcome, told = found("versions", findings(home))
    assert outcome == "warn"
    assert "replicas are held at two_tower/lineage/0" in told
    shutil.rmtree(home.versions / "two_tower" / "lineage")
    assert found("versions", findings(home))[0] == "fail"


def test_features_that_are_lost_or_not_applied(home: Home) -> None:
    (home.features / "registry.db").unlink()
    outcome, told = found("features", findings(home))
    assert outcome == "fail"
    assert "headrace features apply" in told
    for path in home.features.glob("online.db*"):
        path.unlink()
    outcome, told = found("features", findings(home))
    assert outcome == "fail"
    assert "the online store" in told


class Stub(http.server.BaseHTTPRequestHandler):
    """A replica that says what the test wants."""

    ready = 200
    version = "two_tower/lineage/7"
    clock_ahead_s = 0

    def do_GET(self) -> None:
        said = {"status": "ok", "reason": "the catalog is cold", "served_version": self.version}
        self.send_response(self.ready if self.path == "/readyz" else 200)
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(time.time() + self.clock_ahead_s)

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002


@contextmanager
def replica(**said: object) -> Iterator[str]:
    """The URL of a replica that says so."""
    kind = type("Said", (Stub,), said)
    with http.server.HTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_replicas_that_are_well(home: Home) -> None:
    with replica() as one, replica(version="two_tower/lineage/9") as other:
        seen = findings(home, RECIPE, one, other)
        assert found(f"replica {one}", seen)[0] == "ok"
        assert found("replicas", seen) == ("ok", "2 of them are within 8 versions; ")


@pytest.mark.parametrize("version", ["two_tower/lineage/70", "two_tower/another/7"])
def test_replicas_that_are_far_apart(home: Home, version: str) -> None:
    with replica() as one, replica(version=version) as other:
        outcome, told = found("replicas", findings(home, RECIPE, one, other))
        assert outcome == "fail"
        assert version in told


def test_a_replica_that_is_not_ready_or_away_or_wrong_in_time(home: Home) -> None:
    with replica(ready=503) as cold, replica(clock_ahead_s=600) as early:
        away = f"http://127.0.0.1:{free_port()}"
        seen = findings(home, RECIPE, cold, early, away, "ftp://here")
        assert found(f"replica {cold}", seen)[1].startswith("not ready: the catalog is cold")
        assert re.search(r"its clock is \+(599|600) s from", found(f"replica {early}", seen)[1])
        assert "does not answer" in found(f"replica {away}", seen)[1]
        assert "no http URL" in found("replica ftp://here", seen)[1]
        assert {o.outcome for o in seen if o.check.startswith("replica ")} == {"fail"}


def test_a_full_disk_and_a_full_memory(tmp_path: Path) -> None:
    beyond = 1e18  # bytes that no machine has
    assert next(machine.disk(tmp_path, beyond)).outcome == "fail"
    assert next(machine.disk(tmp_path, 0, beyond)).outcome == "warn"
    assert next(machine.disk(tmp_path / "not" / "there", 0, 0)).outcome == "ok"
    assert next(machine.memory(beyond)).outcome == "fail"
    assert next(machine.memory(0, beyond)).outcome == "warn"


def test_more_threads_than_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert next(machine.processors()).outcome == "warn"


def test_a_port_that_another_has() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0)
        taken = other.getsockname()[1]
    with replica() as url:  # it answers, and is not Headrace
        number = int(url.rsplit(":", 1)[1])
        finding = next(machine.port("127.0.0.1", number))
    assert finding.outcome == "fail"
    assert f"port {number} on 127.0.0.1 cannot be used" in finding.reason
    assert next(machine.port("127.0.0.1", taken)).outcome == "ok"  # it is free again


def test_a_ray_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    finding = next(machine.ray())
    assert finding.outcome == "fail"
    assert "unset RAY_ADDRESS" in finding.mend


def test_the_command_fails_with_a_line_for_each_check(home: Home, tmp_path: Path) -> None:
    ask = ["doctor", "--home", str(home.path), "--port", str(free_port())]
    well = CliRunner().invoke(app, [*ask, "--json"])
    assert well.exit_code == 0, well.stdout
    told = json.loads(well.stdout)["findings"]
    assert {"check", "outcome", "reason", "mend"} == told[0].keys()
    ill = CliRunner().invoke(app, [*ask, "--url", f"http://127.0.0.1:{free_port()}"])
    assert ill.exit_code == 1
    assert "fail  replica http://127.0.0.1" in ill.stdout
    assert "ok    log: all topics are there; 1 records of events" in ill.stdout
    broken = tmp_path / "broken.toml"
    broken.write_text("sauce = 1")
    assert CliRunner().invoke(app, ["doctor", str(broken)]).exit_code == 1
