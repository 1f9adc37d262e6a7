"""Compaction: laying the compacted version over a model is laying its parts one after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.errors import ArtefactError
from trainers.arrays import column_matrix, matrix_column
from trainers.compaction import compact, compact_chain, rows_in
from trainers.versions import Version, VersionInfo

IDS = st.sets(st.integers(-3, 12), max_size=8).map(sorted)  # ids below 0 are shared rows
WIDTH = 2
Model = dict[Any, Any]  # (shard, id) -> row; and the dense, whole


def info(number: int, *, snapshot: bool = False, lineage: str = "a") -> VersionInfo:
    base = None if snapshot else number - 1
    return VersionInfo("m", lineage, number, base, number, number, number, {}, {"loss": number})


def keyed(ids: list[int], value: float, wire: str = "float32") -> pa.Table:
    row = matrix_column(np.full((len(ids), WIDTH), value, wire))
    return pa.table({"id": pa.array(ids, pa.int64()), "row": row})


def gone(ids: list[int]) -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.int64())})


def version(
    number: int,
    table: list[int],
    evicted: list[int],
    vectors: list[int],
    *,
    snapshot: bool = False,
    wire: str = "float32",
) -> Version:
    """Every row of it holds its number, so that it shows who wrote it."""
    shards = {
        "table-item": keyed(table, number, wire),
        "vectors": keyed(vectors, number, wire),
        "dense": pa.table({"name": ["w"], "data": [number]}),
    }
    if not snapshot:
        shards["table-item.gone"] = gone(evicted)
    return Version(info(number, snapshot=snapshot), shards)


@st.composite
def chains(draw: st.DrawFn, *, snapshot: bool = False) -> list[Version]:
    """Versions each of which continues the one before."""
    count = draw(st.integers(1, 5))
    return [
        version(n, draw(IDS), draw(IDS), draw(IDS), snapshot=snapshot and n == 1)
        for n in range(1, count + 1)
    ]


def lay(version: Version, model: Model) -> Model:
    """What a replica does with a version: a snapshot begins anew, the gone go first."""
    left = {} if version.info.base is None else {k: v for k, v in model.items() if k != "dense"}
    for name, table in version.shards.items():
        if name.endswith(".gone"):
            for i in table["id"].to_pylist():
                left.pop((name.removesuffix(".gone"), i), None)
    for name, table in version.shards.items():
        if "row" in table.column_names:
            rows = column_matrix(table["row"])
            left |= {
                (name, i): tuple(r) for i, r in zip(table["id"].to_pylist(), rows, strict=True)
            }
    return {**left, "dense": version.shards["dense"].to_pylist(), "info": version.info.number}


def lay_all(versions: list[Version], model: Model) -> Model:
    for one in versions:
        model = lay(one, model)
    return model


def same(one: Version, other: Version) -> bool:
    return one.info == other.info and all(
        one.shards[name].equals(other.shards[name]) for name in {*one.shards, *other.shards}
    )


@settings(deadline=None, derandomize=True)  # the first example may compile
@given(chains(), IDS)
def test_a_compacted_chain_does_what_its_versions_do_one_after_another(
    chain: list[Version], before: list[int]
) -> None:
    model = lay(version(0, before, [], before, snapshot=True), {})
    assert lay(compact_chain(chain), model) == lay_all(chain, model)


@settings(deadline=None, derandomize=True)  # the first example may compile
@given(chains(snapshot=True))
def test_a_snapshot_with_deltas_is_a_snapshot(chain: list[Version]) -> None:
    compacted = compact_chain(chain)
    assert compacted.info.base is None
    assert not any(name.endswith(".gone") for name in compacted.shards)
    assert lay(compacted, {("table-item", 99): (1.0,)}) == lay_all(chain, {})


@settings(deadline=None, derandomize=True)  # the first example may compile
@given(st.data())
def test_it_does_not_matter_which_are_compacted_first(data: st.DataObject) -> None:
    snapshot = data.draw(st.booleans())
    a, b, c = (
        version(n, data.draw(IDS), data.draw(IDS), data.draw(IDS), snapshot=snapshot and n == 1)
        for n in (1, 2, 3)
    )
    at_once = compact_chain([a, b, c])
    assert same(compact(compact(a, b), c), at_once)
    assert same(compact(a, compact(b, c)), at_once)


@settings(deadline=None, derandomize=True)  # the first example may compile
@given(chains())
def test_laying_a_compacted_version_twice_changes_nothing(chain: list[Version]) -> None:
    once = lay(compact_chain(chain), {})
    assert lay(compact_chain(chain), once) == once


def test_a_row_that_went_and_was_born_again_is_there() -> None:
    both = compact(version(1, [1, 2], [3], []), version(2, [2], [1, 2, 3], []))
    assert both.shards["table-item"].to_pylist() == [{"id": 2, "row": [2.0, 2.0]}]
    assert both.shards["table-item.gone"]["id"].to_pylist() == [3, 1, 2]


def test_a_snapshot_in_the_middle_contains_what_was_before_it() -> None:
    chain = [
        version(1, [1], [], [1]),
        version(2, [5], [], [], snapshot=True),
        version(3, [], [5], []),
    ]
    compacted = compact_chain(chain)
    assert compacted.info.base is None
    assert compacted.shards["table-item"].num_rows == compacted.shards["vectors"].num_rows == 0


def test_of_all_that_it_says_of_itself_only_the_base_is_the_first_ones() -> None:
    compacted = compact(version(1, [], [], []), version(2, [], [], []))
    assert compacted.info == VersionInfo("m", "a", 2, 0, 2, 2, 2, {}, {"loss": 2})


def test_a_shard_that_only_one_of_them_has_is_kept() -> None:
    first, second = version(1, [1], [], []), version(2, [2], [], [])
    extra = {"vectors.gone": gone([7]), "table-user": keyed([4], 1)}
    both = compact(Version(first.info, {**first.shards, **extra}), second)
    assert both.shards["vectors.gone"]["id"].to_pylist() == [7]
    assert both.shards["table-user"]["id"].to_pylist() == [4]


def test_nothing_is_copied_of_a_chain_of_one() -> None:
    alone = version(1, [1], [], [])
    assert compact_chain([alone]) is alone


@pytest.mark.parametrize(
    "second",
    [
        version(3, [], [], []),
        version(1, [], [], []),
        Version(info(2, lineage="b"), version(2, [], [], []).shards),
        Version(info(1, snapshot=True), version(2, [], [], []).shards),
    ],
    ids=["gap", "the same", "another lineage", "an older snapshot"],
)
def test_what_does_not_continue_is_refused(second: Version) -> None:
    with pytest.raises(ArtefactError, match=f"{second.info.name} does not continue m/a/1"):
        compact(version(1, [], [], []), second)


def test_rows_of_different_types_are_not_mixed() -> None:
    with pytest.raises(ArtefactError, match="table-item has rows of .*float.*one `wire`"):
        compact(version(1, [1], [], []), version(2, [2], [], [], wire="float16"))


def test_rows_of_half_the_width_stay_so() -> None:
    both = compact(*(version(n, [1, n], [], [n], wire="float16") for n in (1, 2)))
    assert both.shards["table-item"]["row"].type.value_type == pa.float16()
    assert column_matrix(both.shards["table-item"]["row"]).tolist() == [[2, 2], [2, 2]]


def test_rows_and_tombstones_are_counted() -> None:
    assert rows_in(version(1, [1, 2], [3], [4, 5, 6])) == 6


def test_a_million_rows_leave_one_of_each() -> None:
    rows = 1_000_000
    ids = np.random.default_rng(0).integers(0, 1 << 62, rows)
    halves = ids[: rows // 2 + 100], ids[rows // 2 - 100 :]
    tables = [pa.table({"id": i, "row": matrix_column(np.ones((len(i), 1)))}) for i in halves]
    versions = [Version(info(n), {"vectors": t}) for n, t in enumerate(tables, 1)]
    assert compact(*versions).shards["vectors"].num_rows == rows
