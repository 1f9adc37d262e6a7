"""Flat JSON objects to columns at the speed of memory, where the objects are of the usual kind.

`scan` reads what nearly every producer writes: an object without escapes in its strings, with
fields of `EVENT_SCHEMA` in any order, each at most once. What is unusual it leaves alone: a row
that is not `found` may be good or bad, and the full parser has to say. It lets go of the
interpreter lock, so other threads run meanwhile.

The bytes come from outside and numba checks no bounds: every record ends with a NUL, which no
rule accepts, so that no scan runs past the end of its record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streaming.kernels import compiled

FIELDS = (
    "event_id", "kind", "user_id", "item_id", "request_id", "session_id", "scenario", "query",
    "value", "attributes", "at", "position",
)  # fmt: skip
MOST_BYTES = 2**31 - 1  # of all objects together
_VALUE, _ATTRIBUTES, _AT, _POSITION = (
    FIELDS.index(name) for name in ("value", "attributes", "at", "position")
)
_SPANS = _AT  # fields before it are found as spans of bytes, `at` and `position` as numbers
_NAMES = np.zeros((len(FIELDS), 16), dtype=np.uint8)
for _n, _name in enumerate(FIELDS):
    _NAMES[_n, : len(_name)] = np.frombuffer(_name.encode(), np.uint8)
_NAME_SIZES = np.array([len(name) for name in FIELDS])
_DAYS_BEFORE = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365])

_QUOTE, _BACKSLASH, _COMMA, _COLON, _OPEN, _CLOSE = (ord(c) for c in '"\\,:{}')
_OPEN_LIST, _CLOSE_LIST, _MINUS, _PLUS, _DOT, _ZERO, _NINE = (ord(c) for c in "[]-+.09")
_T, _Z, _N, _U, _L, _SMALL_E, _LARGE_E = (ord(c) for c in "TZnuleE")
_NO_NUMBER = -1

# The bytes that may be within a string and mean themselves.
_ASCII = np.arange(256) < 128
_PLAIN = np.arange(256) >= 32
_PLAIN[[_QUOTE, _BACKSLASH]] = False


class Scanned(NamedTuple):
    """What was found in n objects; only rows that are `found` mean anything.

    `spans` (n, 10, 2) has the first byte and the end of each of the first ten `FIELDS` within
    `text`, both 0 where the field is absent or null; the texts are valid UTF-8, `value` is a
    JSON number and `attributes` a text in balanced braces. `at_us` and `position` are -1 where
    they are absent or null.
    """

    text: NDArray[np.uint8]
    found: NDArray[np.bool_]
    spans: NDArray[np.int64]
    at_us: NDArray[np.int64]
    position: NDArray[np.int64]

    def strings(self, field: str) -> pa.Array:
        """One of the first ten fields as a string column; null where it is absent."""
        spans = self.spans[:, FIELDS.index(field)]
        sizes = spans[:, 1] - spans[:, 0]
        present = spans[:, 1] > 0
        if not present.any():
            return pa.nulls(len(spans), pa.string())
        offsets = np.zeros(len(spans) + 1, dtype=np.int64)
        np.cumsum(sizes, out=offsets[1:])
        copied = np.empty(offsets[-1], dtype=np.uint8)
        _copy_spans(self.text, spans, copied)
        validity = None
        if not present.all():
            validity = pa.py_buffer(np.packbits(present, bitorder="little"))
        buffers = [validity, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(copied)]
        return pa.Array.from_buffers(pa.string(), len(spans), buffers)


def scan(values: Sequence[bytes]) -> Scanned:
    """Looks at each value as a flat JSON object; together at most `MOST_BYTES`.

    That counts one byte more for each."""
    joined = b"\0".join([*values, b""])
    n = len(values)
    ends = np.cumsum(np.fromiter(map(len, values), np.int64, n) + 1) - 1
    scanned = Scanned(
        np.frombuffer(joined, np.uint8),
        np.zeros(n, dtype=np.bool_),
        np.zeros((n, _SPANS, 2), dtype=np.int64),
        np.full(n, _NO_NUMBER, dtype=np.int64),
        np.full(n, _NO_NUMBER, dtype=np.int64),
    )
    plain = _PLAIN if _is_utf8(joined) else _PLAIN & _ASCII
    _scan_objects(ends, plain, *scanned)
    return scanned


def _is_utf8(text: bytes) -> bool:
    """Whether all of it is; no character spans the NUL between two records."""
    if text.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


@compiled
def _copy_spans(
    text: NDArray[np.uint8], spans: NDArray[np.int64], copied: NDArray[np.uint8]
) -> None:
    at = 0
    for row in range(len(spans)):
        for i in range(spans[row, 0], spans[row, 1]):
            copied[at] = text[i]
            at += 1


@compiled
def _skip_space(text: NDArray[np.uint8], i: int) -> int:
    while text[i] == 32 or text[i] == 10 or text[i] == 13 or text[i] == 9:
        i += 1
    return i


@compiled
def _string_end(text: NDArray[np.uint8], i: int, plain: NDArray[np.bool_]) -> int:
    """Where the closing quote of a plain string is whose first byte is at i; else -1."""
    while plain[text[i]]:
        i += 1
    return i if text[i] == _QUOTE else -1


@compiled
def _object_end(text: NDArray[np.uint8], i: int, plain: NDArray[np.bool_]) -> int:
    """One past the brace that closes the one at i; else -1. What is within is only balanced."""
    depth = 0
    within_string = False
    while text[i] != 0 and (text[i] < 128 or plain[text[i]]):
        if within_string:
            if text[i] == _BACKSLASH:
                i += 1
                if text[i] == 0:
                    return -1
            elif text[i] == _QUOTE:
                within_string = False
        elif text[i] == _QUOTE:
            within_string = True
        elif text[i] == _OPEN:
            depth += 1
        elif text[i] == _CLOSE:
            depth -= 1
            if depth == 0:
                return i + 1
        i += 1
    return -1


@compiled
def _digits_end(text: NDArray[np.uint8], i: int) -> int:
    while _ZERO <= text[i] <= _NINE:
        i += 1
    return i


@compiled
def _number_end(text: NDArray[np.uint8], i: int) -> int:
    """One past a JSON number at i; else -1. A minus before an integer zero is left alone."""
    negative = text[i] == _MINUS
    first = i + 1 if negative else i
    i = _digits_end(text, first)
    if i == first or (text[first] == _ZERO and i > first + 1):
        return -1
    integer = True
    if text[i] == _DOT:
        integer = False
        first_decimal = i + 1
        i = _digits_end(text, first_decimal)
        if i == first_decimal:
            return -1
    if text[i] == _SMALL_E or text[i] == _LARGE_E:
        integer = False
        i += 1
        if text[i] == _MINUS or text[i] == _PLUS:
            i += 1
        first_power = i
        i = _digits_end(text, first_power)
        if i == first_power:
            return -1
    if integer and negative and text[first] == _ZERO:
        return -1
    return i


@compiled
def _number(text: NDArray[np.uint8], i: int, digits: int) -> int:
    """The number that so many digits make, the first at i; else -1."""
    number = np.int64(0)
    for k in range(i, i + digits):
        if not _ZERO <= text[k] <= _NINE:
            return -1
        number = 10 * number + np.int64(text[k]) - _ZERO
    return int(number)


@compiled
def _time_us(text: NDArray[np.uint8], i: int, end: int) -> int:  # noqa: PLR0911, PLR0912
    """Microseconds since 1970 of `2026-11-21T10:00:00[.123456][Z|+00:00]`; else -1."""
    if end - i < 19:
        return -1
    if text[i + 4] != _MINUS or text[i + 7] != _MINUS or text[i + 10] != _T:
        return -1
    if text[i + 13] != _COLON or text[i + 16] != _COLON:
        return -1
    year, month, day = _number(text, i, 4), _number(text, i + 5, 2), _number(text, i + 8, 2)
    hour, minute = _number(text, i + 11, 2), _number(text, i + 14, 2)
    second = _number(text, i + 17, 2)
    if year < 1970 or not 1 <= month <= 12 or day < 1:
        return -1
    if not 0 <= hour <= 23 or not 0 <= minute <= 59 or not 0 <= second <= 59:
        return -1
    leap = (year % 4 == 0 and year % 100 != 0) or year % 400 == 0
    if day > _DAYS_BEFORE[month] - _DAYS_BEFORE[month - 1] + (1 if leap and month == 2 else 0):
        return -1
    i += 19
    fraction_us = 0
    if text[i] == _DOT:
        digits = _digits_end(text, i + 1) - (i + 1)
        if not 1 <= digits <= 6:
            return -1
        fraction_us = _number(text, i + 1, digits) * 10 ** (6 - digits)
        i += 1 + digits
    if text[i] == _Z:
        i += 1
    elif text[i] == _PLUS:
        if end - i != 6 or text[i + 3] != _COLON:
            return -1
        if _number(text, i + 1, 2) != 0 or _number(text, i + 4, 2) != 0:
            return -1
        i = end
    if i != end:
        return -1
    past = year - 1  # whole years before this one
    days = 365 * past + past // 4 - past // 100 + past // 400 - 719_162
    days += _DAYS_BEFORE[month - 1] + day - 1 + (1 if leap and month > 2 else 0)
    minutes = (days * 24 + hour) * 60 + minute
    return int(minutes * 60_000_000 + second * 1_000_000 + fraction_us)


@compiled
def _field(text: NDArray[np.uint8], i: int, end: int) -> int:
    """Which of `FIELDS` the bytes from i to the end name; else -1."""
    for field in range(len(_NAME_SIZES)):
        if _NAME_SIZES[field] != end - i:
            continue
        k = 0
        while k < end - i and text[i + k] == _NAMES[field, k]:
            k += 1
        if k == end - i:
            return field
    return -1


@compiled
def _scan_value(  # noqa: PLR0911
    text: NDArray[np.uint8],
    i: int,
    field: int,
    plain: NDArray[np.bool_],
    spans: NDArray[np.int64],
    numbers: NDArray[np.int64],
) -> int:
    """One past the value at i, which it notes as that of the field; else -1."""
    if text[i] == _N:
        null = text[i + 1] == _U and text[i + 2] == _L and text[i + 3] == _L
        return i + 4 if null else -1
    if field == _POSITION:
        end = _digits_end(text, i)
        if not 1 <= end - i <= 9 or (text[i] == _ZERO and end - i > 1):
            return -1
        numbers[1] = _number(text, i, end - i)
        return end
    if field == _VALUE:
        end = _number_end(text, i)
        after = end
    elif field == _ATTRIBUTES:
        end = _object_end(text, i, plain) if text[i] == _OPEN else -1
        after = end
    else:
        if text[i] != _QUOTE:
            return -1
        i += 1
        end = _string_end(text, i, plain)
        after = end + 1
    if end < 0:
        return -1
    if field == _AT:
        numbers[0] = _time_us(text, i, end)
        return after if numbers[0] >= 0 else -1
    spans[field, 0] = i
    spans[field, 1] = end
    return after


@compiled
def _scan_object(  # noqa: PLR0911
    text: NDArray[np.uint8],
    i: int,
    plain: NDArray[np.bool_],
    spans: NDArray[np.int64],
    numbers: NDArray[np.int64],
) -> int:
    """One past the object at i, and past the space around it; else -1."""
    i = _skip_space(text, i)
    if text[i] != _OPEN:
        return -1
    seen = 0
    while text[i] != _CLOSE:
        i = _skip_space(text, i + 1)  # past the brace, later past a comma
        if text[i] != _QUOTE:
            return -1
        end = _string_end(text, i + 1, plain)
        field = _field(text, i + 1, end) if end >= 0 else -1
        if field < 0 or (seen >> field) & 1:
            return -1
        seen |= 1 << field
        i = _skip_space(text, end + 1)
        if text[i] != _COLON:
            return -1
        i = _scan_value(text, _skip_space(text, i + 1), field, plain, spans, numbers)
        if i < 0:
            return -1
        i = _skip_space(text, i)
        if text[i] != _COMMA and text[i] != _CLOSE:
            return -1
    return _skip_space(text, i + 1)


@compiled
def _scan_objects(  # noqa: PLR0913 - as above
    ends: NDArray[np.int64],
    plain: NDArray[np.bool_],
    text: NDArray[np.uint8],
    found: NDArray[np.bool_],
    spans: NDArray[np.int64],
    at_us: NDArray[np.int64],
    position: NDArray[np.int64],
) -> None:
    numbers = np.empty(2, dtype=np.int64)
    start = 0
    for row in range(len(ends)):
        numbers[:] = _NO_NUMBER
        found[row] = _scan_object(text, start, plain, spans[row], numbers) == ends[row]
        if found[row]:
            at_us[row], position[row] = numbers[0], numbers[1]
        else:
            spans[row] = 0
        start = ends[row] + 1
