"""Arrays and tensors through Arrow tables and back, bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from trainers.arrays import (
    arrays_table,
    column_matrix,
    matrix_column,
    table_arrays,
    table_tensors,
    tensors_table,
)

ARRAYS: dict[str, NDArray[Any]] = {
    "scalar": np.array(2.5),
    "empty": np.empty(0, np.int64),
    "empty matrix": np.empty((0, 3), np.float32),
    "empty at the end": np.empty((3, 0), np.float32),
    "bool": np.array([[True, False], [False, True]]),
    "float32": np.array([1e-45, -0.0, np.inf, np.nan, 3.4e38], np.float32),
    "float64": np.arange(24.0).reshape(2, 3, 4) / 7,
    "int64": np.array([-(2**63), 2**63 - 1]),
    "int32": np.arange(6, dtype=np.int32).reshape(3, 2).T,  # not contiguous
    "bytes": np.frombuffer(b"\x00\xff", np.uint8),
}


def test_arrays_of_every_shape_and_type_come_back_as_they_were() -> None:
    back = table_arrays(arrays_table(ARRAYS))
    assert list(back) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert back[name].dtype == array.dtype, name
        assert back[name].shape == array.shape, name
        assert back[name].tobytes() == array.tobytes(), name


def test_the_arrays_that_come_back_are_writable_and_ones_own() -> None:
    table = arrays_table(ARRAYS)
    for array in table_arrays(table).values():
        array[...] = 1
    assert table_arrays(table)["float64"].tobytes() == ARRAYS["float64"].tobytes()


def test_a_table_of_arrays_shares_no_memory_with_them() -> None:
    array = np.arange(4.0)
    table = arrays_table({"a": array})
    array[:] = 9
    assert table_arrays(table)["a"].tolist() == [0, 1, 2, 3]


def test_no_arrays_at_all_come_back_as_none() -> None:
    assert table_arrays(arrays_table({})) == {}


def test_tensors_come_back_as_they_were() -> None:
    tensors = {
        "step": torch.tensor(3.0),
        "weight": torch.nn.Parameter(torch.randn(3, 5)),
        "mask": torch.tensor([True, False]),
        "count": torch.tensor([7], dtype=torch.int64),
    }
    back = table_tensors(tensors_table(tensors))
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
        assert not back[name].requires_grad


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_matrix_comes_back_from_a_column(rows: int) -> None:
    matrix = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    table = pa.Table.from_arrays([matrix_column(matrix)], ["row"])
    back = column_matrix(table["row"])
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, matrix)


def test_a_slice_of_a_column_is_that_part_of_the_matrix() -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(4, 3)
    table = pa.Table.from_arrays([matrix_column(matrix)], ["row"])
    np.testing.assert_array_equal(column_matrix(table.slice(1, 2)["row"]), matrix[1:3])
