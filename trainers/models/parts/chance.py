"""What a model draws at random, from the seed of its step: never from torch's own generator, which
is in no cut.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def generator(seed: int, step: int) -> Generator:
    """What a model with this seed draws from in a step (`RetrievalStep.seed`)."""
    return torch.Generator().manual_seed((seed << 40) ^ step)


def dropout(x: Tensor, rate: float, drawn_from: Generator | None) -> Tensor:
    """A share `rate` of the numbers becomes 0, the others so much larger; all stay as they are
    where nothing is drawn (`drawn_from` is None), as in serving.
    """
    if rate == 0.0 or drawn_from is None:
        return x
    kept = torch.rand(x.shape, generator=drawn_from) >= rate
    return x * kept.to(x.device) / (1.0 - rate)
