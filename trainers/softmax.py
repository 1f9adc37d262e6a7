"""The retrieval loss: a softmax over sampled candidates, in chunks of queries.

Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations",
RecSys 2019. The (B, C) logits are the greatest cost of a step and never exist as a whole: one pass
over chunks of their rows finds the loss and both gradients, with three matrix products a chunk and
nothing computed twice. The backward pass only scales what is there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from features.batch import Jagged

Precision = Literal["float32", "bfloat16", "auto"]

BITS = math.log2(math.e)  # in a nat; logits are taken in bits, as exp2 is far cheaper than exp
BFLOAT16_PAYS_FROM = 1 << 17  # logits; with fewer, converting costs what the products gain


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the C candidates of a step stand before its B queries.

    Attributes:
        positive: (B,) int64, the column of each query's own item.
        log_inclusion: (U, C), log of the probability that the item stands before a query as a
            negative: a row for each level of queries. Finite.
        level: (B,) int64, the row of `log_inclusion` that holds for the query.
        hidden: for each query the columns that must not count as its negatives, in any order,
            perhaps repeated; its own column stays, named or not.
    """

    positive: Tensor
    log_inclusion: Tensor
    level: Tensor
    hidden: Jagged


def sampled_softmax(  # noqa: PLR0913 - the formula's own terms
    queries: Tensor,
    candidates: Tensor,
    sampling: Sampling,
    weights: Tensor,
    temperature: float,
    *,
    chunk: int = 512,
    precision: Precision = "auto",
) -> Tensor:
    """Softmax over sampled candidates, corrected for how likely each was to be among them.

    `L = -sum_i w_i log softmax(<q_i, c_j> / tau - log p_ij)[positive_i] / B`, the correction on
    every column, the positive's too. Divide by tau first, then correct: log p is in nats and
    knows nothing of the temperature. Without queries L is 0; where a query, a candidate, a weight
    or a positive's log p is not finite, neither is L. The same number of threads gives the same
    bits.

    Args:
        queries: (B, d), of unit length.
        candidates: (C, d), of unit length, each item once.
        sampling: whose column is which, log p, and what is hidden from whom.
        weights: (B,), how much each sample counts; they get no gradient.
        temperature: tau.
        chunk: how many rows of logits exist at a time; it changes the result by rounding only.
        precision: of the matrix products; "float32" means that of the queries where it is higher,
            "auto" means bfloat16 where the machine is fast at it and the step large enough to
            gain. Exponentials, sums and the positive's own logit are never below float32.

    Raises:
        ValueError: there is no such `chunk` or `precision`, or a hidden column is not of the C.
    """
    if chunk < 1:
        raise ValueError(f"a chunk has at least 1 row, not {chunk}: leave it at its default")
    product = _product_type(precision, queries, candidates)
    learning = torch.is_grad_enabled()
    wanted = learning and queries.requires_grad, learning and candidates.requires_grad
    with torch.no_grad():
        step = _Step(queries, candidates, sampling, temperature, chunk, product)
        result = step.run(weights, wanted)
    loss: Tensor = _Known.apply(queries, candidates, result)  # type: ignore[no-untyped-call]
    return loss


@dataclass(frozen=True, slots=True)
class _Result:
    loss: Tensor
    gradients: tuple[Tensor | None, Tensor | None]  # by the queries, by the candidates


class _Known(torch.autograd.Function):
    """A loss whose gradients were found along with it."""

    @staticmethod
    def forward(ctx: Any, _queries: Tensor, _candidates: Tensor, result: _Result) -> Tensor:
        ctx.save_for_backward(*result.gradients)
        return result.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        by_queries, by_candidates = (g if g is None else g * scale for g in ctx.saved_tensors)
        return by_queries, by_candidates, None


