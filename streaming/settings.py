"""From tables of a recipe to Config dataclasses, with errors that name the setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

from streaming.errors import ConfigError

C = TypeVar("C")


def fill(config: type[C], table: Mapping[str, Any], name: str) -> C:
    """A Config from a table: what is absent has its default, what is unknown is an error.

    >>> from streaming.sources.replay import ReplayConfig
    >>> fill(ReplayConfig, {"ahead": 9}, "replay").ahead
    9
    """
    try:
        filled: C = pydantic.TypeAdapter(config).validate_python(dict(table))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join([name, *(str(part) for part in first["loc"])]).strip(".")
        raise ConfigError(f"{where} = {first['input']!r}: {first['msg']}") from None
    _refuse_unknown(filled, table, name)
    return filled


def changed(config: C, changes: Mapping[str, Any], name: str) -> C:
    """A Config with some settings changed, however deep they lie.

    Raises:
        ConfigError: names the setting that there is none of, or that does not fit.
    """
    return fill(type(config), _laid_over(config, changes), name)


def _laid_over(config: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a Config as a table, with the changes."""
    table = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    for key, value in changes.items():
        old = table.get(key)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(old):
            table[key] = _laid_over(old, value)
        else:
            table[key] = value
    return table


def _refuse_unknown(filled: object, table: object, name: str) -> None:
    """Holds what was filled against what was asked for, however deep it lies."""
    if not isinstance(table, Mapping):
        return
    for key, value in table.items():
        where = f"{name}.{key}".strip(".")
        if isinstance(filled, Mapping):
            _refuse_unknown(filled[key], value, where)
        elif dataclasses.is_dataclass(filled):
            known = sorted(f.name for f in dataclasses.fields(filled))
            if key not in known:
                raise ConfigError(f"{where} is not a setting; known are {', '.join(known)}")
            _refuse_unknown(getattr(filled, key), value, where)
