"""Why a request is not answered, each with the status it has in HTTP.

HeadraceError
└── Refusal              `status`, and `retry_after_s` if it makes sense to come again
    ├── BadBody          400  a body that cannot be read on
    ├── BodyTooSlow      408  it does not come
    ├── BodyTooLarge     413  it is over the limit
    ├── Invalid          422  something in it does not fit
    └── Overloaded       429  there is too much to do
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from streaming.errors import HeadraceError

_SHOWN = 300


class Refusal(HeadraceError):
    """Root of the tree; `str(error)` is the sentence that the client gets."""

    status: ClassVar[int] = 400
    retry_after_s: float | None = None


class BadBody(Refusal):
    """A body that cannot be read on."""


class BodyTooSlow(Refusal):
    """A body that does not come."""

    status = 408


class BodyTooLarge(Refusal):
    """A body that, unpacked, is over the limit."""

    status = 413


class Invalid(Refusal):
    """A value in a request that does not fit."""

    status = 422


class Overloaded(Refusal):
    """There is too much to do; the request was not begun."""

    status = 429

    def __init__(self, sentence: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(sentence)


def retry_after(seconds: float) -> str:
    """The value of the header `Retry-After`: whole seconds, at least one."""
    return str(max(1, math.ceil(seconds)))


def misfit(place: Sequence[int | str], value: object, reason: str) -> str:
    """The sentence for a value that does not fit.

    >>> misfit(["query", "k"], "0", "must be 1 or more")
    "k = '0': must be 1 or more"
    """
    shown = repr(value)
    if len(shown) > _SHOWN:
        shown = shown[: _SHOWN - 3] + "..."
    return f"{'.'.join(map(str, place[1:] or place))} = {shown}: {reason}"
