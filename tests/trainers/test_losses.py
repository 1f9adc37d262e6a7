"""The shared losses against plain Python: masks, lists, extremes, and what they learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainers.losses import (
    UncertaintyWeighting,
    binary_cross_entropy,
    bpr,
    huber,
    info_nce,
    list_mle,
    list_net,
    pairwise_logistic,
    squared_error,
)

Listwise = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Pointwise = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Row = tuple[float, float, float]  # score, label, weight

POINTWISE: list[Pointwise] = [binary_cross_entropy, squared_error, huber]
LISTWISE: list[Listwise] = [pairwise_logistic, list_mle, list_net]
NAN = math.nan


def tensor(values: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gradient(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, of))


def offsets_of(lists: Sequence[Sequence[Row]]) -> Tensor:
    return torch.tensor([0, *np.cumsum([len(rows) for rows in lists])])


def columns(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    table = tensor(rows).reshape(-1, 3)
    return table[:, 0].clone().requires_grad_(), table[:, 1], table[:, 2]


def of_lists(loss: Listwise, lists: Sequence[Sequence[Row]]) -> Tensor:
    scores, labels, weights = columns([row for rows in lists for row in rows])
    return loss(scores, labels, offsets_of(lists), weights)


# The formulas, one row at a time


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def log_softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    total = top + math.log(sum(math.exp(value - top) for value in values))
    return [value - total for value in values]


def cross_entropy_of(logit: float, label: float) -> float:
    return label * softplus(-logit) + (1 - label) * softplus(logit)


def squared_error_of(prediction: float, label: float) -> float:
    return (prediction - label) ** 2


def huber_of(prediction: float, label: float) -> float:
    error = abs(prediction - label)
    return error**2 / 2 if error <= 1 else error - 0.5


def pairwise_of(rows: Sequence[Row]) -> list[float]:
    return [w * softplus(t - s) for s, y, w in rows for t, z, _ in rows if y > z]


def list_mle_of(rows: Sequence[Row]) -> list[float]:
    losses = []
    for score, label, weight in rows:
        rivals = [s for s, y, _ in rows if y < label]
        if rivals:
            losses.append(-weight * log_softmax([score, *rivals])[0])
    return losses


def list_net_of(rows: Sequence[Row]) -> list[float]:
    if len({label for _, label, _ in rows}) < 2:
        return []
    targets = log_softmax([label for _, label, _ in rows])
    outputs = log_softmax([score for score, _, _ in rows])
    weights = [weight for _, _, weight in rows]
    terms = zip(weights, targets, outputs, strict=True)
    return [-sum(w * math.exp(target) * output for w, target, output in terms)]


POINT_ORACLES = [cross_entropy_of, squared_error_of, huber_of]
LIST_ORACLES = [pairwise_of, list_mle_of, list_net_of]

number = st.floats(-30, 30, allow_subnormal=False).map(lambda x: round(x, 3))
weight = st.sampled_from([0.0, 0.5, 1.0, 3.0])
point = st.tuples(number, st.sampled_from([0.0, 0.25, 1.0, NAN]), weight)
graded = st.tuples(number, st.sampled_from([-1.0, 0.0, 1.0, 2.5, NAN]), weight)


@pytest.mark.parametrize(("loss", "oracle"), list(zip(POINTWISE, POINT_ORACLES, strict=True)))
@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.lists(point, max_size=8))
def test_a_pointwise_loss_is_the_mean_over_its_known_labels(
    loss: Pointwise, oracle: Callable[[float, float], float], rows: list[Row]
) -> None:
    expected = mean([w * oracle(s, y) for s, y, w in rows if not math.isnan(y)])
    assert loss(*columns(rows)).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("loss", "oracle"), list(zip(LISTWISE, LIST_ORACLES, strict=True)))
@settings(max_examples=60, deadline=None, derandomize=True)
@given(lists=st.lists(st.lists(graded, max_size=7), max_size=5))
def test_a_listwise_loss_is_the_mean_over_the_lists_with_an_order(
    loss: Listwise, oracle: Callable[[Sequence[Row]], list[float]], lists: list[list[Row]]
) -> None:
    known = [[row for row in rows if not math.isnan(row[1])] for rows in lists]
    expected = mean([mean(terms) for rows in known if (terms := oracle(rows))])
    assert of_lists(loss, lists).item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_bpr_is_the_mean_over_each_rows_counted_negatives() -> None:
    positives, negatives = tensor([0.5, -1.0, 2.0]), tensor([[1.0, -2.0], [0.3, 0.1], [5.0, 6.0]])
    counted = torch.tensor([[True, True], [False, True], [False, False]])
    first = 2 * (softplus(1 - 0.5) + softplus(-2 - 0.5)) / 2
    expected = (first + 3 * softplus(0.1 + 1.0)) / 2
    loss = bpr(positives, negatives, tensor([2, 3, 7]), counted)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    every = mean(
        [
            mean([softplus(float(n - p)) for n in row])
            for p, row in zip(positives, negatives, strict=True)
        ]
    )
    assert bpr(positives, negatives).item() == pytest.approx(every, rel=1e-12)


def views(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, count, 3, generator=generator, dtype=torch.float64)
    first, second = torch.nn.functional.normalize(both, dim=2)
    return first.requires_grad_(), second.requires_grad_()


def info_nce_of(
    first: Tensor, second: Tensor, ids: Sequence[int], weights: Sequence[float]
) -> float:
    losses = []
    for i, own in enumerate(ids):
        rivals = [j for j, other in enumerate(ids) if other != own]
        logits = [(first[i] @ second[j]).item() / 0.1 for j in [i, *rivals]]
        losses.append(-weights[i] * log_softmax(logits)[0])
    return mean(losses)


def test_info_nce_leaves_rows_of_the_same_item_out() -> None:
    first, second = views(5)
    ids, weights = [7, 8, 7, 9, 7], [1.0, 2.0, 0.0, 0.5, 1.5]
    loss = info_nce(first, second, 0.1, torch.tensor(ids), weights=tensor(weights))
    expected = info_nce_of(first, second, ids, weights)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    all_differ = info_nce_of(first, second, range(5), [1.0] * 5)
    assert info_nce(first, second, 0.1).item() == pytest.approx(all_differ, rel=1e-12)
    assert all_differ > info_nce_of(first, second, ids, [1.0] * 5) + 0.01


def test_symmetric_info_nce_is_the_mean_of_both_directions() -> None:
    first, second = views(6, seed=1)
    ids = torch.tensor([1, 2, 3, 1, 5, 6])
    there, back = info_nce(first, second, 0.1, ids), info_nce(second, first, 0.1, ids)
    assert abs(there.item() - back.item()) > 0.01
    both = info_nce(first, second, 0.1, ids, symmetric=True)
    assert both.item() == pytest.approx((there.item() + back.item()) / 2, rel=1e-12)


# What is not known, or says no order

LISTS: list[list[Row]] = [
    [(0.4, 1.0, 1.0), (-0.2, 0.0, 2.0), (1.1, NAN, 5.0), (0.3, 0.0, 1.0)],
    [],
    [(1.8, 2.0, 0.5), (1.2, 1.0, 1.5), (-1.5, 1.0, 1.0), (0.7, 3.0, 1.0)],
    [(0.9, 1.0, 1.0)],
    [(0.1, 0.0, 1.0), (0.6, 0.0, 1.0)],
]
ROWS = [row for rows in LISTS for row in rows]


@pytest.mark.parametrize("loss", POINTWISE)
def test_a_row_without_a_label_has_no_gradient_whatever_was_predicted(loss: Pointwise) -> None:
    scores, labels, weights = columns(ROWS)
    before = loss(scores, labels, weights)
    with torch.no_grad():
        scores[2] = math.inf
    after = loss(scores, labels, weights)
    assert after.item() == before.item()
    (slope,) = gradient(after, scores)
    assert slope.isfinite().all()
    assert slope[2] == 0
    assert slope.count_nonzero() == len(ROWS) - 1


@pytest.mark.parametrize("loss", LISTWISE)
def test_only_lists_with_an_order_have_a_gradient(loss: Listwise) -> None:
    scores, labels, _ = columns(ROWS)
    with torch.no_grad():
        scores[2] = math.inf
    (slope,) = gradient(loss(scores, labels, offsets_of(LISTS), None), scores)
    assert slope.isfinite().all()
    assert (slope != 0).tolist() == [True, True, False, True] + [True] * 4 + [False] * 3


@pytest.mark.parametrize("labels", [[NAN] * 4, []])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_known_is_no_loss_and_no_gradient(labels: list[float], dtype: torch.dtype) -> None:
    scores = torch.ones(len(labels), dtype=dtype, requires_grad=True)
    truth = torch.tensor(labels, dtype=torch.float32)
    offsets = torch.tensor([0, len(labels)])
    losses = [loss(scores, truth, None) for loss in POINTWISE]
    losses += [loss(scores, truth, offsets, None) for loss in LISTWISE]
    losses += [loss(scores[:0], truth[:0], torch.tensor([0]), None) for loss in LISTWISE]
    for loss in losses:
        assert loss.item() == 0
        assert loss.dtype == dtype
        (slope,) = gradient(loss, scores)
        assert not slope.any()


@pytest.mark.parametrize("rows", [[(1.0, 1.0, 1.0)], [(1.0, 1.0, 1.0), (3.0, 1.0, 1.0)]])
@pytest.mark.parametrize("loss", LISTWISE)
def test_one_item_or_equal_labels_have_no_pair(loss: Listwise, rows: list[Row]) -> None:
    assert of_lists(loss, [rows]).item() == 0
    other: list[Row] = [(0.2, 1.0, 1.0), (0.1, 0.0, 1.0)]
    assert of_lists(loss, [rows, other]).item() == of_lists(loss, [other]).item()


def test_a_negative_that_is_the_own_item_has_no_part() -> None:
    positives = tensor([1.0, 2.0]).requires_grad_()
    negatives = tensor([[1.0, 0.5], [2.0, 2.0]]).requires_grad_()
    counted = torch.tensor([[False, True], [False, False]])
    up, down = gradient(bpr(positives, negatives, counted=counted), positives, negatives)
    assert (up != 0).tolist() == [True, False]
    assert (down != 0).tolist() == [[False, True], [False, False]]
    for nothing in (torch.zeros(2, 2, dtype=torch.bool), torch.zeros(2, 0, dtype=torch.bool)):
        loss = bpr(positives, negatives[:, : nothing.shape[1]], counted=nothing)
        assert loss.item() == 0
        assert not gradient(loss, positives)[0].any()


def test_views_of_one_item_alone_have_nothing_to_be_told_from() -> None:
    for ids in (torch.tensor([4]), torch.tensor([4, 4, 4])):
        first, second = views(len(ids))
        loss = info_nce(first, second, 0.1, ids, symmetric=True)
        assert loss.item() == pytest.approx(0.0, abs=1e-15)
        assert not gradient(loss, first)[0].any()
    nothing = torch.zeros(0, 3, requires_grad=True)
    assert info_nce(nothing, nothing, 0.1, symmetric=True).item() == 0


@pytest.mark.parametrize("loss", LISTWISE)
def test_a_score_that_is_no_number_is_either_told_or_has_no_part(loss: Listwise) -> None:
    """A loss that is finite beside a gradient that is not would get past a trainer's check."""
    told = []
    for row in range(len(ROWS)):
        scores, labels, _ = columns(ROWS)
        with torch.no_grad():
            scores[row] = NAN
        outcome = loss(scores, labels, offsets_of(LISTS), None)
        told.append(not outcome.isfinite())
        assert told[-1] or gradient(outcome, scores)[0].isfinite().all()
    assert told == [True, True, False, True] + [True] * 4 + [False] * 3


