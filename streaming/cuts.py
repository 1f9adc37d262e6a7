"""The cuts of one step on disk: whole ones, and ones that tell only what changed since another.

A *keyed* shard has a row for each `id` (int64), and says so in its schema's metadata (`KEYED`).
A cut that continues another, its *base*, holds

* of each keyed shard the rows that changed since the base, and in a shard `<name>.gone` (column
  `id`) the ids that have no row any more;
* every other shard, and the meta, as they are now.

So a state is that of a whole cut with all the rest of its *chain* laid over it. The last row of an
id wins; ids that are gone leave before the rows of the same cut are laid, so that one that went
and was born again since the base is in both. The base is named by its checksum: a chain is intact
or it is found not to be.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streaming.artefact import Artefact, read_artefact, read_manifest, seal, write_artefact
from streaming.errors import ArtefactCorrupt, ArtefactError
from streaming.log import TopicPartition

logger = logging.getLogger(__name__)

KEYED = {"key": "id"}  # in the metadata of a shard's schema
GONE = ".gone"  # ends the names of shards that list ids; no other shard may be called so

Places = Mapping[TopicPartition, int]


class CutDirectory:
    """The cuts of one step: `cut-00000001`, `cut-00000002`, ...; the newest complete one counts.

    A chain is long when more than `deltas` cuts continue its whole one, or when they are larger
    than it. The `kept` newest whole cuts stay, with all that continues them: no chain is the only
    one, and a file that is damaged costs a longer replay and no more.
    """

    def __init__(self, path: Path, kept: int = 2, deltas: int = 16) -> None:
        self.path = path
        self._kept = kept
        self._deltas = deltas
        self._chain: list[_Link] = []  # what this object has saved last, the whole cut first

    @property
    def continuable(self) -> bool:
        """Whether there is a cut that `extend` can continue."""
        return bool(self._chain) and all(link.path.exists() for link in self._chain)

    def save(self, positions: Places, state: Artefact) -> Path:
        """Writes a whole cut; positions and state become the newest cut together."""
        self._chain = [self._write(positions, state, None)]
        return self._chain[-1].path

    def extend(self, positions: Places, changes: Artefact) -> Path:
        """Writes what changed since the cut that was saved last, and perhaps since longer."""
        self._chain.append(self._write(positions, changes, self._chain[-1]))
        return self._chain[-1].path

    def compact(self) -> None:
        """Merges the chain, if it is long, into a whole cut at the same positions.

        Without space for that it stays as it is. If it is damaged, nothing continues it.
        """
        sizes = [link.size for link in self._chain]
        if len(sizes) <= self._deltas + 1 and sum(sizes[1:]) <= sum(sizes[:1]):
            return
        try:
            merged = merge([read_artefact(link.path, mapped=True) for link in self._chain])
            self.save(*_opened(merged))
        except ArtefactCorrupt as error:
            logger.warning("a cut was damaged, the next one is made whole: %s", error)
            self._chain = []
        except ArtefactError as error:
            logger.warning("%d cuts cannot be made one: %s", len(sizes), error)

    def newest(self) -> tuple[Artefact | None, dict[TopicPartition, int]]:
        """State and positions of the newest cut whose chain is intact; (None, {}) if none ever was.

        Keyed shards come in the order of their ids. A shard is put together when it is asked for:
        one that is not takes no memory, as those of a group's other ranks.

        Raises:
            ArtefactCorrupt: there are cuts, and none of them can be read.
        """
        links, failures = self._links()
        for whole in reversed([link for link in links if link.base is None]):
            chain, newest = _intact(whole, links, failures)
            if chain:
                _warn(failures, newest)
                positions, state = _opened(merge(chain))
                return state, positions
        if failures:
            _warn(failures, self.path)
            raise ArtefactCorrupt(
                f"no cut in {self.path} can be read ({failures[max(failures)]}): delete that"
                " directory to rebuild the state from the log, or start over with"
                " `headrace run --fresh`"
            )
        return None, {}

    def newest_meta(self) -> dict[str, Any] | None:
        """The `meta` of the newest cut's state, without reading its shards; for status."""
        for path in reversed(self._all()):
            try:
                meta: dict[str, Any] = read_manifest(path)["state"]
            except ArtefactError:
                continue
            return meta
        return None

    def tidy(self) -> None:
        """Removes what newer cuts have made useless, and what a dying process left half-written."""
        wholes = [link.path for link in self._links()[0] if link.base is None]
        for path in self._all():
            if wholes and path < wholes[-self._kept :][0]:
                shutil.rmtree(path)
        for path in self.path.glob(".*cut-*"):  # with what was half-written of a part of a cut
            shutil.rmtree(path)

    def _write(self, positions: Places, state: Artefact, base: _Link | None) -> _Link:
        newest = self._all()[-1:]
        number = _number(newest[0]) + 1 if newest else 1
        path = self.path / f"cut-{number:08d}"
        places = [[topic, partition, at] for (topic, partition), at in sorted(positions.items())]
        meta: dict[str, Any] = {"positions": places, "state": state.meta}
        if base is not None:
            meta["base"] = {"number": _number(base.path), "seal": base.seal}
        size = write_artefact(path, meta, state.shards, state.parts)
        return _Link(path, seal(path), None if base is None else base.seal, size)

    def _links(self) -> tuple[list[_Link], dict[Path, str]]:
        """Every cut by its manifest alone, oldest first, and what is wrong with the others."""
        links: list[_Link] = []
        failures: dict[Path, str] = {}
        for path in self._all():
            try:
                base = read_manifest(path).get("base")
                links.append(_Link(path, seal(path), base and base["seal"]))
            except ArtefactCorrupt as error:
                failures[path] = str(error)
                continue
            if base and all(link.seal != base["seal"] for link in links):
                failures[path] = f"{path} continues cut {base['number']}, which cannot be read"
        return links, failures

    def _all(self) -> list[Path]:
        return sorted(self.path.glob("cut-*"))


