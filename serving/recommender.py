"""The recommender: what is known of a user, and what several sources make of it together."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from features.batch import Ids, known_user
from features.catalog import Catalog, CatalogItem
from features.definitions import ITEM_STATISTICS, USER_HISTORY, View
from serving.answers import Answer, KnownUser, Recommendation, Wanted
from serving.cold_start import (
    CONTENT,
    POPULAR,
    ColdStartConfig,
    Visit,
    all_sources,
    pooled,
)
from serving.replica import Replica, ServedModel
from streaming.ids import stable_id
from streaming.kernels import EMPTY

Found = tuple[int, float, str]  # item, score, who proposed it


class OnlineFeatures(Protocol):
    """Reads the newest features of entities; the defaults of the view for an unknown one."""

    def read(self, view: View, keys: Sequence[int]) -> list[dict[str, Any]]: ...


class Recommender:
    """Answers from the model as far as the user is known, from what is hot as far as he is not."""

    def __init__(
        self,
        replica: Replica,
        catalog: Catalog,
        features: OnlineFeatures,
        config: ColdStartConfig | None = None,
    ) -> None:
        self._replica = replica
        self._catalog = catalog
        self._features = features
        self._config = config or ColdStartConfig()
        self._sources = all_sources(self._config, catalog)

    def recommend(self, wanted: Wanted) -> Answer:
        """At most `count` items the user has not acted upon lately, best first."""
        user, count = stable_id(wanted.user_id), wanted.count
        read = self._features.read(USER_HISTORY, [user])[0]
        users = known_user(user, read)
        history = users.history.values
        with self._replica.reading() as served:
            visit = Visit(
                users, history, self._catalog.interests(user), count, served,
                self._temperature(served),
            )  # fmt: skip
            proposed = [source(visit) for source in self._sources]
        items, shares, sources = pooled([one for one in proposed if one is not None])
        found = zip(items.tolist(), shares.tolist(), sources, strict=True)
        return Answer(
            uuid.uuid4().hex,
            self._described(found, count, hidden=set(history.tolist())),
            None if served is None else served.info,
            len(history),
            read["newest_us"],
            user,
            wanted.user_id,
            read,
            wanted.scenario,
        )

    def similar(self, item_id: str, count: int) -> Answer:
        """The items nearest to an item in the model's space, or by what is said of it while nobody
        has acted upon it; what is popular if nothing is known of it.
        """
        item = stable_id(item_id)
        info, by_model = None, list[Found]()
        with self._replica.reading() as served:
            if served is not None:
                info = served.info
                by_model = _found(*served.similar(item, count), info.model)
        found = by_model
        if not by_model or self._catalog.untried(item):
            ids, alike = self._catalog.content.neighbours(np.array([item]), count)
            there = ids[0] != EMPTY
            found = _found(ids[0, there], alike[0, there], CONTENT) or by_model
        described = self._described(found, count, hidden={item})
        return Answer(uuid.uuid4().hex, described, info)

    def rank(self, wanted: Wanted, item_ids: Sequence[str]) -> Answer:
        """These items for a user, best first; those that nobody knows are named in `unknown`."""
        raise NotImplementedError

    def known(self, user_id: str) -> KnownUser:
        """What is known of a user."""
        raise NotImplementedError

    def _described(
        self, found: Iterable[Found], count: int, hidden: set[int]
    ) -> list[Recommendation]:
        """What was found and can be shown, and what is popular in the places that are left."""
        shown: dict[int, tuple[CatalogItem, float, str]] = {}
        for item, score, source in chain(found, self._fillers(count + len(hidden))):
            if len(shown) == count:
                break
            if item not in hidden and item not in shown:
                described = self._catalog.get(item)
                if described is not None:
                    shown[item] = described, score, source
        statistics = self._features.read(ITEM_STATISTICS, list(shown)) if shown else []
        return [
            Recommendation(*one, known)
            for one, known in zip(shown.values(), statistics, strict=True)
        ]

    def _fillers(self, count: int) -> Iterator[Found]:
        for item in self._catalog.popular(count):
            yield item, 0.0, POPULAR

    def _temperature(self, served: ServedModel | None) -> float:
        options = {} if served is None else served.info.options
        return float(options.get("temperature", self._config.temperature))


def _found(ids: Ids, scores: NDArray[np.float32], source: str) -> list[Found]:
    return [(i, s, source) for i, s in zip(ids.tolist(), scores.tolist(), strict=True)]
