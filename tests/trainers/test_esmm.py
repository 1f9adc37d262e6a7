"""ESMM and what is built upon it: products over all that is shown, and no other space."""

from __future__ import annotations

import pytest
import torch

from streaming.errors import ConfigError
from trainers.models import create
from trainers.models.parts.ranker import Inputs

ENTIRE = ("esmm", "mmoe_esmm", "esm2")


@pytest.mark.parametrize("name", ENTIRE)
@pytest.mark.parametrize("space", ["shown", "after"])
def test_any_other_space_is_refused(name: str, space: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.options\.space = .*'entire'"):
        create(name, {"space": space})
    assert create(name, {"space": "entire"}).space == "entire"


@pytest.mark.parametrize("name", ENTIRE)
def test_a_purchase_is_expected_as_a_click_and_what_follows(name: str) -> None:
    model = create(name, {})
    outputs = torch.randn(4, len(model.tasks))
    found = model.expected(outputs, None)
    rates = dict(zip(model.tasks, outputs.sigmoid().unbind(1), strict=True))
    assert torch.equal(found["click"], rates["click"])
    assert torch.equal(found["buy"], rates["click"] * rates["buy"])


def test_each_task_has_a_network_of_its_own() -> None:
    model = create("esmm", {"hidden": 6, "width": 4, "fields": ("user_id", "item_id")})
    inputs = Inputs(torch.randn(3, 4), None, torch.randn(3, 4))
    base = model.base(inputs, None)
    assert base.shape == (3, 2, 6)
    model.outputs(base)[:, 1].sum().backward()
    hidden, towers = model.networks.layer.weight.grad.chunk(2), model.towers.hidden.grad
    assert not hidden[0].any()
    assert hidden[1].any()
    assert not towers[0].any()
    assert towers[1].any()
