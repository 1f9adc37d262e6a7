"""NMTR: the cascade, and how a user and an item meet in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from streaming.errors import ConfigError
from trainers.models import create
from trainers.models.parts.ranker import Inputs

TASKS = {
    "click": {},
    "watch": {"after": "click", "loss": "squared"},
    "cart": {"after": "click"},
    "buy": {"after": "click"},
}


def made(**options: Any) -> Any:
    fields = ("user_id", "history", "item_id", "genres")
    return create("nmtr", {"tasks": TASKS, "fields": fields, "width": 4, **options})


def test_a_behaviour_is_told_with_the_help_of_the_one_before() -> None:
    model = made()
    weights = torch.tensor([0.5, 2.0, -1.0])
    model.cascade.data.copy_(weights)
    own = torch.randn(6, 4)
    click, watch, cart, buy = own.unbind(1)
    after_click = cart + 2.0 * click.sigmoid()  # what is only a value is passed over
    wanted = [click, watch + 0.5 * click.sigmoid(), after_click, buy - after_click.sigmoid()]
    torch.testing.assert_close(model.cascaded(own), torch.stack(wanted, 1))


def test_a_value_that_comes_first_helps_nobody() -> None:
    model = made(tasks={"watch": {"loss": "squared"}, "click": {}, "buy": {"after": "click"}})
    own = torch.randn(6, 3)
    watch, click, buy = own.unbind(1)
    wanted = torch.stack([watch, click, buy + click.sigmoid()], 1)
    torch.testing.assert_close(model.cascaded(own), wanted)


def test_one_behaviour_is_no_cascade() -> None:
    model, own = made(tasks={"click": {}}), torch.randn(6, 1)
    assert torch.equal(model.cascaded(own), own)


@pytest.mark.parametrize("interaction", ["gmf", "mlp", "neumf"])
def test_users_and_items_are_sums_of_their_fields_and_meet_as_the_formula_says(
    interaction: str,
) -> None:
    model = made(interaction=interaction)
    torch.manual_seed(0)
    fields = torch.randn(5, 2, 4)
    p, q = torch.randn(2, 4), fields.sum(1)
    user_of = torch.tensor([0, 1, 1, 0, 1])
    found = model.outputs(model.base(Inputs(p, user_of, fields.flatten(1)), None))
    wanted: Tensor = torch.zeros(5, 4)
    if interaction != "mlp":
        wanted = wanted + (p[user_of] * q) @ model.gmf.weight.T + model.gmf.bias
    if interaction != "gmf":
        wanted = wanted + model.mlp(torch.cat([p[user_of], q], 1)[:, None])
    torch.testing.assert_close(found, model.cascaded(wanted))


@pytest.mark.parametrize("interaction", ["gmf", "mlp", "neumf"])
def test_what_is_binary_begins_rare(interaction: str) -> None:
    model = made(interaction=interaction)
    model.cascade.data.zero_()
    pairs = torch.zeros(5, 1, 12)
    click, watch, cart, buy = model.outputs(pairs).sigmoid().mean(0).tolist()
    assert max(click, cart, buy) < 0.3 < watch


@pytest.mark.parametrize("space", ["entire", "after"])
def test_any_other_space_is_refused(space: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.options\.space = .*'shown'"):
        made(space=space)
