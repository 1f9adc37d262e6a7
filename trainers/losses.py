"""Losses that models share.

Scores and logits go in, never probabilities, and a scalar comes out. A label of NaN is not known:
its row adds neither loss nor gradient. What counts is averaged - over known rows, or over lists
that hold an order - so a step with few labels is no louder than one with many; `weights` multiply
a row's loss and never its count. Where nothing counts, the loss is 0 and so is every gradient.

Lists, such as the rows shown for one request, lie one after another: list i is the rows
`offsets[i]` to `offsets[i + 1]`, as in `features.batch.Jagged`. Equal labels say no order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def binary_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """`-sum w (y log sigmoid(z) + (1 - y) log sigmoid(-z)) / n` over the n known labels.

    Args:
        logits: (B,), z.
        labels: (B,), y from 0 to 1, NaN where not known.
        weights: (B,), w; 1 by default.

    Raises:
        ValueError: the shapes differ.
    """
    logits, labels, weights = _known(logits, labels, weights)
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return _mean(weights * losses)


def squared_error(predictions: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """`sum w (f - y)^2 / n` over the n known labels.

    Args:
        predictions: (B,), f.
        labels: (B,), y, NaN where not known.
        weights: (B,), w; 1 by default.

    Raises:
        ValueError: the shapes differ.
    """
    predictions, labels, weights = _known(predictions, labels, weights)
    return _mean(weights * (predictions - labels).square())


def huber(
    predictions: Tensor, labels: Tensor, weights: Tensor | None = None, delta: float = 1.0
) -> Tensor:
    """Half the squared error up to `delta`, straight beyond (Huber, 1964); else `squared_error`.

    `sum w h(|f - y|) / n`, where `h(e) = e^2 / 2` if `e <= delta`, else `delta (e - delta / 2)`.
    `delta` is in the label's unit.

    Raises:
        ValueError: the shapes differ, or `delta` is not positive.
    """
    if not delta > 0:
        raise ValueError(f"huber's delta must be positive, in the unit of the label: {delta!r}")
    predictions, labels, weights = _known(predictions, labels, weights)
    return _mean(weights * F.huber_loss(predictions, labels, reduction="none", delta=delta))


def bpr(
    positives: Tensor,
    negatives: Tensor,
    weights: Tensor | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """Bayesian personalised ranking: `-log sigmoid(s+ - s-)` (Rendle et al., UAI 2009).

    Mean over each row's counted negatives, then over the rows that have any.

    Args:
        positives: (B,), the score of each row's own item.
        negatives: (B, N), the scores of the items it is to beat.
        weights: (B,); 1 by default.
        counted: (B, N), False where a negative is none, as where the own item was drawn again;
            all count by default.

    Raises:
        ValueError: the shapes do not fit.
    """
    rows = len(positives)
    if negatives.dim() != 2 or positives.shape != negatives.shape[:1]:
        raise ValueError(
            f"positives are {tuple(positives.shape)} and negatives {tuple(negatives.shape)}: "
            "bpr needs (B,) and (B, N)"
        )
    weights = _ones_or(weights, positives)
    counted = torch.ones_like(negatives, dtype=torch.bool) if counted is None else counted
    _check_shape("counted", counted, negatives.shape)
    row, column = counted.nonzero(as_tuple=True)
    losses = -F.logsigmoid(positives[row] - negatives[row, column])
    return _mean_over_lists(weights[row] * losses, row, rows)


def pairwise_logistic(
    scores: Tensor, labels: Tensor, offsets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """`-log sigmoid(s_i - s_j)` for `y_i > y_j` in one list (RankNet, Burges et al., ICML 2005).

    Mean over each list's pairs, then over the lists that have any: a user with ten clicks makes
    many more pairs than one with a single click, and still counts once. Holds all pairs.

    Args:
        scores: (B,), s.
        labels: (B,), y, NaN where not known.
        offsets: (L + 1,), int64, where the lists begin and end.
        weights: (B,), 1 by default; a pair has that of its better row.

    Raises:
        ValueError: the shapes differ, or the lists do not hold B rows.
    """
    rows = _Ranking.of(scores, labels, offsets, weights)
    pairs = rows.end - rows.below  # how many rows each beats
    better = _counting(pairs).repeat_interleave(pairs)  # (P,)
    nth = _counting(better) - (pairs.cumsum(0) - pairs)[better]  # among the pairs of `better`
    worse = rows.below[better] + nth
    losses = -F.logsigmoid(rows.scores[better] - rows.scores[worse])
    return _mean_over_lists(rows.weights[better] * losses, rows.owners[better], len(offsets) - 1)


def list_mle(
    scores: Tensor, labels: Tensor, offsets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """How unlikely each list's order is, best first (ListMLE, Xia et al., ICML 2008).

    A row's loss is `-log softmax(s)` of it among itself and the rows of its list with smaller
    labels: those it ties with are not its rivals. Mean over each list's rows that beat another,
    then over the lists that have any. Arguments and errors as in `pairwise_logistic`; `weights`
    are those of the rows that beat another.
    """
    rows = _Ranking.of(scores, labels, offsets, weights)
    beats = (rows.below < rows.end).nonzero()[:, 0]
    rivals = _suffix_logsumexp(rows.scores, rows.owners)[rows.below[beats]]
    losses = -F.logsigmoid(rows.scores[beats] - rivals)
    return _mean_over_lists(rows.weights[beats] * losses, rows.owners[beats], len(offsets) - 1)


def list_net(
    scores: Tensor, labels: Tensor, offsets: Tensor, weights: Tensor | None = None
) -> Tensor:
    """`-sum w softmax(y) log softmax(s)` over each list (ListNet, top one; Cao et al., ICML 2007).

    Mean over the lists with two different labels. Labels count by their differences, as logits
    do: with clicks of 0 and 1 the target is flat, so multiply them to sharpen it. Arguments and
    errors as in `pairwise_logistic`; `weights` multiply a row's share of its list's loss.
    """
    rows = _Ranking.of(scores, labels, offsets, weights)
    target = _log_softmax(rows.labels, rows).exp()
    losses = rows.weights * target * -_log_softmax(rows.scores, rows)
    lists = (rows.begin == _counting(rows.begin)).sum()
    return losses.sum() / lists.clamp(min=1)


def info_nce(
    first: Tensor,
    second: Tensor,
    temperature: float,
    ids: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    symmetric: bool = False,
) -> Tensor:
    """Tells each item's second view from those of the step's other items.

    `-sum_i w_i log softmax_j(<z_i, z'_j> / tau)[i] / N` (Yao et al., *Self-supervised Learning for
    Large-scale Item Recommendations*, CIKM 2021). Holds N x N numbers.

    Args:
        first: (N, d), z, of unit length.
        second: (N, d), z', of unit length.
        temperature: tau.
        ids: (N,), the rows' items, which are not each other's negatives when they are the same;
            all differ by default.
        weights: (N,); 1 by default.
        symmetric: the mean of the loss and of that with the views exchanged.

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"info_nce's temperature must be positive: {temperature!r}")
    _check_shape("second", second, first.shape)
    weights = _ones_or(weights, first[:, 0])
    logits = first @ second.T / temperature  # (N, N)
    own = logits.diagonal()
    if ids is not None:
        _check_shape("ids", ids, weights.shape)
        itself = torch.eye(len(ids), dtype=torch.bool, device=ids.device)
        logits = logits.masked_fill((ids[:, None] == ids) & ~itself, float("-inf"))
    losses = logits.logsumexp(1) - own
    if symmetric:
        losses = (losses + logits.logsumexp(0) - own) / 2
    return _mean(weights * losses)


