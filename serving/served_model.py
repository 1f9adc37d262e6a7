"""One copy of a retriever that answers, with the index of its items.

Asking is split: `ServedModel.ask` runs the user's tower once, and what it gives is then set
against items any number of times, by their vectors alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from features.batch import Ids, Users
from serving.candidate_kernels import places_shown
from serving.index import BEST, IndexConfig, ItemIndex, Subset
from serving.inverted_lists import ListTraining
from serving.served import Changes, Floats32, Served, Unfit, check_same, someone
from trainers.descriptions import Descriptions
from trainers.models import RETRIEVAL, Retriever
from trainers.versions import VersionInfo

_NONE = np.empty(0, np.int64)
Found = tuple[Ids, Floats32]  # items (n,) and their scores (n,), best first


@dataclass(frozen=True, slots=True)
class Asked:
    """What a version makes of one user: his K interests, `queries` (K, d)."""

    queries: Floats32
    _index: ItemIndex
    _totals: dict[float, float] = field(default_factory=dict)
    _top: list[Found] = field(default_factory=list)

    def scores_of(self, vectors: Floats32) -> Floats32:
        """The scores (n,) of items by their vectors (n, d): the best of the dot products."""
        scores: Floats32 = (vectors @ self.queries.T).max(1)
        return scores

    def log_total(self, temperature: float) -> float:
        """The logarithm of the sum of exp(score / temperature) over all items: what makes a softmax
        of scores. Exact or an estimate, as `ItemIndex.log_total`; computed once.
        """
        if temperature not in self._totals:
            best = self._top[0][1] if self._top else None
            self._totals[temperature] = self._index.log_total(self.queries, temperature, best)
        return self._totals[temperature]

    def best(self, count: int, hidden: Ids, allowed: Subset | None) -> Found:
        """The best items: none of `hidden`, and only `allowed` ones."""
        if self._index.exact or allowed is not None:
            return self._index.search(self.queries, count, hidden, allowed)
        # One search tells the best items, and of all together how much they are.
        if not self._top:
            self._top.append(self._index.search(self.queries, BEST, _NONE))
        items, scores = self._top[0]
        shown = places_shown(items, hidden, count)
        if len(shown) < min(count, len(self._index)) and len(items) == BEST:
            return self._index.search(self.queries, count, hidden)  # too many of them are hidden
        return items[shown], scores[shown]


class ServedModel(Served):
    """One copy of a retriever, and an index of the vectors of all items.

    Copies of one version share the `training` of their indexes.
    """

    family = RETRIEVAL

    def __init__(
        self,
        info: VersionInfo,
        device: str = "cpu",
        config: IndexConfig | None = None,
        training: ListTraining | None = None,
    ) -> None:
        super().__init__(info, device)
        self._retriever: Retriever = self.model
        self._training = training or ListTraining()
        self._index = ItemIndex(self.model.width, config, self._training)
        self._descriptions = Descriptions()  # for a model that reads what describes histories

    def __len__(self) -> int:
        return len(self._index)

    @property
    def items(self) -> Ids:
        """All items that have a vector, (n,), in any order."""
        ids = self._index._places.ids
        return ids[ids >= 0]

    # -- asking ----------------------------------------------------------------------------

    @torch.inference_mode()
    def ask(self, users: Users) -> list[Asked]:
        """What it makes of each user."""
        if self._retriever.describes:
            users = replace(users, described=self._descriptions.describe(users.history.values))
        queries: Floats32 = self._retriever.query(users).cpu().numpy()  # (B, K, d)
        return [Asked(one, self._index) for one in queries]

    def best(self, asked: Asked, count: int, hidden: Ids, allowed: Subset | None = None) -> Found:
        """The best items for who asked: none of `hidden`, and only `allowed` ones."""
        return asked.best(count, hidden, allowed)

    def retrieve(
        self, users: Users, count: int, hidden: Ids, allowed: Subset | None = None
    ) -> Found:
        """The best items for one user: `ask` and `best`."""
        return self.best(self.ask(users)[0], count, hidden, allowed)

    def score(self, asked: Asked, items: Ids) -> tuple[Floats32, NDArray[np.bool_]]:
        """The score of each item (n,), and whether it has a vector (n,); 0 if not."""
        vectors, known = self._index.vectors(items)
        return asked.scores_of(vectors), known

    def similar(self, item: int, count: int, allowed: Subset | None = None) -> Found:
        """The items nearest to an item, without itself; none for an unknown item."""
        one = np.array([item], np.int64)
        vector, known = self._index.vectors(one)
        if not known[0]:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return self._index.search(vector, count, one, allowed)

    def vectors(self, items: Ids) -> tuple[Floats32, NDArray[np.bool_]]:
        """The vector of each item (n, d), and whether it has one (n,); zeros if not."""
        return self._index.vectors(items)

    def figures(self) -> dict[str, float]:
        """What is to be known of its index."""
        return self._index.figures()

    # -- changing --------------------------------------------------------------------------

    def check(self, changes: Changes) -> None:
        width = changes.vectors_there.values.shape[1]
        check_same("numbers in a vector", width, self.model.width)
        super().check(changes)
        if self._retriever.describes and changes.items is None:
            raise Unfit("it does not say what describes its items")

    def lay(self, changes: Changes) -> None:
        vectors = changes.vectors_there
        super().lay(changes)
        self._index.remove(vectors.gone)
        self._index.upsert(vectors.ids, changes.arriving)
        if changes.items is not None:
            self._descriptions.add(changes.items)

    def probe(self) -> None:
        if not np.isfinite(self.ask(someone())[0].queries).all():
            raise Unfit("what it answers is not finite")

    def warm(self) -> None:
        """Brings the index to rest, too."""
        self.probe()
        self._index.settle()
        asked = self.ask(someone(1))[0]
        hidden = np.zeros(1, np.int64)
        items, _ = self.best(asked, 1, hidden)
        self.best(asked, 1, hidden, Subset.of(items))
        self.score(asked, items)
        for item in items.tolist():
            self.similar(item, 1)
        asked.log_total(1.0)

    def twin(self) -> ServedModel:
        other = ServedModel(self.info, self._device, self._index.config, self._training)
        self._copy_into(other)
        other._index = self._index.twin()
        other._descriptions = self._descriptions.copy()
        return other
