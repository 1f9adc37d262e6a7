"""A home to serve from: items, users with histories, and versions of two models of both, that of
`[trainer]` and the recipe's ranker.

Items lie in clusters on the unit sphere, as learnt vectors do; users act within some clusters. The
versions are not learnt: each delta moves what it touches a little.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks._service import changed_recipe
from features.batch import Items, Jagged
from infra.home import Home
from infra.recipe import Recipe, load_recipe
from infra.wiring import aggregator_loop
from streaming.event_columns import field_codes
from streaming.events import EVENT_SCHEMA, encode_events
from streaming.ids import stable_ids
from streaming.log import Log
from streaming.open_log import open_log
from trainers.arrays import matrix_column, tensors_table
from trainers.calibration import Curves
from trainers.descriptions import description_columns
from trainers.models import create
from trainers.version_store import VersionStore
from trainers.versions import Version, VersionInfo

Matrix = NDArray[np.float32]
_HISTORY = 30
_CLUSTERS = 500
_RANKER = "trainer-mmoe"
_AT_ONCE = 4_096
_GENRES = ("War", "Drama", "Comedy", "Kids", "Crime", "Western", "Musical", "Romance")


class Shop:
    """Everything that a replica needs, in a home of its own; `log` is open until `close`."""

    def __init__(
        self, path: Path, items: int, users: int, changes: Mapping[str, Any], width: int = 64
    ) -> None:
        self.home = Home(path)
        self.home.make()
        self.recipe_file = path.with_suffix(".toml")
        self.recipe_file.write_text(changed_recipe({"source": "none", **changes}))
        self.recipe: Recipe = load_recipe(str(self.recipe_file))
        self.log: Log = open_log(self.home.log_url)
        self.store = VersionStore(self.home.versions)
        self.items = [f"i{number}" for number in range(items)]
        self.users = [f"u{number}" for number in range(users)]
        self._ids = {"item": stable_ids(self.items), "user": stable_ids(self.users)}
        self._rng = np.random.default_rng(0)
        self._width = width
        centres = self._rng.normal(size=(_CLUSTERS, width))
        self._cluster = self._rng.integers(0, _CLUSTERS, items)
        self.vectors = _unit(centres[self._cluster] + 0.7 * self._rng.normal(size=(items, width)))
        self._number = 0
        self._lineage = "shop-a"
        self._options = {"width": width, "hidden": 128, "history": 50, "temperature": 0.07}
        model = create("two_tower", self._options)
        self._dense = tensors_table(model.state_dict())
        self._ranker = self.recipe.trainers[_RANKER]
        self._ranks = create(self._ranker.model, self._ranker.options)
        self._ranked = 0  # versions of the ranker in its lineage

    def close(self) -> None:
        """Lets go of the log."""
        self.log.close()

    def stock(self, report: Callable[[str], None]) -> None:
        """Declares the items, and lets the users act; the feature store knows it afterwards."""
        begun = time.perf_counter()
        now_us = time.time_ns() // 1000
        for start in range(0, len(self.items), _AT_ONCE):
            self.log.append([encode_events(self._declared(start, now_us))])
        for start in range(0, len(self.users), _AT_ONCE // _HISTORY):
            self.log.append([encode_events(self._acted(start, _AT_ONCE // _HISTORY, now_us))])
        loop = aggregator_loop(self.recipe, self.home, self.log)
        while loop.turn():
            pass
        loop.cut()
        report(f"{len(self.items):,} items and {len(self.users):,} users are there after"
               f" {time.perf_counter() - begun:.0f} s")  # fmt: skip

    def publish_snapshot(self, *, lineage: str | None = None) -> VersionInfo:
        """All of the model, as a version that needs no other."""
        if lineage is not None:
            self._lineage, self._number, self._ranked = lineage, 0, 0
        everything = np.arange(len(self.items)), np.arange(len(self.users))
        self._publish_ranker(None, *everything)
        return self._publish(None, *everything)

    def publish_delta(self, items: int, users: int) -> VersionInfo:
        """A version in which so many items and users have moved a little."""
        moved = self._rng.integers(0, len(self.items), items)
        step = 0.02 * self._rng.normal(size=(items, self._width))
        self.vectors[moved] = _unit(self.vectors[moved] + step)
        changed = np.unique(self._rng.integers(0, len(self.users), users))
        self._publish_ranker(self._ranked - 1, np.unique(moved), changed)
        return self._publish(self._number - 1, np.unique(moved), changed)

    def _publish(self, base: int | None, items: Any, users: Any) -> VersionInfo:
        info = VersionInfo(
            model="two_tower",
            lineage=self._lineage,
            number=self._number,
            base=base,
            watermark_us=time.time_ns() // 1000,
            learnt_logged_us=time.time_ns() // 1000,
            step=self._number,
            options=self._options,
            metrics={"samples": 1e6},
        )
        nobody = np.zeros((len(users), self._width), np.float32)
        shards = {
            "table-item": _rows(self._ids["item"][items], self.vectors[items]),
            "table-user": _rows(self._ids["user"][users], nobody),
            "table-token": _rows(np.empty(0, np.int64), np.empty((0, self._width), np.float32)),
            "vectors": _rows(self._ids["item"][items], self.vectors[items]),
            "dense": self._dense,
        }
        self.log.append(self.store.execute([Version(info, shards)]))
        self._number += 1
        return info

    def _publish_ranker(self, base: int | None, items: Any, users: Any) -> None:
        now_us = time.time_ns() // 1000
        info = VersionInfo(
            model=self._ranker.called,
            lineage=self._lineage,
            number=self._ranked,
            base=base,
            watermark_us=now_us,
            learnt_logged_us=now_us,
            step=self._ranked,
            options=dict(self._ranker.options),
            metrics={"samples": 1e6},
        )
        tokens = stable_ids(f"genres={genre}" for genre in _GENRES)
        genres = tokens[self._cluster[items] % len(_GENRES)]
        ids = self._ids["item"][items]
        fields = np.full(len(items), field_codes(["genres"])[0], np.int32)
        described = Items(ids, Jagged.of(genres, np.ones(len(items), np.int64)), fields)
        rows = {"item": ids, "user": self._ids["user"][users], "token": tokens}
        width = self._ranks.config.width
        shards = {
            f"table-{name}": self._drawn(rows.get(name, np.empty(0, np.int64)), width)
            for name in self._ranks.tables
        }
        shards["items"] = pa.table({"id": ids, **description_columns(described)})
        shards["calibration"] = Curves({}).table()
        shards["dense"] = tensors_table(self._ranks.state_dict())
        self.log.append(self.store.execute([Version(info, shards)]))
        self._ranked += 1

    def _drawn(self, ids: Any, width: int) -> pa.Table:
        return _rows(ids, 0.1 * self._rng.normal(size=(len(ids), width)).astype(np.float32))

    def _declared(self, start: int, now_us: int) -> pa.RecordBatch:
        names = self.items[start : start + _AT_ONCE]
        said = [
            json.dumps({"title": f"Title {name}", "genres": [_GENRES[cluster % len(_GENRES)]]})
            for name, cluster in zip(names, self._cluster[start:].tolist(), strict=False)
        ]
        return _events(kind="item", item_id=names, attributes=said, at=now_us - 10_000_000)

    def _acted(self, start: int, count: int, now_us: int) -> pa.RecordBatch:
        users = np.repeat(np.arange(start, min(len(self.users), start + count)), _HISTORY)
        # Everyone likes three clusters; the more popular ones are those of small numbers.
        liked = (users[:, None] * 7919 + np.array([0, 13, 101])) % _CLUSTERS
        cluster = liked[np.arange(len(users)), self._rng.integers(0, 3, len(users))]
        order = np.argsort(self._cluster, kind="stable")
        first = np.searchsorted(self._cluster[order], cluster)
        place = first + self._rng.integers(0, 20, len(users))
        items = order[np.minimum(place, len(order) - 1)]
        return _events(
            kind="like",
            user_id=[self.users[user] for user in users.tolist()],
            item_id=[self.items[item] for item in items.tolist()],
            at=now_us - 5_000_000 + np.arange(len(users)),
        )


def _events(*, kind: str, at: Any, **columns: Any) -> pa.RecordBatch:
    count = len(columns["item_id"])
    given = {
        **columns,
        "kind": [kind] * count,
        "event_id": [f"{kind}-{at if isinstance(at, int) else at[0]}-{n}-{name}"
                     for n, name in enumerate(columns["item_id"])],
        "at": pa.array(np.broadcast_to(at, count)).cast(pa.timestamp("us", "UTC")),
    }  # fmt: skip
    arrays = [
        pa.array(given[field.name], field.type)
        if field.name in given
        else pa.nulls(count, field.type)
        for field in EVENT_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=EVENT_SCHEMA)


def _rows(ids: Any, matrix: Matrix) -> pa.Table:
    return pa.table({"id": ids, "row": matrix_column(matrix)})


def _unit(matrix: Any) -> Matrix:
    lengths = np.linalg.norm(matrix, axis=-1, keepdims=True)
    unit: Matrix = (matrix / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit
