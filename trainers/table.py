"""Embedding tables: id -> row without collisions, learnt row by row.

A model calls a table with ids and gets their rows as a tensor that takes part in autograd.
While it is training, unknown ids get a row of their own (once they were seen often enough);
while it is predicting, they get the row they would be born with and the table stays as it is.

What has changed is told by a clock that counts updates. A consumer (a checkpoint, a publisher)
keeps the clock up to which it has told of everything, and asks for what came after. Asking
changes nothing, so one that fails asks again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from streaming.cuts import KEYED
from streaming.growing import GrowingArray
from streaming.id_map import IdMap
from streaming.kernels import EMPTY
from trainers.admission import AdmissionConfig, AdmissionFilter
from trainers.arrays import column_matrix, matrix_column
from trainers.kernels import oldest_rows, share_rows
from trainers.optimisers import OptimiserConfig
from trainers.rows import Birth, DeviceRows, Floats, Ids, MemoryRows, Rows, Used

_AT_ONCE = 1 << 14  # rows that are copied at once
_SPARE = 64  # where rows go for want of room, this part of them goes at once
_MAP_BYTES = 34  # an id takes in the map, at most, when it is not growing


@dataclass(frozen=True)
class TableConfig:
    """How a table keeps its rows.

    `birth_scale` bounds the uniform numbers a row is born with (0: rows are born zero).
    `expire_after_s` is how long, in event time, a row lives that nobody learns; with more than
    `max_rows` rows or `max_bytes` those that were not learnt for longest go first. `offload` is a
    directory for a file with the rows, which may then be larger than memory. `device` is a
    device of torch's. A table that does not learn (`learns`) is told its rows, and keeps nothing
    beside them: it can neither be trained nor tell what has changed.
    """

    name: str = ""
    width: PositiveInt = 64
    birth_scale: float = 0.05
    seed: int = 0
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    expire_after_s: PositiveFloat | None = None
    max_rows: PositiveInt | None = None
    max_bytes: PositiveInt | None = None
    offload: str = ""
    device: str = "cpu"
    learns: bool = True

    def __post_init__(self) -> None:
        if self.offload and self.device != "cpu":
            raise ValueError(f"offload is for rows in memory, and device is {self.device!r}")

    @property
    def row_bytes(self) -> int:
        """What a row takes with all that is kept beside it."""
        marks = 20 if self.learns else 0
        return 4 * (self.width + self.kept.slots(self.width)) + marks + _MAP_BYTES

    @property
    def kept(self) -> OptimiserConfig:
        """The optimiser whose slots lie beside the rows: one without any, if nothing is learnt."""
        return self.optimiser if self.learns else OptimiserConfig("sgd")

    @property
    def most_rows(self) -> int | None:
        """The bound on rows that `max_rows` and `max_bytes` give together."""
        by_bytes = self.max_bytes and max(1, self.max_bytes // self.row_bytes)
        return min((n for n in (self.max_rows, by_bytes) if n), default=None)


class EmbeddingTable:
    """Rows of float32, each with its optimiser's slots, born from id and seed alone.

    Ids are non-negative. With admission, ids that were not admitted share the rows of the
    negative ids -1, -2, ..., which are there from the start. `now_us` is the event time that
    rows learnt from now on are marked with; the trainer sets it.
    """

    def __init__(self, config: TableConfig) -> None:
        self.config = config
        self.training = False
        self.clock = 0
        self.now_us = 0
        self.evicted = 0
        self._map = IdMap()
        self._rows = _make_rows(config)
        self._seen = GrowingArray(np.int64)  # event time at which a row was last learnt
        self._touched = GrowingArray(np.int64)  # clock of a row's last change, 0 for a free one
        self._used: list[Used] = []
        self._anchor = torch.zeros((), requires_grad=True)
        admits = config.admission.after > 1
        self._filter = AdmissionFilter(config.admission) if admits and config.learns else None
        self._shared = config.admission.shared if admits else 0
        self._expiry_due_us: int | None = None
        # Ids that went after the clock `_told_from`.
        self._gone: list[tuple[int, Ids]] = []
        self._told_from = 0
        if self._shared:
            self._reserve(self._shared)
            self._mark_new(np.arange(self._shared))
            self._bear(np.arange(self._shared), -1 - np.arange(self._shared))

    def __len__(self) -> int:
        """Rows, the shared ones not counted."""
        return len(self._map)

    def __call__(self, ids: Ids) -> Tensor:
        """The rows of ids of shape (n,), as (n, width)."""
        return self._read(ids, None)

    def mean(self, ids: Ids, offsets: Ids) -> Tensor:
        """Means of jagged lists of rows: list i is `ids[offsets[i]:offsets[i + 1]]`; (n, width).

        An empty list gives zeros.
        """
        return self._read(ids, offsets)

    def step(self) -> None:
        """Learns from the gradients of every call since the last step, then makes room."""
        used, self._used = self._used, []
        if not used:
            return
        self.clock += 1
        rows = self._rows.learn(used)
        self._touched.rows[rows] = self.clock
        self._seen.rows[rows] = self.now_us
        self._map.move(sum(u.rows.size for u in used))
        self._evict()

    def forget_calls(self) -> None:
        """Drops what was called and not learnt, as when a step is refused."""
        self._used.clear()

    # -- a group's shard -------------------------------------------------------------------

    @property
    def shared(self) -> int:
        """How many rows ids that were not admitted share."""
        return self._shared

    def keep_shared(self, rank: int, ranks: int) -> None:
        """Leaves the shared rows of other ranks to them; nothing was called yet."""
        others = np.arange(self._shared) % ranks != rank
        self._touched.rows[: self._shared][others] = 0

    def rows_to_learn(self, ids: Ids, repeats: Ids) -> Ids:
        """The row of each of the distinct ids (n,), which are hit so often; births some."""
        return self._admitted(ids, repeats)

    def read_rows(self, rows: Ids, ids: Ids) -> Tensor:
        """(n, width) of rows that `rows_to_learn` gave, or of what ids are predicted with."""
        return self._rows.gather(rows, ids)

    def find_rows(self, ids: Ids) -> Ids:
        """The row of each id (n,), or EMPTY: as it is, nothing is born."""
        return self._find(ids)

    def use(self, rows: Ids, gradient: Tensor) -> None:
        """Takes the gradient (n, width) of rows for the next step."""
        self._used.append(Used(rows, None, gradient))

    # -- what has changed ------------------------------------------------------------------

    def touched_since(self, clock: int) -> tuple[Ids, Floats]:
        """Ids (n,) and rows (n, width) learnt or born after that clock; 0 gives all of them."""
        rows = self._rows_since(clock)
        return self._ids_of(rows), self._rows.read(rows)[0]

    def gone_since(self, clock: int) -> Ids:
        """Ids that were evicted after that clock; one that came back is also among the touched.

        Raises:
            ValueError: what happened after that clock was settled, or was before a restart.
        """
        if clock < self._told_from:
            raise ValueError(f"of clock {clock} nothing is known, only since {self._told_from}")
        return np.unique(np.concatenate([_NO_IDS, *(i for c, i in self._gone if c > clock)]))

    def settle(self, clock: int) -> None:
        """No consumer will ask who went up to that clock: it need not be remembered."""
        self._gone = [(c, ids) for c, ids in self._gone if c > clock]
        self._told_from = max(self._told_from, clock)

    # -- a replica's writes ----------------------------------------------------------------

    def upsert(self, ids: Ids, values: Floats) -> None:
        """Sets rows of distinct ids to absolute values, making those that are not there."""
        rows = self._rows_of(ids)
        self._rows.write(rows, values, self.config.kept.first_slots(values))
        self._map.move(ids.size)

    def remove(self, ids: Ids) -> None:
        """Takes out the rows of those of the ids that have one."""
        rows = self._map.remove(ids) + self._shared
        if self.config.learns:
            self._touched.rows[rows] = 0

    def parts(self) -> Iterator[tuple[Ids, Floats]]:
        """All ids and rows, some thousands at a time: what another table's `upsert` takes.

        Nothing may be written meanwhile; whoever only reads does not notice.
        """
        rows = self._rows_since(0)
        for start in range(0, rows.size, _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            yield self._ids_of(part), self._rows.read(part)[0]

    # -- the cut ---------------------------------------------------------------------------

    def table(self, since: int | None = None) -> pa.Table:
        """All of the state by id, or what changed after the clock `since`; with `gone_since`.

        What changed comes in no order: sorting it would hold training up, and rows that are copied
        as they lie are copied several times as fast.
        """
        self._check_learns()
        rows = self._rows_since(-1 if since is None else since)
        ids = self._ids_of(rows)
        if since is None:
            order = np.argsort(ids)
            ids, rows = ids[order], rows[order]
        values, slots = self._rows.read(rows)
        columns = {
            "id": ids,
            "row": matrix_column(values),
            "seen": self._seen.rows[rows],
            "touched": self._touched.rows[rows],
        }
        if slots.shape[1]:
            columns["slots"] = matrix_column(slots)
        state = {
            "optimiser": self.config.optimiser.kind,
            "clock": self.clock,
            "evicted": self.evicted,
            "expiry_due_us": self._expiry_due_us,
        }
        return pa.table(columns, metadata={**KEYED, "state": json.dumps(state)})

    def filter_state(self) -> dict[str, NDArray[np.generic]]:
        """What the admission filter has counted; nothing without one."""
        return {} if self._filter is None else self._filter.state()

    def restore(self, table: pa.Table, filter_state: dict[str, NDArray[Any]] | None = None) -> None:
        """Takes the state that `table` and `filter_state` gave; the table must be empty."""
        self._check_learns()
        state = json.loads(table.schema.metadata[b"state"])
        ids = table["id"].to_numpy()
        values, slots = column_matrix(table["row"]), np.empty((ids.size, 0), np.float32)
        if "slots" in table.column_names:
            slots = column_matrix(table["slots"])
        width, kind = self.config.width, self.config.optimiser.kind
        if (values.shape[1], state["optimiser"]) != (width, kind):
            raise ValueError(
                f"table {self.config.name!r} has rows of {values.shape[1]} numbers learnt by"
                f" {state['optimiser']}, the recipe says {width} by {kind}"
            )
        rows = self._rows_of(ids)
        self._rows.write(rows, values, slots)
        self._seen.rows[rows] = table["seen"].to_numpy()
        self._touched.rows[rows] = table["touched"].to_numpy()
        self.clock, self.evicted = state["clock"], state["evicted"]
        self._expiry_due_us = state["expiry_due_us"]
        self._gone, self._told_from = [], self.clock
        if self._filter is not None and filter_state:
            self._filter.load(filter_state)

    # -- inside ----------------------------------------------------------------------------

    def _read(self, ids: Ids, offsets: Ids | None) -> Tensor:
        if self.training and torch.is_grad_enabled():
            rows = self._admitted(ids)
            read: Tensor = _Read.apply(self._anchor, self, rows, ids, offsets)  # type: ignore[no-untyped-call]
            return read
        return self._look(self._find(ids), ids, offsets)

    def _look(self, rows: Ids, ids: Ids, offsets: Ids | None) -> Tensor:
        if offsets is None:
            return self._rows.gather(rows, ids)
        return self._rows.pool(rows, ids, offsets)

    def _find(self, ids: Ids) -> Ids:
        """The row of each id; of one that has none a shared one, or EMPTY."""
        rows = self._map.find(ids)
        if self._shared:
            missing = np.flatnonzero(rows == EMPTY)
            rows += self._shared
            rows[missing] = share_rows(ids[missing], self._shared)
        return rows

    def _admitted(self, ids: Ids, repeats: Ids | None = None) -> Ids:
        """The row of each id, after those were given one that are worth it."""
        self._check_learns()
        if self._filter is None:
            return self._give_rows(ids)
        rows = self._map.find(ids)
        missing = np.flatnonzero(rows == EMPTY)
        strangers = ids[missing]
        hits = strangers if repeats is None else np.repeat(strangers, repeats[missing])
        self._give_rows(hits[self._filter.admit(hits)])
        rows += self._shared
        rows[missing] = self._find(strangers)
        return rows

    def _rows_of(self, ids: Ids) -> Ids:
        """The row of every id, negative ones share; those that were missing are to be written."""
        rows, own = -1 - ids, ids >= 0
        if rows.size and rows.max() >= self._shared:
            raise ValueError(
                f"table {self.config.name!r} has {self._shared} shared rows and should take one"
                f" more, {ids.min()}: set admission as it was when that was written"
            )
        rows[own], _ = self._number(ids[own])
        return rows

    def _give_rows(self, ids: Ids) -> Ids:
        """The row of every id, after the birth of those that were missing."""
        rows, missing = self._number(ids)
        if missing.size:
            self._bear(rows[missing], ids[missing])  # twice if twice there: the same
        return rows

    def _number(self, ids: Ids) -> tuple[Ids, Ids]:
        """The row of every id, and which of the ids had none."""
        rows = self._map.find(ids)
        missing = np.flatnonzero(rows == EMPTY)
        if missing.size:
            new = ids[missing]
            if new.min() < 0:
                raise ValueError(
                    f"table {self.config.name!r} was asked for id {new.min()}:"
                    " ids are not negative, leave out those that stand for nothing"
                )
            # First the room, which there may not be: the map must not know rows that are nowhere.
            self._reserve(max(self._map.rows, len(self) + new.size) + self._shared)
            rows[missing] = self._map.add(new)
            self._mark_new(rows[missing] + self._shared)
        return rows + self._shared, missing

    def _bear(self, rows: Ids, ids: Ids) -> None:
        """Makes rows what their ids are born with."""
        values = Birth(self.config.seed, self.config.birth_scale).rows(ids, self.config.width)
        self._rows.write(rows, values, self.config.kept.first_slots(values))

    def _mark_new(self, rows: Ids) -> None:
        if not self.config.learns:
            return
        self._seen.rows[rows] = self.now_us
        # The step that they are born in is not over: it is told by the next clock.
        self._touched.rows[rows] = self.clock + 1

    def _reserve(self, rows: int) -> None:
        self._rows.reserve(rows)
        if self.config.learns:
            self._seen.reserve(rows)
            self._touched.reserve(rows)

    def _check_learns(self) -> None:
        if not self.config.learns:
            raise ValueError(
                f"table {self.config.name!r} only serves, and keeps nothing that learning needs:"
                " make it with learns = true"
            )

    def _rows_since(self, clock: int) -> Ids:
        if not self.config.learns and clock <= 0:
            own = np.flatnonzero(self._map.ids != EMPTY) + self._shared
            return np.concatenate([np.arange(self._shared), own])
        self._check_learns()
        # A pass over 8 bytes a row costs less than keeping lists of what changed.
        touched = self._touched.rows[: self._map.rows + self._shared]
        return np.flatnonzero(touched > max(clock, 0))

    def _ids_of(self, rows: Ids) -> Ids:
        if not self._shared:
            return self._map.ids[rows]
        own = rows >= self._shared
        ids = -1 - rows
        ids[own] = self._map.ids[rows[own] - self._shared]
        return ids

    def _evict(self) -> None:
        """Takes out what is too old and what is too much, the same whatever the rows' numbers."""
        config = self.config
        if config.expire_after_s is not None:
            age_us = int(config.expire_after_s * 1e6)
            if self._expiry_due_us is None or self.now_us >= self._expiry_due_us:
                self._expiry_due_us = self.now_us + age_us // 32
                seen = self._seen.rows[self._shared : self._shared + self._map.rows]
                old = (seen < self.now_us - age_us) & (self._map.ids != EMPTY)
                self._drop(np.flatnonzero(old))
        most = config.most_rows
        if most is not None and len(self) > most:
            # Some more than is needed: the next steps then need not look at all rows again.
            self._drop(self._oldest(len(self) - most + most // _SPARE))

    def _oldest(self, count: int) -> Ids:
        """Rows of the map that were not learnt for longest; of equals those with small ids."""
        seen = self._seen.rows[self._shared : self._shared + self._map.rows]
        older, equals = oldest_rows(self._map.ids, seen, count)
        order = np.argsort(self._map.ids[equals])
        return np.concatenate([older, equals[order[: count - older.size]]])

    def _drop(self, map_rows: Ids) -> None:
        ids = self._map.ids[map_rows]
        if ids.size:
            self.remove(ids)
            self._gone.append((self.clock, ids))
            self.evicted += ids.size


class _Read(torch.autograd.Function):
    """Rows out of a table; their gradients wait in it for its next step."""

    @staticmethod
    def forward(
        ctx: Any, _: Tensor, table: EmbeddingTable, rows: Ids, ids: Ids, offsets: Ids | None
    ) -> Tensor:
        ctx.use = table, rows, offsets
        return table._look(rows, ids, offsets)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        table, rows, offsets = ctx.use
        if rows.size:
            table._used.append(Used(rows, offsets, gradient.detach()))
        return None, None, None, None, None


_NO_IDS = np.empty(0, np.int64)


def _make_rows(config: TableConfig) -> Rows:
    birth = Birth(config.seed, config.birth_scale)
    if config.device == "cpu":
        directory = Path(config.offload) if config.offload else None
        return MemoryRows(config.width, config.kept, birth, directory)
    return DeviceRows(config.width, config.kept, birth, torch.device(config.device))
