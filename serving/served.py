"""A copy of a model in a process that serves it, and what versions bring to it.

What every kind of model has is kept here: its tables and its dense parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from features.batch import Ids, Items, Jagged, Users
from serving.inverted_lists import Arriving
from streaming.cuts import GONE
from trainers.arrays import column_matrix, table_tensors
from trainers.descriptions import described_items
from trainers.models import create, family_of
from trainers.versions import Version, VersionInfo

Floats32 = NDArray[np.float32]
_TABLE, _VECTORS, _ITEMS = "table-", "vectors", "items"
_AT_ONCE = 1 << 16  # rows


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

    RowChanges and dense arrays are absolute values. `vectors` are those of a retriever's items;
    `items` is what describes items, None if its model does not read that; `others` are its shards
    that only a kind of model knows.
    """

    info: VersionInfo
    tables: Mapping[str, RowChanges]
    vectors: RowChanges | None
    dense: Mapping[str, torch.Tensor]
    items: Items | None = None
    others: Mapping[str, pa.Table] = field(default_factory=dict)

    @cached_property
    def arriving(self) -> Arriving:
        """The vectors, as the index of one copy after another takes them."""
        return Arriving(self.vectors_there.values)

    @property
    def vectors_there(self) -> RowChanges:
        """The vectors.

        Raises:
            Unfit: there are none.
        """
        if self.vectors is None:
            raise Unfit("shard 'vectors' is missing")
        return self.vectors

    @staticmethod
    def of(version: Version) -> Changes:
        """What the version brings.

        Raises:
            Unfit: a shard is missing, or a number in one is not finite.
        """
        shards = version.shards
        tables = {
            shard.removeprefix(_TABLE): _read_rows(version, shard)
            for shard in shards
            if shard.startswith(_TABLE) and not shard.endswith(GONE)
        }
        dense = table_tensors(_shard(version, "dense"))
        for name, tensor in dense.items():
            if not torch.isfinite(tensor).all():
                raise Unfit(f"there are numbers in {name!r} that are not finite")
        vectors = _read_rows(version, _VECTORS) if _VECTORS in shards else None
        described = shards.get(_ITEMS, shards.get(_VECTORS))
        items = None
        if described is not None and "tokens" in described.column_names:
            items = described_items(described.combine_chunks())
        others = {
            name: shard
            for name, shard in shards.items()
            if not name.startswith((_TABLE, _VECTORS)) and name not in (_ITEMS, "dense")
        }
        return Changes(version.info, tables, vectors, dense, items, others)


class Served:
    """One copy of a model on a `device` of torch's; what a kind of model keeps beside its tables
    and dense parameters, and what can be asked of it, the kind adds.

    Any number of threads may ask it, or one may change it; never both at once.
    """

    family: ClassVar[str]

    def __init__(self, info: VersionInfo, device: str) -> None:
        """Raises:
        Unfit: the version is of a model of another family.
        """
        name = info.kind or info.model
        if (family := family_of(name)) != self.family:
            raise Unfit(f"it is of a model of family {family}, not {self.family}")
        self.info = info
        self.model: Any = create(name, _to_serve(info.options, device)).eval().to(device)
        self._device = device
        self._dense: dict[str, torch.Tensor] = self.model.state_dict()  # the very parameters

    def check(self, changes: Changes) -> None:
        """Whether they are of this model.

        Raises:
            Unfit: they are not, and nothing of them was laid.
        """
        tables = self.model.tables
        check_same("tables", sorted(changes.tables), sorted(tables))
        for name, rows in changes.tables.items():
            width = tables[name].config.width
            check_same(f"numbers in a row of {name!r}", rows.values.shape[1], width)
            if rows.ids.min(initial=0) < -tables[name].shared:
                raise Unfit(f"there are more shared rows of {name!r} than {tables[name].shared}")
        for name in sorted(changes.dense.keys() | self._dense.keys()):
            shape, own = _shape(changes.dense, name), _shape(self._dense, name)
            check_same(f"sizes of dense {name!r}", shape, own)

    def lay(self, changes: Changes) -> None:
        """Lays what a version brings over this copy; costs in proportion to its rows.

        Who is gone goes first: one may have been born again.
        """
        for name, rows in changes.tables.items():
            table = self.model.tables[name]
            table.remove(rows.gone)
            table.upsert(rows.ids, rows.values)
        for name, tensor in changes.dense.items():
            self._dense[name].copy_(tensor)  # in place
        self.info = changes.info

    def probe(self) -> None:
        """Asks for a user of whom nothing is known.

        Raises:
            Unfit: the answer has numbers that are not finite.
        """
        raise NotImplementedError

    def warm(self) -> None:
        """Asks everything once, so that no request waits for code to be compiled.

        Raises:
            Unfit: as `probe`.
        """
        raise NotImplementedError

    def twin(self) -> Self:
        """Another copy of the same; this one is only read meanwhile."""
        raise NotImplementedError

    def _copy_into(self, other: Served) -> None:
        for name, table in self.model.tables.items():
            for ids, rows in table.parts():
                other.model.tables[name].upsert(ids, rows)
        for name, tensor in self._dense.items():
            other._dense[name].copy_(tensor)


def someone(actions: int = 0) -> Users:
    """A user with so many actions, all of them on an item that nobody knows."""
    history = Jagged.of(np.zeros(actions, np.int64), np.array([actions]))
    return Users(np.zeros(1, np.int64), history, np.ones(actions, np.float32))


def check_same(what: str, brought: object, own: object) -> None:
    """Raises:
    Unfit: what a version brings differs from what the model has.
    """
    if brought != own:
        raise Unfit(f"its {what} are {brought}, and the model's are {own}")


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


def _shape(dense: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(dense[name].shape) if name in dense else None
