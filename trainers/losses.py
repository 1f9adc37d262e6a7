"""Losses that models share."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def sampled_softmax(  # noqa: PLR0913 - the formula's own terms
    queries: Tensor,
    candidates: Tensor,
    positive: Tensor,
    log_inclusion: Tensor,
    hidden: Tensor,
    weights: Tensor,
    temperature: float,
) -> Tensor:
    """Softmax over sampled candidates, corrected for how likely each was to be among them.

    `L = -sum_i w_i log softmax(<q_i, c_j> / tau - log p_j)[positive_i] / B`, the correction on
    every column, the positive's too (Yi et al., RecSys 2019). Divide by tau first, then correct:
    log p is in nats and knows nothing of the temperature.

    Args:
        queries: (B, d), of unit length.
        candidates: (C, d), of unit length, each item once.
        positive: (B,), the column of each query's own item.
        log_inclusion: (B, C), log of the probability that the item stands before the query as
            a negative of this step.
        hidden: (B, C), True where a candidate must not count as a negative of the query.
        weights: (B,), how much each sample counts.
        temperature: tau.
    """
    logits = queries @ candidates.T / temperature - log_inclusion
    logits = logits.masked_fill(hidden, float("-inf"))
    losses = F.cross_entropy(logits, positive, reduction="none")
    return (weights * losses).sum() / max(1, len(weights))
