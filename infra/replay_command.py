"""The command `headrace replay`: what it takes, and what it says of itself."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infra.log_option import HomeOption, LogOption, chosen_log


def replay(  # noqa: PLR0913 - the options of a command
    source: Annotated[
        str | None, typer.Argument(help="A source by its name; `--list` shows them.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="HEADRACE_DATA",
            help="The directory with data that is not shipped.",
            show_default=False,
        ),
    ] = None,
    speed: Annotated[
        float, typer.Option(min=0, help="Pace by event time: 1 as it was, 60 a minute a second.")
    ] = 0.0,
    rate: Annotated[float, typer.Option(min=0, help="Events per second at most.")] = 0.0,
    limit: Annotated[int, typer.Option(min=0, help="Only so many events; 0 is all.")] = 0,
    shift_to_now: Annotated[
        bool,
        typer.Option("--shift-to-now", help="Give each event the time at which it is due."),
    ] = False,
    close_after: Annotated[
        float,
        typer.Option(min=0, help="At the end, move event time on by so many seconds."),
    ] = 0.0,
    listed: Annotated[bool, typer.Option("--list", help="Show the sources and stop.")] = False,
    log: LogOption = None,
    home: HomeOption = None,
) -> None:
    """Replay public data into the log, whether or not a system is running.

    **For example**, a week of impressions and clicks as if it happened now, an hour in a minute:

    `headrace replay open-bandit --speed 60 --shift-to-now`

    Without `--speed` and `--rate` it goes flat out. Each event reaches the log once: Ctrl-C stops,
    and the same command goes on from there.
    """
    from infra.replay import replay as replay_source
    from infra.replay import show_sources
    from streaming.errors import ConfigError
    from streaming.sources.registry import find_source, open_source
    from streaming.sources.replay import ReplayConfig

    if listed:
        show_sources(data, Console())
        return
    if source is None:
        raise ConfigError("replay needs a SOURCE: `headrace replay --list` shows them")
    find_source(source)
    config = ReplayConfig(
        record_size=1024,
        speed=speed,
        events_per_s=rate,
        limit=limit,
        shift_to_now=shift_to_now,
        close_after_s=close_after,
    )
    with closing(chosen_log(log, home, make=True)) as opened:
        replay_source(opened, open_source(source, data), config, Console(stderr=True))
