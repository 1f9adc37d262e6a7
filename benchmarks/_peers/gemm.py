"""The machine's limit for the two-tower step: its fp32 matrix products and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks._peers.stream import lap_times
from benchmarks._peers.two_tower import HIDDEN, WIDTH


def measure(batch: int, seconds: float) -> dict[str, float]:
    """samples_per_s, steps and gflop_per_s of the products of both towers and of the logits.

    Each product forward has two backward: one for either factor. The tables' rows need gradients,
    so those of the towers' inputs are there too. Outputs are reused: no allocation is timed.
    """
    shapes = 2 * [(batch, 2 * WIDTH, HIDDEN), (batch, HIDDEN, WIDTH)] + [(batch, WIDTH, batch)]
    triples = [triple for shape in shapes for triple in _products(*shape)]
    flops = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b, _ in triples)

    def step(_: None) -> None:
        for a, b, out in triples:
            torch.mm(a, b, out=out)

    laps = lap_times(step, [None], seconds)
    rate = len(laps) / sum(laps)
    return {
        "samples_per_s": batch * rate,
        "steps": len(laps),
        "gflop_per_s": flops * rate / 1e9,
    }


def _products(rows: int, inner: int, columns: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """out = a @ b and its gradients, as (factor, factor, room for the product)."""
    a, b = torch.rand(rows, inner), torch.rand(inner, columns)
    out = torch.empty(rows, columns)
    return [(a, b, out), (out, b.T, torch.empty_like(a)), (a.T, out, torch.empty_like(b))]
