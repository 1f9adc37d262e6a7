"""Rings: what changed of them, and what is restored from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming import rings as rings_module
from streaming.artefact import Artefact
from streaming.cuts import CutDirectory, merge
from streaming.event_columns import MOMENT
from streaming.rings import Rings

NOBODY = np.empty(0, np.int64)
USERS = range(7)


def give(rings: Rings, users: Sequence[int]) -> None:
    """A record to each, of ever higher ids."""
    records = np.zeros(len(users), MOMENT)
    records["id"] = given_before(rings) + np.arange(len(users))
    records["at_us"] = records["id"] % 5
    rings.take(np.arange(len(users)), np.array(users, np.int64), records, NOBODY, NOBODY)


def given_before(rings: Rings) -> int:
    return int(rings.tables("r")["r"]["clock"].to_numpy().max(initial=0))


def contents(rings: Rings) -> dict[int, tuple[list[int], int]]:
    lists, newest_us = rings.get(np.array(USERS))
    starts = zip(USERS, lists.offsets[:-1], lists.offsets[1:], newest_us.tolist(), strict=True)
    return {user: (lists.records["id"][a:b].tolist(), at_us) for user, a, b, at_us in starts}


def sizes(tables: dict[str, pa.Table]) -> tuple[int, int]:
    """Users and records."""
    return tables["r"].num_rows, tables["r-records"].num_rows


def restored(state: Artefact, length: int, users: int) -> Rings:
    rings = Rings(MOMENT, length, users)
    rings.restore("r", state.shards)
    return rings


@given(
    st.lists(st.tuples(st.lists(st.sampled_from(USERS), max_size=9), st.booleans()), max_size=9),
    st.integers(0, 3),
    st.integers(1, 8),
    st.sampled_from([4, 1 << 20]),
    st.tuples(st.integers(0, 4), st.integers(1, 8)),
)
def test_what_changed_is_enough_to_restore_it_at_any_cut(
    batches: list[tuple[list[int], bool]],
    length: int,
    users: int,
    told: int,
    other: tuple[int, int],
) -> None:
    """Also where cuts are not settled, bounds are tiny, and more changed than was noted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rings_module, "_TOLD", told)
        rings = Rings(MOMENT, length, users)
        durable = rings.mark()
        chain = [Artefact({}, rings.tables("r"))]
        for batch, settles in batches:
            give(rings, batch)
            mark = rings.mark()
            chain.append(Artefact({}, rings.tables("r", durable)))
            durable = mark if settles else durable
            state = merge(chain)
            again = restored(state, length, users)
            assert contents(again) == contents(rings)
            for one, table in again.tables("r").items():
                assert table.equals(rings.tables("r")[one], check_metadata=True)
            # With other bounds it is as a whole cut gives it, and goes on as that does.
            bounded, whole = (
                restored(Artefact({}, tables), *other)
                for tables in (dict(state.shards), rings.tables("r"))
            )
            give(bounded, batch[::-1])
            give(whole, batch[::-1])
            assert contents(bounded) == contents(whole)


def test_what_changed_is_told_and_no_more() -> None:
    rings = Rings(MOMENT, length=100, users=10)
    give(rings, [0, 1, 2, 3] * 50)
    mark = rings.mark()
    assert sizes(rings.tables("r", mark)) == (0, 0)
    give(rings, [2, 3, 2])
    assert sizes(rings.tables("r", mark)) == (2, 3)
    assert sizes(rings.tables("r")) == (4, 203)
    assert sizes(rings.tables("r", rings.mark())) == (0, 0)
    give(rings, [2] * 1_000)
    assert sizes(rings.tables("r", mark)) == (2, 101)  # his ring, and one of the other's


def test_more_than_is_noted_is_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rings_module, "_TOLD", 4)
    rings = Rings(MOMENT, length=2, users=10)
    give(rings, [0, 1, 2])
    mark = rings.mark()
    give(rings, [2] * 4)
    assert sizes(rings.tables("r", mark)) == (1, 2)
    give(rings, [2])
    assert sizes(rings.tables("r", mark)) == sizes(rings.tables("r")) == (3, 4)


def test_who_is_forgotten_leaves_nothing_behind_in_a_cut(tmp_path: Path) -> None:
    """Of any number of users a chain of cuts has rows for as many as are kept."""
    rings, cuts = Rings(MOMENT, length=2, users=3), CutDirectory(tmp_path)
    mark = rings.mark()
    cuts.save({}, Artefact({}, rings.tables("r")))
    for first in range(0, 60, 6):
        give(rings, range(first, first + 6))
        cuts.extend({}, Artefact({}, rings.tables("r", mark)))
        mark = rings.mark()
    state, _ = cuts.newest()
    assert state is not None
    assert sizes(dict(state.shards)) == (3, 3)
    assert sorted(state.shards["r"]["user_id"].to_pylist()) == [57, 58, 59]


@pytest.mark.parametrize("marked", [False, True])
def test_tables_share_no_memory_with_the_rings(marked: bool) -> None:
    rings = Rings(MOMENT, length=2, users=3)
    mark = rings.mark() if marked else None
    give(rings, [0, 1])
    tables = rings.tables("r", mark)
    before = {name: table.to_pydict() for name, table in tables.items()}
    give(rings, [0, 1, 0, 5, 6, 7, 7])
    assert {name: table.to_pydict() for name, table in tables.items()} == before


def test_the_memory_that_notes_what_changed_is_taken_by_who_asks() -> None:
    rings = Rings(MOMENT, length=2, users=3)
    give(rings, [0, 1])
    assert sum(array.nbytes for array in rings.arrays) < 10_000
    rings.mark()
    assert sum(array.nbytes for array in rings.arrays) > 8_000_000