class UncertaintyWeighting(nn.Module):
    """Weighs the losses of several tasks by how noisy each task turns out to be.

    With a learnt `s = log sigma^2` for each task (Kendall, Gal and Cipolla, CVPR 2018):

        regression        L / (2 sigma^2) + log sigma    L a mean squared error
        classification    L / sigma^2 + log sigma        L a mean of -log p; also for `huber`,
                                                         which is halved already

    `least_variance` is added to L here, so that sigma^2 stays above it: a task that is learnt to
    perfection would else grow in weight for ever. It leaves the direction of L's gradient alone.
    """

    def __init__(
        self,
        tasks: Mapping[str, Literal["regression", "classification"]],
        least_variance: float = 1e-4,
    ) -> None:
        super().__init__()
        for task, kind in tasks.items():
            if kind not in ("regression", "classification"):
                raise ValueError(f"task {task!r} is {kind!r}: make it regression or classification")
        self.tasks = tuple(tasks)
        self.least_variance = least_variance
        self.log_variance = nn.Parameter(torch.zeros(len(tasks)))  # (T,), s
        halves = torch.tensor([0.5 if kind == "regression" else 1.0 for kind in tasks.values()])
        self.register_buffer("_halves", halves, persistent=False)
        self._halves: Tensor

    def forward(self, losses: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
        """The sum over the tasks that have a known label in this step.

        A task without one has no part in it: neither its loss nor its variance has a gradient.

        Args:
            losses: of each task a scalar.
            labels: of each task (B,), NaN where not known.
        """
        stacked = torch.stack([losses[task] for task in self.tasks])  # (T,)
        known = torch.stack([~labels[task].isnan().all() for task in self.tasks])
        noisy = self._halves * (-self.log_variance).exp() * (stacked + self.least_variance)
        return torch.where(known, noisy + self.log_variance / 2, 0.0).sum()

    def sigma(self) -> dict[str, float]:
        """The noise of each task, in the unit of the square root of its loss."""
        return dict(zip(self.tasks, (self.log_variance.detach() / 2).exp().tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class _Ranking:
    """The known rows of the lists that hold an order, each list by falling label; m rows."""

    scores: Tensor
    labels: Tensor
    weights: Tensor
    owners: Tensor  # (m,), which list
    begin: Tensor  # (m,), the first row of its list
    below: Tensor  # (m,), the first row of its list with a smaller label, `end` if there is none
    end: Tensor  # (m,), the first row after its list

    @staticmethod
    def of(scores: Tensor, labels: Tensor, offsets: Tensor, weights: Tensor | None) -> _Ranking:
        lists = len(offsets) - 1
        owners = _counting(offsets[1:]).repeat_interleave(offsets.diff())
        if len(owners) != len(scores):
            raise ValueError(
                f"the lists hold {len(owners)} rows and there are {len(scores)} scores: "
                "offsets must begin at 0 and end at the number of scores"
            )
        scores, labels, weights, owners = _known(scores, labels, weights, owners)
        order = labels.argsort(descending=True, stable=True)
        order = order[owners[order].argsort(stable=True)]
        begin, end = _bounds(owners[order], lists)
        order = order[labels[order][begin] > labels[order][end - 1]]
        labels, owners = labels[order], owners[order]

        begin, end = _bounds(owners, lists)
        tied = (labels[1:] == labels[:-1]) & (owners[1:] == owners[:-1])
        last = F.pad(~tied, (0, 1), value=True)[: len(labels)]  # of those with its label
        following = last.nonzero()[:, 0] + 1
        below = following[last.cumsum(0) - last.long()]
        return _Ranking(scores[order], labels, weights[order], owners, begin, below, end)


def _bounds(owners: Tensor, lists: int) -> tuple[Tensor, Tensor]:
    """For each row where its list begins and ends, both (n,)."""
    sizes = owners.bincount(minlength=lists)
    end = sizes.cumsum(0)[owners]
    return end - sizes[owners], end


def _log_softmax(values: Tensor, rows: _Ranking) -> Tensor:
    """Over each list by itself, (m,)."""
    return values - _suffix_logsumexp(values, rows.owners)[rows.begin]


def _suffix_logsumexp(values: Tensor, owners: Tensor) -> Tensor:
    """For each row `log sum exp` over itself and the later rows of its list, (m,).

    By doubling (Hillis and Steele, 1986): never a difference of sums, so a score far below its
    list's best keeps its digits, and no scatter, so CUDA adds in the same order every time.
    """
    distance = 1
    while (same := owners[:-distance] == owners[distance:]).any():
        later = values[distance:].where(same, -torch.inf)
        values = torch.cat([values[:-distance].logaddexp(later), values[-distance:]])
        distance *= 2
    return values


def _known(
    scores: Tensor, labels: Tensor, weights: Tensor | None, *others: Tensor
) -> tuple[Tensor, ...]:
    """Scores, labels, weights and the others of the rows whose label is known."""
    _check_shape("labels", labels, scores.shape)
    weights = _ones_or(weights, scores)
    known = ~labels.isnan()
    return tuple(column[known] for column in (scores, labels.to(scores.dtype), weights, *others))


def _ones_or(weights: Tensor | None, rows: Tensor) -> Tensor:
    weights = torch.ones_like(rows) if weights is None else weights
    _check_shape("weights", weights, rows.shape)
    return weights.to(rows.dtype)


def _check_shape(name: str, tensor: Tensor, expected: torch.Size) -> None:
    """Broadcasting (B, 1) with (B,) would quietly give B x B losses."""
    if tensor.shape != expected:
        raise ValueError(f"{name} must be {tuple(expected)} and are {tuple(tensor.shape)}")


def _counting(rows: Tensor) -> Tensor:
    """0, 1, 2, ..., one for each row."""
    return torch.arange(len(rows), device=rows.device)


def _mean(losses: Tensor) -> Tensor:
    """(n,); 0 if there are none."""
    return losses.sum() / max(1, len(losses))


def _mean_over_lists(losses: Tensor, owners: Tensor, lists: int) -> Tensor:
    """Mean over the losses of each list, then over the lists that have any; 0 if none has."""
    sizes = owners.bincount(minlength=lists)
    return (losses / sizes[owners]).sum() / sizes.count_nonzero().clamp(min=1)
