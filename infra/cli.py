"""The command line: `headrace`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from infra import (
    archive_command,
    daily_command,
    doctor_command,
    edge_commands,
    features_command,
    fusion_command,
    grafana_command,
    logs_command,
    models_command,
    monitoring_command,
    replay_command,
    serve_command,
    topics_command,
    versions_command,
    visitors_command,
)
from infra.home import Learning
from infra.log_option import HomeOption, LogOption
from infra.serve_command import HostOption, PortOption
from streaming.errors import HeadraceError

# Before anything imports NumPy or torch: the processes share the cores, and threads that wait for
# the next product of matrices spin.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""A recommender that learns from every event as it comes.

    `headrace run` starts everything on this machine: the log, the trainer, the server, and a
    replay of MovieLens to learn from. Open the address it prints. State lives in HEADRACE_HOME
    (`.headrace` by default).""",
)

app.command()(edge_commands.ingest)
app.add_typer(edge_commands.dead_letters, name="dead-letters")
app.command()(serve_command.serve)
app.command()(doctor_command.doctor)
app.command()(replay_command.replay)
app.command()(daily_command.daily)
app.add_typer(archive_command.archive, name="archive")
app.command()(topics_command.topics)
app.add_typer(features_command.features, name="features")
app.add_typer(fusion_command.fusion, name="fusion")
app.command()(logs_command.logs)
app.command()(models_command.models)
monitoring_command.monitoring.command()(grafana_command.grafana)
app.add_typer(monitoring_command.monitoring, name="monitoring")
app.add_typer(versions_command.versions, name="versions")
app.command()(visitors_command.visitors)


@app.command()
def run(  # noqa: PLR0913 - the options of a command line
    recipe: Annotated[
        str, typer.Argument(help="A recipe: the name of a shipped one, or a .toml file.")
    ] = "movielens",
    port: PortOption = 8000,
    host: HostOption = None,
    learning: Annotated[
        Learning | None,
        typer.Option(
            help="From the stream at once, or by `headrace daily` from the archive.",
            show_default="the recipe's, realtime",
        ),
    ] = None,
    home: HomeOption = None,
    log: LogOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget everything, the archive too, and start over.")
    ] = False,
    until_learnt: Annotated[
        bool,
        typer.Option(
            "--until-learnt", help="In realtime: stop when all of the source has been learnt."
        ),
    ] = False,
) -> None:
    """Start the whole system; go on from where it stopped. Ctrl-C stops it cleanly.

    **To learn by day**: `headrace run my-recipe.toml --learning daily` has no trainer; versions
    come from `headrace daily my-recipe.toml`, beside it, every night.
    """
    from infra.home import Home
    from infra.recipe import load_recipe

    loaded = load_recipe(recipe)
    if host is not None:
        loaded = replace(loaded, serving=replace(loaded.serving, host=host))
    if learning is not None:
        loaded = replace(loaded, learning=learning)
    from infra.run import run as run_system  # after the recipe: it imports for seconds

    run_system(
        loaded,
        Home(home or Path(".headrace"), log or loaded.log),
        port,
        fresh=fresh,
        until_learnt=until_learnt,
    )


@app.command()
def status(
    home: HomeOption = None,
    log: LogOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Tell where every step stands: positions, lag, version, watermark, freshness.

    In a home that learns by day: what `headrace daily` has learnt so far.
    """
    from contextlib import closing

    from infra.home import Home
    from infra.log_option import chosen_log
    from infra.status import show_status
    from infra.status import status as read_status
    from streaming.dead_letters import Letters

    with closing(chosen_log(log, home)) as opened:
        found = read_status(opened, Home(home or Path(".headrace")))
        found["dead_letters"] = sum(1 for _ in Letters(opened).waiting())
    if as_json:
        typer.echo(json.dumps(found))
    else:
        show_status(found, Console())


@app.command()
def bench(
    name: Annotated[str | None, typer.Argument(help="Which benchmark; none lists them.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Other settings than its own, as in TOML."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line.")
    ] = False,
) -> None:
    """Measure something, and fail if a figure that is promised is missed."""
    from infra.bench import list_benchmarks, run_benchmark

    if name is None:
        list_benchmarks(Console())
    elif not run_benchmark(name, Console(stderr=True), settings or (), as_json=as_json):
        raise typer.Exit(1)


def main() -> None:
    """The entry point: an error on purpose is one sentence, any other keeps its traceback."""
    try:
        app()
    except HeadraceError as error:
        Console(stderr=True).print(
            f"[bold red]headrace:[/] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
