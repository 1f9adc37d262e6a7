"""Sequences read step by step.

Hochreiter and Schmidhuber, *Long Short-Term Memory*, Neural Computation 1997.
"""

from __future__ import annotations

from torch import Tensor, nn


class Recurrent(nn.Module):
    """An LSTM: sequences (B, L, d) with a mask (B, L) give its state after each step (B, L, e),
    zeros where nothing is. What is there comes first: padding is behind it, and changes nothing.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, width, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = self.lstm(x)[0]
        return states * mask[..., None]
