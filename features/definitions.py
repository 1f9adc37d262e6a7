"""The features that Headrace keeps in the feature store, declared once."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

EVENT_TIME = "event_timestamp"


@dataclass(frozen=True)
class View:
    """Features of one entity, pushed together.

    `key` is the entity's join key, a stable id (int64); `features` are the Arrow types by name.
    """

    name: str
    key: str
    features: dict[str, pa.DataType]

    @property
    def schema(self) -> pa.Schema:
        """What a push must look like; `event_timestamp` is the newest event it tells of."""
        return pa.schema(
            [
                pa.field(self.key, pa.int64()),
                pa.field(EVENT_TIME, pa.timestamp("us", "UTC")),
                *(pa.field(name, kind) for name, kind in self.features.items()),
            ]
        )


USER_HISTORY = View(
    "user_history",
    "user_id",
    {
        "items": pa.list_(pa.int64()),  # oldest first
        "rewards": pa.list_(pa.float32()),
        "newest_us": pa.int64(),  # event time of the newest action
    },
)
ITEM_STATISTICS = View(
    "item_statistics",
    "item_id",
    {"actions": pa.int64(), "mean_reward": pa.float64(), "popularity": pa.float64()},
)
VIEWS = (USER_HISTORY, ITEM_STATISTICS)
