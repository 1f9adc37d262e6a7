"""Lists of numbers by row, replaced whole in one array."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.batch import Jagged
from features.runs import Runs

PUTS = st.lists(
    st.dictionaries(st.integers(0, 9), st.lists(st.integers(-5, 5), max_size=6), max_size=5),
    max_size=12,
)


@given(PUTS)
def test_a_row_has_what_it_was_given_last(puts: list[dict[int, list[int]]]) -> None:
    runs = Runs(2)
    expected: dict[int, list[int]] = {row: [] for row in range(12)}
    for put in puts:
        expected |= put
        flat = Jagged.of(
            np.array([v for values in put.values() for v in values], np.int64),
            np.array([len(values) for values in put.values()], np.int64),
        )
        rows = np.array(list(put), np.int64)
        runs.put(rows, flat.offsets, np.column_stack([flat.values, -flat.values]))
    offsets, cells = runs.take(np.arange(12))
    found = [cells[a:b, 0].tolist() for a, b in pairwise(offsets)]
    assert found == [expected[row] for row in range(12)]
    assert (cells[:, 0] == -cells[:, 1]).all()


def test_what_is_replaced_takes_no_memory_for_long() -> None:
    runs, rows = Runs(1), np.arange(1_000)
    offsets = np.arange(1_001) * 50
    for turn in range(100):
        runs.put(rows, offsets, np.full((50_000, 1), turn))
    assert runs.cells.nbytes < 8 * 50_000 * 8
    assert (runs.take(rows)[1] == 99).all()
    runs.clear(rows[:500])
    assert len(runs.take(rows)[1]) == 25_000
