"""What a model draws at random, from the seed of its step: never from torch's own generator, which
is in no cut.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor


def generator(seed: int, step: int) -> Generator:
    """What a model with this seed draws from in a step (`RetrievalStep.seed`)."""
    # Torch reads no more than 32 bits of a seed.
    mixed = np.random.SeedSequence([seed % 2**64, step % 2**64]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))


def dropout(x: Tensor, rate: float, drawn_from: Generator | None) -> Tensor:
    """A share `rate` of the numbers becomes 0, the others so much larger; all stay as they are
    where nothing is drawn (`drawn_from` is None), as in serving.
    """
    if rate == 0.0 or drawn_from is None:
        return x
    kept = torch.rand(x.shape, generator=drawn_from) >= rate
    return x * kept.to(x.device) / (1.0 - rate)
