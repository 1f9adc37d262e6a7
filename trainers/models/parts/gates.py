"""Gates: how much of the one, and how much of the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FusionGate(nn.Module):
    """Two views of users become one, each number by a gate of its own.

    Lv et al., *SDM: Sequential Deep Matching Model for Online Large-scale Recommender System*,
    CIKM 2019, section 3.5: with `G = sigmoid(W1 e + W2 s + W3 p + b)` it is `(1 - G) p + G s`.
    The gate sees each view with a root mean square of 1: views that are still short, as of rows
    that were seldom learnt, would hardly move it. It begins with the mean of both.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.weights = nn.Linear(3 * width, width)  # W1, W2, W3 side by side, and b
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)

    def forward(self, profile: Tensor, short: Tensor, long: Tensor) -> Tensor:
        """e, s and p, each (B, d), give (B, d)."""
        seen = [F.rms_norm(view, [self.width], eps=1e-6) for view in (profile, short, long)]
        return torch.lerp(long, short, torch.sigmoid(self.weights(torch.cat(seen, -1))))
