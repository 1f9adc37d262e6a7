"""Tasks: what is expected, what comes of which rows, and rates that negatives do not bend."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from streaming.errors import ConfigError
from trainers.tasks import (
    Space,
    Task,
    came_to_nothing,
    check_tasks,
    corrected,
    expected,
    labels_read,
    log_loss,
    roots,
    sampled,
    task_losses,
)

CHAIN = {
    "click": Task(),
    "watch": Task("squared", after="click"),
    "buy": Task(after="click"),
    "again": Task(after="buy"),
}
NAN = torch.nan


# What is expected


def test_what_is_expected_of_showing_is_a_product_of_all_that_must_come_before() -> None:
    outputs = torch.tensor([[0.5, 3.0, -1.0, 0.2]])
    click, watch, buy, again = outputs.unbind(1)
    found = expected(CHAIN, outputs, "shown")
    for name, own in zip(CHAIN, (click.sigmoid(), watch, buy.sigmoid(), again.sigmoid())):  # noqa: B905
        assert torch.equal(found[name], own)
    for space in ("entire", "after"):
        found = expected(CHAIN, outputs, space)
        assert torch.equal(found["watch"], click.sigmoid() * watch)
        assert torch.equal(found["buy"], click.sigmoid() * buy.sigmoid())
        assert torch.equal(found["again"], click.sigmoid() * buy.sigmoid() * again.sigmoid())


@pytest.mark.parametrize("space", get_args(Space))
def test_what_is_not_noticed_has_no_consequences(space: Space) -> None:
    outputs, seen = torch.randn(5, 4), torch.rand(5)
    noticed, all_seen = (expected(CHAIN, outputs, space, s) for s in (seen, torch.ones(5)))
    for name in CHAIN:
        torch.testing.assert_close(noticed[name], seen * all_seen[name])


# Negatives that were left out


def rows_of(watch: float, kept: float) -> tuple[dict[str, Tensor], Tensor]:
    """What the stream tells of 5,000 impressions, of which 10% are clicked and 2% bought, each
    label of each in one row; of those that came to nothing only the share `kept` is there.
    """
    clicks, buys, vain = 500, 100, round(4_500 * kept)
    kinds = [
        (vain, (0.0, 0.0, 0.0)),
        (clicks, (1.0, NAN, NAN)),
        (clicks, (NAN, watch, NAN)),
        (buys, (NAN, NAN, 1.0)),
        (clicks - buys, (NAN, NAN, 0.0)),
    ]
    table = torch.cat([torch.tensor([labels]).expand(count, 3) for count, labels in kinds])
    labels = dict(zip(("click", "watch", "buy"), table.unbind(1), strict=True))
    return labels, torch.full((len(table),), kept)


@pytest.mark.parametrize("space", get_args(Space))
@pytest.mark.parametrize("kept", [1.0, 0.1])
def test_true_rates_are_learnt_from_whatever_share_of_the_negatives(
    space: Space, kept: float
) -> None:
    tasks = {name: CHAIN[name] for name in ("click", "watch", "buy")}
    labels, rates = rows_of(watch=0.6, kept=kept)
    intercepts = torch.zeros(3, requires_grad=True)
    optimiser = torch.optim.Adam([intercepts], lr=0.1)

    def predictions() -> dict[str, Tensor]:
        return expected(tasks, intercepts.expand(len(rates), 3), space)

    for _ in range(300):
        optimiser.zero_grad()
        losses = task_losses(tasks, predictions(), labels, rates, space)
        torch.stack([*losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    found = {name: values[0].item() for name, values in predictions().items()}
    assert found["click"] == pytest.approx(0.1, rel=0.01)
    assert found["watch"] == pytest.approx(0.1 * 0.6, rel=0.01)
    assert found["buy"] == pytest.approx(0.1 * 0.2, rel=0.01)


def test_the_correction_is_the_share_that_is_found_among_what_was_kept() -> None:
    rng = np.random.default_rng(0)
    p, s, r = 0.05, 0.3, 0.2  # a purchase, anything at all, and what is kept of the rest
    drawn = rng.random(200_000)
    kept = (drawn < s) | (rng.random(200_000) < r)
    found = float((drawn[kept] < p).mean())
    wanted = sampled(torch.tensor(p), torch.tensor(s), torch.tensor(r))
    assert float(wanted) == pytest.approx(found, rel=0.03)


def test_where_all_negatives_are_there_nothing_is_corrected() -> None:
    p = torch.rand(9)
    torch.testing.assert_close(sampled(p, torch.rand(9), torch.ones(9)), p)


def test_only_what_was_shown_in_vain_was_left_out() -> None:
    tasks = {"click": Task(), "buy": Task(after="click")}
    labels = {
        "click": torch.tensor([0.0, 1.0, NAN, NAN, NAN, 0.0]),
        "buy": torch.tensor([0.0, NAN, 0.0, 1.0, NAN, 1.0]),
    }
    wanted = torch.tensor([True, False, False, False, False, False])
    assert torch.equal(came_to_nothing(tasks, labels), wanted)
    with_root = {**labels, "click": labels["click"]}  # a label that is no task says it too
    assert torch.equal(came_to_nothing({"buy": tasks["buy"]}, with_root), wanted)


# Losses


def test_the_loss_after_a_click_sees_no_impression_that_was_not_clicked() -> None:
    tasks = {"click": Task(), "buy": Task(after="click")}
    labels = {"click": torch.tensor([0.0, NAN, NAN]), "buy": torch.tensor([0.0, 1.0, 0.0])}
    outputs = torch.zeros(3, 2, requires_grad=True)
    predictions = expected(tasks, outputs, "after")
    losses = task_losses(tasks, predictions, labels, torch.ones(3), "after")
    assert losses["buy"].item() == pytest.approx(np.log(2))
    losses["buy"].backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert torch.equal(outputs.grad[0], torch.zeros(2))
    torch.testing.assert_close(outputs.grad[:, 0], torch.zeros(3))  # clicks learn nothing of it


def test_in_the_entire_space_a_purchase_teaches_the_click() -> None:
    tasks = {"click": Task(), "buy": Task(after="click")}
    labels = {"click": torch.tensor([NAN]), "buy": torch.tensor([1.0])}
    outputs = torch.zeros(1, 2, requires_grad=True)
    predictions = expected(tasks, outputs, "entire")
    losses = task_losses(tasks, predictions, labels, torch.ones(1), "entire")
    assert losses["click"].item() == 0.0  # of which nothing is known
    assert losses["buy"].item() == pytest.approx(np.log(4))
    losses["buy"].backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert (outputs.grad < 0).all()


def test_the_log_loss_is_a_mean_over_what_is_known_and_finite_where_one_was_sure() -> None:
    p, y = torch.tensor([0.5, 0.25, 0.9]), torch.tensor([1.0, 0.0, NAN])
    assert float(log_loss(p, y)) == pytest.approx(-(np.log(0.5) + np.log(0.75)) / 2)
    assert float(log_loss(p, torch.full((3,), NAN))) == 0.0
    assert torch.isfinite(log_loss(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])))


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_a_value_is_learnt_from_vain_impressions_as_often_as_there_were_some(loss: Any) -> None:
    tasks = {"click": Task(), "watch": Task(loss, after="click")}
    labels = {"click": torch.tensor([0.0, NAN]), "watch": torch.tensor([0.0, 0.5])}
    value = torch.tensor([0.25, 0.25], requires_grad=True)
    predictions = {"click": torch.tensor([0.5, 0.5]), "watch": value}
    losses = task_losses(tasks, predictions, labels, torch.tensor([0.25, 0.25]))
    losses["watch"].backward()  # type: ignore[no-untyped-call]
    assert value.grad is not None
    assert float(value.grad[0] / -value.grad[1]) == pytest.approx(4.0)


# What is refused


@pytest.mark.parametrize(
    ("tasks", "space", "parts"),
    [
        ({}, "shown", ["needs a task"]),
        ({"buy": Task(after="click"), "click": Task()}, "shown", ["tasks.buy", "'click'", "none"]),
        ({"buy": Task(after="click")}, "entire", ["tasks.buy.after", "'click'"]),
        ({"buy": Task(after="click")}, "after", ["tasks.buy.after", "'click'"]),
        ({"click": Task(after="click")}, "shown", ["tasks.click.after"]),
        (
            {"watch": Task("squared"), "buy": Task(after="watch")},
            "shown",
            ["tasks.buy.after", "'watch'", "value"],
        ),
    ],
)
def test_tasks_in_no_order_are_refused(
    tasks: dict[str, Task], space: Space, parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_tasks(tasks, space)
    assert all(part in str(refused.value) for part in parts), str(refused.value)


def test_of_a_task_alone_the_label_before_it_is_read_too() -> None:
    tasks = {"buy": Task(after="click"), "share": Task()}
    check_tasks(tasks, "shown")
    assert set(roots(tasks)) == {"click", "share"}
    assert set(labels_read(tasks)) == {"buy", "share", "click"}
    assert roots(CHAIN) == ["click"]


# What counts as a positive


def test_what_is_also_positive_counts_by_its_weight_and_never_as_a_row_more() -> None:
    labels = {
        "click": torch.tensor([1.0, 0.0, NAN, NAN]),
        "buy": torch.tensor([NAN, NAN, 1.0, 0.0]),
    }
    made, rates = torch.tensor([0.2, 0.4, 0.5, 0.6]), torch.ones(4)
    (plain,) = task_losses({"click": Task()}, {"click": made}, labels, rates).values()
    tasks = {"click": Task(also={"buy": 3.0})}
    (found,) = task_losses(tasks, {"click": made}, labels, rates).values()
    own = -np.log(0.2) - np.log(0.6)
    assert plain.item() == pytest.approx(own / 2)
    assert found.item() == pytest.approx((own - 3.0 * np.log(0.5)) / 3)
    assert labels_read(tasks) == ["click", "buy"]


def test_only_a_binary_task_has_other_positives() -> None:
    with pytest.raises(ConfigError, match=r"tasks.watch.also: .* this one is squared"):
        check_tasks({"watch": Task("squared", also={"like": 2.0})})


def test_what_was_learnt_of_samples_is_corrected_to_what_is_among_all() -> None:
    true, rates = torch.rand(50), torch.rand(50).clamp_min(0.01)
    torch.testing.assert_close(corrected(sampled(true, true, rates), rates), true)


def test_a_task_whose_first_label_is_no_task_is_corrected_too() -> None:
    """Purchases alone, of which two in a hundred impressions come, with a tenth of the vain."""
    rng = np.random.default_rng(0)
    bought = rng.random(40_000) < 0.02
    kept = bought | (rng.random(40_000) < 0.1)
    label = torch.from_numpy(bought[kept].astype(np.float32))
    labels = {"click": label, "buy": label}
    rates = torch.full((len(label),), 0.1)

    def loss(logit: float) -> float:
        made = {"buy": torch.full((len(label),), logit).sigmoid()}
        return float(task_losses({"buy": Task(after="click")}, made, labels, rates)["buy"])

    best = min(np.linspace(-6.0, 0.0, 121).tolist(), key=loss)
    assert 1.0 / (1.0 + np.exp(-best)) == pytest.approx(0.02, rel=0.1)
