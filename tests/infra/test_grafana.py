"""Dashboards of Grafana: the files are what the tables say, and Prometheus takes each query."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from infra.grafana import DIRECTORY, SOURCE, Dashboard, Panel, text
from infra.grafana_panels import DASHBOARDS
from infra.monitor.rules import prometheus_yaml

PROVISIONING = DIRECTORY.parent / "provisioning"
PANELS = [(one, panel) for one in DASHBOARDS for panel in one.panels]
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="Prometheus is not installed"
)


def model(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DIRECTORY / f"{name}.json").read_text())
    return found


def test_the_files_are_what_the_tables_say() -> None:
    for one in DASHBOARDS:
        file = DIRECTORY / f"{one.name}.json"
        assert file.read_text() == text(one, DASHBOARDS), "run `headrace monitoring grafana`"
    assert sorted(p.stem for p in DIRECTORY.iterdir()) == sorted(one.name for one in DASHBOARDS)


@pytest.mark.parametrize(("dashboard", "panel"), PANELS, ids=lambda one: one.title)
def test_every_panel_says_what_it_shows(dashboard: Dashboard, panel: Panel) -> None:
    assert panel.description.endswith(".")
    assert panel.unit
    assert panel.queries
    for legend, query in panel.queries.items():
        grouped = re.findall(r"by \(([\w, ]+)\)", query)
        labels = {label for by in grouped for label in by.split(", ")} - {"le"}
        told = set(re.findall(r"\{\{(\w+)\}\}", legend))
        assert not labels or labels == told, f"{legend!r} does not tell the lines of {query} apart"


@needs_promtool
def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    queries = [query for _, panel in PANELS for query in panel.queries.values()]
    rules = [
        {"record": f"query:{place}", "expr": query.replace("$__rate_interval", "1m")}
        for place, query in enumerate(queries)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(queries)} rules found" in done.stdout


def test_no_panel_lies_on_another_or_off_the_page() -> None:
    for one in DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in model(one.name)["panels"]:
            at = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert not cells & taken
            assert at["x"] + at["w"] <= 24
            taken |= cells
        assert len({panel["id"] for panel in model(one.name)["panels"]}) == len(model(one.name)["panels"])  # noqa: E501  # fmt: skip


def test_dashboards_and_datasource_find_each_other() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yaml").read_text())["datasources"]  # noqa: E501  # fmt: skip
    assert {"type": source["type"], "uid": source["uid"]} == SOURCE
    uids = {one.uid for one in DASHBOARDS}
    assert len(uids) == len(DASHBOARDS)
    for one in DASHBOARDS:
        assert {link["url"].removeprefix("/d/") for link in model(one.name)["links"]} == uids - {one.uid}  # noqa: E501  # fmt: skip


def test_compose_provisions_them() -> None:
    compose = yaml.safe_load((DIRECTORY.parents[3] / "compose.yaml").read_text())
    grafana = compose["services"]["grafana"]
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "headrace.yaml").read_text())["providers"]  # noqa: E501  # fmt: skip
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    assert mounts["./infra/monitoring/grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./infra/monitoring/grafana/provisioning"] == "/etc/grafana/provisioning"
    prometheus = compose["services"]["prometheus"]
    assert grafana["environment"]["HEADRACE_PROMETHEUS"] == "http://prometheus:9090"
    sources = [volume.split(":")[0] for volume in prometheus["volumes"]]
    places = [DIRECTORY.parents[3] / one for one in sources if one.startswith("./")]
    assert places
    assert all(place.exists() for place in places)


def test_compose_has_the_configuration_for_its_own_network() -> None:
    file = DIRECTORY.parents[1] / "compose" / "prometheus.yml"
    assert file.read_text() == prometheus_yaml(["headrace:8000"], 5.0), (
        "run `headrace monitoring prometheus-config headrace:8000 --into infra/monitoring/compose`"
    )
