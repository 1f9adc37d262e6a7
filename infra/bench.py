"""Benchmarks by name: each module of `benchmarks/` measures, and says what it promises."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import platform
import tomllib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import benchmarks
from streaming.errors import ConfigError
from streaming.settings import fill


def list_benchmarks(console: Console) -> None:
    """Prints every benchmark with the first line of what it says of itself."""
    table = Table("name", "what it measures")
    for name in _names():
        table.add_row(name, _summary(_module(name)))
    console.print(table)


def run_benchmark(
    name: str, console: Console, settings: Sequence[str] = (), *, as_json: bool
) -> bool:
    """Runs one benchmark, prints its figures; whether every promise was kept.

    A benchmark is a module with `run(report) -> dict[str, float]`, which tells its progress to
    `report`, and `PROMISES`, a mapping from a figure's name to its (low, high) bounds. A promised
    figure that could not be measured is a promise that was not kept. One that can be set has a
    `Config` beside `run(report, config)`; run with other settings than its own it promises only
    what it measures then.

    Raises:
        ConfigError: there is no benchmark of that name, or no such setting.
    """
    if name not in _names():
        raise ConfigError(f"benchmark {name!r} is not there; known are {', '.join(_names())}")
    module = _module(name)
    given = (_config(module, name, settings),) if settings else ()
    figures: dict[str, float] = module.run(
        lambda line: console.print(line, highlight=False, markup=False), *given
    )
    promises: dict[str, tuple[float, float]] = module.PROMISES
    if settings:
        promises = {figure: bounds for figure, bounds in promises.items() if figure in figures}
    _show(name, figures, promises, console)
    missed = []
    for figure, (low, high) in promises.items():
        found = figures.get(figure)
        if found is None:
            console.print(f"[bold red]not measured:[/] {figure}, promised {low:g}-{high:g}")
        elif not low <= found <= high:
            console.print(f"[bold red]missed:[/] {figure} = {found:g}, not in {low:g}-{high:g}")
        else:
            continue
        missed.append(figure)
    if as_json:
        print(json.dumps({"name": name, "machine": _machine(), "figures": figures}))  # noqa: T201
    return not missed


def last_results(name: str) -> dict[str, Any]:
    """What a benchmark that keeps its figures has found when it was last run as it is; nothing if
    it was not.
    """
    path = Path(benchmarks.__file__).parent / "results" / f"{name}.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _config(module: Any, name: str, settings: Sequence[str]) -> Any:
    """The benchmark's Config. Each setting is a line of TOML, `key=value`, in which text needs no
    quotes; one without a key is the first of its settings.
    """
    if not hasattr(module, "Config"):
        raise ConfigError(f"benchmark {name!r} has no settings")
    first = fields(module.Config)[0].name
    lines = [_line(*(one.split("=", 1) if "=" in one else (first, one))) for one in settings]
    try:
        table = tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{' '.join(settings)}: {error}") from None
    return fill(module.Config, table, name)


def _line(key: str, value: str) -> str:
    try:
        tomllib.loads(f"{key}={value}")
    except tomllib.TOMLDecodeError:
        return f"{key}={json.dumps(value)}"
    return f"{key}={value}"


def _show(
    name: str,
    figures: dict[str, float],
    promises: dict[str, tuple[float, float]],
    console: Console,
) -> None:
    table = Table("figure", "value", "promised", title=name)
    for figure, value in figures.items():
        low, high = promises.get(figure, (None, None))
        promised = "" if low is None else f"{low:g} to {high:g}"
        table.add_row(escape(figure), f"{value:,.4g}", promised)
    console.print(table)


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _names() -> list[str]:
    found = (m.name for m in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def _module(name: str) -> Any:
    return importlib.import_module(f"benchmarks.{name}")


def _summary(module: Any) -> str:
    return str(module.__doc__).strip().split("\n")[0]
