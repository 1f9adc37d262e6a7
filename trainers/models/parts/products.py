"""Large products of what a network reads, in bfloat16 where that pays."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, bfloat16, nn
from torch.nn import functional as F

from trainers.softmax import Precision, fast_bfloat16

_PAYS_FROM = 1 << 24  # multiplications


def products(rows: Tensor, layers: Sequence[nn.Linear], precision: Precision) -> list[Tensor]:
    """Layers of rows (n, d), in one product: of each (n, out), in float32.

    With `bfloat16` the factors have that precision, and so do the gradients; sums are float32.
    `auto` takes it where the machine is fast at it and the product large enough to gain.
    """
    weight = stacked([layer.weight for layer in layers])
    large = len(rows) * weight.numel() >= _PAYS_FROM
    fast = precision == "auto" and large and fast_bfloat16(rows.device)
    if precision == "bfloat16" or fast:
        rows, weight = rows.to(bfloat16), weight.to(bfloat16)
    return biased(F.linear(rows, weight), layers)


def stacked(weights: Sequence[Tensor]) -> Tensor:
    """Weights (out, d), one below the other."""
    return weights[0] if len(weights) == 1 else torch.cat([*weights])


def biased(found: Tensor, layers: Sequence[nn.Linear]) -> list[Tensor]:
    """The products of layers side by side, (n, out) each, with their biases."""
    parts = torch.split(found, [layer.out_features for layer in layers], 1)
    return [
        part.float() if layer.bias is None else part + layer.bias
        for part, layer in zip(parts, layers, strict=True)
    ]
