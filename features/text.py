"""Text as numbers: words, and hashed character n-grams for scripts without blanks between words.

Case does not count. A word is a run of letters, digits and underscores; beyond ASCII everything
belongs to words but for Latin-1 signs and the punctuation blocks of Unicode.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from features.batch import Jagged
from streaming.kernels import GOLDEN, compiled, internal, mix

Ids = NDArray[np.int64]
Seeds = NDArray[np.uint64]
_START, _END = 2, 3  # stand before the first and behind the last character; no text has them


def hashed_texts(texts: Sequence[str], seeds: Seeds | None = None) -> Ids:
    """A number of 63 bits for each text (n,), the same in every process.

    `seeds` (n,) tell equal texts in different places apart, here as below.
    """
    letters, starts = _letters(texts)
    values = np.empty(len(texts), np.int64)
    _hash_pieces(letters, starts[:-1], starts[1:], _seeds(texts, seeds), values)
    return values


def word_ids(texts: Sequence[str], most: int, seeds: Seeds | None = None) -> Jagged:
    """A number of 63 bits for each of the first `most` words of each text.

    >>> found = word_ids(["Heat", "", "In the HEAT of the Night (1967)"], 64)
    >>> found.lengths.tolist()
    [1, 0, 7]
    >>> bool(found.values[0] == found.values[3])
    True
    """
    letters, starts = _letters(texts)
    lengths = np.zeros(len(texts), np.int64)
    nowhere = np.empty(0, np.int64)
    _find_words(letters, starts, most, lengths, nowhere, nowhere)
    found = Jagged.of(np.empty(lengths.sum(), np.int64), lengths)
    begins, ends = np.empty_like(found.values), np.empty_like(found.values)
    _find_words(letters, starts, most, lengths, begins, ends)
    _hash_pieces(letters, begins, ends, np.repeat(_seeds(texts, seeds), lengths), found.values)
    return found


def hashed_ngrams(
    texts: Sequence[str], size: int, buckets: int, seeds: Seeds | None = None
) -> Jagged:
    """The runs of `size` characters of each text, each hashed to 0 to `buckets` - 1.

    One mark stands before the text and one behind it, so that a text of n characters has
    n + 3 - `size` runs, or none. Two runs share a bucket with probability 1 / `buckets`
    (Weinberger et al. 2009, Feature Hashing for Large Scale Multitask Learning).

    >>> grams = hashed_ngrams(["heat", "Wheat"], 3, 1_000)
    >>> grams.lengths.tolist()
    [4, 5]
    >>> len(set(grams.values[:4]) & set(grams.values[4:]))  # hea, eat, and at the end
    3
    """
    letters, starts = _letters(texts)
    lengths = np.maximum(0, np.diff(starts) + 3 - size)
    grams = Jagged.of(np.empty(lengths.sum(), np.int64), lengths)
    _hash_ngrams(
        letters, starts, _seeds(texts, seeds), size, buckets, grams.offsets, grams.values
    )  # fmt: skip
    return grams


def _letters(texts: Sequence[str]) -> tuple[NDArray[np.uint32], Ids]:
    """The code points of all texts, and where each text starts and the last one ends."""
    folded = [text.casefold() for text in texts]
    lengths = np.fromiter(map(len, folded), np.int64, len(folded))
    letters = np.frombuffer("".join(folded).encode("utf-32-le"), np.uint32)
    return letters, np.append(0, np.cumsum(lengths))


def _seeds(texts: Sequence[str], seeds: Seeds | None) -> Seeds:
    return np.zeros(len(texts), np.uint64) if seeds is None else seeds


# -- compiled --------------------------------------------------------------------------------


@internal
def _next(hashed: np.uint64, letter: np.uint64) -> np.uint64:
    return mix((hashed ^ letter) + GOLDEN)


@internal
def _in_word(letter: int) -> bool:
    """Whether a code point, which is in small letters, belongs to a word."""
    if letter < 0x80:
        return 0x61 <= letter <= 0x7A or 0x30 <= letter <= 0x39 or letter == 0x5F
    if letter < 0xC0:
        return letter in (0xAA, 0xB5, 0xBA)
    if letter in (0xD7, 0xF7):
        return False
    return not (
        0x2000 <= letter <= 0x206F
        or 0x2E00 <= letter <= 0x2E7F
        or 0x3000 <= letter <= 0x3004
        or 0x3008 <= letter <= 0x3020
        or letter in (0x3030, 0x30FB)
        or 0xFF00 <= letter <= 0xFF0F
        or 0xFF1A <= letter <= 0xFF20
        or 0xFF3B <= letter <= 0xFF40
        or 0xFF5B <= letter <= 0xFF65
    )


@compiled
def _find_words(
    letters: NDArray[np.uint32], starts: Ids, most: int, lengths: Ids, begins: Ids, ends: Ids
) -> None:
    """How many words each text has, and, where there is room for it, where each lies."""
    found = 0
    for text in range(starts.size - 1):
        count, at = 0, starts[text]
        while at < starts[text + 1] and count < most:
            begin = at
            while at < starts[text + 1] and _in_word(letters[at]):
                at += 1
            if at > begin:
                if begins.size > 0:
                    begins[found], ends[found] = begin, at
                found += 1
                count += 1
            at += 1
        lengths[text] = count


@compiled
def _hash_pieces(
    letters: NDArray[np.uint32], begins: Ids, ends: Ids, seeds: Seeds, values: Ids
) -> None:
    for i in range(values.size):
        hashed = mix(seeds[i] + GOLDEN)
        for at in range(begins[i], ends[i]):
            hashed = _next(hashed, np.uint64(letters[at]))
        values[i] = np.int64(hashed >> np.uint64(1))


@compiled
def _hash_ngrams(  # noqa: PLR0913 - two jagged arrays
    letters: NDArray[np.uint32],
    starts: Ids,
    seeds: Seeds,
    size: int,
    buckets: int,
    offsets: Ids,
    values: Ids,
) -> None:
    for text in range(starts.size - 1):
        length = starts[text + 1] - starts[text]
        for gram in range(offsets[text + 1] - offsets[text]):
            hashed = mix(seeds[text] + np.uint64(size))
            for i in range(gram, gram + size):
                letter = np.uint64(_START) if i == 0 else np.uint64(_END)
                if 0 < i <= length:
                    letter = np.uint64(letters[starts[text] + i - 1])
                hashed = _next(hashed, letter)
            values[offsets[text] + gram] = np.int64(hashed % np.uint64(buckets))
