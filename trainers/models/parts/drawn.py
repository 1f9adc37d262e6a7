"""A softmax against items drawn uniformly: for targets of which nobody knows how frequent they are.

What is drawn uniformly is as likely to be there as any other, so there is nothing to correct: with
the target put in its place, the sum over the drawn is that over the corpus but for a factor that is
the same in all steps (Jean et al., *On Using Very Large Target Vocabulary for Neural Machine
Translation*, ACL 2015). It serves targets within histories; those of samples have
`trainers.softmax.sampled_softmax`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def drawn_softmax(
    queries: Tensor, targets: Tensor, drawn: Tensor, same: Tensor, temperature: float
) -> Tensor:
    """The loss -log softmax(<q_i, .> / tau) of each target among itself and the drawn, (n,).

    Args:
        queries: (n, d).
        targets: (n, d), the vector of the item that each query should find.
        drawn: (D, d), vectors of the items drawn.
        same: (n, D), where a drawn item is the target itself: there it does not count.
        temperature: tau.
    """
    own = (queries * targets).sum(1, keepdim=True)  # (n, 1)
    others = (queries @ drawn.T).masked_fill(same, -torch.inf)  # (n, D)
    logits = torch.cat([own, others], dim=1) / temperature
    nothing = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits, nothing, reduction="none")
