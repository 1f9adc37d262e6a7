"""Experts and gates: by their formula; one gate for all tasks; what makes them a shared bottom."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.models import create
from trainers.models.parts.ranker import Inputs

TASKS = {"click": {}, "like": {}, "buy": {"after": "click"}}
OPTIONS: dict[str, Any] = {"tasks": TASKS, "fields": ("user_id", "item_id"), "width": 4}


def some_inputs(model: Any) -> Inputs:
    torch.manual_seed(0)
    users, items = torch.randn(2, model.user_width), torch.randn(5, model.item_width)
    return Inputs(users, torch.tensor([0, 0, 1, 1, 1]), items)


def shares_of(model: Any, inputs: Inputs) -> Tensor:
    shares: Tensor = model.shares(inputs.through(model.gates))
    return shares


@pytest.mark.parametrize(("name", "gates"), [("mmoe", 3), ("omoe", 1)])
def test_each_gate_mixes_the_experts_as_the_formula_says(name: str, gates: int) -> None:
    model = create(name, {**OPTIONS, "experts": 2, "expert": 6})
    inputs = some_inputs(model)
    found = model.base(inputs, None)
    assert found.shape == (5, gates, 6)
    x, layer = inputs.flat, model.experts.layer
    experts = [
        F.linear(x, weight, bias).relu()
        for weight, bias in zip(layer.weight.chunk(2), layer.bias.chunk(2), strict=True)
    ]
    for k, weight in enumerate(model.gates.weight.chunk(gates)):
        shares = (x @ weight.T).softmax(1)
        wanted = sum(shares[:, i, None] * expert for i, expert in enumerate(experts))
        torch.testing.assert_close(found[:, k], 2**0.5 * wanted)
    torch.testing.assert_close(shares_of(model, inputs).sum(2), torch.ones(5, gates))


@pytest.mark.parametrize("name", ["mmoe", "omoe"])
def test_one_expert_is_the_bottom_that_all_share(name: str) -> None:
    model = create(name, {**OPTIONS, "experts": 1, "expert": 6})
    bottom = create("shared_bottom", {**OPTIONS, "bottom": 6})
    bottom.bottom.load_state_dict(model.experts.state_dict())
    bottom.towers.load_state_dict(model.towers.state_dict())
    inputs = some_inputs(model)
    wanted = bottom.outputs(bottom.base(inputs, None))
    torch.testing.assert_close(model.outputs(model.base(inputs, None)), wanted)


def test_a_mixture_of_many_experts_varies_about_as_much_as_one() -> None:
    options = {**OPTIONS, "width": 64, "expert": 64}
    few, many = (create("omoe", {**options, "experts": count}) for count in (1, 16))
    torch.manual_seed(0)
    inputs = Inputs(torch.randn(500, few.user_width), None, torch.randn(500, few.item_width))
    one, mixed = (model.base(inputs, None).std(0).mean().item() for model in (few, many))
    assert mixed == pytest.approx(one, rel=0.25)  # of a plain mean it is about a third


def test_tasks_that_contradict_each_other_find_experts_of_their_own() -> None:
    torch.manual_seed(0)
    model = create("mmoe", {**OPTIONS, "tasks": {"a": {}, "b": {}}, "experts": 2, "expert": 8})
    optimiser = torch.optim.Adam(nn.Module.parameters(model), lr=0.02)
    for _ in range(150):
        inputs = Inputs(torch.randn(64, model.user_width), None, torch.randn(64, model.item_width))
        x = inputs.flat[:, 0]
        labels = torch.stack([(x > 0).float(), (x.abs() > 0.7).float()], 1)
        outputs = model.outputs(model.base(inputs, None))
        loss = F.binary_cross_entropy_with_logits(outputs, labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert loss.item() < 0.25  # by chance it is 0.69
    of_a, of_b = shares_of(model, inputs).detach().unbind(1)
    assert (of_a - of_b).abs().mean() > 0.1