# Weights and counts


@pytest.mark.parametrize("loss", POINTWISE)
def test_few_labels_are_no_louder_than_many(loss: Pointwise) -> None:
    scores, labels, weights = columns([row for row in ROWS if not math.isnan(row[1])])
    once = loss(scores, labels, weights)
    many = loss(*(column.repeat(50) for column in (scores, labels, weights)))
    assert many.item() == pytest.approx(once.item(), rel=1e-12)
    assert loss(scores, labels, 2 * weights).item() == pytest.approx(2 * once.item(), rel=1e-12)


@pytest.mark.parametrize("loss", [pairwise_logistic, list_mle])
def test_a_list_of_ten_clicks_counts_as_one_with_a_single_click(loss: Listwise) -> None:
    rows: list[Row] = [(0.5, 1.0, 1.0), (0.0, 0.0, 1.0)]
    short = of_lists(loss, [rows])
    longer = of_lists(loss, [[rows[0]] * 10 + [rows[1]]])
    assert longer.item() == pytest.approx(short.item(), rel=1e-12)
    assert of_lists(loss, [rows] * 7).item() == pytest.approx(short.item(), rel=1e-12)


# Numbers


def every_loss(scale: float, dtype: torch.dtype) -> list[tuple[Tensor, list[Tensor]]]:
    """Each loss with its inputs, the scores as large as `scale`, as right and as wrong."""
    scores = (scale * tensor([1, -1, 1, -1, 0.5, 0])).to(dtype).requires_grad_()
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0, NAN, 1.0], dtype=torch.float32)
    weights = torch.ones(6, dtype=torch.float64)  # the loss is in the scores' precision
    offsets = torch.tensor([0, 4, 4, 6])
    rows = scores.reshape(2, 3)
    sides = rows.detach().flip(0).requires_grad_()
    losses = [(loss(scores, labels, weights), [scores]) for loss in POINTWISE]
    losses += [(loss(scores, labels, offsets, weights), [scores]) for loss in LISTWISE]
    losses += [(bpr(scores[:2], rows), [scores])]
    return [*losses, (info_nce(rows, sides, 1.0, symmetric=True), [scores, sides])]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_scores_stay_finite(scale: float, dtype: torch.dtype) -> None:
    for loss, inputs in every_loss(scale, dtype):
        assert loss.isfinite()
        assert loss.dtype == dtype
        assert loss > 0
        for slope in gradient(loss, *inputs):
            assert slope.isfinite().all()
            assert slope.any()


