"""What users searched for, search by search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.batch import Ids, Jagged, Moments
from streaming.kernels import GOLDEN, compiled_in_place, mix

Chosen = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Searches:
    """s searches of n users, one user after the other, oldest first.

    `words` are s lists; `offsets` (n + 1,) say which of them are whose, `at_us` (s,) when each was,
    and `suggested` (s,) which of them were not typed by their users.
    """

    words: Jagged
    offsets: Ids
    at_us: Ids
    suggested: Chosen

    @staticmethod
    def of(searched: Moments) -> Searches:
        """The searches that the words of n users belong to: those of one have the same time.

        >>> words = Jagged.of(np.array([7, 8, 9, 7]), np.array([3, 1]))
        >>> found = Searches.of(Moments(words, np.array([10, 10, 20, 20])))
        >>> found.words.lengths.tolist(), found.offsets.tolist()
        ([2, 1, 1], [0, 2, 3])
        """
        ids, at_us = searched.ids, searched.at_us
        begins = np.ones(len(at_us), np.bool_)
        begins[1:] = at_us[1:] != at_us[:-1]
        begins[ids.offsets[:-1][ids.lengths > 0]] = True
        first = np.flatnonzero(begins)
        words = Jagged(ids.values, np.append(first, len(at_us)))
        offsets = np.searchsorted(first, ids.offsets)
        return Searches(words, offsets, at_us[first], searched.suggested[first])

    def owners(self) -> Ids:
        """For each search the number of its user, (s,)."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def newest(self, count: int = 1) -> Chosen:
        """Which are the newest of their users, so many of each, (s,)."""
        ends = np.repeat(self.offsets[1:], np.diff(self.offsets))
        found: Chosen = ends - np.arange(len(ends)) <= count
        return found

    def where(self, chosen: Chosen) -> Searches:
        """The same users with only the chosen searches (s,)."""
        rows = np.flatnonzero(chosen)
        offsets = np.searchsorted(rows, self.offsets)
        return Searches(self.words.take(rows), offsets, self.at_us[rows], self.suggested[rows])

    def typed(self) -> Searches:
        """Those that users came to of their own accord."""
        return self.where(~self.suggested)

    def of_users(self) -> Jagged:
        """The words of all searches of each user, (n,) lists."""
        return Jagged(self.words.values, self.words.offsets[self.offsets])


def padded(rows: Tensor, offsets: Ids) -> tuple[Tensor, Tensor]:
    """The lists of rows (s, d) that `offsets` (n + 1,) say, as (n, L, d) with a mask (n, L); zeros
    behind what is there. L is the longest, at least 1.
    """
    lengths = torch.from_numpy(np.diff(offsets)).to(rows.device)
    longest = max(1, int(np.diff(offsets).max(initial=0)))
    mask = torch.arange(longest, device=rows.device) < lengths[:, None]
    found = rows.new_zeros(*mask.shape, rows.shape[1])
    return found.masked_scatter(mask[..., None], rows), mask


def bigrams(words: Jagged) -> Jagged:
    """Of each list the pairs of neighbours, each pair as an id of its own.

    >>> pairs = bigrams(Jagged.of(np.array([7, 8, 9, 8, 7]), np.array([3, 0, 2])))
    >>> pairs.lengths.tolist(), len(set(pairs.values.tolist()))
    ([2, 0, 1], 3)
    """
    found = Jagged.of(np.empty(0, np.int64), np.maximum(words.lengths - 1, 0))
    first = found.owners()  # a list has one pair less than words
    first = np.arange(len(first)) + words.offsets[first] - found.offsets[first]
    pairs = np.empty(len(first), np.int64)
    _combine(words.values, first, pairs)
    return Jagged(pairs, found.offsets)


@compiled_in_place
def _combine(words: Ids, first: Ids, pairs: Ids) -> None:
    for i in range(first.size):
        left, right = np.uint64(words[first[i]]), np.uint64(words[first[i] + 1])
        pairs[i] = np.int64(mix(mix(left + GOLDEN) ^ right) >> np.uint64(1))
