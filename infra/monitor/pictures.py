"""What the model makes of items: their neighbours now and before, and a user's history beside what
he is answered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.catalog import Catalog, CatalogItem
from serving.answers import Wanted
from serving.recommender import Recommender
from serving.replica import Replica
from streaming.errors import ArtefactError
from streaming.ids import stable_id
from trainers.arrays import column_matrix
from trainers.version_store import Stored, VersionStore

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
AGO_S = 3_600.0
_COUNT = 12  # neighbours
_ROWS = 24  # of a history, the newest
_LOOK_S = 10.0  # between two looks into the store


class Pictures:
    """Answers from the version that is served now, and from a stored one."""

    def __init__(
        self, replica: Replica, catalog: Catalog, recommender: Recommender, store: VersionStore
    ) -> None:
        self._replica = replica
        self._catalog = catalog
        self._recommender = recommender
        self._past = _Past(store)

    def neighbours(self, item_id: str) -> dict[str, Any] | None:
        """`Neighbours` of the page; None if the model does not know the item."""
        item = stable_id(item_id)
        one = np.array([item], np.int64)
        with self._replica.reading() as served:
            if served is None:
                return None
            info = served.info
            vector, known = served.vectors(one)
            if not known[0]:
                return None
            near, scores = served.similar(item, _COUNT)
            vectors, _ = served.vectors(near)
        now = _Near(info.name, time.time(), near, scores, vectors, vector[0])
        then = self._past.near(info.model, item, _COUNT)
        plane = _plane([now] if then is None else [now, then])
        own = self._named(item, item_id)
        return {
            "item": {**own, **_placed(now.own, plane)},
            "now": self._picture(now, plane),
            "then": None if then is None else self._picture(then, plane),
        }

    def interactions(self, user_id: str) -> dict[str, Any] | None:
        """`Interactions` of the page; None if nothing is known of the user."""
        history = [action.item for action in self._recommender.known(user_id).actions][:_ROWS]
        if not history:
            return None
        answer = self._recommender.recommend(Wanted(user_id, shown=False))
        answered = [one.item for one in answer.items]
        with self._replica.reading() as served:
            values = np.full((len(history), len(answered)), np.nan)
            if served is not None:
                rows, rows_known = served.vectors(_ids(history))
                columns, columns_known = served.vectors(_ids(answered))
                alike = _of_length_one(rows) @ _of_length_one(columns).T
                both = rows_known[:, None] & columns_known[None]
                values = np.where(both, alike, np.nan)
        return {
            "kind": "cosine",
            "rows": [_described(item) for item in history],
            "columns": [_described(item) for item in answered],
            "values": values.tolist(),  # NaN is null in JSON
        }

    def _picture(self, near: _Near, plane: _Plane) -> dict[str, Any]:
        items = self._catalog.get_each(near.items.tolist())
        rows = zip(items, near.items.tolist(), near.scores.tolist(), near.vectors, strict=True)
        return {
            "version": near.version,
            "at": near.at,
            "items": [
                {
                    **(self._named(item) if described is None else _described(described)),
                    "score": score,
                    **_placed(vector, plane),
                }
                for described, item, score, vector in rows
            ],
        }

    def _named(self, item: int, item_id: str | None = None) -> dict[str, Any]:
        found = self._catalog.get(item)
        if found is not None:
            return _described(found)
        return {"item_id": str(item) if item_id is None else item_id, "title": None}


@dataclass(frozen=True)
class _Near:
    """The items nearest to `own` (d,) in a version: `vectors` (n, d)."""

    version: str
    at: float
    items: Ids
    scores: Floats
    vectors: Floats
    own: Floats


@dataclass(frozen=True)
class _Plane:
    """The two directions (d, 2) along which some vectors differ most, seen from their `mean`."""

    mean: Floats
    directions: Floats


class _Past:
    """The stored snapshot nearest to an hour ago; of it only the vectors stay in memory."""

    def __init__(self, store: VersionStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._looked_at = -_LOOK_S
        self._stored: Stored | None = None
        self._name = ""
        self._ids: Ids = np.empty(0, np.int64)
        self._vectors: Floats = np.empty((0, 0), np.float32)

    def near(self, model: str, item: int, count: int) -> _Near | None:
        """The neighbours of an item then; None if there is no snapshot, or it was not there yet."""
        with self._lock:
            try:
                self._look(model)
            except ArtefactError:  # it was removed while it was read, or the store is away
                return None
            ids, vectors, stored = self._ids, self._vectors, self._stored
        where = np.flatnonzero(ids == item)
        if stored is None or not len(where):
            return None
        own = vectors[where[0]]
        scores = vectors @ own
        scores[where[0]] = -np.inf
        order = np.argsort(-scores, kind="stable")[: min(count, len(ids) - 1)]
        at = stored.written_us / 1e6
        return _Near(stored.info.name, at, ids[order], scores[order], vectors[order], own)

    def _look(self, model: str) -> None:
        now = time.monotonic()
        if now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        wanted = time.time() - AGO_S
        there = list(self._snapshots(model))
        most = max((one.rows or 0 for one in there), default=0)
        grown = (one for one in there if 2 * (one.rows or 0) >= most)  # a first one knows little
        found = min(grown, key=lambda one: abs(one.written_us / 1e6 - wanted), default=None)
        if found is None or found.info.artefact == self._name:
            return
        shard = self._store.read(found.info).shards["vectors"]
        self._ids, self._vectors = shard["id"].to_numpy(), column_matrix(shard["row"])
        self._stored, self._name = found, found.info.artefact

    def _snapshots(self, model: str) -> Iterator[Stored]:
        """Those of a model; by name a snapshot is the first of its lineage, or `.whole`."""
        for artefact in self._store.artefacts(model):
            if artefact.endswith((".whole", "/0")):
                try:
                    yield self._store.stored(artefact)
                except ArtefactError:
                    continue


def _plane(pictures: Sequence[_Near]) -> _Plane:
    vectors = np.concatenate([np.vstack([one.vectors, one.own[None]]) for one in pictures])
    mean = vectors.mean(0)
    _, _, directions = np.linalg.svd(vectors - mean, full_matrices=False)
    first = directions[:2].T.astype(np.float32)
    # A direction may as well point the other way: the larger part of it is to be positive.
    first *= np.where(first[np.abs(first).argmax(0), np.arange(first.shape[1])] < 0, -1, 1)
    return _Plane(mean, first)


def _placed(vector: Floats, plane: _Plane) -> dict[str, float]:
    along: list[float] = ((vector - plane.mean) @ plane.directions).tolist()
    return {"x": along[0], "y": along[1] if len(along) > 1 else 0.0}


def _described(item: CatalogItem) -> dict[str, Any]:
    return {"item_id": item.item_id, "title": item.title}


def _ids(items: Sequence[CatalogItem]) -> Ids:
    return np.array([stable_id(item.item_id) for item in items], np.int64)


def _of_length_one(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)
