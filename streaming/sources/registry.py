"""All sources by name: the one place where a new reader is added."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from streaming.errors import ConfigError
from streaming.sources.diginetica import DIGINETICA
from streaming.sources.movielens import LATEST_SMALL, ONE_MILLION
from streaming.sources.open_bandit import OPEN_BANDIT
from streaming.sources.source import Source, SourceInfo
from streaming.sources.taobao import TAOBAO_STREAM, TAOBAO_USERS
from streaming.sources.trivago import TRIVAGO
from streaming.sources.world import WORLD

SOURCES: Mapping[str, SourceInfo] = {
    info.name: info
    for info in (
        LATEST_SMALL,
        ONE_MILLION,
        OPEN_BANDIT,
        DIGINETICA,
        TRIVAGO,
        TAOBAO_STREAM,
        TAOBAO_USERS,
        WORLD,
    )
}


def find_source(name: str) -> SourceInfo:
    """What is known of the source with this name.

    Raises:
        ConfigError: there is none; the sentence lists those that there are.
    """
    if name not in SOURCES:
        raise ConfigError(
            f"source = {name!r}: there is none of that name; known are {', '.join(SOURCES)}"
        )
    return SOURCES[name]


def open_source(name: str, data: Path | None = None) -> Source:
    """The source with this name, its files taken from `data`, else from HEADRACE_DATA.

    Raises:
        ConfigError: there is no such source.
        SourceError: its files are not there, or not as they should be.
    """
    info = find_source(name)
    if data is None and os.environ.get("HEADRACE_DATA"):
        data = Path(os.environ["HEADRACE_DATA"])
    return info.open(info.directory(data))
