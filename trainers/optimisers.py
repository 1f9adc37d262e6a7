"""How the rows of a table learn: each row on its own, only when it was used.

Every optimiser is here twice: as a compiled loop over the rows of a table in memory, and as tensor
operations for rows on a GPU. A row's slots (its accumulators) are float32 numbers beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from streaming.kernels import internal
from streaming.prefetch import AHEAD, prefetch

Kind = Literal["rowwise_adagrad", "adagrad", "adam", "ftrl", "sgd"]
Floats = NDArray[np.float32]
F = TypeVar("F", bound=Callable[..., Any])
_EPSILON = 1e-8


@dataclass(frozen=True)
class OptimiserConfig:
    """Which optimiser, and its settings; those of other kinds are not read.

    `first_square` is where the sums of squares of both Adagrads and of FTRL begin. `beta1`,
    `beta2` are Adam's; `l1`, `l2` FTRL's.
    """

    kind: Kind = "rowwise_adagrad"
    learning_rate: PositiveFloat = 0.05
    first_square: NonNegativeFloat = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    l1: NonNegativeFloat = 0.0
    l2: NonNegativeFloat = 0.0

    def slots(self, width: int) -> int:
        """How many numbers are kept beside a row of that width."""
        return {
            "rowwise_adagrad": 1,
            "adagrad": width,
            "adam": 2 * width + 1,
            "ftrl": 2 * width,
            "sgd": 0,
        }[self.kind]

    def first_slots(self, rows: Floats) -> Floats:
        """The slots (n, slots) of rows (n, width) that are just born."""
        width = rows.shape[1]
        slots = np.zeros((len(rows), self.slots(width)), np.float32)
        if self.kind in ("rowwise_adagrad", "adagrad"):
            slots[:] = self.first_square
        elif self.kind == "ftrl":
            # z such that FTRL's own formula gives the very row it was born with.
            root = np.sqrt(np.float32(self.first_square))
            slots[:, :width] = -rows * (root / self.learning_rate + self.l2)
            slots[:, :width] -= np.sign(rows) * np.float32(self.l1)
            slots[:, width:] = self.first_square
        return slots

    @property
    def settings(self) -> NDArray[np.float64]:
        """What the compiled loops read."""
        return np.array([self.learning_rate, self.beta1, self.beta2, self.l1, self.l2])


def _loop(function: F) -> F:
    # Sums may be taken in another order: several numbers at a time.
    return cast(F, numba.njit(cache=True, nogil=True, fastmath={"reassoc"})(function))


@internal
def _prefetch_next(rows: NDArray[np.int64], i: int, weights: Floats, slots: Floats) -> None:
    if i + AHEAD < rows.size:
        prefetch(weights, rows[i + AHEAD])
        prefetch(slots, rows[i + AHEAD])


@_loop
def _rowwise_adagrad(
    rows: NDArray[np.int64], gradients: Floats, weights: Floats, slots: Floats, s: Any
) -> None:
    """Duchi et al., JMLR 2011, one sum a row: that of its mean squared gradient."""
    width = weights.shape[1]
    rate, epsilon = np.float32(s[0]), np.float32(_EPSILON)
    for i in range(rows.size):
        _prefetch_next(rows, i, weights, slots)
        row, total = rows[i], np.float32(0.0)
        for j in range(width):
            total += gradients[i, j] * gradients[i, j]
        slots[row, 0] += total / np.float32(width)
        step = rate / (np.sqrt(slots[row, 0]) + epsilon)
        for j in range(width):
            weights[row, j] -= step * gradients[i, j]


@_loop
def _adagrad(
    rows: NDArray[np.int64], gradients: Floats, weights: Floats, slots: Floats, s: Any
) -> None:
    """Duchi et al., JMLR 2011."""
    rate, epsilon = np.float32(s[0]), np.float32(_EPSILON)
    for i in range(rows.size):
        _prefetch_next(rows, i, weights, slots)
        row = rows[i]
        for j in range(weights.shape[1]):
            g = gradients[i, j]
            slots[row, j] += g * g
            weights[row, j] -= rate * g / (np.sqrt(slots[row, j]) + epsilon)


@_loop
def _adam(
    rows: NDArray[np.int64], gradients: Floats, weights: Floats, slots: Floats, s: Any
) -> None:
    """Kingma and Ba, ICLR 2015; a row's own steps count, and those without a gradient do not."""
    width = weights.shape[1]
    epsilon, one = np.float32(_EPSILON), np.float32(1.0)
    beta1, beta2 = np.float32(s[1]), np.float32(s[2])
    rest1, rest2 = np.float32(1.0 - s[1]), np.float32(1.0 - s[2])
    for i in range(rows.size):
        _prefetch_next(rows, i, weights, slots)
        row = rows[i]
        if not gradients[i].any():
            continue
        slots[row, 2 * width] += one
        steps = slots[row, 2 * width]
        rate = np.float32(s[0] * np.sqrt(1.0 - s[2] ** steps) / (1.0 - s[1] ** steps))
        for j in range(width):
            g = gradients[i, j]
            slots[row, j] = beta1 * slots[row, j] + rest1 * g
            slots[row, width + j] = beta2 * slots[row, width + j] + rest2 * g * g
            weights[row, j] -= rate * slots[row, j] / (np.sqrt(slots[row, width + j]) + epsilon)


