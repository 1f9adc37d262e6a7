"""The command `headrace daily`: what it takes, and what it says of itself."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infra.log_option import HomeOption, LogOption, chosen_log


def daily(  # noqa: PLR0913 - the options of a command
    recipe: Annotated[
        str, typer.Argument(help="The recipe by which the system ran.")
    ] = "movielens",
    day: Annotated[
        str | None, typer.Option(metavar="DAY", help="Only this day, such as 2026-11-22.")
    ] = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="DAY", help="No day before this one.")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--until", metavar="DAY", help="No day after this one.")
    ] = None,
    publish_every: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            metavar="SECONDS",
            help="Publish within a day too, this often.",
            show_default="at the end of each day",
        ),
    ] = None,
    log: LogOption = None,
    home: HomeOption = None,
) -> None:
    """Learn yesterday's archived samples on top of what was learnt up to the day before.

    It learns every archived day that is over (UTC) and not learnt yet, in order; rows that came
    late for a day are learnt by the next run. Each row is learnt once: Ctrl-C, or a kill, stops,
    and the same command goes on from there. At the end of each day a version is published.

    **For example**, every night: `headrace daily my-recipe.toml`

    **What serves it**: `headrace run --learning daily`, which takes events in, archives them and
    answers, and takes each version without a restart. Models of
    `[models]` learn too, one after another. A `headrace run` that learns in realtime is
    a trainer too, and a home has one at a time. Daily learning has a model of its own, in
    HEADRACE_HOME/cuts/daily (others in daily-NAME); to start it over, delete that.
    """
    from infra.daily_days import Choice
    from infra.daily_run import learn_days
    from infra.home import Home
    from infra.recipe import load_recipe
    from streaming.errors import ConfigError

    if day is not None and (first is not None or last is not None):
        raise ConfigError("--day is one day: leave out --from and --until")
    choice = Choice(day or first, day or last)
    loaded = load_recipe(recipe)
    url = log or loaded.log
    place = Home(home or Path(".headrace"), url)
    with closing(chosen_log(url, home)) as opened:
        learn_days(loaded, place, opened, choice, Console(stderr=True), publish_every)
