"""Which items a retriever learns to tell from the right one, and how likely each came to be there.

Three sources: the items of the step's other samples, items drawn uniformly from the corpus, and
items of the samples before this step, of which only the vectors are taken, as they stand (Wang et
al., *Cross-Batch Negative Sampling for Training Two-Tower Recommenders*, SIGIR 2021). Each item is
one candidate however often it came up, so what the loss corrects for is that it came up at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt

from features.batch import Ids, Jagged
from trainers.softmax import Sampling

Frequency = Callable[[Ids], NDArray[np.float64]]


@dataclass(frozen=True)
class NegativesConfig:
    """Candidates beside the batch's own items.

    `uniform` items are drawn from the corpus for every step. The items of the last `remembered`
    samples are candidates too, at no more cost than a dot product. `corrected` subtracts the log
    of the probability of being a candidate from every logit.
    """

    uniform: NonNegativeInt = 512
    remembered: NonNegativeInt = 0
    corrected: bool = True


class Candidates(NamedTuple):
    """Places in the corpus: of the items to be learnt (C,), of the remembered (R,); and terms.

    `drawn` (n,) are those of the C, by number, that were drawn uniformly from the corpus.
    """

    places: Ids
    remembered: Ids
    sampling: Sampling
    drawn: Ids


class Negatives:
    """Chooses the candidates of every step; the past samples' items are its state."""

    def __init__(self, config: NegativesConfig, rng: np.random.Generator) -> None:
        self._config = config
        self._rng = rng
        self._past = np.empty(0, np.int64)  # places of the items of the samples before, in order

    def choose(
        self, users: Ids, places: Ids, history: Jagged, size: int, frequency: Frequency
    ) -> Candidates:
        """The candidates of a step of B samples.

        Args:
            users: (B,).
            places: (B,), of each sample's own item in a corpus of `size` items.
            history: for each sample the places of what the user took before; -1 is not there.
            size: of the corpus, at least 1.
            frequency: of the items at some places, in occurrences a sample.
        """
        drawn = self._rng.integers(size, size=self._config.uniform)
        chosen = np.unique(np.concatenate([places, drawn]))
        remembered = np.setdiff1d(self._past, chosen)
        columns = np.concatenate([chosen, remembered])
        positive = np.searchsorted(chosen, places)
        sampling = Sampling(
            torch.from_numpy(positive),
            *self._inclusion(users, columns, size, frequency),
            _hidden(users, positive, _index_in(columns, history)),
        )
        kept = self._config.remembered
        self._past = np.concatenate([self._past, places])[-kept:] if kept else self._past
        return Candidates(chosen, remembered, sampling, np.searchsorted(chosen, np.unique(drawn)))

    def _inclusion(
        self, users: Ids, columns: Ids, size: int, frequency: Frequency
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`log_inclusion` (U, C + R) and `level` (B,) of a step's `Sampling`.

        An item comes up in the samples of *other* users (a user's own are hidden from him), among
        the drawn, and in the samples before.
        """
        _, user, own = np.unique(users, return_inverse=True, return_counts=True)
        others, level = np.unique(len(users) - own[user], return_inverse=True)
        if not self._config.corrected:
            return torch.zeros(len(others), len(columns)), torch.from_numpy(level)
        expected = np.outer(others + len(self._past), frequency(columns))
        expected += self._config.uniform / size
        np.maximum(expected, 1e-9, out=expected)  # without a negative there is no chance at all
        inclusion = np.log(-np.expm1(-expected)).astype(np.float32)
        return torch.from_numpy(inclusion), torch.from_numpy(level)

    def state(self) -> dict[str, NDArray[np.int64]]:
        """The places of the past samples' items; the random generator is its owner's to keep."""
        return {"past": self._past.copy()}

    def load(self, state: dict[str, NDArray[np.int64]]) -> None:
        """Goes on where `state` was taken."""
        past = state["past"]
        self._past = past[max(0, len(past) - self._config.remembered) :].copy()


def _hidden(users: Ids, positive: Ids, history: Jagged) -> Jagged:
    """Candidates that the user took at another time are no negatives: history, and this batch."""
    _, user, counts = np.unique(users, return_inverse=True, return_counts=True)
    of_user = Jagged.of(positive[np.argsort(user, kind="stable")], counts)
    own = of_user.take(user)
    columns = np.concatenate([history.values, own.values])
    rows = np.concatenate([history.owners(), own.owners()])
    there = columns >= 0
    order = np.argsort(rows[there], kind="stable")
    lengths = np.bincount(rows[there], minlength=len(users))
    return Jagged.of(columns[there][order], lengths)


def _index_in(columns: Ids, places: Jagged) -> Jagged:
    """The places as numbers of columns; -1 where a place is no column."""
    order = np.argsort(columns)
    ordered = columns[order]
    at = np.minimum(np.searchsorted(ordered, places.values), len(ordered) - 1)
    found = np.where(ordered[at] == places.values, order[at], -1)
    return Jagged(found, places.offsets)
