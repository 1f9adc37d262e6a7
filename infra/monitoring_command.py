"""`headrace monitoring`: what Prometheus needs, and whether it is as it should be."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

monitoring = typer.Typer(
    no_args_is_help=True,
    help="What Prometheus reads to watch a system: where its processes are, and the rules.",
)
HERE = Path(__file__).parent / "monitoring"
ScaleOption = Annotated[
    float,
    typer.Option(help="All times so many times as long: for a scrape every 15 s, 3."),
]
IntoOption = Annotated[
    Path | None, typer.Option("--into", help="A directory to write the file into.")
]


@monitoring.command()
def rules(scale: ScaleOption = 1.0, into: IntoOption = None) -> None:
    """Print the recording and alerting rules, or write them."""
    from infra.monitor.rules import RULES_FILE, rules_yaml

    _show(rules_yaml(scale), into, RULES_FILE)


@monitoring.command("prometheus-config")
def prometheus_config(
    address: Annotated[
        list[str] | None, typer.Argument(help="Of `headrace run`, such as 10.0.0.7:8000.")
    ] = None,
    interval_s: Annotated[float, typer.Option(help="Between two scrapes.")] = 5.0,
    into: IntoOption = None,
) -> None:
    """Print the configuration of Prometheus, or write it."""
    from infra.monitor.rules import prometheus_yaml

    _show(prometheus_yaml(address or ["127.0.0.1:8000"], interval_s), into, "prometheus.yml")


@monitoring.command()
def check(
    directory: Annotated[
        Path, typer.Argument(help="With prometheus.yml; the shipped one if none is named.")
    ] = HERE,
) -> None:
    """Let Prometheus' promtool check the configuration and its rules."""
    from streaming.errors import ConfigError

    tool = shutil.which("promtool")
    if tool is None:
        raise ConfigError(
            "promtool is not there, which checks for Prometheus: install prometheus"
            " (Debian's package has both)"
        )
    file = str(directory / "prometheus.yml")
    done = subprocess.run(  # noqa: S603 - the tool is Prometheus' own
        [tool, "check", "config", file], capture_output=True, text=True, check=False
    )
    told = (done.stdout + done.stderr).strip()
    if done.returncode:
        raise ConfigError(f"Prometheus would not take {file}: {told}")
    Console().print(told, markup=False, highlight=False)


def _show(text: str, into: Path | None, name: str) -> None:
    if into is None:
        typer.echo(text, nl=False)
    else:
        into.mkdir(parents=True, exist_ok=True)
        (into / name).write_text(text)
