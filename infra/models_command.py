"""`headrace models`: the systems that a recipe can name, and what each of them can be told."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

if TYPE_CHECKING:
    from trainers.models import About

_FIGURES = ("recall@50", "gauc[click]")  # one for each family
# The trainer gives tables their names, widths and seeds; `learns` is for replicas.
_NOT_OPTIONS = {"table.name", "table.width", "table.seed", "table.learns"}


def models(
    name: Annotated[str | None, typer.Argument(help="Of one model: all it can be told.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """List the models: what each is, the paper, the columns of samples it reads, how good it was.

    A recipe names one in a line, and may set its options, which `headrace models NAME` shows:

        [trainer]
        model = "mind"
        options = { interests = 4 }

    The figure is test then train, for each data set: recall@50 among all items as `headrace bench
    retrieval` last measured it, or of rankers the GAUC of clicks by `headrace bench ranking`. A
    model of your own takes one file: docs/adding-a-model.md.
    """
    from infra.bench import last_results
    from trainers.models import about, names

    results = {**last_results("retrieval"), **last_results("ranking")}
    if name is not None:
        _show_one(about(name), _figures(name, results), as_json=as_json)
        return
    listed = [about(one) for one in names()]
    if as_json:
        typer.echo(json.dumps([_told(one, _figures(one.name, results)) for one in listed]))
        return
    table = Table("model", "family", "what it is", "paper", "reads", "recall@50 or GAUC")
    for one in listed:
        figures = _figures(one.name, results)
        row = (one.name, one.family, one.summary, one.paper.replace("*", ""))
        table.add_row(*row, ", ".join(one.reads), _short(figures))
    _console().print(table)


def _show_one(one: About, figures: dict[str, dict[str, float]], *, as_json: bool) -> None:
    from trainers.models import RETRIEVAL, find

    _, config = find(one.name, {})
    options = dict(_options(config))
    if as_json:
        typer.echo(json.dumps({**_told(one, figures), "options": options}, default=asdict))
        return
    console = _console()
    console.print(f"[bold]{one.name}[/] ({one.family}, {one.origin}): {one.summary}.")
    console.print(Markdown(one.paper))
    console.print(f"reads {', '.join(one.reads) or '-'}")
    for source, found in figures.items():
        told = ", ".join(f"{name} {value:,.4g}" for name, value in found.items())
        console.print(f"{source}: {told}", markup=False)  # auc[click]
    console.print()
    console.print(Markdown(_about_options(config)))
    where = "trainer" if one.family == RETRIEVAL else f"models.{one.name}"
    table = Table(f"{where}.options.", "default")
    for option, default in options.items():
        table.add_row(option, "none" if default is None else json.dumps(default, default=asdict))
    console.print(table)


def _told(one: About, figures: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {**one._asdict(), "figures": figures}


def _figures(name: str, results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By data set what was measured of a model."""
    return {source: systems[name] for source, systems in results.items() if name in systems}


def _short(figures: dict[str, dict[str, float]]) -> str:
    found = [
        f"{source} {one[name]:.3f}"
        for source, one in figures.items()
        for name in _FIGURES
        if name in one
    ]
    return "\n".join(found) or "-"


def _options(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting by its name in a recipe, with its default."""
    for one in fields(config):
        name, value = f"{prefix}{one.name}", getattr(config, one.name)
        if is_dataclass(value):
            yield from _options(value, f"{name}.")
        elif name not in _NOT_OPTIONS:
            yield name, value


def _about_options(config: Any) -> str:
    return " ".join((type(config).__doc__ or "").split())


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)
