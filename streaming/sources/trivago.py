"""trivago: hotel searches of the RecSys Challenge 2019, with the lists that were shown.

The file must not be passed on; it is read from where the user has it.
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
    Column,
    Part,
    TableSource,
    declared,
    described,
    event_ids,
    first_rows,
    joined,
    read_parquet,
    refused,
    take,
)


class Trivago(TableSource):
    """Hotel searches of the RecSys Challenge 2019: lists that were shown, and what was clicked.

    * a clickout is one request: an impression for each hotel of its list, with its position, and in
      `value` its price; and a click with the same `request_id`. The log tells of a list only when
      it is left, so the impressions have the time of the click.
    * what users do with a hotel (images, ratings, info, deals, a search for it) is a click without
      a request;
    * a search for a place, and a filter, is a `search`; `scenario` is the platform, a country;
    * all that a user does has the `session_id` of the log;
    * a change of the sort order says nothing of a hotel and is left out.
    """

    def __init__(self, directory: Path) -> None:
        name = "trivago"
        file = directory / "events.parquet"
        texts = ("user_id", "session_id", "action_type", "reference", "platform", "device")
        lists = ("impressions", "prices")
        types = {**dict.fromkeys((*texts, *lists), pa.string()), "timestamp": pa.int64()}
        log = read_parquet(file, types, may_be_null=lists)
        rows = np.argsort(log["timestamp"].to_numpy(), kind="stable")
        log = log.take(pa.array(rows)).combine_chunks()
        log = log.append_column("event_id", event_ids(name, rows))
        log = log.rename_columns({"platform": "scenario"})
        at_us = log["timestamp"].to_numpy() * 1_000_000
        about = described({"platform": log["scenario"], "device": log["device"]})
        users = {"user_id": log["user_id"], "attributes": about}
        shown, clicked = _clickouts(file, log, at_us)
        actions = log["action_type"].to_numpy(zero_copy_only=False).astype(str)
        wanted = np.isin(actions, _ON_HOTELS) & (log["reference"].to_numpy() != "unknown")
        searched = np.flatnonzero(np.isin(actions, _SEARCHES))
        organic = _organic("click", log, at_us, np.flatnonzero(wanted), "item_id")
        super().__init__(name, [
            _declared_hotels(name, [shown, clicked, organic]),
            declared(name, "user", at_us, users),
            shown,
            clicked,
            organic,
            _organic("search", log, at_us, searched, "query"),
        ])  # fmt: skip


_ON_HOTELS = (
    *(f"interaction item {what}" for what in ("image", "rating", "deals", "info")),
    "search for item",
)
_SEARCHES = ("search for destination", "search for poi", "filter selection")
_CONTEXT = ("user_id", "session_id", "scenario")  # who did something, and where


def _clickouts(file: Path, log: pa.Table, at_us: NDArray[np.int64]) -> tuple[Part, Part]:
    """The impressions and the clicks of all clickouts."""
    rows = np.flatnonzero(pc.equal(log["action_type"], "clickout item").to_numpy())
    left = log.take(pa.array(rows)).combine_chunks()
    for name in ("impressions", "prices"):
        if left[name].null_count:
            raise SourceError(f"{file} has a clickout without {name}: fetch it again")
    lists = pc.split_pattern(left["impressions"], "|").combine_chunks()
    prices = pc.split_pattern(left["prices"], "|").combine_chunks()
    sizes = pc.list_value_length(lists).to_numpy()
    if not np.array_equal(sizes, pc.list_value_length(prices).to_numpy()):
        raise SourceError(
            f"{file} has a list with more or fewer prices than hotels: fetch it again"
        )
    of_list = np.repeat(np.arange(len(rows)), sizes)
    position = np.arange(len(of_list)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    hotels = lists.flatten()
    with refused(file):
        values = prices.flatten().cast(pa.float64())
    texts = pa.array(position).cast(pa.string())
    shown = Part("impression", at_us[rows][of_list], rows[of_list], {
        **_request(left, of_list),
        "event_id": joined(take(left["event_id"], of_list), "/", texts),
        "item_id": hotels,
        "position": pa.array(position),
        "value": values,
    })  # fmt: skip
    hit = pc.equal(hotels, take(left["reference"].combine_chunks(), of_list)).to_numpy(False)
    where = np.full(len(rows), -1)
    where[of_list[hit]] = position[hit]
    found = pa.array(where >= 0)
    request = _request(left, np.arange(len(rows)))
    clicked = Part("click", at_us[rows], rows, {
        **request,
        # A click on what the list does not have belongs to no impression.
        "request_id": pc.if_else(found, request["request_id"], None),
        "event_id": left["event_id"],
        "item_id": left["reference"],
        "position": pc.if_else(found, pa.array(where), None),
    })  # fmt: skip
    return shown, clicked


def _request(left: pa.Table, rows: NDArray[np.int64]) -> dict[str, Column]:
    named = {"request_id": "event_id", **{name: name for name in _CONTEXT}}
    return {column: take(left[source], rows) for column, source in named.items()}


def _organic(
    kind: str, log: pa.Table, at_us: NDArray[np.int64], rows: NDArray[np.int64], reference: str
) -> Part:
    """What was done without a list: `reference` names the column for what it was done to."""
    columns = {name: take(log[name], rows) for name in ("event_id", *_CONTEXT)}
    return Part(kind, at_us[rows], rows, {**columns, reference: take(log["reference"], rows)})


def _declared_hotels(name: str, parts: list[Part]) -> Part:
    """Each hotel before its first row in any of the parts."""
    rows = np.concatenate([part.rows for part in parts])
    order = np.argsort(rows, kind="stable")
    at_us = np.concatenate([part.at_us for part in parts])[order]
    columns = [pa.chunked_array(part.columns["item_id"]) for part in parts]
    hotels = pa.chunked_array([chunk for column in columns for chunk in column.chunks])
    hotels = take(hotels, order)
    first = first_rows(hotels)
    taken = take(hotels, first)
    ids = {"event_id": joined(f"{name}/item/", taken), "item_id": taken}
    return Part("item", at_us[first], rows[order][first], ids)


TRIVAGO = SourceInfo(
    name="trivago",
    about="hotels: lists with positions and prices, clicks, searches",
    open=Trivago,
    events=523_786,
    users=6_593,
    items=107_603,
    span="2018-11-07 to 2018-11-08, to the second",
    terms="challenge data, must not be passed on",
    folder="trivago-2019-100k",
    files=("events.parquet",),
)
