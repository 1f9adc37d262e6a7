"""Asking for memory ahead of time changes nothing but time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streaming.kernels import internal
from streaming.prefetch import prefetch


@internal
def ask(array: NDArray[Any], rows: NDArray[np.int64]) -> None:
    for row in rows:
        prefetch(array, row)


@pytest.mark.parametrize("shape", [(7,), (7, 0), (7, 1), (7, 48), (0, 16)])
def test_any_number_may_be_asked_for_also_that_of_no_row(shape: tuple[int, ...]) -> None:
    array = np.ones(shape, np.float32)
    ask(array, np.array([0, 6, 7, -1, 2**40, -(2**40), 2**63 - 1, -(2**63)]))
    assert (array == 1).all()
