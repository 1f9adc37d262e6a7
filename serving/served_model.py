"""One copy of a model that answers, and what a version brings to it.

Asking is split: `ServedModel.ask` runs the user's tower once, and what it gives is then set
against items any number of times, by their vectors alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from features.batch import Ids, Items, Jagged, Users
from serving.candidate_kernels import places_shown
from serving.index import BEST, IndexConfig, ItemIndex, Subset
from serving.inverted_lists import Arriving, ListTraining
from streaming.cuts import GONE
from trainers.arrays import column_matrix, table_tensors
from trainers.descriptions import Descriptions, described_items
from trainers.models import Retriever, create
from trainers.versions import Version, VersionInfo

Floats32 = NDArray[np.float32]
_TABLE = "table-"
_NONE = np.empty(0, np.int64)
_AT_ONCE = 1 << 16  # rows
Found = tuple[Ids, Floats32]  # items (n,) and their scores (n,), best first


class Unfit(ValueError):
    """A version that cannot be laid over a model, or gives it nonsense to answer with."""


@dataclass(frozen=True, slots=True)
class RowChanges:
    """Ids that are `gone` (g,), and then the new values (n, d) of the rows of `ids` (n,)."""

    gone: Ids
    ids: Ids
    values: Floats32


@dataclass(frozen=True)
class Changes:
    """What a version brings, out of its shards: read once, then laid over one copy after another.

    RowChanges and dense arrays are absolute values. `items` is what describes the items whose
    vectors it brings; None if its model does not read that.
    """

    info: VersionInfo
    tables: Mapping[str, RowChanges]
    vectors: RowChanges
    dense: Mapping[str, torch.Tensor]
    items: Items | None = None

    @cached_property
    def arriving(self) -> Arriving:
        """The vectors, as the index of one copy after another takes them."""
        return Arriving(self.vectors.values)

    @staticmethod
    def of(version: Version) -> Changes:
        """What the version brings.

        Raises:
            Unfit: a shard is missing, or a number in one is not finite.
        """
        tables = {
            shard.removeprefix(_TABLE): _read_rows(version, shard)
            for shard in version.shards
            if shard.startswith(_TABLE) and not shard.endswith(GONE)
        }
        dense = table_tensors(_shard(version, "dense"))
        for name, tensor in dense.items():
            if not torch.isfinite(tensor).all():
                raise Unfit(f"there are numbers in {name!r} that are not finite")
        vectors = _read_rows(version, "vectors")
        shard = _shard(version, "vectors")
        items = described_items(shard) if "tokens" in shard.column_names else None
        return Changes(version.info, tables, vectors, dense, items)


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


class ServedModel:
    """One copy of the model on a `device` of torch's, and an index of the vectors of all items.

    Any number of threads may ask it, or one may change it; never both at once. Copies of one
    version share the `training` of their indexes.
    """

    def __init__(
        self,
        info: VersionInfo,
        device: str = "cpu",
        config: IndexConfig | None = None,
        training: ListTraining | None = None,
    ) -> None:
        self.info = info
        self.model: Any = (
            create(info.kind or info.model, _to_serve(info.options, device)).eval().to(device)
        )
        self._device = device
        self._retriever: Retriever = self.model
        self._dense: dict[str, torch.Tensor] = self.model.state_dict()  # the very parameters
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
        """Whether they are of this model.

        Raises:
            Unfit: they are not, and nothing of them was laid.
        """
        tables = self._retriever.tables
        _check_same("tables", sorted(changes.tables), sorted(tables))
        for name, rows in changes.tables.items():
            width = tables[name].config.width
            _check_same(f"numbers in a row of {name!r}", rows.values.shape[1], width)
            if rows.ids.min(initial=0) < -tables[name].shared:
                raise Unfit(f"there are more shared rows of {name!r} than {tables[name].shared}")
        width = changes.vectors.values.shape[1]
        _check_same("numbers in a vector", width, self.model.width)
        for name in sorted(changes.dense.keys() | self._dense.keys()):
            shape, own = _shape(changes.dense, name), _shape(self._dense, name)
            _check_same(f"sizes of dense {name!r}", shape, own)
        if self._retriever.describes and changes.items is None:
            raise Unfit("it does not say what describes its items")

    def lay(self, changes: Changes) -> None:
        """Lays what a version brings over this copy; costs in proportion to its rows.

        Who is gone goes first: one may have been born again.
        """
        for name, rows in changes.tables.items():
            table = self._retriever.tables[name]
            table.remove(rows.gone)
            table.upsert(rows.ids, rows.values)
        for name, tensor in changes.dense.items():
            self._dense[name].copy_(tensor)  # in place
        self._index.remove(changes.vectors.gone)
        self._index.upsert(changes.vectors.ids, changes.arriving)
        if changes.items is not None:
            self._descriptions.add(changes.items)
        self.info = changes.info

    def probe(self) -> None:
        """Asks for a user of whom nothing is known.

        Raises:
            Unfit: the answer has numbers that are not finite.
        """
        if not np.isfinite(self.ask(_someone())[0].queries).all():
            raise Unfit("what it answers is not finite")

    def warm(self) -> None:
        """Brings the index to rest and asks everything once, so that no request waits for that, nor
        for code to be compiled.

        Raises:
            Unfit: as `probe`.
        """
        self.probe()
        self._index.settle()
        asked = self.ask(_someone(1))[0]
        hidden = np.zeros(1, np.int64)
        items, _ = self.best(asked, 1, hidden)
        self.best(asked, 1, hidden, Subset.of(items))
        self.score(asked, items)
        for item in items.tolist():
            self.similar(item, 1)
        asked.log_total(1.0)

    def twin(self) -> ServedModel:
        """Another copy of the same; this one is only read meanwhile."""
        other = ServedModel(self.info, self._device, self._index.config, self._training)
        for name, table in self._retriever.tables.items():
            for ids, rows in table.parts():
                other._retriever.tables[name].upsert(ids, rows)
        for name, tensor in self._dense.items():
            other._dense[name].copy_(tensor)
        other._index = self._index.twin()
        other._descriptions = self._descriptions.copy()
        return other


def _to_serve(options: Mapping[str, Any], device: str) -> dict[str, Any]:
    """A model's options, with tables that learn nothing."""
    table = {**options.get("table", {}), "device": device, "learns": False}
    if device != "cpu":
        table.pop("offload", None)
    return {**options, "table": table}


