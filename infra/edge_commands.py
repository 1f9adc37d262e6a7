"""The commands at the edges of the log: `headrace ingest` and `headrace dead-letters`."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from infra.log_option import HomeOption, LogOption, chosen_log

if TYPE_CHECKING:
    from infra.dead_letters import Choice

Format = Literal["ndjson", "csv", "parquet"]
RecipeOption = Annotated[
    str, typer.Option("--recipe", help="The recipe whose rules the events must keep.")
]


def ingest(  # noqa: PLR0913 - each option of the command is an argument
    path: Annotated[
        str, typer.Argument(metavar="FILE|-", help="The file; - is the standard input.")
    ],
    form: Annotated[
        Format | None,
        typer.Option("--format", help="What it is.", show_default="from the file's name"),
    ] = None,
    mapped: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FIELD=COLUMN", help="The column of a field. Repeatable."),
    ] = None,
    constants: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="One value for all rows. Repeatable."),
    ] = None,
    attributes: Annotated[
        str | None,
        typer.Option(metavar="COL,COL", help="Columns that become attributes of an item or user."),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(metavar="COL=SEPARATOR", help="Attributes that are lists. Repeatable."),
    ] = None,
    at_format: Annotated[
        str,
        typer.Option(help="How times are written: s, ms, us, ns, or a pattern like '%d.%m.%Y'."),
    ] = "auto",
    delimiter: Annotated[
        str | None, typer.Option(help="Of CSV.", show_default="from the first line")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="COL,COL", help="Names for a CSV without a header.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Names the source.", show_default="the file's name")
    ] = None,
    recipe: RecipeOption = "movielens",
    log: LogOption = None,
    home: HomeOption = None,
    url: Annotated[
        str | None, typer.Option(help="Send over HTTP to a service, like http://127.0.0.1:8000.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Rows in one transaction.")] = 2000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check only; append nothing.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first refusal.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Send what was sent before.")] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Even if nothing at the start is an event.")
    ] = False,
) -> None:
    """Take events from an NDJSON, CSV or Parquet file into the log.

    **For example**, purchases with the columns customer, item_id and time:

    `headrace ingest sales.csv --set kind=buy --map user_id=customer --map at=time`

    A column that is called like a field is that field. Rows that cannot be events are kept as
    dead letters. To run it again is safe: a row counts once, and a run that was stopped goes on.

    **Exit code**: 0 if every row was accepted, 1 if not.
    """
    from infra.ingest import DrySink, IngestConfig, ingest, log_sink, pairs, url_sink
    from infra.recipe_file import load_rules
    from streaming.errors import ConfigError
    from streaming.sources.mapping import MappingConfig
    from streaming.sources.tabular import TableConfig

    if url is not None and log is not None:
        raise ConfigError("--url and --log: give one of the two")
    config = IngestConfig(
        TableConfig(form, delimiter, _listed(columns)),
        MappingConfig(
            pairs(mapped or [], "--map"),
            pairs(constants or [], "--set"),
            _listed(attributes),
            pairs(split or [], "--split"),
            at_format,
        ),
        name,
        batch,
        dry_run,
        strict,
        again,
        keep_going,
    )
    rules = load_rules(recipe)
    console = Console(stderr=True)
    if dry_run:
        accepted = ingest(path, config, rules, lambda *_: DrySink(Console()), console)
    elif url is not None:
        accepted = ingest(path, config, rules, url_sink(url), console)
    else:
        with closing(chosen_log(log, home, make=True)) as opened:
            accepted = ingest(path, config, rules, log_sink(opened), console)
    if not accepted:
        raise typer.Exit(1)


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


dead_letters = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""List, explain and re-drive what was refused.

    A record that breaks a rule is kept, with the reason. `list` names the letters, `show 0/17`
    explains one, and `redrive --reason "unknown field" --map user_id=userId` sends them again.""",
)
ReasonOption = Annotated[
    str | None, typer.Option("--reason", help="Only those with this text in reason or origin.")
]
SinceOption = Annotated[
    str | None, typer.Option("--since", help="Not older than 30m, 2h, 3d, or a time.")
]


@dead_letters.command("list")
def list_them(
    reason: ReasonOption = None,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to show, the newest.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="All, one JSON object a line.")] = False,
    log: LogOption = None,
    home: HomeOption = None,
) -> None:
    """Show what waits, and how often each reason comes.

    **For example**: `headrace dead-letters list --since 2h --reason price`
    """
    from infra.dead_letters import json_letters, list_letters

    with closing(chosen_log(log, home)) as opened:
        if as_json:
            for line in json_letters(opened, _choice(reason, since)):
                typer.echo(line)
        else:
            list_letters(opened, _choice(reason, since), limit, Console())


@dead_letters.command()
def show(
    letter: Annotated[str, typer.Argument(help="Its name in the list, like 0/17.")],
    recipe: RecipeOption = "movielens",
    log: LogOption = None,
    home: HomeOption = None,
) -> None:
    """Explain one: the record as it was, the field at fault, how to mend it.

    **For example**: `headrace dead-letters show 0/17`
    """
    from infra.dead_letters import show_letter
    from infra.recipe_file import load_rules

    with closing(chosen_log(log, home)) as opened:
        show_letter(opened, letter, load_rules(recipe), Console())


@dead_letters.command()
def redrive(  # noqa: PLR0913 - each option of the command is an argument
    letters: Annotated[
        list[str] | None, typer.Argument(help="Their names in the list, like 0/17 0/21.")
    ] = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All that wait.")] = False,
    constants: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Give a field this value. Repeatable."),
    ] = None,
    mapped: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FIELD=OLD", help="Rename a field. Repeatable."),
    ] = None,
    dropped: Annotated[
        list[str] | None, typer.Option("--drop", metavar="OLD", help="Drop a field. Repeatable.")
    ] = None,
    at_format: Annotated[
        str,
        typer.Option(help="How times are written: s, ms, us, ns, or a pattern like '%d.%m.%Y'."),
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be.")] = False,
    recipe: RecipeOption = "movielens",
    log: LogOption = None,
    home: HomeOption = None,
) -> None:
    """Send letters through the rules again; what passes goes into `events`, once.

    **For example**: `headrace dead-letters redrive --reason "unknown field" --map user_id=userId`

    **Exit code**: 0 if all of them passed, 1 if some are still refused.
    """
    from infra.dead_letters import redrive_letters, rehearse, show_outcome
    from infra.ingest import pairs
    from infra.recipe_file import load_rules
    from streaming.errors import ConfigError
    from streaming.redrive import Mending

    if not (letters or reason or since or everything):
        raise ConfigError(
            "which letters? name them (0/17 0/21), or give --reason, --since or --all"
        )
    mending = Mending(
        pairs(constants or [], "--set"),
        pairs(mapped or [], "--map"),
        tuple(dropped or ()),
        at_format,
    )
    act = rehearse if dry_run else redrive_letters
    with closing(chosen_log(log, home)) as opened:
        outcome = act(opened, letters or [], _choice(reason, since), mending, load_rules(recipe))
    show_outcome(outcome, Console(), dry=dry_run)
    if outcome.refused:
        raise typer.Exit(1)


def _choice(reason: str | None, since_text: str | None) -> Choice:
    import time

    from infra.dead_letters import Choice, since

    return Choice(reason, since(since_text, time.time_ns() // 1000))
