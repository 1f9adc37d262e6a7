"""What items are compared by: their values, and parts of their values, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from features.fields import Cells, as_numbers
from features.text import hashed_ngrams, hashed_texts, word_ids
from streaming.ids import stable_ids
from streaming.kernels import GOLDEN, compiled, mix

Ids = NDArray[np.int64]
_WORDS = 64  # of one text
_BUCKETS = 1 << 40  # of character n-grams
_DIGITS = (3, 2)
_EXACT, _WORD, _GRAM, _ROUNDED = (np.uint64(n << 60) for n in range(4))


@dataclass(frozen=True)
class ContentConfig:
    """How items are compared.

    An item counts with `features` features at most. To find its neighbours the rarest of them are
    followed, as many as lead to `postings` items together, and at least one; the items that they
    lead to are compared exactly. Where `ngrams` is not 0, so many characters in a row count as
    features too: for scripts that put no blanks between words.
    """

    features: PositiveInt = 256
    postings: PositiveInt = 20_000
    ngrams: NonNegativeInt = 0


@dataclass(frozen=True, slots=True)
class Features:
    """What `items` items are compared by: feature `ids[i]` belongs to item `owner[i]`, in the
    block `blocks[i]`. Each list is as long; the order does not matter.
    """

    items: int
    owner: Ids
    ids: Ids
    blocks: Ids

    @staticmethod
    def of(cells: Cells, items: int, config: ContentConfig) -> Features:
        """The features of values: of a text the whole, and its words if there are several; of a
        number itself and what it is with three digits and with two, so that 1994 is like 1989 and
        less like 1962. A block is a field.
        """
        seeds = stable_ids(cells.names).astype(np.uint64)[cells.field]
        texts = np.flatnonzero(np.isnan(cells.numbers))
        numbers = np.flatnonzero(~np.isnan(cells.numbers))
        found = [
            *_of_texts([cells.values[i] for i in texts.tolist()], texts, seeds[texts], config),
            *_of_numbers(cells.numbers[numbers], numbers, seeds[numbers]),
        ]
        where, ids = (np.concatenate(column) for column in zip(*found, strict=True))
        return Features(items, cells.owner[where], ids, cells.field[where])

    @staticmethod
    def of_values(field: str, values: Sequence[Any], config: ContentConfig) -> Features:
        """The features of one thing that has these values in one field."""
        zeros = np.zeros(len(values), np.int64)
        cells = Cells([field], zeros, zeros, list(values), as_numbers(values))
        return Features.of(cells, 1, config)


def _of_texts(
    texts: Sequence[str], where: Ids, seeds: NDArray[np.uint64], config: ContentConfig
) -> list[tuple[Ids, Ids]]:
    """Places among the cells, and a feature for each."""
    words = word_ids(texts, _WORDS, seeds ^ _WORD)
    several = np.repeat(words.lengths > 1, words.lengths)
    found = [
        (where, hashed_texts(texts, seeds ^ _EXACT)),
        (np.repeat(where, words.lengths)[several], words.values[several]),
    ]
    if config.ngrams:
        grams = hashed_ngrams(texts, config.ngrams, _BUCKETS, seeds ^ _GRAM)
        found.append((np.repeat(where, grams.lengths), grams.values))
    return found


def _of_numbers(
    numbers: NDArray[np.float64], where: Ids, seeds: NDArray[np.uint64]
) -> list[tuple[Ids, Ids]]:
    numbers = numbers + 0.0  # there is one zero
    found = [(where, _mixed(seeds ^ _EXACT, numbers.view(np.int64)))]
    for digits in _DIGITS:
        found.append((where, _mixed(seeds ^ _ROUNDED, _rounded(numbers, digits))))
    return found


def _rounded(numbers: NDArray[np.float64], digits: int) -> Ids:
    """The same for all numbers that read alike with so many digits.

    >>> a, b, c = _rounded(np.array([1994.0, 1989.0, 1962.0]), 3).tolist()
    >>> a == b, a == c
    (True, False)
    """
    there = np.where(np.isfinite(numbers) & (numbers != 0), np.abs(numbers), 1.0)
    exponent = np.floor(np.log10(there))
    leading = np.round(there / 10.0 ** (exponent - digits + 1))
    again = leading == 10**digits
    leading, exponent = np.where(again, leading / 10, leading), exponent + again
    signed = np.sign(numbers) * np.where(np.isfinite(numbers), leading, 10.0**digits)
    read: Ids = (signed.astype(np.int64) << 16) + exponent.astype(np.int64) * 16 + digits
    return read


@compiled
def _mixed(seeds: NDArray[np.uint64], numbers: Ids) -> Ids:
    found = np.empty(numbers.size, np.int64)
    for i in range(numbers.size):
        hashed = mix((mix(seeds[i] + GOLDEN) ^ np.uint64(numbers[i])) + GOLDEN)
        found[i] = np.int64(hashed >> np.uint64(1))
    return found
