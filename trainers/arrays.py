"""Between numpy, torch and the Arrow columns of cuts and versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor


def matrix_column(matrix: NDArray[Any]) -> pa.FixedSizeListArray:
    """A matrix (n, d) as a column of n lists of d."""
    values = pa.array(np.ascontiguousarray(matrix).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(values, matrix.shape[1])


def column_matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """The matrix (n, d) that `matrix_column` took, as float32."""
    width = column.type.list_size
    flat = column.combine_chunks().flatten()
    matrix: NDArray[np.float32] = flat.to_numpy().reshape(-1, width)
    return matrix.astype(np.float32, copy=False)


def rows_table(ids: NDArray[np.int64], rows: NDArray[np.float32], wire: str) -> pa.Table:
    """Rows (n, d) by their ids (n,), as numbers of the type `wire`."""
    return pa.table({"id": ids, "row": matrix_column(rows.astype(wire, copy=False))})


def arrays_table(arrays: Mapping[str, NDArray[Any]]) -> pa.Table:
    """Arrays of any shapes and types as one table: a row for each, with its raw bytes."""
    return pa.table(
        {
            "name": pa.array(list(arrays), pa.string()),
            "type": pa.array([a.dtype.str for a in arrays.values()], pa.string()),
            "shape": pa.array([list(a.shape) for a in arrays.values()], pa.list_(pa.int64())),
            "data": pa.array(
                [np.ascontiguousarray(a).tobytes() for a in arrays.values()], pa.large_binary()
            ),
        }
    )


def table_arrays(table: pa.Table) -> dict[str, NDArray[Any]]:
    """The arrays that `arrays_table` took; each is a copy that may be written to."""
    return {
        row["name"]: np.frombuffer(row["data"], row["type"]).reshape(row["shape"]).copy()
        for row in table.to_pylist()
    }


def tensors_table(tensors: Mapping[str, Tensor]) -> pa.Table:
    """Dense tensors as one table."""
    return arrays_table({name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})


def table_tensors(table: pa.Table) -> dict[str, Tensor]:
    """The tensors that `tensors_table` took."""
    return {name: torch.from_numpy(array) for name, array in table_arrays(table).items()}
