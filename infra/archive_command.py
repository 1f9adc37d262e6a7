"""The command `headrace archive`: what it takes, and what it says of itself."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infra.log_option import HomeOption, LogOption, chosen_log

archive = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""List, verify and compact what is archived in Parquet.

    Events and samples land in HEADRACE_HOME/archive, a directory for each day. Anything that reads
    Parquet can read it, for example:

    `duckdb -c "SELECT day, count(*) FROM '.headrace/archive/events/*/*.parquet' GROUP BY day"`""",
)


@archive.command("list")
def list_days(
    limit: Annotated[int, typer.Option(min=1, help="How many days, the newest.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="All, one JSON object a line.")] = False,
    home: HomeOption = None,
) -> None:
    """Show the days with rows, files, bytes, and the offsets that they came from.

    **For example**: `headrace archive list --limit 7`
    """
    from infra.archive import days, json_days, open_archive, show_days
    from infra.home import Home

    found = days(open_archive(Home(home or Path(".headrace"))))
    if as_json:
        for day in json_days(found):
            typer.echo(json.dumps(day))
    else:
        show_days(found, Console(), limit)


@archive.command("verify")
def verify_days(
    recipe: Annotated[
        str, typer.Option("--recipe", help="The recipe by which the system ran.")
    ] = "movielens",
    log: LogOption = None,
    home: HomeOption = None,
) -> None:
    """Hold every row against the log: each there once, none missing, none changed.

    **For example**: `headrace archive verify`

    **Exit code**: 0 if all is well, 1 if not.
    """
    from infra.archive import show_verdicts, verify_archive
    from infra.home import Home
    from infra.recipe import load_recipe
    from infra.wiring import archive_step

    place = Home(home or Path(".headrace"))
    with closing(chosen_log(log, home)) as opened:
        step = archive_step(load_recipe(recipe))
        verdicts = verify_archive(place, opened, step, Console(stderr=True))
    show_verdicts(verdicts, Console())
    if not all(verdict.good for verdict in verdicts):
        raise typer.Exit(1)


@archive.command("compact")
def compact_day(
    day: Annotated[str | None, typer.Argument(metavar="[DAY]", help="Only this day.")] = None,
    home: HomeOption = None,
) -> None:
    """Make one file of the many that a day lies in, beside a running system too.

    Readers see the files of before or those of after, never a row twice.

    **For example**: `headrace archive compact 2026-11-22`
    """
    from infra.archive import compact_days, open_archive
    from infra.home import Home

    archive_of_home = open_archive(Home(home or Path(".headrace")))
    count = compact_days(archive_of_home, day, Console(stderr=True))
    Console().print(f"{count:,} days have fewer files now.")
