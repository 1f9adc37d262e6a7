"""`headrace doctor`: what is wrong with a deployment, and how to mend it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from infra.log_option import HomeOption, LogOption

if TYPE_CHECKING:
    from infra.doctor_findings import Finding

_SIGNS = {"ok": "[green]ok[/]  ", "warn": "[yellow]warn[/]", "fail": "[bold red]fail[/]"}


def doctor(  # noqa: PLR0913 - the options of a command line
    recipe: Annotated[
        str, typer.Argument(help="The recipe of `headrace run`: a shipped one, or a .toml file.")
    ] = "movielens",
    url: Annotated[
        list[str] | None, typer.Option(help="A replica, such as http://host:8000; may be repeated.")
    ] = None,
    home: HomeOption = None,
    log: LogOption = None,
    port: Annotated[
        int, typer.Option(envvar="HEADRACE_PORT", min=1, max=65535, help="Where it would listen.")
    ] = 8000,
    key: Annotated[
        str | None, typer.Option(envvar="HEADRACE_API_KEY", help="The API key of the replicas.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Check a deployment: one line a check, and how to mend what is wrong.

    It changes nothing. The exit status is 1 if a check fails; warnings leave it 0.
    """
    from infra.doctor import Doctor
    from infra.doctor_findings import fail
    from infra.home import Home
    from infra.recipe import load_recipe
    from streaming.errors import ConfigError

    try:
        loaded = load_recipe(recipe)
    except ConfigError as error:
        findings = [fail("recipe", str(error))]
    else:
        place = Home(home or Path(".headrace"), log or loaded.log)
        findings = list(Doctor(loaded, place, url or (), port, key).findings())
    if as_json:
        typer.echo(json.dumps({"findings": [asdict(finding) for finding in findings]}))
    else:
        show(findings, Console(width=None if sys.stdout.isatty() else 200))
    if any(finding.outcome == "fail" for finding in findings):
        raise typer.Exit(1)


def show(findings: list[Finding], console: Console) -> None:
    """Prints the findings for people."""
    for finding in findings:
        said = escape(f"{finding.reason}; {finding.mend}" if finding.mend else finding.reason)
        line = f"{_SIGNS[finding.outcome]}  [bold]{escape(finding.check)}[/]: {said}"
        console.print(line, highlight=False, soft_wrap=True)
