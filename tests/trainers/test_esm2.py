"""ESM2: two ways lead to a purchase, and both are told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from streaming.errors import ConfigError
from trainers.models import create
from trainers.models.esm2 import decomposed
from trainers.tasks import task_losses


def test_the_rate_of_conversion_is_that_of_both_ways() -> None:
    action, after_action, other_way = torch.randn(3, 50) * 3
    y2, y3, y4 = action.sigmoid(), after_action.sigmoid(), other_way.sigmoid()
    found = decomposed(action, after_action, other_way).sigmoid()
    torch.testing.assert_close(found, (1 - y2) * y4 + y2 * y3)


@pytest.mark.parametrize("sure", [-200.0, 200.0])
def test_where_all_is_sure_there_is_still_a_gradient(sure: float) -> None:
    logits = torch.full((3, 1), sure, requires_grad=True)
    found = decomposed(*logits)
    assert torch.isfinite(found).all()
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1:].any()


def test_the_three_losses_are_those_of_click_of_action_and_of_purchase() -> None:
    model = create("esm2", {})
    assert list(model.tasks) == ["click", "cart", "buy"]
    torch.manual_seed(0)
    base = torch.randn(6, 4, model.config.hidden)
    y1, y2, y3, y4 = model.towers(base).sigmoid().unbind(1)
    found = model.expected(model.outputs(base), None)
    torch.testing.assert_close(found["click"], y1)
    torch.testing.assert_close(found["cart"], y1 * y2)
    torch.testing.assert_close(found["buy"], y1 * ((1 - y2) * y4 + y2 * y3))


def test_further_tasks_and_other_names_are_of_no_consequence() -> None:
    tasks = {
        "open": {},
        "paid": {"after": "open"},
        "watch": {"after": "open", "loss": "squared"},
        "wish": {"after": "open"},
        "again": {"after": "paid"},
    }
    model = create("esm2", {"tasks": tasks, "action": "wish", "buy": "paid"})
    torch.manual_seed(0)
    base = torch.randn(6, 6, model.config.hidden)
    y1, y3, watch, y2, again, y4 = model.towers(base).unbind(1)
    y1, y2, y3, y4 = (y.sigmoid() for y in (y1, y2, y3, y4))
    found = model.expected(model.outputs(base), None)
    torch.testing.assert_close(found["paid"], y1 * ((1 - y2) * y4 + y2 * y3))
    torch.testing.assert_close(found["watch"], y1 * watch)
    torch.testing.assert_close(found["again"], found["paid"] * again.sigmoid())


def test_true_rates_are_learnt_of_both_ways_together() -> None:
    """Of what is shown 20% is clicked; of that half put into a cart, and 30% bought."""
    model, shown = create("esm2", {}), 1_000
    nan = np.nan
    kinds: list[tuple[int, tuple[float, ...]]] = [(800, (0, 0, 0)), (200, (1, nan, nan))]
    kinds += [(100, (nan, 1, nan)), (100, (nan, 0, nan)), (60, (nan, nan, 1)), (140, (nan, nan, 0))]
    table = torch.cat([torch.tensor([of], dtype=torch.float32).expand(n, 3) for n, of in kinds])
    labels = dict(zip(model.tasks, table.unbind(1), strict=True))
    bias = torch.zeros(4, requires_grad=True)
    optimiser = torch.optim.Adam([bias], lr=0.1)
    for _ in range(150):
        *ways, other = bias.expand(len(table), 4).unbind(1)
        outputs = torch.stack([*ways[:2], decomposed(ways[1], ways[2], other)], 1)
        found = model.expected(outputs, None)
        losses = task_losses(model.tasks, found, labels, torch.ones(len(table)), "entire")
        optimiser.zero_grad()
        torch.stack([*losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    rates = {name: float(values[0].detach()) for name, values in found.items()}
    assert rates == pytest.approx({"click": 200 / shown, "cart": 0.1, "buy": 0.06}, rel=0.02)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"action": "wish"}, ["action = 'wish'", "click, cart, buy"]),
        ({"buy": "paid"}, ["buy = 'paid'"]),
        ({"action": "buy"}, ["'buy'", "two tasks"]),
        ({"action": "click"}, ["'click'", "same"]),
        (
            {"tasks": {"click": {}, "cart": {"after": "click"}, "buy": {"after": "cart"}}},
            ["same", "'click'", "'cart'"],
        ),
        (
            {"tasks": {"click": {}, "cart": {"loss": "squared"}, "buy": {"after": "click"}}},
            ["'cart'", "binary"],
        ),
    ],
)
def test_what_are_no_two_ways_is_refused(options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        create("esm2", options)
    assert all(part in str(refused.value) for part in parts), str(refused.value)
