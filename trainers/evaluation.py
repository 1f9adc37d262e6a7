"""Test-then-train: what the model would have answered, scored before it learns the truth."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from features.batch import Jagged
from trainers.kernels import ranks_among
from trainers.tally import Sums, TallyMetric

NOT_FOUND = np.iinfo(np.int64).max  # the rank of an item that is not in the corpus


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


def corpus_ranks(
    scores: NDArray[np.floating[Any]], targets: NDArray[np.int64], hidden: Jagged
) -> NDArray[np.int64]:
    """As `full_ranks`; targets, and columns that are not shown, may be -1: not in the corpus. The
    rank of such a target is `NOT_FOUND`, behind all.
    """
    ranks = full_ranks(scores, np.maximum(targets, 0), hidden.where(hidden.values >= 0))
    return np.where(targets >= 0, ranks, NOT_FOUND)


def predicted_hits(
    scores: NDArray[np.float32], hidden: Jagged, temperature: float, k: int
) -> NDArray[np.float64]:
    """The chance that each user's next item is among his k best, as the model itself says.

    It is the part of his softmax over the whole corpus that falls on them. Over many users it adds
    up to the items that are found, if the model knows how much it knows.

    Args:
        scores: (B, N), one row a user over the whole corpus.
        hidden: for each user, and maybe others behind them, the columns that are not shown.
        temperature: what the scores are divided by.
        k: how many are shown.
    """
    logits = scores.astype(np.float64) / temperature
    for row, (begin, end) in enumerate(itertools.pairwise(hidden.offsets[: len(scores) + 1])):
        logits[row, hidden.values[begin:end]] = -np.inf
    weights = np.exp(logits - logits.max(1, keepdims=True))
    best = np.partition(weights, -min(k, weights.shape[1]), axis=1)[:, -k:]
    chances: NDArray[np.float64] = best.sum(1) / weights.sum(1)
    return chances


class RankingQuality(TallyMetric):
    """Recall@k and NDCG@k of targets ranked among the whole corpus, all so far and the recent.

    One item is relevant to each query, so the best possible gain is 1 and NDCG@k is the mean of
    `1 / log2(2 + rank)` over the targets, 0 where the rank (0 = first) is not below k (Järvelin and
    Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002).

    >>> quality = RankingQuality([1, 10])
    >>> quality.update(np.array([0, 2, 99]))
    >>> quality.get()["recall@10"], quality.get()["ndcg@10"]
    (0.6666666666666666, 0.5)
    """

    name = "ranking"

    def __init__(self, ks: Sequence[int], prefix: str = "", half_life: int = 5_000) -> None:
        super().__init__(1, 1 + 2 * len(ks), half_life)
        self._ks = np.array(ks)
        self._prefix = prefix

    def update(self, ranks: NDArray[np.int64]) -> None:
        """Takes the ranks (n,) of a step's targets; a target outside the corpus ranks last."""
        hits = ranks[:, None] < self._ks  # (n, k)
        gains = hits / np.log2(2.0 + ranks)[:, None]
        values = np.concatenate([np.ones((len(ranks), 1)), hits, gains], 1)
        self._tally.add(np.zeros((len(ranks), 1), np.int64), values)

    def figures(self, sums: Sums) -> dict[str, float]:
        """`recall@k` and `ndcg@k` for every k; nothing before the first update."""
        count, *parts = sums[0].tolist()
        if count == 0:
            return {}
        names = [f"{self._prefix}{n}@{k}" for n in ("recall", "ndcg") for k in self._ks]
        return {name: part / count for name, part in zip(names, parts, strict=True)}

    def state(self) -> dict[str, NDArray[Any]]:
        return {**super().state(), "ks": self._ks.copy()}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on counting, but for figures at other ranks, which begin anew."""
        if np.array_equal(state["ks"], self._ks):
            super().load(state)
