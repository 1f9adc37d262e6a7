"""Attention over sequences of different lengths.

Vaswani et al., *Attention Is All You Need*, NIPS 2017. What is not there (mask False) is never
attended to, and who has nothing to attend to gets zeros, not NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from trainers.models.parts.chance import dropout


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, *, zero: bool = False
) -> Tensor:
    """Scaled dot product attention: queries (B, Q, d), keys (B, L, d), values (B, L, e) and a mask
    (B, L) or (B, Q, L) give (B, Q, e).

    With `zero` a vector of zeros stands among keys and values: where nothing fits, attention goes
    there (Zheng et al., *Multi-Objective Personalized Product Retrieval in Taobao Search*; Li et
    al., *Embedding-based Product Retrieval in Taobao Search*, KDD 2021, section 3.2.3).
    """
    mask = mask if mask.ndim == 3 else mask[:, None]  # (B, Q or 1, L)
    logits = queries @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1])  # (B, Q, L)
    logits = logits.masked_fill(~mask, -torch.inf)
    if zero:
        logits = F.pad(logits, (0, 1))
        return logits.softmax(-1)[..., :-1] @ values
    weights = logits.masked_fill(~mask.any(-1, keepdim=True), 0.0).softmax(-1)
    return weights.masked_fill(~mask, 0.0) @ values


class SelfAttention(nn.Module):
    """Multi-head self-attention: (B, L, d) and a mask (B, L) give (B, L, d)."""

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width = {width} must be a multiple of heads = {heads}")
        self.heads = heads
        self.causal = causal
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor, first: int | None = None) -> Tensor:
        """With `first` only what so many of the sequence see of it, (B, first, d)."""
        batch, length, _ = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2).flatten(0, 1)
            for part in self.inputs(x).chunk(3, dim=-1)
        )  # each (B * heads, L, d / heads)
        seen = mask[:, None].expand(-1, length, -1)
        if self.causal:
            seen = seen & torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        q, seen = q[:, :first], seen[:, :first]
        found = attend(q, k, v, seen.repeat_interleave(self.heads, 0))
        found = found.view(batch, self.heads, q.shape[1], -1).transpose(1, 2).flatten(2)
        mixed: Tensor = self.output(found)
        return mixed


class Transformer(nn.Module):
    """Blocks of self-attention and a feed-forward net with GELU, each behind a normalisation."""

    def __init__(
        self, width: int, heads: int, layers: int, hidden: int, *, causal: bool = False
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            SelfAttention(width, heads, causal=causal) for _ in range(layers)
        )
        self.forwards = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))

    def forward(
        self, x: Tensor, mask: Tensor, rate: float = 0.0, drawn_from: Generator | None = None
    ) -> Tensor:
        """(B, L, d) with a mask (B, L); `rate` and `drawn_from` are those of `dropout`."""
        for layer, (attention, forward) in enumerate(
            zip(self.attentions, self.forwards, strict=True)
        ):
            first, second = self.norms[2 * layer], self.norms[2 * layer + 1]
            x = x + dropout(attention(first(x), mask), rate, drawn_from)
            x = x + dropout(forward(second(x)), rate, drawn_from)
        return x
