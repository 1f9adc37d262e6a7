"""Which log a command works on: the one that is named, or the embedded one of the home."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.home import Home
from streaming.errors import ConfigError
from streaming.log import DEAD_LETTERS, EVENTS, Log

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", envvar="HEADRACE_HOME", help="Where the state lives.", show_default=".headrace"
    ),
]
LogOption = Annotated[
    str | None,
    typer.Option(
        "--log",
        envvar="HEADRACE_LOG",
        help="The log: kafka://host:port, or file:///absolute/path/log.db.",
        show_default="the one in the home",
    ),
]


def chosen_log(url: str | None, home: Path | None, *, make: bool = False) -> Log:
    """Opens it; with `make`, an embedded log that is not there yet is made.

    Raises:
        ConfigError: nothing has run in the home yet, the URL names no log, or topics are missing.
        LogError: it cannot be opened.
    """
    from streaming.open_log import open_log

    if url is not None:
        return _with_topics(open_log(url))
    place = Home(home or Path(".headrace"))
    if not (make or place.exists):
        raise ConfigError(f"nothing has run in {place.path} yet: start with `headrace run`")
    return open_log(place.log_url)


def _with_topics(log: Log) -> Log:
    """The log, if the topics that a command reads and writes are there.

    Raises:
        ConfigError: names the topics that are not.
    """
    there = {place.topic for place in log.ends([EVENTS, DEAD_LETTERS])}
    if missing := {EVENTS, DEAD_LETTERS} - there:
        log.close()
        raise ConfigError(
            f"the log has no topic {', '.join(sorted(missing))}: `headrace topics` shows the"
            " plan, and `headrace topics --apply` makes them"
        )
    return log
