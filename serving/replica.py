"""A replica: a model that is read all the time while newer versions are laid over it.

Two copies of the model take turns. Requests read the one in front; a version is laid over the
one behind, the two change places in one assignment, and when the last reader of the old one has
left, it gets the version too. So a request reads one whole version from start to end, no reader
ever waits, and applying costs in proportion to the rows of the version.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from features.batch import Ids, Users
from streaming.cuts import GONE
from streaming.id_map import IdMap
from trainers.arrays import column_matrix, table_tensors
from trainers.evaluation import best_scores
from trainers.models import Retriever, create
from trainers.versions import Version, VersionInfo


class Applied(StrEnum):
    """What became of a version that a replica was given."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"  # it was there already
    GAP = "gap"  # it continues a version that is not the one in front
    STALE = "stale"  # a new chain that has learnt less than what was already served


@dataclass(frozen=True, slots=True)
class Asked:
    """What a version makes of one user: his interests (1, K, d), and the score of every item (N,)
    by the best of them.
    """

    query: torch.Tensor
    scores: torch.Tensor

    def scores_of(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores of other items, by their vectors (n, d)."""
        return best_scores(self.query, torch.from_numpy(vectors))[0].numpy()

    def total(self, temperature: float) -> float:
        """The logarithm of the sum of exp(score / temperature) over all items: what makes a softmax
        of the scores.
        """
        return float(torch.logsumexp(self.scores / temperature, 0))


class ServedModel:
    """One copy: the model, and the vectors of all items."""

    def __init__(self, info: VersionInfo) -> None:
        self.info = info
        self.model: Any = create(info.model, info.options).eval()
        self._retriever: Retriever = self.model
        self._places = IdMap()
        self._vectors = torch.zeros(1024, self.model.width)

    def lay(self, version: Version) -> None:
        """Lays a version over this copy: every row is an absolute value."""
        for name, table in self._retriever.tables.items():
            gone = version.shards.get(f"table-{name}{GONE}")
            if gone is not None:
                table.remove(gone["id"].to_numpy())  # first: one may have been born again
            rows = version.shards[f"table-{name}"]
            table.upsert(rows["id"].to_numpy(), column_matrix(rows["row"]))
        self.model.load_state_dict(table_tensors(version.shards["dense"]))
        vectors = version.shards["vectors"]
        self._set_vectors(vectors["id"].to_numpy(), column_matrix(vectors["row"]))
        self.info = version.info

    def __len__(self) -> int:
        return len(self._places)

    @torch.no_grad()
    def retrieve(self, users: Users, count: int, hidden: Ids) -> tuple[Ids, NDArray[np.float32]]:
        """The best items for one user, best first, none of `hidden`: ids (n,), scores (n,)."""
        return self.best(self.ask(users), count, hidden)

    @torch.no_grad()
    def ask(self, users: Users) -> Asked:
        """What it makes of one user."""
        query = self._retriever.query(users)
        return Asked(query, best_scores(query, self._all_vectors())[0])

    def best(self, asked: Asked, count: int, hidden: Ids) -> tuple[Ids, NDArray[np.float32]]:
        """As `retrieve`, of what was asked."""
        return self._best(asked.scores.clone() if len(hidden) else asked.scores, count, hidden)

    def vectors(self, items: Ids) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The vector of each item, (n, d), and whether it has one, (n,); zeros if not."""
        places = self._places.find(items)
        known = places >= 0
        found = np.zeros((len(items), self._vectors.shape[1]), np.float32)
        found[known] = self._vectors[torch.from_numpy(places[known])].numpy()
        return found, known

    @torch.no_grad()
    def similar(self, item: int, count: int) -> tuple[Ids, NDArray[np.float32]]:
        """The items nearest to an item, best first, without itself; none for an unknown item."""
        place = int(self._places.find(np.array([item]))[0])
        if place < 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return self._best(self._all_vectors() @ self._vectors[place], count, np.array([item]))

    def _best(
        self, scores: torch.Tensor, count: int, hidden: Ids
    ) -> tuple[Ids, NDArray[np.float32]]:
        places = self._places.find(hidden)
        scores[torch.from_numpy(places[places >= 0])] = -torch.inf
        top = torch.topk(scores, min(count, len(scores)))
        shown = torch.isfinite(top.values)
        return self._places.ids[top.indices[shown].numpy()], top.values[shown].numpy()

    def _all_vectors(self) -> torch.Tensor:
        return self._vectors[: len(self._places)]

    def _set_vectors(self, ids: Ids, rows: NDArray[np.float32]) -> None:
        self._places.add(ids[self._places.find(ids) < 0])
        missing = len(self._places) - len(self._vectors)
        if missing > 0:
            room = torch.zeros(max(missing, len(self._vectors)), self._vectors.shape[1])
            self._vectors = torch.cat([self._vectors, room])
        self._vectors[torch.from_numpy(self._places.find(ids))] = torch.tensor(rows)


class _Side:
    """A copy and the number of requests that are reading it."""

    def __init__(self, served: ServedModel) -> None:
        self.served = served
        self.readers = 0


class Replica:
    """Takes versions in, gives a whole version to whoever reads."""

    def __init__(self) -> None:
        self._front: _Side | None = None
        self._back: _Side | None = None
        self._changed = threading.Condition()  # guards the number of readers

    @property
    def info(self) -> VersionInfo | None:
        """The version in front; None before the first."""
        front = self._front
        return None if front is None else front.served.info

    def take(self, version: Version) -> Applied:
        """Makes the version the one that is read, if it continues what is there or replaces it."""
        info, served = version.info, self.info
        if served is not None and info.lineage == served.lineage and info.number <= served.number:
            return Applied.DUPLICATE
        if info.base is None:
            if served is not None and (info.watermark_us or 0) < (served.watermark_us or 0):
                return Applied.STALE
            self._load(version)
            return Applied.APPLIED
        if served is None or info.lineage != served.lineage or info.base != served.number:
            return Applied.GAP
        self._apply(version)
        return Applied.APPLIED

    @contextmanager
    def reading(self) -> Iterator[ServedModel | None]:
        """One immutable version for as long as the block lasts; None before the first."""
        with self._changed:
            side = self._front
            if side is not None:
                side.readers += 1
        try:
            yield None if side is None else side.served
        finally:
            if side is not None:
                with self._changed:
                    side.readers -= 1
                    self._changed.notify_all()

    def _load(self, snapshot: Version) -> None:
        sides = [_Side(ServedModel(snapshot.info)) for _ in range(2)]
        for side in sides:
            side.served.lay(snapshot)
        with self._changed:
            self._front, self._back = sides

    def _apply(self, delta: Version) -> None:
        front, back = self._front, self._back
        if front is None or back is None:
            raise RuntimeError("a delta needs a version to be laid over")
        back.served.lay(delta)
        with self._changed:
            self._front, self._back = back, front
            self._changed.wait_for(lambda: front.readers == 0)
        front.served.lay(delta)
