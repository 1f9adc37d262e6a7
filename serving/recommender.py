"""The recommender: what is known of a user, and what the newest version makes of it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from features.batch import Ids, Jagged, Users
from features.catalog import Catalog, CatalogItem
from features.definitions import ITEM_STATISTICS, USER_HISTORY, View
from serving.replica import Replica
from streaming.ids import stable_id
from trainers.versions import VersionInfo

Found = tuple[int, float, str]  # item, score, who proposed it


class OnlineFeatures(Protocol):
    """Reads the newest features of entities; the defaults of the view for an unknown one."""

    def read(self, view: View, keys: Sequence[int]) -> list[dict[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One item of an answer; `source` says who proposed it."""

    item: CatalogItem
    score: float
    source: str
    statistics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """`version` is None while no model was published yet.

    `features_at_us` is the event time of the user's newest action in the feature store.
    """

    request_id: str
    items: list[Recommendation]
    version: VersionInfo | None
    known_actions: int
    features_at_us: int | None


class Recommender:
    """Answers from the model for who is known, from recent popularity for who is not."""

    def __init__(self, replica: Replica, catalog: Catalog, features: OnlineFeatures) -> None:
        self._replica = replica
        self._catalog = catalog
        self._features = features

    def recommend(self, user_id: str, count: int) -> Answer:
        """At most `count` items the user has not acted upon lately, best first."""
        user = stable_id(user_id)
        known = self._features.read(USER_HISTORY, [user])[0]
        history = np.array(known["items"] or [], np.int64)
        rewards = np.array(known["rewards"] or [], np.float32)
        with self._replica.reading() as served:
            info = None if served is None else served.info
            found: list[Found] = []
            if served is not None and len(history):
                offsets = np.array([0, len(history)], np.int64)
                users = Users(np.array([user]), Jagged(history, offsets), rewards)
                ids, scores = served.retrieve(users, count, history)
                found = _found(ids, scores, served.info)
        found = self._filled(found, count, hidden=set(history.tolist()))
        described = self._described(found)
        return Answer(uuid.uuid4().hex, described, info, len(history), known["newest_us"])

    def similar(self, item_id: str, count: int) -> Answer:
        """The items nearest to an item; what is popular if nothing is known of it."""
        item = stable_id(item_id)
        with self._replica.reading() as served:
            info = None if served is None else served.info
            found: list[Found] = []
            if served is not None:
                ids, scores = served.similar(item, count)
                found = _found(ids, scores, served.info)
        found = self._filled(found, count, hidden={item})
        return Answer(uuid.uuid4().hex, self._described(found), info, 0, None)

    def _filled(self, found: list[Found], count: int, hidden: set[int]) -> list[Found]:
        """What was found and can be shown, and recent popularity in the places that are left."""
        found = [one for one in found if self._catalog.get(one[0]) is not None]
        taken = hidden | {item for item, _, _ in found}
        spare = [i for i in self._catalog.popular(count + len(taken)) if i not in taken]
        return found + [(item, 0.0, "popular") for item in spare[: count - len(found)]]

    def _described(self, found: Sequence[Found]) -> list[Recommendation]:
        statistics = self._features.read(ITEM_STATISTICS, [i for i, _, _ in found]) if found else []
        return [
            Recommendation(described, score, source, known)
            for (item, score, source), known in zip(found, statistics, strict=True)
            if (described := self._catalog.get(item)) is not None
        ]


def _found(ids: Ids, scores: NDArray[np.float32], info: VersionInfo) -> list[Found]:
    return [(i, s, info.model) for i, s in zip(ids.tolist(), scores.tolist(), strict=True)]
