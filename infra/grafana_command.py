"""`headrace monitoring grafana`: the files of the dashboards, written from the tables of panels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def grafana(
    directory: Annotated[
        Path | None,
        typer.Option(help="Where to write them.", show_default="where compose.yaml finds them"),
    ] = None,
) -> None:
    """Write Grafana's dashboards, as JSON.

    To bring them to a Grafana of your own, whose datasource has the uid `headrace`:
    `headrace monitoring grafana --directory /var/lib/grafana/dashboards`.
    """
    from infra.grafana import DIRECTORY, write
    from infra.grafana_panels import DASHBOARDS

    for path in write(DASHBOARDS, directory or DIRECTORY):
        typer.echo(path)
