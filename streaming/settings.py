"""From tables of a recipe to Config dataclasses, with errors that name the setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

import pydantic

from streaming.errors import ConfigError

C = TypeVar("C")


def fill(config: type[C], table: Mapping[str, Any], name: str) -> C:
    """A Config from a table: what is absent has its default, what is unknown is an error.

    >>> from streaming.sources.replay import ReplayConfig
    >>> fill(ReplayConfig, {"ahead": 9}, "replay").ahead
    9
    """
    _refuse_unknown(config, table, name)
    try:
        filled: C = pydantic.TypeAdapter(config).validate_python(dict(table))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join([name, *(str(part) for part in first["loc"])]).strip(".")
        raise ConfigError(f"{where} = {first['input']!r}: {first['msg']}") from None
    return filled


def _refuse_unknown(config: type[Any], table: Mapping[str, Any], name: str) -> None:
    types = get_type_hints(config)
    known = {f.name for f in dataclasses.fields(config)}
    for key, value in table.items():
        where = f"{name}.{key}".strip(".")
        if key not in known:
            raise ConfigError(f"{where} is not a setting; known are {', '.join(sorted(known))}")
        kind = types[key]
        if isinstance(value, Mapping) and dataclasses.is_dataclass(kind):
            _refuse_unknown(kind, value, where)  # type: ignore[arg-type]
