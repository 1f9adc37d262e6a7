"""Runbooks: every alert has its page, and what pages tell people to do can be done."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml  # type: ignore[import-untyped]

from infra.cli import app
from infra.grafana_panels import DASHBOARDS
from infra.monitor.alerts import ALERTS, RECORDINGS
from infra.monitor.rules import rules_yaml

ROOT = Path(__file__).parents[2]
RUNBOOKS = sorted((ROOT / "docs" / "runbooks").glob("*.md"))
PAGES = [*RUNBOOKS, ROOT / "docs" / "monitoring.md"]
COMMAND: Any = typer.main.get_command(app)


def quoted(page: Path) -> list[str]:
    """What stands in backticks, or in a block of code line by line."""
    text = page.read_text()
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    without = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [*lines, *(" ".join(one.split()) for one in re.findall(r"`([^`]+)`", without))]


COMMANDS = sorted(
    {(page.stem, one) for page in PAGES for one in quoted(page) if one.startswith("headrace ")}
)
QUERIES = sorted(
    {
        (page.stem, one)
        for page in PAGES
        for one in quoted(page)
        if re.search(r"headrace[_:]\w|^up\{", one)
    }
)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_every_alert_has_its_page(alert: object) -> None:
    page = ROOT / alert.runbook  # type: ignore[attr-defined]
    text = page.read_text()
    assert text.startswith(f"# {alert.name}\n")  # type: ignore[attr-defined]
    severity = text.splitlines()[2].strip("*").partition("*")[0].partition(",")[0]
    assert severity.lower() == alert.severity  # type: ignore[attr-defined]
    assert re.findall("^## (.*)$", text, re.MULTILINE) == ["Look", "Causes", "Over"]


def test_no_page_is_of_an_alert_that_is_no_more() -> None:
    assert set(RUNBOOKS) == {ROOT / alert.runbook for alert in ALERTS}


def test_the_page_of_monitoring_names_every_alert() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    for alert in ALERTS:
        assert f"[{alert.name}]({alert.runbook.removeprefix('docs/')})" in text


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda one: one)
def test_every_command_exists_with_its_options(page: str, line: str) -> None:
    words = shlex.split(line)[1:]
    command = COMMAND
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"{page}: there is no `{line}`"
        command = command.commands[words.pop(0)]
    if words:
        with command.make_context(line, words) as context:
            assert context.params


def figures(query: str) -> Iterator[str]:
    yield from re.findall(r"headrace[_:][\w:]+", query)


def test_every_figure_that_is_named_is_one_that_somebody_tells() -> None:
    known = {one for d in DASHBOARDS for p in d.panels for q in p.queries.values() for one in figures(q)}  # noqa: E501  # fmt: skip
    known |= {*figures(rules_yaml()), *(one.name for one in RECORDINGS)}
    assert {(page, one) for page, query in QUERIES for one in figures(query) if one not in known} == set()  # noqa: E501  # fmt: skip


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")
def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"q:{n}", "expr": query} for n, (_, query) in enumerate(QUERIES)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(QUERIES) > 10
