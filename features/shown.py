"""Arrow samples to what rankers read: pairs of a user and an item, and what came of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.batch import Ids, Items, Jagged, Users, read_users
from streaming.event_columns import NONE

Floats32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Pairs:
    """n pairs of one of m users and an item, as a ranker sees them.

    `user_of` (n,) is the number of the user of each pair, so that what depends on the user alone is
    computed once for him, however many items he is to be shown. `positions` (n,) are where an item
    stood, from 0 on, NONE where that is not known or not decided yet.
    """

    users: Users
    user_of: Ids
    items: Items
    positions: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.user_of)


@dataclass(frozen=True, slots=True)
class Shown:
    """A micro-batch of n samples as a ranker learns them.

    `labels` has of each task what came of every pair (n,), NaN where that is not known. Of
    impressions that came to nothing the share `rates` (n,) became samples. `groups` (n,) are the
    requests, else the users: of one group the items compete. `at_us` (n,). `scenarios` are
    the names of theirs, each once.
    """

    pairs: Pairs
    labels: Mapping[str, Floats32]
    rates: Floats32
    groups: Ids
    at_us: Ids
    scenarios: Sequence[str]

    def describe(self, items: Items) -> Shown:
        """The same samples, with what is known of their items."""
        return replace(self, pairs=replace(self.pairs, items=items))


def read_shown(batch: pa.RecordBatch, labels: Sequence[str]) -> Shown:
    """The samples of a micro-batch of which any of these labels is known; nothing describes their
    items yet.

    Raises:
        FeatureError: as `read_users`.
    """
    rows = batch.filter(batch["user_id"].is_valid())
    known = {name: _label(rows, name) for name in labels}
    any_known = np.zeros(rows.num_rows, np.bool_)
    for column in known.values():
        any_known |= ~np.isnan(column)
    rows = rows.filter(pa.array(any_known))
    ids = rows["item_id"].to_numpy()
    nothing = Jagged.of(np.empty(0, np.int64), np.zeros(len(ids), np.int64))
    users = read_users(rows)
    requests = rows["request_id"]
    return Shown(
        Pairs(
            users,
            np.arange(len(ids)),
            Items(ids, nothing),
            rows["position"].fill_null(NONE).to_numpy(),
        ),
        {name: column[any_known] for name, column in known.items()},
        rows["negative_rate"].fill_null(1.0).to_numpy(),
        np.where(requests.is_null(), users.ids, requests.fill_null(0)),
        rows["at"].cast(pa.int64()).to_numpy(),
        rows["scenario"].unique().drop_null().to_pylist(),
    )


def _label(rows: pa.RecordBatch, name: str) -> Floats32:
    """A label (n,), NaN where it is not known; of nobody, if the samples have no such label."""
    if f"label_{name}" not in rows.schema.names:
        return np.full(rows.num_rows, np.nan, np.float32)
    column = rows[f"label_{name}"].cast(pa.float32())
    found: Floats32 = column.fill_null(np.nan).to_numpy()
    return found
