"""Large products of what a network reads, in bfloat16 where that pays."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, bfloat16, nn
from torch.nn import functional as F

from trainers.softmax import Precision, fast_bfloat16

_PAYS_FROM = 1 << 24  # multiplications


def products(
    parts: Sequence[Tensor], layers: Sequence[nn.Linear], precision: Precision
) -> list[Tensor]:
    """Layers of rows whose parts (n, ...) lie side by side, in one product: of each (n, out), in
    float32.

    With `bfloat16` the factors have that precision, and so do the gradients; sums are float32.
    `auto` takes it where the machine is fast at it and the product large enough to gain.
    """
    weight = stacked([layer.weight for layer in layers])
    large = len(parts[0]) * weight.numel() >= _PAYS_FROM
    fast = precision == "auto" and large and fast_bfloat16(parts[0].device)
    if precision == "bfloat16" or fast:  # before they are joined: then half as much is copied
        parts, weight = [part.to(bfloat16) for part in parts], weight.to(bfloat16)
    return biased(F.linear(joined(parts), weight), layers)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts (n, ...) side by side, (n, d)."""
    return parts[0] if len(parts) == 1 else torch.cat([*parts], 1)


def stacked(weights: Sequence[Tensor]) -> Tensor:
    """Weights (out, d), one below the other."""
    return weights[0] if len(weights) == 1 else torch.cat([*weights])


def biased(found: Tensor, layers: Sequence[nn.Linear]) -> list[Tensor]:
    """The products of layers side by side, (n, out) each, with their biases."""
    made = []
    parts = torch.split(found, [layer.out_features for layer in layers], 1)
    for part, layer in zip(parts, layers, strict=True):
        exact = part.float()
        if layer.bias is not None:  # what is a copy by now needs no other
            exact = exact + layer.bias if exact is part else exact.add_(layer.bias)
        made.append(exact)
    return made