def test_single_precision_agrees_with_double() -> None:
    pairs = zip(every_loss(3.0, torch.float32), every_loss(3.0, torch.float64), strict=True)
    for (single, single_inputs), (double, double_inputs) in pairs:
        assert single.item() == pytest.approx(double.item(), rel=1e-5)
        for near, exact in zip(
            gradient(single, *single_inputs), gradient(double, *double_inputs), strict=True
        ):
            torch.testing.assert_close(near.double(), exact, rtol=1e-4, atol=1e-6)


def test_a_score_far_below_the_best_of_its_list_keeps_its_digits() -> None:
    """Its rivals' sum is e^-200 of the whole list's, which a difference of sums would lose."""
    scores = torch.tensor([200.0, 0.3, 0.1, -0.4, -0.2])
    labels = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])
    rows: list[Row] = [(s, y, 1.0) for s, y in zip(scores.tolist(), labels.tolist(), strict=True)]
    loss = list_mle(scores, labels, torch.tensor([0, 5]))
    assert loss.item() == pytest.approx(mean(list_mle_of(rows)), rel=1e-6)


@pytest.mark.parametrize("loss", POINTWISE)
def test_pointwise_gradients_are_those_of_finite_differences(loss: Pointwise) -> None:
    scores, labels, weights = columns(ROWS)
    assert torch.autograd.gradcheck(lambda s: loss(s, labels, weights), scores)


