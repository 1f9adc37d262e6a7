"""`headrace topics`: what the topics in Kafka should be, as a plan to read before it is done."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from infra.log_option import LogOption
from streaming.errors import ConfigError

if TYPE_CHECKING:
    from streaming.topics import TopicPlan

_UNREPORTED = "not reported by the broker"


def topics(  # noqa: PLR0913 - one option each
    log: LogOption = None,
    partitions: Annotated[
        int, typer.Option(min=1, max=1024, help="Partitions of `events`: what joiners can share.")
    ] = 4,
    samples_partitions: Annotated[
        int,
        typer.Option(
            min=1,
            max=1024,
            help="Partitions of `samples`: what ranks of a trainer can share; at most those of"
            " `events`, best a divisor of them.",
        ),
    ] = 1,
    replication: Annotated[
        int, typer.Option(min=1, max=9, help="Copies of every record; 3 for a cluster of 3.")
    ] = 1,
    events_retention_days: Annotated[
        float, typer.Option(min=0.01, help="How long `events` can be replayed.")
    ] = 7.0,
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without, only the plan.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show what the topics in Kafka should be, and with --apply make them so.

    Example: `headrace topics --log kafka://localhost:9092 --partitions 8`, and when the plan
    reads well, the same with `--apply`. Nothing is ever removed.
    """
    from streaming.topics import Topics, TopicsConfig

    if log is None or not log.startswith("kafka://"):
        raise ConfigError(
            "headrace topics needs --log kafka://host:port (or HEADRACE_LOG): the embedded log"
            " makes its topics itself"
        )
    config = TopicsConfig(partitions, samples_partitions, replication, events_retention_days)
    with closing(Topics(log, config)) as found:
        plan = found.plan()
        if apply:
            found.apply(plan)
            plan = found.plan()
    if as_json:
        typer.echo(json.dumps({"topics": [asdict(one) for one in plan], "applied": apply}))
    else:
        show_plan(plan, Console(width=None if sys.stdout.isatty() else 160))


def show_plan(plan: list[TopicPlan], console: Console) -> None:
    """Prints the plan for people."""
    table = Table("topic", "plan", "partitions", "setting", "value", title="Topics in Kafka")
    for one in plan:
        table.add_section()
        count = f"{one.partitions if one.have is None else one.have}"
        if one.grows:
            count += f" (would be {one.partitions})"
        first = (one.topic, one.action, count)
        for row, (name, value) in enumerate(one.settings.items()):
            shown = value
            if one.have is not None and name in one.unreported:
                shown = f"{value} ({_UNREPORTED})"
            elif one.have is not None and name in one.changes:
                shown = f"{value} (would be changed)"
            table.add_row(*(first if row == 0 else ("", "", "")), name, shown)
    console.print(table)
    for one in plan:
        console.print(f"{one.topic}: {one.problem or one.why}", highlight=False, soft_wrap=True)
    if any(one.have is None or one.changes or one.grows for one in plan):
        console.print("`--apply` does it.", highlight=False)