def _shard(version: Version, name: str) -> pa.Table:
    if name not in version.shards:
        raise Unfit(f"shard {name!r} is missing")
    return version.shards[name]


def _read_rows(version: Version, name: str) -> RowChanges:
    shard, gone = _shard(version, name), version.shards.get(f"{name}{GONE}")
    values = column_matrix(shard["row"])
    if not _are_finite(values):
        raise Unfit(f"there are numbers in {name!r} that are not finite")
    ids = np.empty(0, np.int64) if gone is None else gone["id"].to_numpy()
    return RowChanges(ids, shard["id"].to_numpy(), values)


def _are_finite(values: Floats32) -> bool:
    """Some rows at a time: what says so of each number takes room too."""
    starts = range(0, len(values), _AT_ONCE)
    return all(np.isfinite(values[start : start + _AT_ONCE]).all() for start in starts)


def _someone(actions: int = 0) -> Users:
    """A user with so many actions, all of them on an item that nobody knows."""
    history = Jagged.of(np.zeros(actions, np.int64), np.array([actions]))
    return Users(np.zeros(1, np.int64), history, np.ones(actions, np.float32))


def _shape(dense: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(dense[name].shape) if name in dense else None


def _check_same(what: str, brought: object, own: object) -> None:
    if brought != own:
        raise Unfit(f"its {what} are {brought}, and the model's are {own}")
