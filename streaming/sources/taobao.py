"""Taobao UserBehavior: views, carts, favourites and buys in a marketplace; items with a category.

The files are under CC BY-NC-SA 4.0 and read from where the user has them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streaming.errors import SourceError
from streaming.sources.source import SourceInfo
from streaming.sources.table import (
    Part,
    TableSource,
    declared,
    described,
    event_ids,
    read_csv,
    take,
)

_S = 1_000_000  # microseconds
_KINDS = {"pv": "click", "cart": "cart", "fav": "wish", "buy": "buy"}


class Taobao(TableSource):
    """A Taobao UserBehavior file: views of items (as clicks), carts, favourites (wishes), buys."""

    def __init__(self, file: Path, name: str) -> None:
        names = ("user", "item", "category", "behaviour", "timestamp")
        types = {**dict.fromkeys(names, pa.string()), "timestamp": pa.int64()}
        log = read_csv(file, types, names=names)
        unknown = set(pc.unique(log["behaviour"]).to_pylist()) - set(_KINDS)
        if unknown:
            raise SourceError(
                f"{file} has the behaviour {min(unknown)!r}, and known are {', '.join(_KINDS)}:"
                " fetch it again"
            )
        rows = np.argsort(log["timestamp"].to_numpy(), kind="stable")
        log = log.take(pa.array(rows)).combine_chunks()
        log = log.append_column("event_id", event_ids(name, rows))
        at_us = log["timestamp"].to_numpy() * _S
        items = {"item_id": log["item"], "attributes": described({"category": log["category"]})}
        behaviours = [_behaviour(log, at_us, *pair) for pair in _KINDS.items()]
        super().__init__(name, [declared(name, "item", at_us, items), *behaviours])


def _behaviour(log: pa.Table, at_us: NDArray[np.int64], behaviour: str, kind: str) -> Part:
    rows = np.flatnonzero(pc.equal(log["behaviour"], behaviour).to_numpy())
    named = {"event_id": "event_id", "user_id": "user", "item_id": "item"}
    columns = {column: take(log[source], rows) for column, source in named.items()}
    return Part(kind, at_us[rows], rows, columns)


TAOBAO_STREAM = SourceInfo(
    name="taobao-2h",
    about="marketplace: 130 minutes of views, carts, favourites, buys; items with category",
    open=lambda directory: Taobao(directory / "ub_2h_stream.csv.gz", "taobao-2h"),
    events=195_093,
    users=66_454,
    items=84_793,
    span="2017-11-26, 130 minutes, to the second",
    terms="CC BY-NC-SA 4.0",
    folder="taobao-userbehavior",
    files=("ub_2h_stream.csv.gz",),
)

TAOBAO_USERS = SourceInfo(
    name="taobao-114",
    about="marketplace: whole histories of 114 users",
    open=lambda directory: Taobao(directory / "ub_114users.csv.gz", "taobao-114"),
    events=17_623,
    users=114,
    items=7_623,
    span="2017-11-24 to 2017-12-03, to the second",
    terms="CC BY-NC-SA 4.0",
    folder="taobao-userbehavior",
    files=("ub_114users.csv.gz",),
)
