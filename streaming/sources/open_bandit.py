"""Open Bandit: what a fashion shop showed, with which probability, and what was clicked.

The files in `data/open-bandit/` are those of the small version, under CC BY 4.0: see
`data/LICENSE.open-bandit.txt`. Two policies were logged at the same time, uniform `random` and
Bernoulli Thompson sampling (`bts`), in three campaigns. Yuta Saito et al. 2020. Open Bandit Dataset
and Pipeline. arXiv:2008.07146

The data names no users and no requests. A user is here one combination of the four hashed features:
a segment, not a person. A row is a request of its own; its click has the time of its impression.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streaming.errors import SourceError
from streaming.ids import stable_ids
from streaming.sources.source import SHIPPED, SourceInfo
from streaming.sources.table import (
    Part,
    TableSource,
    declared,
    described,
    event_ids,
    joined,
    read_csv,
    take,
)

NAME = "open-bandit"
POLICIES = ("bts", "random")
CAMPAIGNS = ("all", "men", "women")
_FEATURES = tuple(f"user_feature_{n}" for n in range(4))


class OpenBandit(TableSource):
    """Impressions and clicks of both policies, users and items before their first impression.

    `scenario` is the campaign; the items of one campaign are not those of another. An impression's
    `attributes` have the `policy`, the true `propensity` with which it chose this item for this
    position, and the user's `affinity` to the item where it is not 0.
    """

    def __init__(self, directory: Path = SHIPPED / NAME) -> None:
        pairs = list(product(POLICIES, CAMPAIGNS))
        logs = pa.concat_tables([_read_log(directory, *pair) for pair in pairs])
        in_time = np.argsort(logs["at_us"].to_numpy(), kind="stable")
        logs = logs.take(pa.array(in_time)).combine_chunks()
        at_us = logs["at_us"].to_numpy()
        shown = {name: logs[name] for name in ("user_id", "item_id", "scenario", "position")}
        items = _read_items(directory)
        parts = [
            declared(NAME, "item", at_us, {
                "item_id": logs["item_id"], "attributes": _look_up(items, logs["item_id"]),
            }),
            declared(NAME, "user", at_us, {
                "user_id": logs["user_id"], "attributes": logs["user_attributes"],
            }),
            _part("impression", logs, np.arange(len(at_us)), {
                **shown, "attributes": logs["attributes"],
            }),
            _part("click", logs, np.flatnonzero(logs["click"].to_numpy()), shown),
        ]  # fmt: skip
        super().__init__(NAME, parts)


def _part(
    kind: str, logs: pa.Table, rows: NDArray[np.int64], columns: dict[str, pa.ChunkedArray]
) -> Part:
    request = take(logs["request_id"], rows)
    return Part(kind, logs["at_us"].to_numpy()[rows], rows, {
        "event_id": joined(request, f"/{kind}"),
        "request_id": request,
        **{name: take(column, rows) for name, column in columns.items()},
    })  # fmt: skip


def _read_log(directory: Path, policy: str, campaign: str) -> pa.Table:
    """One log file with the columns that events need."""
    file = directory / policy / campaign / f"{campaign}.csv.gz"
    items = read_csv(_items_file(directory, policy, campaign), {"item_id": pa.int64()}).num_rows
    affinities = [f"user-item_affinity_{n}" for n in range(items)]
    table = read_csv(file, {
        "timestamp": pa.timestamp("us", "UTC"), "item_id": pa.int64(), "position": pa.int32(),
        "click": pa.int64(), "propensity_score": pa.float64(),
        **dict.fromkeys(_FEATURES, pa.string()), **dict.fromkeys(affinities, pa.float64()),
    })  # fmt: skip
    item = table["item_id"].to_numpy()
    propensity = table["propensity_score"].to_numpy()
    if item.min() < 0 or item.max() >= items:
        raise SourceError(f"{file} shows an item_id that is not in {items} items: fetch it again")
    if not np.all((propensity > 0) & (propensity <= 1)):
        raise SourceError(f"{file} has a propensity_score outside (0, 1]: fetch it again")
    affinity = np.stack([table[name].to_numpy() for name in affinities])[item, np.arange(len(item))]
    users, attributes = _users(table.select(list(_FEATURES)))
    rows = np.arange(table.num_rows)
    return pa.table({
        "at_us": table["timestamp"].cast(pa.int64()),
        "request_id": event_ids(f"{NAME}/{policy}/{campaign}", rows),
        "user_id": users,
        "user_attributes": attributes.cast(pa.string()),
        "item_id": joined(f"{campaign}/", table["item_id"].cast(pa.string())),
        "scenario": pa.repeat(campaign, table.num_rows),
        "position": pc.subtract(table["position"], 1).cast(pa.int32()),
        "click": table["click"],
        "attributes": _choices(policy, propensity, affinity),
    })  # fmt: skip


def _users(features: pa.Table) -> tuple[pa.Array, pa.Array]:
    """An id and attributes for each row: the same features are the same user."""
    attributes = pc.dictionary_encode(
        described(dict(zip(_FEATURES, features.columns, strict=True)))
    )
    numbers = stable_ids(attributes.dictionary.to_pylist()).tolist()
    ids = pa.array([f"segment-{number:016x}" for number in numbers])
    return ids.take(attributes.indices), attributes


def _choices(policy: str, propensity: NDArray[Any], affinity: NDArray[Any]) -> pa.Array:
    texts = []
    for chance, liking in zip(propensity.tolist(), affinity.tolist(), strict=True):
        choice = {"policy": policy, "propensity": chance}
        texts.append(json.dumps({**choice, "affinity": liking} if liking else choice))
    return pa.array(texts)


def _items_file(directory: Path, policy: str, campaign: str) -> Path:
    return directory / policy / campaign / "item_context.csv.gz"


def _read_items(directory: Path) -> dict[str, str]:
    """The attributes of every item, as `random` hashed them: one to one with those of `bts`."""
    hashed = [f"item_feature_{n}" for n in (1, 2, 3)]
    types = {"item_id": pa.string(), "item_feature_0": pa.float64()}
    found: dict[str, str] = {}
    for campaign in CAMPAIGNS:
        file = _items_file(directory, "random", campaign)
        for row in read_csv(file, {**types, **dict.fromkeys(hashed, pa.string())}).to_pylist():
            item = f"{campaign}/{row.pop('item_id')}"
            found[item] = json.dumps(row)
    return found


def _look_up(texts: dict[str, str], ids: pa.ChunkedArray) -> pa.Array:
    where = pc.index_in(ids.combine_chunks(), pa.array(list(texts)))
    return pa.array(list(texts.values())).take(where)


OPEN_BANDIT = SourceInfo(
    name=NAME,
    about="fashion shop: impressions with position and propensity, clicks; two policies",
    open=OpenBandit,
    events=60_784,
    users=337,
    items=160,
    span="2019-11-24 to 2019-11-30, to the microsecond",
    terms="CC BY 4.0, cite Saito et al. 2020",
    folder=NAME,
    files=tuple(
        f"{policy}/{campaign}/{file}.csv.gz"
        for policy, campaign in product(POLICIES, CAMPAIGNS)
        for file in (campaign, "item_context")
    ),
    shipped=True,
)
