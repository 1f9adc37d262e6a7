"""Where the records lie in a Kafka record batch (message format 2), found by a compiled loop.

kafka-python reads every record with a dozen calls in Python, which is most of what consuming
costs. This is all that a consumer of keys and values needs of it. The batch has been decompressed
and its checksum compared; its bytes are checked against its bounds all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streaming.kernels import compiled

_ABSENT = -1
_COLUMNS = 6  # offset and time deltas; begin and end of the key, of the value


class Found(NamedTuple):
    """One record: its deltas to the batch, and where key and value lie; -1 where there is none."""

    offset_delta: int
    time_delta_ms: int
    key_start: int
    key_end: int
    value_start: int
    value_end: int


def find_records(
    buffer: bytes | bytearray | memoryview, start: int, count: int
) -> Iterator[tuple[int, ...]]:
    """A `Found` for each of the `count` records that fill the buffer from `start` on.

    They are plain tuples, for speed. Headers are passed over.

    Raises:
        ValueError: the bytes are no such records.
    """
    # No record is shorter than seven bytes, whatever the count says.
    if not 0 <= 7 * count <= len(buffer) - start:
        raise ValueError(f"{count} records do not fit into {len(buffer) - start} bytes")
    found = np.empty((count, _COLUMNS), dtype=np.int64)
    if not _find(np.frombuffer(buffer, np.uint8), start, found):
        raise ValueError("not a record batch of message format 2")
    return zip(*found.T.tolist(), strict=True)


@compiled
def _varint(data: NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    """A zigzag varint and the place behind it; -1 as the place where there is none before end."""
    value = np.uint64(0)
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = np.uint64(data[at])
        at += 1
        value |= (byte & np.uint64(127)) << np.uint64(shift)
        if byte < np.uint64(128):
            return int(np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1))), at
    return 0, -1


@compiled
def _find(data: NDArray[np.uint8], at: int, found: NDArray[np.int64]) -> bool:
    for row in range(len(found)):
        length, at = _varint(data, at, len(data))
        if at < 0 or not 1 <= length <= len(data) - at:
            return False
        end = at + length
        at += 1  # the attributes, of which there are none
        for column in (1, 0):  # the time comes before the offset
            found[row, column], at = _varint(data, at, end)
            if at < 0:
                return False
        for column in (2, 4):
            size, at = _varint(data, at, end)
            if at < 0 or size > end - at:
                return False
            found[row, column] = at if size >= 0 else _ABSENT
            at += max(size, 0)
            found[row, column + 1] = at if size >= 0 else _ABSENT
        headers, at = _varint(data, at, end)
        if at < 0 or headers < 0 or (headers == 0 and at != end):
            return False
        at = end
    return at == len(data)
