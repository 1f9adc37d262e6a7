"""Asking for memory before it is needed, in loops over rows that lie anywhere.

The processor looks ahead by itself only until it guesses a branch wrong, and in a loop over rows
it soon does. A row that was asked for some rows ahead is there when its turn comes, which makes
such loops about twice as fast.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

from streaming.kernels import home, internal

AHEAD = 16  # rows to ask ahead: enough to hide memory's delay, few enough to stay in the cache
_LINE = 64  # bytes that come together


@internal
def prefetch(array: Any, row: int) -> None:
    """Asks for a row of a contiguous array; any number will do, also that of no row."""
    start = array.ctypes.data + row * array.strides[0]
    for address in range(start, start + array.strides[0], _LINE):
        _prefetch_line(address)


@internal
def prefetch_home(slots: Any, key: int) -> None:
    """Asks for the place in a map (`streaming.kernels`) where a key wants to lie."""
    prefetch(slots, 2 * int(np.int64(home(key, np.uint64(slots.size // 2)))))


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch_line(_typing: Any, address: Any) -> Any:
    """llvm.prefetch: for reading and writing, to be kept in all levels of cache, of data."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer, number = ir.PointerType(ir.IntType(8)), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        of = builder.inttoptr(arguments[0], pointer)
        builder.call(function, [of, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(address), generate
