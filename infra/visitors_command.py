"""The command `headrace visitors`: what it takes, and what it says of itself."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def visitors(  # noqa: PLR0913 - the options of a command
    url: Annotated[str, typer.Option(help="Where the service answers.")] = "http://127.0.0.1:8000",
    users: Annotated[int, typer.Option(min=1, help="How many different visitors.")] = 200,
    rate: Annotated[float, typer.Option(min=0.01, help="Requests per second, of all.")] = 10.0,
    duration: Annotated[
        float, typer.Option(min=0, help="Stop after so many seconds; 0 is at Ctrl-C.")
    ] = 0.0,
    haste: Annotated[
        float, typer.Option(min=0.01, help="What follows comes so many times sooner; 1 is life.")
    ] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, the same visitors.")] = 0,
    connections: Annotated[int, typer.Option(min=1, help="Requests on their way at once.")] = 8,
    world_config: Annotated[
        Path | None,
        typer.Option(help="The world's TOML file.", show_default="the world as it is shipped"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The summary as one JSON object on stdout.")
    ] = False,
) -> None:
    """Let people of the planted world visit a running service and react to its answers.

    **For example**, beside `headrace run`:

    `headrace visitors --rate 20 --duration 120`

    They ask for recommendations, look at the list from the top, click, watch, and buy by tastes
    of their own, and post it all as events; the service learns from them. On the world's own
    items the line also tells the best click-through rate that any list could have. Ctrl-C ends
    with a summary.
    """
    from infra.visitor_report import show
    from infra.visitor_service import VisitorService
    from infra.visitors import Crowd, VisitorsConfig, wait_until_ready
    from streaming.sources.world import World, load_world

    config = VisitorsConfig(
        users=users, rate=rate, duration_s=duration, seed=seed, haste=haste,
        connections=connections,
    )  # fmt: skip
    world = World(load_world(world_config))
    service = VisitorService(url, config.timeout_s)
    console, stopping = Console(stderr=True), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    wait_until_ready(service, console, stopping, timeout_s=120)
    crowd = Crowd(world, config, service)
    crowd.run(console, stopping)
    figures = crowd.report.figures()
    if as_json:
        typer.echo(json.dumps({**figures, "last_error": crowd.report.last_error}))
    else:
        show(figures, crowd.report.last_error, console)
