"""Negatives that are made harder by mixing something of the right item into them.

Li et al., *Embedding-based Product Retrieval in Taobao Search*, KDD 2021, section 3.4.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from trainers.softmax import Sampling


def mixed_softmax(  # noqa: PLR0913 - the formula's own terms
    queries: Tensor,
    candidates: Tensor,
    sampling: Sampling,
    temperature: float,
    hard: int,
    mixed: tuple[float, float],
    drawn_from: Generator,
) -> Tensor:
    """The loss (B,) of each query's own item among mixes of it with the `hard` candidates that the
    query finds best: `a own + (1 - a) other`, a drawn uniformly between the two of `mixed`.

    The score of a mix is the mix of the scores, so no vector is mixed. Hidden candidates are in no
    mix, and a query that has no other left has loss 0. Queries (B, d), candidates (C, d).
    """
    positive, hidden = sampling.positive.to(queries.device), sampling.hidden
    with torch.no_grad():
        scores = queries @ candidates.T  # (B, C)
        rows, columns = (torch.from_numpy(x) for x in (hidden.owners(), hidden.values))
        scores[rows.to(scores.device), columns.to(scores.device)] = -torch.inf
        scores.scatter_(1, positive[:, None], -torch.inf)
        best, chosen = scores.topk(min(hard, scores.shape[1]))  # (B, n)
    own = (queries * candidates[positive]).sum(1, keepdim=True)  # (B, 1)
    others = torch.einsum("bd,bnd->bn", queries, candidates[chosen])
    low, high = mixed
    share = low + (high - low) * torch.rand(best.shape, generator=drawn_from)
    behind = (1.0 - share.to(queries.device)) * (others - own) / temperature
    behind = behind.masked_fill(best.isinf(), -torch.inf)
    return F.pad(behind, (1, 0)).logsumexp(1)
