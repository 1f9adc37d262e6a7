"""Test-then-train: what the model would have answered, scored before it learns the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.batch import Jagged
from trainers.kernels import ranks_among


def best_scores(queries: Tensor, vectors: Tensor) -> Tensor:
    """The score of every item by the best of a user's K interests.

    (B, K, d) and (N, d) give (B, N); a dot product for each pair, the largest over K.
    """
    if queries.shape[1] == 1:  # saves a pass over B x N numbers
        return queries[:, 0] @ vectors.T
    return (queries @ vectors.T).amax(1)


def full_ranks(
    scores: NDArray[np.floating[Any]], targets: NDArray[np.int64], hidden: Jagged
) -> NDArray[np.int64]:
    """How many items of the whole corpus stand before each target, ties counted against it.

    Args:
        scores: (B, N), one row a query over the whole corpus.
        targets: (B,), the column of each query's item.
        hidden: for each query the columns that would not be shown (already seen), in any order;
            its target is shown even if it is among them.

    Returns:
        (B,): 0 = it would have come first.
    """
    order = np.lexsort((hidden.values, hidden.owners()))
    ranks = np.empty(len(targets), np.int64)
    ranks_among(scores, targets, hidden.values[order], hidden.offsets, ranks)
    return ranks


class ProgressiveRecall:
    """Recall@k over all samples so far, and over the recent ones.

    >>> recall = ProgressiveRecall([1, 10])
    >>> recall.update(np.array([0, 4, 99]))
    >>> recall.get()["recall@10"]
    0.6666666666666666
    """

    def __init__(self, ks: Sequence[int], name: str = "recall", half_life: float = 5_000) -> None:
        self._ks = np.array(ks)
        self._name = name
        self._half_life = half_life
        self._hits = np.zeros(len(ks))
        self._count = 0.0
        self._recent_hits = np.zeros(len(ks))
        self._recent_count = 0.0

    def update(self, ranks: NDArray[np.int64]) -> None:
        """Takes the ranks (n,) of a step's targets; a target outside the corpus ranks last."""
        hits = (ranks[:, None] < self._ks).sum(0)
        fade = 0.5 ** (len(ranks) / self._half_life)
        self._hits += hits
        self._count += len(ranks)
        self._recent_hits = fade * self._recent_hits + hits
        self._recent_count = fade * self._recent_count + len(ranks)

    def get(self) -> dict[str, float]:
        """`recall@k` and `recent_recall@k` for every k; nothing before the first update."""
        if self._count == 0:
            return {}
        figures = {}
        for i, k in enumerate(self._ks):
            figures[f"{self._name}@{k}"] = float(self._hits[i] / self._count)
            figures[f"recent_{self._name}@{k}"] = float(self._recent_hits[i] / self._recent_count)
        return figures

    def state(self) -> dict[str, NDArray[np.float64]]:
        counts = np.array([self._count, self._recent_count])
        figures = {"hits": self._hits, "recent_hits": self._recent_hits, "counts": counts}
        return {"ks": self._ks.astype(np.float64), **figures}

    def load(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Goes on counting, but for figures at other ranks, which begin anew."""
        if not np.array_equal(state["ks"], self._ks):
            return
        self._hits, self._recent_hits = state["hits"].copy(), state["recent_hits"].copy()
        self._count, self._recent_count = map(float, state["counts"])


def hidden_columns(
    rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]
) -> Tensor:
    """A bool matrix, True at the pairs (row, column); pairs with column -1 are left out."""
    hidden = np.zeros(shape, dtype=bool)
    there = columns >= 0
    hidden[rows[there], columns[there]] = True
    return torch.from_numpy(hidden)
