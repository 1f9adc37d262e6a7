"""Compaction: several versions of a chain as one, in which the last word on every row counts.

Laying the compacted version over a model gives just what laying its parts one after another does.
So a replica that is behind catches up in one step, and a version that could not be written in
time goes out with the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streaming.cuts import GONE
from streaming.errors import ArtefactError
from streaming.kernels import behind, compiled, home
from trainers.versions import Version, VersionInfo

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]


def compact(first: Version, second: Version) -> Version:
    """One version for two, the second of which continues the first: `compact_chain` of both."""
    return compact_chain([first, second])


def compact_chain(versions: Sequence[Version]) -> Version:
    """One version for several, each of which continues the one before.

    Its base is the first one's, and all else that it says of itself is the last one's. A snapshot
    contains what went before it; with the deltas that follow it, it is a snapshot.

    Raises:
        ArtefactError: one does not continue the one before, or its rows are of another type.
    """
    for before, after in pairwise(versions):
        _check_continues(before.info, after.info)
    snapshots = [i for i, version in enumerate(versions) if version.info.base is None]
    chain = versions[snapshots[-1] if snapshots else 0 :]
    last = chain[-1]
    if len(chain) == 1:
        return last
    base = chain[0].info.base
    shards: dict[str, pa.Table] = {}
    for name in dict.fromkeys(name for version in chain for name in version.shards):
        tables = [version.shards[name] for version in chain if name in version.shards]
        if name.endswith(GONE):
            if base is not None:  # before a snapshot there is nothing that could go
                shards[name] = _all_ids(tables)
        elif {"id", "row"} <= set(tables[-1].column_names):
            shards[name] = _newest_rows(name, chain)
        else:
            shards[name] = tables[-1]  # it is whole in every version
    return Version(replace(last.info, base=base), shards)


def rows_in(version: Version) -> int:
    """How many rows and tombstones a version brings."""
    return sum(t.num_rows for t in version.shards.values() if "id" in t.column_names)


def _check_continues(before: VersionInfo, after: VersionInfo) -> None:
    same = (before.model, before.lineage) == (after.model, after.lineage)
    if not same or after.base not in (None, before.number) or after.number <= before.number:
        raise ArtefactError(
            f"version {after.name} does not continue {before.name}, so they cannot be made one:"
            " compact a chain of versions in its order"
        )


def _newest_rows(name: str, chain: Sequence[Version]) -> pa.Table:
    """The rows that are left of a keyed shard; first those that the first version has told of."""
    most = sum(v.shards[n].num_rows for v in chain for n in (name, name + GONE) if n in v.shards)
    told = _IdSet(most)
    kept: list[pa.Table] = []
    for version in reversed(chain):
        table = version.shards.get(name)
        if table is not None:
            if kept and table["row"].type != kept[0]["row"].type:
                raise ArtefactError(
                    f"{name} has rows of {table['row'].type} in a version before"
                    f" {chain[-1].info.name} and of {kept[0]['row'].type} after it: versions of"
                    " one chain must have one `wire`"
                )
            news = told.add(table["id"].to_numpy())
            kept.insert(0, table if news.all() else table.filter(pa.array(news)))
        gone = version.shards.get(name + GONE)
        if gone is not None:  # after the rows: those were born again
            told.add(gone["id"].to_numpy())
    return pa.concat_tables(kept)


def _all_ids(tables: Sequence[pa.Table]) -> pa.Table:
    """Every id once, in the order of their first naming."""
    ids = np.concatenate([table["id"].to_numpy() for table in tables])
    _, first = np.unique(ids, return_index=True)
    return pa.table({"id": ids[np.sort(first)]}, schema=tables[-1].schema)


class _IdSet:
    """A set of at most so many ids, which may be any: open addressing over one array."""

    def __init__(self, most: int) -> None:
        size = max(8, 2 * most)
        self._ids, self._taken = np.zeros(size, np.int64), np.zeros(size, np.bool_)

    def add(self, ids: Ids) -> Mask:
        """Which of the ids are new, (n,); of one that is named twice, the last."""
        news = np.empty(ids.size, np.bool_)
        _add(self._ids, self._taken, ids, news)
        return news


@compiled
def _add(there: Ids, taken: Mask, ids: Ids, news: Mask) -> None:
    count = np.uint64(there.size)
    for i in range(ids.size - 1, -1, -1):
        at = home(ids[i], count)
        while taken[at] and there[at] != ids[i]:
            at = behind(at, count)
        news[i] = not taken[at]
        taken[at] = True
        there[at] = ids[i]
