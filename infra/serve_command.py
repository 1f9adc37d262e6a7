"""`headrace serve`: more replicas of a running system."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infra.log_option import HomeOption, LogOption

PortOption = Annotated[
    int, typer.Option(envvar="HEADRACE_PORT", min=1, max=65535, help="Where to answer.")
]
HostOption = Annotated[
    str | None,
    typer.Option(
        envvar="HEADRACE_HOST",
        help="The address to answer at; 0.0.0.0 opens the service to the network.",
        show_default="the recipe's, 127.0.0.1",
    ),
]


def serve(  # noqa: PLR0913 - the options of a command line
    recipe: Annotated[
        str, typer.Argument(help="The recipe of `headrace run`: a shipped one, or a .toml file.")
    ] = "movielens",
    port: PortOption = 8001,
    host: HostOption = None,
    home: HomeOption = None,
    log: LogOption = None,
    drain_s: Annotated[
        float,
        typer.Option(
            min=0,
            help="How long a stop is announced (/readyz says 503) before requests are refused.",
        ),
    ] = 2.0,
    ray: Annotated[
        bool, typer.Option("--ray", help="Several replicas, by Ray Serve behind one address.")
    ] = False,
    replicas: Annotated[int, typer.Option(min=1, help="With --ray: so many at least.")] = 2,
    max_replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --ray: so many at most, while the queues are long.",
            show_default="twice --replicas",
        ),
    ] = None,
) -> None:
    """Answer requests beside `headrace run`, with the same home and the same log.

    Any number of these may run: each is a replica of its own that follows the versions and the
    events. Ctrl-C or SIGTERM stops it when it has answered what it has.

    With **--ray**, Ray Serve runs the replicas and adds some while the queues are long; SIGHUP
    replaces them one after another, without a failed request.
    """
    from infra.home import Home
    from infra.recipe import load_recipe

    loaded = load_recipe(recipe)
    if host is not None:
        loaded = replace(loaded, serving=replace(loaded.serving, host=host))
    place = Home(home or Path(".headrace"), log or loaded.log)
    if ray:
        from infra.ray_serve import RayServeConfig, serve_by_ray

        config = RayServeConfig(replicas, max_replicas or 2 * replicas)
        serve_by_ray(loaded, place, port, config, Console())
    else:
        from infra.serve import serve as serve_here

        serve_here(loaded, place, port, drain_s, Console())