@dataclass(frozen=True, slots=True)
class _Link:
    """A cut in its chain: its own seal, and that of the cut it continues."""

    path: Path
    seal: str
    base: str | None
    size: int = 0


def _intact(
    whole: _Link, links: Sequence[_Link], failures: dict[Path, str]
) -> tuple[list[Artefact], Path]:
    """The chain of a whole cut up to the first that is damaged, and where its last one is."""
    next_of = {link.base: link for link in links}
    chain: list[Artefact] = []
    newest = whole.path
    link: _Link | None = whole
    while link is not None:
        try:
            chain.append(read_artefact(link.path, mapped=True))
        except ArtefactCorrupt as error:
            failures[link.path] = str(error)
            break
        newest, link = link.path, next_of.get(link.seal)
    return chain, newest


def merge(chain: Sequence[Artefact]) -> Artefact:
    """What a whole cut would hold, from one and those that continue it, oldest first."""
    return Artefact(chain[-1].meta, _Merged(chain))


class _Merged(Mapping[str, pa.Table]):
    """The shards of a chain, each put together whenever it is asked for."""

    def __init__(self, chain: Sequence[Artefact]) -> None:
        self._chain = chain
        self._names = [name for name in chain[-1].shards if not name.endswith(GONE)]

    def __getitem__(self, name: str) -> pa.Table:
        if name not in self._names:
            raise KeyError(name)
        table = self._chain[-1].shards[name]
        return _merged(name, self._chain) if _is_keyed(table) else table

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _merged(name: str, chain: Sequence[Artefact]) -> pa.Table:
    """A keyed shard with one row an id, in the order of ids.

    Every row and every id that went is an event, in the order in which they are laid; the last
    event of an id says which of all the rows is the one that stays.
    """
    cuts = list(takewhile(lambda cut: name in cut.shards, reversed(chain)))[::-1]
    tables = [cut.shards[name] for cut in cuts]
    ids, rows, start = [], [], 0
    for cut, table in zip(cuts, tables, strict=True):
        gone = cut.shards.get(name + GONE)
        if gone is not None:
            ids.append(gone["id"].to_numpy())
            rows.append(np.full(len(gone), -1))
        ids.append(table["id"].to_numpy())
        rows.append(np.arange(start, start + len(table)))
        start += len(table)
    id_of, row_of = np.concatenate(ids), np.concatenate(rows)
    order = np.argsort(id_of, kind="stable")
    is_last = np.ones(len(order), bool)
    is_last[:-1] = id_of[order[:-1]] != id_of[order[1:]]
    stays = row_of[order[is_last]]
    stays = stays[stays >= 0]
    if len(tables) == 1 and np.array_equal(stays, np.arange(start)):
        return tables[0]
    schema = tables[-1].schema
    return pa.table(
        [_picked([table[name] for table in tables], stays) for name in schema.names], schema=schema
    )


def _picked(parts: Sequence[pa.ChunkedArray], rows: NDArray[np.int64]) -> pa.Array:
    """Rows of a column, numbered through its parts.

    Numbers are taken from the first part, the one of the whole cut, and overwritten where they are
    from another: to join the parts would take as much memory again as there are rows.
    """
    kind = parts[0].type
    matrices = [matrix for part in parts if (matrix := _matrix(part)) is not None]
    if len(matrices) < len(parts) or len(matrices[0]) == 0:
        chunks = [chunk for part in parts for chunk in part.chunks]
        return pa.chunked_array(chunks, kind).take(pa.array(rows))
    ends = np.cumsum([len(matrix) for matrix in matrices])
    picked = matrices[0].take(np.where(rows < ends[0], rows, 0), axis=0)
    for matrix, start, end in zip(matrices[1:], ends[:-1], ends[1:], strict=True):
        here = np.flatnonzero((rows >= start) & (rows < end))
        picked[here] = matrix[rows[here] - start]
    values = pa.array(picked.reshape(-1))
    is_list = pa.types.is_fixed_size_list(kind)
    return pa.FixedSizeListArray.from_arrays(values, type=kind) if is_list else values


def _matrix(column: pa.ChunkedArray) -> NDArray[Any] | None:
    """A column of numbers, or of as many numbers a row, as (n, width); None if it is neither."""
    is_list = pa.types.is_fixed_size_list(column.type)
    kind, width = (column.type.value_type, column.type.list_size) if is_list else (column.type, 1)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return None
    rows = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    values = rows.flatten() if is_list else rows
    if rows.null_count or values.null_count:
        return None
    matrix: NDArray[Any] = values.to_numpy().reshape(len(rows), width)
    return matrix


def _is_keyed(table: pa.Table) -> bool:
    return (table.schema.metadata or {}).get(b"key") == b"id"


def _opened(cut: Artefact) -> tuple[dict[TopicPartition, int], Artefact]:
    """The positions and the state in a cut."""
    positions = {TopicPartition(t, p): at for t, p, at in cut.meta["positions"]}
    return positions, Artefact(cut.meta["state"], cut.shards)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("cut-"))


def _warn(failures: Mapping[Path, str], newest: Path) -> None:
    """Tells of what is damaged among the cuts that are newer than the one that is used."""
    for path, failure in failures.items():
        if path > newest:
            logger.warning("passing over a damaged cut: %s", failure)