@pytest.mark.parametrize("loss", LISTWISE)
def test_listwise_gradients_are_those_of_finite_differences(loss: Listwise) -> None:
    scores, labels, weights = columns(ROWS)
    offsets = offsets_of(LISTS)
    assert torch.autograd.gradcheck(lambda s: loss(s, labels, offsets, weights), scores)


def test_gradients_of_pairs_and_views_are_those_of_finite_differences() -> None:
    positives, negatives = tensor([0.1, -0.4]).requires_grad_(), tensor([[1.0, 0.2], [0.3, -2.0]])
    counted = torch.tensor([[True, False], [True, True]])
    weights = tensor([1.0, 2.5])
    assert torch.autograd.gradcheck(
        lambda p, n: bpr(p, n, weights, counted), (positives, negatives.requires_grad_())
    )
    ids = torch.tensor([1, 2, 1, 3])
    assert torch.autograd.gradcheck(
        lambda a, b: info_nce(
            a, b, 0.2, ids, weights=positives.detach().abs().repeat(2), symmetric=True
        ),
        views(4),
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.permutations(range(len(ROWS))), st.permutations(range(4)))
def test_the_order_of_rows_changes_nothing(rows: list[int], own: list[int]) -> None:
    scores, labels, weights = columns(ROWS)
    for loss in POINTWISE:
        there = loss(scores[rows], labels[rows], weights[rows])
        assert there.item() == pytest.approx(loss(scores, labels, weights).item(), rel=1e-12)
    shuffled = [[LISTS[0][i] for i in own], [LISTS[2][i] for i in own], LISTS[4]]
    for listwise in LISTWISE:
        expected = of_lists(listwise, LISTS).item()
        assert of_lists(listwise, shuffled).item() == pytest.approx(expected, rel=1e-12)
        assert of_lists(listwise, shuffled[::-1]).item() == pytest.approx(expected, rel=1e-12)


# What they learn