@_loop
def _ftrl(
    rows: NDArray[np.int64], gradients: Floats, weights: Floats, slots: Floats, s: Any
) -> None:
    """McMahan et al., KDD 2013, with beta = 0: slots are z and then n."""
    width = weights.shape[1]
    rate, l1, l2 = np.float32(s[0]), np.float32(s[3]), np.float32(s[4])
    for i in range(rows.size):
        _prefetch_next(rows, i, weights, slots)
        row = rows[i]
        for j in range(width):
            g, n = gradients[i, j], slots[row, width + j]
            more = n + g * g
            slots[row, j] += g - (np.sqrt(more) - np.sqrt(n)) / rate * weights[row, j]
            slots[row, width + j] = more
            z = slots[row, j]
            if more == 0:  # nothing was ever learnt
                continue
            weights[row, j] = np.float32(0.0)
            if abs(z) > l1:
                weights[row, j] = (np.sign(z) * l1 - z) / (np.sqrt(more) / rate + l2)


@_loop
def _sgd(
    rows: NDArray[np.int64], gradients: Floats, weights: Floats, slots: Floats, s: Any
) -> None:
    rate = np.float32(s[0])
    for i in range(rows.size):
        _prefetch_next(rows, i, weights, slots)
        for j in range(weights.shape[1]):
            weights[rows[i], j] -= rate * gradients[i, j]


LOOPS: dict[Kind, Callable[..., None]] = {
    "rowwise_adagrad": _rowwise_adagrad,
    "adagrad": _adagrad,
    "adam": _adam,
    "ftrl": _ftrl,
    "sgd": _sgd,
}


def learn_tensors(config: OptimiserConfig, weights: Tensor, slots: Tensor, g: Tensor) -> Tensor:
    """New weights (n, d) of rows with gradients g (n, d); their slots are changed in place."""
    width, rate = weights.shape[1], config.learning_rate
    match config.kind:
        case "rowwise_adagrad":
            slots += g.square().mean(1, keepdim=True)
            return weights - rate / (slots.sqrt() + _EPSILON) * g
        case "adagrad":
            slots += g.square()
            return weights - rate * g / (slots.sqrt() + _EPSILON)
        case "adam":
            learns = g.any(1, keepdim=True)
            before = slots.clone()
            m, v, steps = slots[:, :width], slots[:, width:-1], slots[:, -1:]
            steps += 1
            m.mul_(config.beta1).add_(g, alpha=1 - config.beta1)
            v.mul_(config.beta2).add_(g.square(), alpha=1 - config.beta2)
            exact = steps.double()
            scale = (1 - config.beta2**exact).sqrt() / (1 - config.beta1**exact)
            learnt = weights - (rate * scale).float() * m / (v.sqrt() + _EPSILON)
            slots.copy_(torch.where(learns, slots, before))
            return torch.where(learns, learnt, weights)
        case "ftrl":
            z, n = slots[:, :width], slots[:, width:]
            more = n + g.square()
            z += g - (more.sqrt() - n.sqrt()) / rate * weights
            n.copy_(more)
            shrunk = (z.sign() * config.l1 - z) / (more.sqrt() / rate + config.l2)
            return torch.where(more > 0, torch.where(z.abs() > config.l1, shrunk, 0.0), weights)
        case "sgd":
            return weights - rate * g
