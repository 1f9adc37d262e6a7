"""Dynamic routing of behaviours to interests.

Li et al., *Multi-Interest Network with Dynamic Routing for Recommendation at Tmall*, CIKM 2019,
section 3.3, after Sabour, Frosst and Hinton, *Dynamic Routing Between Capsules*, NIPS 2017.
Interests are sums of behaviours; a behaviour goes to the interests that it agrees with.
"""

from __future__ import annotations

import torch
from torch import Tensor


def route(
    behaviours: Tensor, logits: Tensor, counts: Tensor, rounds: int, sharpness: float = 1.0
) -> Tensor:
    """Behaviours (B, L, d), zeros where there is none, to interests (B, K, d), shorter than 1.

    `logits` (B, L, K) are those that routing starts from; with equal ones all interests would stay
    the same. In each round behaviours are drawn to the interests that they agree with, the more by
    the `sharpness` (the paper's is 1). User i has `counts[i]` interests, at least 1; the others
    stay zeros. Only the last of the `rounds` has a gradient: what was agreed upon is given.
    """
    places = torch.arange(logits.shape[-1], device=logits.device)
    beyond = (places >= counts[:, None])[:, None]  # (B, 1, K)
    logits = logits.masked_fill(beyond, -torch.inf)
    fixed = behaviours.detach()
    for _ in range(rounds - 1):
        interests = squash(logits.softmax(-1).transpose(1, 2) @ fixed)  # (B, K, d)
        logits = logits + sharpness * (fixed @ interests.transpose(1, 2))
    return squash(logits.softmax(-1).transpose(1, 2) @ behaviours)


def squash(x: Tensor) -> Tensor:
    """The same directions with lengths below 1: |x|^2 / (1 + |x|^2)."""
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x * length / (1.0 + length.square())


def interest_counts(behaviours: Tensor, most: int) -> Tensor:
    """How many interests users with so many behaviours have: `max(1, min(most, log2 n))`, (B,)."""
    exponents = torch.frexp(behaviours.float()).exponent - 1  # floor(log2 n), without rounding
    return exponents.clamp(1, most).long()