def fit(parameters: Sequence[Tensor], loss: Callable[[], Tensor], steps: int, rate: float) -> None:
    optimizer = torch.optim.Adam(parameters, lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def planted(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """60 requests of 1 to 12 items with 4 features; their worth is linear in the features."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (60,), generator=generator)
    features = torch.randn(int(lengths.sum()), 4, generator=generator)
    return (
        features,
        features @ torch.tensor([1.0, -2.0, 0.5, 0.0]),
        torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
    )


@pytest.mark.parametrize("loss", LISTWISE)
def test_a_listwise_loss_learns_a_planted_order(loss: Listwise) -> None:
    features, worth, offsets = planted()
    worth[::7] = NAN
    beta = torch.zeros(4, requires_grad=True)
    fit([beta], lambda: loss(features @ beta, worth, offsets, None), steps=150, rate=0.05)
    unseen, truth, _ = planted(seed=1)
    assert np.corrcoef((unseen @ beta).detach(), truth)[0, 1] > 0.99


def test_bpr_learns_a_planted_order() -> None:
    """Of 20 items the better one is chosen, as often as the logistic of their difference."""
    generator = torch.Generator().manual_seed(0)
    worth = torch.linspace(-2, 2, 20)
    left, right = torch.randint(0, 20, (2, 4_000), generator=generator)
    chosen = torch.rand(4_000, generator=generator) < (worth[left] - worth[right]).sigmoid()
    better, worse = torch.where(chosen, left, right), torch.where(chosen, right, left)
    scores = torch.zeros(20, requires_grad=True)
    counted = (better != worse)[:, None]
    fit(
        [scores],
        lambda: bpr(scores[better], scores[worse][:, None], counted=counted),
        steps=150,
        rate=0.05,
    )
    learnt = scores.detach() - scores.detach().mean()
    assert np.corrcoef(learnt, worth)[0, 1] > 0.98
    assert float(learnt @ worth / (worth @ worth)) == pytest.approx(1.0, abs=0.1)  # to scale


def test_info_nce_brings_the_views_of_an_item_together() -> None:
    first, second = views(32)
    turn = torch.eye(3, dtype=torch.float64).requires_grad_()
    planted_turn, _ = torch.linalg.qr(second[:3].detach())
    target = (first @ planted_turn).detach()
    fit(
        [turn],
        lambda: info_nce(torch.nn.functional.normalize(first.detach() @ turn, dim=1), target, 0.1),
        steps=100,
        rate=0.05,
    )
    nearest = (first @ turn @ target.T).argmax(1)
    assert (nearest == torch.arange(32)).float().mean() > 0.9


# Uncertainty weighting


def test_uncertainty_weighting_is_the_papers_formula() -> None:
    weighting = UncertaintyWeighting({"watch": "regression", "click": "classification"}, 0.01)
    with torch.no_grad():
        weighting.log_variance.copy_(torch.tensor([0.6, -1.2]))
    losses = {"click": tensor([0.5]).sum(), "watch": tensor([3.0]).sum()}
    labels = {"click": tensor([1.0]), "watch": tensor([NAN, 2.0])}
    watch = (3.0 + 0.01) / (2 * math.exp(0.6)) + math.log(math.sqrt(math.exp(0.6)))
    click = (0.5 + 0.01) / math.exp(-1.2) + math.log(math.sqrt(math.exp(-1.2)))
    assert weighting(losses, labels).item() == pytest.approx(watch + click, rel=1e-6)


def test_uncertainty_weighting_finds_the_planted_noise() -> None:
    """A loud, a quiet and a rarely labelled task; the two regressions' noise is known."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2_000, generator=generator)
    noise = torch.randn(2, 2_000, generator=generator)
    labels = {"loud": 3 * x + 5.0 * noise[0], "quiet": x + 0.2 * noise[1]}
    labels["quiet"][::3] = NAN
    labels["click"] = (torch.rand(2_000, generator=generator) < (2 * x).sigmoid()).float()
    weighting = UncertaintyWeighting(
        {"loud": "regression", "quiet": "regression", "click": "classification"}
    )
    slopes = torch.zeros(3, requires_grad=True)

    def losses() -> dict[str, Tensor]:
        return {
            "loud": squared_error(slopes[0] * x, labels["loud"]),
            "quiet": squared_error(slopes[1] * x, labels["quiet"]),
            "click": binary_cross_entropy(slopes[2] * x, labels["click"]),
        }

    fit([slopes, *weighting.parameters()], lambda: weighting(losses(), labels), 500, 0.1)
    sigma = weighting.sigma()
    assert sigma["loud"] == pytest.approx(5.0, rel=0.05)
    assert sigma["quiet"] == pytest.approx(0.2, rel=0.05)
    assert sigma["click"] == pytest.approx(math.sqrt(2 * losses()["click"].item()), rel=0.05)
    assert slopes.tolist() == pytest.approx([3.0, 1.0, 2.0], rel=0.1)


def test_a_task_without_labels_in_the_step_has_no_part() -> None:
    weighting = UncertaintyWeighting({"click": "classification", "rate": "regression"})
    scores = torch.ones(3, requires_grad=True)
    labels = {"click": torch.tensor([1.0, NAN, 0.0]), "rate": torch.full((3,), NAN)}
    losses = {
        "click": binary_cross_entropy(scores, labels["click"]),
        "rate": squared_error(scores, labels["rate"]),
    }
    total = weighting(losses, labels)
    (slope,) = gradient(total, weighting.log_variance)
    assert slope[0] != 0
    assert slope[1] == 0
    nothing = weighting(
        {task: 0 * loss for task, loss in losses.items()},
        {task: torch.full((3,), NAN) for task in labels},
    )
    assert nothing.item() == 0
    assert not any(s.any() for s in gradient(nothing, scores, weighting.log_variance))


def test_a_task_learnt_to_perfection_does_not_grow_in_weight_for_ever() -> None:
    weighting = UncertaintyWeighting({"rate": "regression"}, least_variance=0.01)
    labels = {"rate": torch.zeros(1)}
    fit(
        list(weighting.parameters()),
        lambda: weighting({"rate": torch.zeros(())}, labels),
        500,
        0.05,
    )
    assert weighting.sigma()["rate"] == pytest.approx(0.1, rel=0.01)


def test_the_variances_are_dense_state_and_nothing_else_is() -> None:
    weighting = UncertaintyWeighting({"click": "classification", "rate": "regression"})
    assert list(weighting.state_dict()) == ["log_variance"]
    assert weighting.sigma() == {"click": 1.0, "rate": 1.0}


# Arguments that cannot work


def test_shapes_that_would_broadcast_are_refused() -> None:
    row, column = torch.zeros(3), torch.zeros(3, 1)
    offsets = torch.tensor([0, 3])
    for pointwise in POINTWISE:
        with pytest.raises(ValueError, match=r"labels must be \(3,\) and are \(3, 1\)"):
            pointwise(row, column, None)
        with pytest.raises(ValueError, match=r"weights must be \(3,\) and are \(3, 1\)"):
            pointwise(row, row, column)
    for listwise in LISTWISE:
        with pytest.raises(ValueError, match=r"labels must be"):
            listwise(row, column, offsets, None)
    with pytest.raises(ValueError, match=r"bpr needs \(B,\) and \(B, N\)"):
        bpr(column, column)
    with pytest.raises(ValueError, match=r"bpr needs \(B,\) and \(B, N\)"):
        bpr(row, row)
    with pytest.raises(ValueError, match="counted must be"):
        bpr(row, column, counted=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="second must be"):
        info_nce(column, torch.zeros(2, 1), 1.0)
    with pytest.raises(ValueError, match="ids must be"):
        info_nce(column, column, 1.0, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("offsets", [[0, 2], [0, 1, 4], [0]])
def test_lists_that_do_not_hold_the_rows_are_refused(offsets: list[int]) -> None:
    for loss in LISTWISE:
        with pytest.raises(ValueError, match="there are 3 scores"):
            loss(torch.zeros(3), torch.zeros(3), torch.tensor(offsets), None)


def test_constants_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="delta must be positive"):
        huber(torch.zeros(1), torch.zeros(1), delta=0.0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        info_nce(torch.zeros(1, 1), torch.zeros(1, 1), NAN)
    with pytest.raises(ValueError, match="make it regression or classification"):
        UncertaintyWeighting({"rate": "ranking"})  # type: ignore[dict-item]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_is_that_of_the_scores() -> None:
    scores, labels, weights = columns(ROWS)
    offsets = offsets_of(LISTS)
    there = [column.detach().cuda() for column in (scores, labels, weights, offsets)]
    for pointwise in POINTWISE:
        torch.testing.assert_close(
            pointwise(*there[:3]).cpu(), pointwise(scores, labels, weights).detach()
        )
    for listwise in LISTWISE:
        expected = listwise(scores, labels, offsets, weights).detach()
        found = listwise(there[0], there[1], there[3], there[2]).cpu()
        torch.testing.assert_close(found, expected)
