"""Every alert: quiet while all is well, begun by its cause, ended after it; for Prometheus and for
the monitor within, which read the same table.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.monitor.alerts import ALERTS, Alert, Watch
from infra.monitor.expressions import Last
from infra.monitor.history import History
from infra.monitoring_command import HERE
from streaming.metrics import parse

ROOT = Path(__file__).parents[2]
EVERY_S = 5
BEGINS, ENDS, OVER = 400, 600, 1_000  # seconds
Figures = dict[str, float]


def healthy(t: float) -> Figures:
    """What a system tells at a time at which all is well."""
    found: Figures = {"headrace_replay_waiting_events": 0, "headrace_gate_holds": 0}
    for process in ("run", "joiner", "aggregator", "trainer", "serve"):
        found[f'up{{process="{process}",rank="0",instance="{process}:1"}}'] = 1
    for process in ("joiner", "aggregator", "trainer"):
        found[f'headrace_process_expected{{process="{process}",rank="0"}}'] = 1
    for bound in ("0.5", "1.0", "+Inf"):
        found[f'headrace_freshness_seconds_bucket{{hop="served",le="{bound}"}}'] = 4 * t
    found['headrace_freshness_seconds_count{hop="served"}'] = 4 * t
    for group, topic in (("joiner", "events"), ("catalog", "events"), ("trainer", "samples")):
        for partition in (0, 1):
            place = f'group="{group}",topic="{topic}",partition="{partition}"'
            found[f"headrace_group_lag_records{{{place}}}"] = 2
            found[f"headrace_group_position_records{{{place}}}"] = 20 * t
    for partition in (0, 1):
        place = f'topic="events",partition="{partition}"'
        found[f"headrace_partition_end_records{{{place}}}"] = 20 * t + 2
    found['headrace_version_published_timestamp_seconds{process="trainer"}'] = t - 0.2
    found['headrace_trainer_steps_total{process="trainer"}'] = 5 * t
    found["headrace_trainer_refused_total"] = 0
    for process in ("run", "serve"):
        replica = f'process="{process}",rank="0",instance="{process}:1"'
        found[f"headrace_replica_behind_seconds{{{replica}}}"] = 0.1
    for outcome, rate in (("same", 90), ("behind", 10), ("different", 0)):
        skew = f'view="user_history",feature="items",outcome="{outcome}"'
        found[f"headrace_feature_skew_total{{{skew}}}"] = rate * t
    found['headrace_drift_active{feature="reward"}'] = 0
    found['headrace_events_total{outcome="taken"}'] = 100 * t
    found['headrace_events_total{outcome="rejected"}'] = 0
    found['headrace_answers_degraded_total{part="features"}'] = 0
    for status, rate in ((200, 50), (503, 0)):
        request = f'route="/v1/recommend",status="{status}"'
        found[f"headrace_request_seconds_count{{{request}}}"] = rate * t
    found['headrace_requests_shed_total{gate="answers"}'] = 0
    for of, recall in (("live", 0.3), ("popularity", 0.1)):
        found[f'headrace_progressive_figure{{figure="recall@50",of="{of}"}}'] = recall
    return found


@dataclass(frozen=True)
class Cause:
    """What is otherwise while something is wrong, and which alerts that is to give."""

    alerts: set[str]
    changed: Callable[[Figures, float], None]

    def figures(self, t: float) -> Figures:
        found = healthy(t)
        self.changed(found, t)
        return found


def _during(part: str, value: float | None) -> Callable[[Figures, float], None]:
    """Figures with that in their name have another value while it lasts; None: are not told."""

    def change(found: Figures, t: float) -> None:
        if BEGINS < t <= ENDS:
            for name in [name for name in found if part in name]:
                if value is None:
                    del found[name]
                else:
                    found[name] = value

    return change


def _stops(*parts: str) -> Callable[[Figures, float], None]:
    """Figures stand still while it lasts, and catch up then."""

    def change(found: Figures, t: float) -> None:
        if BEGINS < t <= ENDS:
            before = healthy(BEGINS)
            found.update({n: before[n] for n in found if any(part in n for part in parts)})

    return change


def _grows(part: str, rate: float) -> Callable[[Figures, float], None]:
    """Counters grow so much a second more while it lasts."""

    def change(found: Figures, t: float) -> None:
        for name in [name for name in found if part in name]:
            found[name] += rate * max(0.0, min(t, ENDS) - BEGINS)

    return change


def _a_day_is_learnt(found: Figures, t: float) -> None:
    """By a process of its own, and then there is no trainer."""
    for name in [name for name in found if 'process="trainer"' in name]:
        del found[name]
    found['headrace_version_published_timestamp_seconds{process="daily"}'] = 0
    found['headrace_trainer_steps_total{process="daily"}'] = 5 * t


def _slow(found: Figures, t: float) -> None:
    """Versions come two seconds late, and the buckets below do not see them."""
    late = 4 * max(0.0, min(t, ENDS) - BEGINS)
    for name in [name for name in found if 'le="0.5"' in name or 'le="1.0"' in name]:
        found[name] -= late


def _slow_in_a_replay(found: Figures, t: float) -> None:
    _slow(found, t)
    if t > BEGINS:
        found["headrace_replay_waiting_events"] = 10_000


CAUSES = {
    "nothing": Cause(set(), lambda _found, _t: None),
    "a process hangs": Cause({"HeadraceProcessDown"}, _during('up{process="serve"', 0)),
    "a process is gone": Cause({"HeadraceProcessDown"}, _during('up{process="trainer"', None)),
    "a replica that left is not missed": Cause(set(), _during('up{process="serve"', None)),
    "versions are late": Cause({"HeadraceFreshnessSLO"}, _slow),
    "a replay is as slow as it likes": Cause(set(), _slow_in_a_replay),
    "the trainer stands": Cause(
        {"HeadraceTrainerFrozen"},
        _stops('position_records{group="trainer"', "steps_total", "published_timestamp"),
    ),
    "a partition is stuck": Cause(
        {"HeadracePartitionStuck"},
        _stops('position_records{group="joiner",topic="events",partition="1"'),
    ),
    "a partition is silent": Cause(
        {"HeadracePartitionSilent"}, _stops('end_records{topic="events",partition="1"')
    ),
    "the store of versions is away": Cause(
        {"HeadraceNothingPublished"}, _stops("published_timestamp")
    ),
    "a day is learnt, and nothing published before it ends": Cause(set(), _a_day_is_learnt),
    "the gate closes": Cause({"HeadraceVersionHeld"}, _during("gate_holds", 1)),
    "a batch is not learnt": Cause({"HeadraceMicroBatchesRefused"}, _grows("refused_total", 0.01)),
    "a replica stands": Cause(
        {"HeadraceReplicaStuck"}, _during('behind_seconds{process="serve"', 60)
    ),
    "features differ": Cause({"HeadraceFeatureSkew"}, _grows('outcome="different"', 5)),
    "a feature drifts": Cause({"HeadraceDrift"}, _during("drift_active", 1)),
    "events are rejected": Cause({"HeadraceDeadLetters"}, _grows('outcome="rejected"', 5)),
    "some events are rejected": Cause(set(), _grows('outcome="rejected"', 0.1)),
    "answers lack features": Cause({"HeadraceAnswersDegraded"}, _grows("degraded_total", 5)),
    "requests fail": Cause({"HeadraceErrors"}, _grows('status="503"', 5)),
    "requests are shed": Cause({"HeadraceErrors"}, _grows("shed_total", 20)),
    "popularity is better": Cause({"HeadraceQualityDrop"}, _during('of="live"', 0.05)),
}


def test_every_alert_has_a_cause_here_and_a_page_that_says_what_to_do() -> None:
    caused = set().union(*(cause.alerts for cause in CAUSES.values()))
    assert caused == {alert.name for alert in ALERTS}
    missing = [alert.runbook for alert in ALERTS if not (ROOT / alert.runbook).is_file()]
    assert missing == []


@pytest.mark.parametrize("name", CAUSES)
def test_the_monitor_finds_the_cause_and_nothing_else(name: str) -> None:
    cause, history, watch = CAUSES[name], History(OVER // EVERY_S), Watch()
    rows: dict[str, int] = {}
    found: dict[int, set[str]] = {}
    for t in range(0, OVER + 1, EVERY_S):
        history.open(t)
        for figure, value in cause.figures(t).items():
            if figure not in rows:
                sample = parse(f"{figure} 0\n")[0]
                row = history.add(sample.name, sample.labels)
                assert row is not None
                rows[figure] = row
            history.note(rows[figure], value)
        found[t] = {active.alert.name for active in watch.turn(history)}
    assert not any(found[t] for t in range(0, BEGINS + 1, EVERY_S))
    assert found[ENDS] == cause.alerts
    assert found[OVER] == set()


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        if os.environ.get("HEADRACE_REQUIRE_PROMETHEUS"):
            pytest.fail("promtool is not there: apt-get install prometheus")
        pytest.skip("promtool is not there: apt-get install prometheus")
    return found


def test_prometheus_finds_each_cause_and_nothing_else(promtool: str, tmp_path: Path) -> None:
    tests = [_rule_test(name, cause) for name, cause in CAUSES.items()]
    file = tmp_path / "tests.json"  # JSON is YAML
    rules = [str(HERE / "headrace.rules.yml")]
    interval = f"{EVERY_S}s"
    file.write_text(
        json.dumps({"rule_files": rules, "evaluation_interval": interval, "tests": tests})
    )
    done = subprocess.run(
        [promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _rule_test(name: str, cause: Cause) -> dict[str, object]:
    times = range(0, OVER + 1, EVERY_S)
    told = [cause.figures(t) for t in times]
    series = [
        {
            "series": figure,
            "values": " ".join(f"{now[figure]:g}" if figure in now else "stale" for now in told),
        }
        for figure in sorted(set().union(*told))
    ]

    def fire(t: int, alerts: set[str]) -> dict[str, object]:
        return {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "eval_time": f"{t}s",
            "exp_samples": [
                {"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(alerts)
            ],
        }

    return {
        "name": name,
        "interval": f"{EVERY_S}s",
        "input_series": series,
        "promql_expr_test": [fire(BEGINS, set()), fire(ENDS, cause.alerts), fire(OVER, set())],
    }


def test_what_comes_and_goes_is_one_alert() -> None:
    alert = Alert(
        "HeadraceDoor", "warning", Last("door", ("of",)) > 0, "{of}: {value}", for_s=10, keep_s=20
    )
    history, watch = History(100), Watch([alert])
    row = history.add("door", {"of": "barn"})
    assert row is not None
    #          waits   begins         a gap   again   ends after 20 s
    openings = [0, 1, 1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]
    since = []
    for place, is_open in enumerate(openings):
        history.open(place * 5)
        history.note(row, is_open)
        since.append([(active.since, active.sentence) for active in watch.turn(history)])
    began = [(5.0, "barn: 1")]
    assert since == [[]] * 3 + [began] * 10 + [[]] * 3


def test_the_shipped_files_are_what_the_commands_write(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["monitoring", "rules", "--into", str(tmp_path)]).exit_code == 0
    into = ["monitoring", "prometheus-config", "--into", str(tmp_path)]
    assert CliRunner().invoke(app, into).exit_code == 0
    for name in ("headrace.rules.yml", "prometheus.yml"):
        assert (HERE / name).read_text() == (tmp_path / name).read_text(), (
            "write it anew: headrace monitoring rules (prometheus-config) --into infra/monitoring"
        )


@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_promtool_takes_the_files(promtool: str, tmp_path: Path, scale: float) -> None:
    for command in (["rules", "--scale", str(scale)], ["prometheus-config", "a:1", "b:2"]):
        done = CliRunner().invoke(app, ["monitoring", *command, "--into", str(tmp_path)])
        assert done.exit_code == 0
    checked = CliRunner().invoke(app, ["monitoring", "check", str(tmp_path)])
    assert checked.exit_code == 0
    assert "SUCCESS" in checked.output


def test_rules_that_prometheus_would_not_take_are_told(promtool: str, tmp_path: Path) -> None:
    CliRunner().invoke(app, ["monitoring", "prometheus-config", "--into", str(tmp_path)])
    (tmp_path / "headrace.rules.yml").write_text("groups: [{name: a, rules: [{record: b}]}]")
    error = CliRunner().invoke(app, ["monitoring", "check", str(tmp_path)]).exception
    assert "Prometheus would not take" in str(error)