class _Step:
    """The terms of one step and the buffers of its pass; logits are in bits."""

    def __init__(
        self,
        queries: Tensor,
        candidates: Tensor,
        sampling: Sampling,
        temperature: float,
        chunk: int,
        product: torch.dtype,
    ) -> None:
        exact = torch.promote_types(queries.dtype, torch.float32)
        self.bits_per_cosine = BITS / temperature
        self.scaled = queries.to(exact) * self.bits_per_cosine  # (B, d)
        self.candidates = candidates.to(exact)  # (C, d)
        self.left, self.right = self.scaled.to(product), self.candidates.to(product)
        level, positive = sampling.level.to(queries.device), sampling.positive.to(queries.device)
        self.level = level
        self.correction = sampling.log_inclusion.to(queries.device, exact) * -BITS  # (U, C)
        self.positive = positive[:, None]  # (B, 1)
        own = (self.scaled * self.candidates[positive]).sum(1)
        own += self.correction[level, positive]
        self.own = own[:, None]  # (B, 1), the positives' logits
        size, columns = len(queries), len(candidates)
        self.chunks = [slice(start, min(start + chunk, size)) for start in range(0, size, chunk)]
        self.hidden = _places(sampling.hidden, chunk, columns).to(queries.device)
        self.first_hidden = sampling.hidden.offsets
        # Made once: to take a fresh buffer costs more than what is computed in it.
        self.logits = own.new_empty(min(chunk, size), columns)
        self.low = None if product == exact else self.left.new_empty(self.logits.shape)

    def run(self, weights: Tensor, wanted: tuple[bool, bool]) -> _Result:
        """The loss and, where wanted, its gradients by the queries and by the candidates."""
        share = weights.to(self.own)[:, None] / (BITS * max(1, len(weights)))  # (B, 1)
        top, total = torch.empty_like(self.own), torch.empty_like(self.own)  # (B, 1)
        by_queries = torch.empty_like(self.left) if wanted[0] else None  # (B, d)
        # (d, C): the product that adds to it is a third faster than its transpose.
        by_candidates = self.own.new_zeros(self.right.T.shape) if wanted[1] else None
        for rows in self.chunks:
            logits = self._logits(rows)  # (n, C)
            torch.amax(logits, 1, keepdim=True, out=top[rows])
            torch.sum(logits.sub_(top[rows]).exp2_(), 1, keepdim=True, out=total[rows])
            if not any(wanted):
                continue
            # total (softmax - one_hot): what all the gradients are made of
            logits.scatter_add_(1, self.positive[rows], -total[rows])
            pull = logits if self.low is None else self.low[: len(logits)].copy_(logits)
            if by_queries is not None:
                torch.mm(pull, self.right, out=by_queries[rows])
            if by_candidates is not None:
                pulled = self.scaled[rows] * (share[rows] / total[rows])
                _add_product(by_candidates, pulled.T.to(pull.dtype), pull)
        loss = (share * (top - self.own + total.log2())).sum()
        loss += 0 * self.candidates.sum()  # hidden from all, one spoils the gradients unnoticed
        if by_queries is not None:
            by_queries = by_queries * (share / total * self.bits_per_cosine)
        if by_candidates is not None:
            by_candidates = by_candidates.T.contiguous()
        return _Result(loss, (by_queries, by_candidates))

    def _logits(self, rows: slice) -> Tensor:
        """(n, C), in the shared buffer: corrected, -inf where hidden, the positives' exact."""
        logits = self.logits[: rows.stop - rows.start]
        low = None if self.low is None else self.low[: len(logits)]
        torch.index_select(self.correction, 0, self.level[rows], out=logits)
        _add_product(logits, self.left[rows], self.right.T, low)
        hidden = self.hidden[self.first_hidden[rows.start] : self.first_hidden[rows.stop]]
        logits.view(-1).index_fill_(0, hidden, -math.inf)
        return logits.scatter_(1, self.positive[rows], self.own[rows])


def _add_product(to: Tensor, left: Tensor, right: Tensor, product: Tensor | None = None) -> None:
    """to += left @ right; where the factors are of lower precision, by way of `product`."""
    if to.dtype == left.dtype:
        to.addmm_(left, right)
    else:
        to += torch.mm(left, right, out=product)


def _places(hidden: Jagged, chunk: int, columns: int) -> Tensor:
    """Where the hidden columns lie in the logits of their chunk, flat."""
    values = hidden.values
    if len(values) and not 0 <= values.min() <= values.max() < columns:
        raise ValueError(
            f"hidden columns {values.min()} to {values.max()} among {columns} candidates: "
            "number them from 0"
        )
    return torch.from_numpy(hidden.owners() % chunk * columns + values)


def _product_type(precision: Precision, queries: Tensor, candidates: Tensor) -> torch.dtype:
    if precision not in ("float32", "bfloat16", "auto"):
        raise ValueError(f"precision is float32, bfloat16 or auto, not {precision!r}")
    exact = torch.promote_types(queries.dtype, torch.float32)
    pays = len(queries) * len(candidates) >= BFLOAT16_PAYS_FROM and exact == torch.float32
    if precision == "bfloat16" or (precision == "auto" and pays and fast_bfloat16(queries.device)):
        return torch.bfloat16
    return exact


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the machine multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
