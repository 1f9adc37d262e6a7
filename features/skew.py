"""Training-serving skew: what serving read of a user, held against what training got of him.

Both come from the same events, the one through the feature store, the other through the joiner.
What was read for a request is remembered until a sample of that request comes by.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat

from features.definitions import Feature, View

_NOBODY = -1  # stable ids are not negative
_THINNED = 16
Bits = NDArray[Any]  # a list of numbers, see `_bits`


class Outcome(StrEnum):
    """How what serving read of one feature compares with what training got."""

    SAME = "same"
    BEHIND = "behind"  # training got it with newer entries, else the same: serving was older
    DIFFERENT = "different"  # anything else


@dataclass(frozen=True)
class SkewConfig:
    """The newest `requests` answers are remembered, each for `wait_s` at most.

    Once there are half as many, it is only one answer of 16: where there are many, they reach back
    further so, and cost less.
    """

    requests: NonNegativeInt = 10_000
    wait_s: PositiveFloat = 3_600.0


@dataclass(frozen=True, slots=True)
class Compared:
    """What came of one request: an outcome for each feature, by name.

    `behind_s` is how old what serving read was, by the oldest entry that it lacked: 0 if that came
    after the reading, None if it lacked none.
    """

    request: int
    user: int
    outcomes: Mapping[str, Outcome]
    behind_s: float | None


class _Read(NamedTuple):
    """What was read for one request; None for what is no list of numbers."""

    user: int
    at_us: int
    lists: dict[str, Bits | None]


class Skew:
    """Remembers what was read of the list features of a view, and compares it with samples.

    Those that have a column in samples and belong to one of `view.sequences` are compared; of
    sequence i samples hold the newest `lengths[i]` entries. Memory is bounded by `requests` times
    the lists of one. Requests may be noted from other threads.

    >>> clicks = Feature("items", pa.list_(pa.int64()), "clicked", (), sample="history")
    >>> skew = Skew(View("clicks", "user_id", (clicks,), sequences=(("items",),)), lengths=[3])
    >>> for request, read in enumerate(([7, 8, 9], [6, 7, 8], [7, 8, 8])):
    ...     skew.note(request, user=1, read={"items": read}, now_us=0)
    >>> three = {"request_id": [0, 1, 2], "user_id": [1] * 3, "history": [[7, 8, 9]] * 3}
    >>> [str(one.outcomes["items"]) for one in skew.compare(pa.RecordBatch.from_pydict(three))]
    ['same', 'behind', 'different']
    """

    def __init__(
        self, view: View, lengths: Sequence[int], config: SkewConfig | None = None
    ) -> None:
        self.view = view
        self._config = config or SkewConfig()
        declared = {f.name: f for f in view.features if f.sample and "serving" in f.used}
        self._sequences = [
            ([declared[name] for name in names if name in declared], length)
            for names, length in zip(view.sequences, lengths, strict=True)
        ]
        self._features = [feature for features, _ in self._sequences for feature in features]
        self._lock = Lock()
        self._reads: OrderedDict[int, _Read] = OrderedDict()

    @property
    def names(self) -> list[str]:
        """The features that are compared."""
        return [feature.name for feature in self._features]

    def note(self, request: int, user: int, read: Mapping[str, Any], now_us: int) -> None:
        """Remembers the features of a user as they were read for a request; ids are stable ids."""
        if len(self._reads) > self._config.requests / 2 and request % _THINNED:
            return
        noted = _Read(user, now_us, {f.name: _read_bits(read, f) for f in self._features})
        with self._lock:
            self._reads[request] = noted
            if len(self._reads) > self._config.requests:
                self._reads.popitem(last=False)

    def waiting(self, now_us: int) -> int:
        """How many requests wait for a sample; those that did so for too long are forgotten."""
        oldest_us = now_us - self._config.wait_s * 1e6
        with self._lock:
            while self._reads and next(iter(self._reads.values())).at_us < oldest_us:
                self._reads.popitem(last=False)
            return len(self._reads)

    def compare(self, rows: pa.RecordBatch) -> list[Compared]:
        """Compares the samples of requests that are remembered, once for each request.

        A feature that the samples do not have, as those of an older release, has no outcome.
        """
        return [self._compared(request, read, rows, row)
                for request, read, row in self._due(rows)]  # fmt: skip

    def _due(self, rows: pa.RecordBatch) -> Iterator[tuple[int, _Read, int]]:
        """Of each remembered request what was read, and its first row; it is forgotten then."""
        requests = pc.fill_null(rows["request_id"], _NOBODY).to_numpy()
        with self._lock:
            due = self._reads.keys() & set(requests.tolist())
        if not due:
            return
        users = pc.fill_null(rows["user_id"], _NOBODY).to_numpy()
        for row in np.flatnonzero(np.isin(requests, list(due))).tolist():
            request = int(requests[row])
            with self._lock:
                read = self._reads.get(request)
                if read is None or read.user != users[row]:
                    continue
                del self._reads[request]
            yield request, read, row

    def _compared(self, request: int, read: _Read, rows: pa.RecordBatch, row: int) -> Compared:
        outcomes: dict[str, Outcome] = {}
        ages_us = []
        for features, length in self._sequences:
            got = {f.name: bits for f in features if (bits := _got_bits(rows, row, f)) is not None}
            pairs = {name: (read.lists[name], bits) for name, bits in got.items()}
            lacked = _lacked(list(pairs.values()), length)
            for name, pair in pairs.items():
                fits = _fits(*pair, lacked, length)
                known = Outcome.BEHIND if lacked else Outcome.SAME
                outcomes[name] = known if fits else Outcome.DIFFERENT
                # Of each sequence one list says when its entries happened.
                if name.endswith("at_us") and outcomes[name] is Outcome.BEHIND:
                    ages_us.append(max(0, read.at_us - int(got[name][-lacked])))
        behind_s = max(ages_us) / 1e6 if ages_us else None
        return Compared(request, read.user, outcomes, behind_s)


def _lacked(pairs: Sequence[tuple[Bits | None, Bits]], length: int) -> int:
    """How many of the newest entries were not read yet, as most features of a sequence say."""
    best, most = 0, 0
    for lacked in range(max((len(got) for _, got in pairs), default=0) + 1):
        fitting = sum(_fits(read, got, lacked, length) for read, got in pairs)
        if fitting > most:
            best, most = lacked, fitting
        if most == len(pairs):
            break
    return best


def _fits(read: Bits | None, got: Bits, lacked: int, length: int) -> bool:
    """Whether `got` is `read` and `lacked` newer entries, without those at the front for which
    there was no room. Of what was read something must be left to tell it by.
    """
    if read is None:
        return False
    kept = read[max(0, len(read) + lacked - length) :]
    if len(kept) + lacked != len(got) or len(kept) == 0:
        return len(read) == 0 and lacked == len(got)
    return bool(kept[0] == got[0]) and np.array_equal(kept, got[: len(kept)])


def _read_bits(read: Mapping[str, Any], feature: Feature) -> Bits | None:
    try:
        return _bits(read.get(feature.name) or (), feature)
    except (TypeError, ValueError, OverflowError):
        return None  # no request fails for it: the comparison will tell


def _got_bits(rows: pa.RecordBatch, row: int, feature: Feature) -> Bits | None:
    if feature.sample not in rows.schema.names:
        return None
    got = rows[feature.sample][row]
    return _bits(got.values.to_numpy(zero_copy_only=False), feature) if got.is_valid else None


def _bits(values: Any, feature: Feature) -> Bits:
    """Numbers of the feature's type as integers of the same bits, so that not-a-number, which
    stands for null too, equals itself.
    """
    dtype = np.dtype(feature.type.value_type.to_pandas_dtype())
    return np.array(values, dtype).view(np.dtype(f"i{dtype.itemsize}"))
