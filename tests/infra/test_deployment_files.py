"""The files of compose and Kubernetes: what they start exists, and what they probe answers."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml  # type: ignore[import-untyped]

from infra.cli import app
from infra.ray_serve import NAME, application
from infra.recipe import load_recipe

ROOT = Path(__file__).parents[2]
K8S = sorted((ROOT / "infra" / "k8s").rglob("*.yaml"))
ROUTES = {"/healthz", "/readyz"}


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def every(node: Any, name: str) -> Iterator[Any]:
    """Each value of that name, however deep."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == name:
                yield value
            yield from every(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from every(value, name)


ALL = {path: documents(path) for path in (ROOT / "compose.yaml", *K8S)}
MANIFESTS = [one for path in K8S for one in ALL[path]]
COMMANDS = [c for one in ALL.values() for c in every(one, "command") if c[0] == "headrace"]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [one for one in MANIFESTS if one["kind"] == kind]


def pods() -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Labels and spec of every pod that some manifest describes."""
    for template in every(MANIFESTS, "template"):
        yield template["metadata"]["labels"], template["spec"]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_is_one_of_ours_with_options_that_it_has(command: list[str]) -> None:
    name, *arguments = command[1:]
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert name in known
    with known[name].make_context(name, list(arguments)) as context:
        assert context.params  # it has parsed them; an unknown one raises


def test_there_is_a_learner_and_there_are_replicas() -> None:
    started = {command[1] for command in COMMANDS}
    assert {"run", "serve", "topics"} <= started
    compose = documents(ROOT / "compose.yaml")[0]["services"]
    assert compose["serve"]["command"][1] == "serve"


def test_every_probe_asks_a_route_of_the_app_at_the_port_where_it_listens() -> None:
    source = (ROOT / "serving" / "http" / "api.py").read_text()
    assert set(re.findall(r'@app\.get\(\s*"(/\w+z)"', source)) == ROUTES
    probed = 0
    for _, spec in pods():
        for container in spec["containers"]:
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            command = container.get("command", [])
            if "--port" in command:
                assert ports["http"] == int(command[command.index("--port") + 1])
            for probe in every(container, "httpGet"):
                assert probe["path"] in ROUTES
                assert probe["port"] in ports
                probed += 1
    assert probed >= 6


def test_every_selector_selects_pods_that_are_there() -> None:
    labels = [label for label, _ in pods()]
    for one in MANIFESTS:
        selector = (
            one["spec"].get("selector") if one["kind"] != "ConfigMap" and "spec" in one else None
        )
        if selector is not None:
            wanted = selector.get("matchLabels", selector)
            assert any(wanted.items() <= label.items() for label in labels), one["metadata"]["name"]


def test_every_volume_that_is_mounted_is_declared_and_its_source_is_made() -> None:
    claims = {one["metadata"]["name"] for one in of_kind("PersistentVolumeClaim")}
    maps = {one["metadata"]["name"] for one in of_kind("ConfigMap")}
    for _, spec in pods():
        declared = {volume["name"] for volume in spec["volumes"]}
        mounted = {m["name"] for c in spec["containers"] for m in c["volumeMounts"]}
        assert mounted <= declared
        assert set(every(spec["volumes"], "claimName")) <= claims
        assert {one["name"] for one in every(spec["volumes"], "configMap")} <= maps


def test_containers_say_what_they_need_and_run_as_nobody_special() -> None:
    for _, spec in pods():
        assert spec["securityContext"]["runAsNonRoot"]
        for container in spec["containers"]:
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()


def test_a_replica_has_time_to_announce_a_stop_before_it_is_killed() -> None:
    for _, spec in pods():
        command = spec["containers"][0].get("command", [])
        if "--drain-s" in command:
            drain_s = float(command[command.index("--drain-s") + 1])
            assert spec["terminationGracePeriodSeconds"] > drain_s + 20  # and to answer the last


def test_the_recipe_loads(tmp_path: Path) -> None:
    text = of_kind("ConfigMap")[0]["data"]["recipe.toml"]
    (tmp_path / "recipe.toml").write_text(text)
    assert load_recipe(str(tmp_path / "recipe.toml")).source == "none"


def test_ray_serves_our_application() -> None:
    serve = yaml.safe_load(of_kind("RayService")[0]["spec"]["serveConfigV2"])
    one = serve["applications"][0]
    module, _, name = one["import_path"].partition(":")
    assert getattr(importlib.import_module(module), name) is application
    assert one["args"].keys() == {"recipe", "home", "log"}
    assert one["deployments"][0]["name"] == NAME
    ports = set(every(of_kind("RayService"), "containerPort"))
    assert ports == {serve["http_options"]["port"]}


def test_no_secret_stands_in_the_files() -> None:
    for path in ALL:
        assert not re.search(
            r"(?i)(password|secret_access_key|token)\s*[:=]\s*\S", path.read_text()
        )
    assert not of_kind("Secret")


def test_ray_is_of_the_version_that_is_installed() -> None:
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned is not None
    assert set(every(MANIFESTS, "rayVersion")) == {pinned[1]}


def test_prometheus_finds_every_pod_and_asks_at_a_service_that_is_there() -> None:
    for _, spec in pods():
        (advertised,) = [e for e in every(spec["containers"], "env") for e in e if e["name"] == "HEADRACE_ADVERTISE"]  # noqa: E501  # fmt: skip
        assert advertised["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    asked = re.findall(r"prometheus-config (\S+):(\d+)", (ROOT / "docs" / "deployment.md").read_text())  # noqa: E501  # fmt: skip
    assert asked
    for name, port in asked:
        (service,) = [one for one in of_kind("Service") if one["metadata"]["name"] == name]
        assert [one["port"] for one in service["spec"]["ports"]] == [int(port)]
    assert "HEADRACE_METRICS_HOST=0.0.0.0" in (ROOT / "Dockerfile").read_text()
