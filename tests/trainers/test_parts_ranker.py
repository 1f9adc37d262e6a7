"""What rankers are made of: inputs that a user has once, layers and towers side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from features.batch import Users
from features.shown import Pairs
from streaming.errors import ConfigError
from tests.trainers.contract import described_items, some_users
from trainers.models import create
from trainers.models.parts.ranker import Inputs, Layers, Towers
from trainers.models.shared_bottom import SharedBottom


@pytest.fixture
def pairs() -> Pairs:
    return Pairs(
        some_users(3),
        np.array([0, 0, 2, 1, 2, 2]),
        described_items(np.arange(6)),
        np.arange(6, dtype=np.int32),
    )


def test_a_layer_of_pairs_is_that_of_user_and_item_side_by_side() -> None:
    torch.manual_seed(0)
    layer, users, items = nn.Linear(5, 4), torch.randn(2, 3), torch.randn(3, 2)
    user_of = torch.tensor([1, 0, 1])
    inputs = Inputs(users, user_of, items)
    flat = torch.cat([users[user_of], items], 1)
    assert torch.equal(inputs.flat, flat)
    torch.testing.assert_close(inputs.through(layer), layer(flat))
    in_order = Inputs(users[user_of], None, items)
    torch.testing.assert_close(in_order.through(layer), layer(flat))


def test_layers_side_by_side_are_as_many_layers() -> None:
    torch.manual_seed(0)
    layers = Layers(3, 5, 4)
    inputs = Inputs(torch.randn(2, 3), torch.tensor([0, 1, 1]), torch.randn(3, 2))
    found = layers(inputs)
    assert found.shape == (3, 3, 4)
    weights, biases = layers.layer.weight.chunk(3), layers.layer.bias.chunk(3)
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        torch.testing.assert_close(found[:, k], F.linear(inputs.flat, weight, bias).relu())


@pytest.mark.parametrize("bases", [1, 3])
def test_towers_side_by_side_are_as_many_towers(bases: int) -> None:
    torch.manual_seed(0)
    towers, base = Towers([0.0, -1.0, 2.0], 5, 4), torch.randn(7, bases, 5)
    found = towers(base)
    for k in range(3):
        hidden = base[:, k % bases] @ towers.hidden[k] + towers.hidden_bias[k]
        hidden = F.leaky_relu(hidden, 0.1)
        torch.testing.assert_close(found[:, k], hidden @ towers.last[k] + towers.last_bias[k])


def test_a_tower_that_was_pushed_below_zero_for_all_comes_back() -> None:
    torch.manual_seed(0)
    towers, base = Towers([0.0], 5, 8), torch.randn(200, 1, 5)
    towers.hidden_bias.data.fill_(-2.0)
    wanted = base[:, 0, :1].abs()
    steps = torch.optim.Adam(towers.parameters(), 0.01)
    for _ in range(1_000):
        steps.zero_grad()
        F.mse_loss(towers(base), wanted).backward()  # type: ignore[no-untyped-call]
        steps.step()
    left = F.mse_loss(towers(base), wanted).detach()
    assert left < 0.1 * wanted.var()


def test_what_depends_on_the_user_alone_is_computed_once_for_him(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    part = SharedBottom.user_part

    def counted(self: SharedBottom, users: Users, fields: Tensor) -> Tensor:
        read.append(len(users.ids))
        return part(self, users, fields)

    monkeypatch.setattr(SharedBottom, "user_part", counted)
    model = create("shared_bottom", {"fields": ("user_id", "history", "item_id")})
    assert model.predict(pairs)["click"].shape == (6,)
    assert read == [3]


def test_what_is_crossed_is_read_as_the_product_of_unit_vectors(pairs: Pairs) -> None:
    fields = {"fields": ("user_id", "scenario", "item_id", "genres"), "width": 4}
    crossed = {"crossed": [["scenario", "genres"], ["user_id", "item_id"]]}
    plain, model = create("shared_bottom", fields), create("shared_bottom", {**fields, **crossed})
    assert model.item_width == plain.item_width + 2 * 4
    users = model.fields.users(model.tables, pairs.users)[pairs.user_of]
    items = model.fields.items(model.tables, pairs.items)
    read = model._inputs(pairs, None).items[:, -8:]
    for k, (user, item) in enumerate(((1, 1), (0, 0))):
        cosine = F.cosine_similarity(users[:, user], items[:, item])
        found = read[:, 4 * k : 4 * k + 4].sum(1) / 2.0  # 2 is the root of the width
        torch.testing.assert_close(found, cosine)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"tasks": {}}, ["needs a task"]),
        ({"tasks": {"click": {"loss": "cubed"}}}, ["tasks.click.loss", "'cubed'"]),
        ({"tasks": {"click": {"weight": -1.0}}}, ["tasks.click.weight"]),
        ({"tasks": {"buy": {"after": "click"}}, "space": "entire"}, ["tasks.buy.after"]),
        ({"space": "outer"}, ["space", "'outer'"]),
        ({"fields": ("item_id", "genres")}, ["fields", "item_id, genres", "users"]),
        ({"fields": ("user_id",)}, ["fields", "user_id", "items"]),
        ({"fields": ()}, ["fields", "none"]),
        ({"crossed": [["history", "shop"]]}, ["crossed = ['history', 'shop']", "`fields`"]),
        ({"crossed": [["item_id", "history"]]}, ["crossed = ['item_id', 'history']"]),
        ({"position": {"how": "pray"}}, ["position.how", "'pray'"]),
        ({"balance": {"how": "toss"}}, ["balance.how", "'toss'"]),
    ],
)
def test_what_cannot_be_learnt_is_refused(options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        create("shared_bottom", options)
    assert all(part in str(refused.value) for part in parts), str(refused.value)


def test_making_a_ranker_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    create("mmoe", {"position": {"how": "feature"}})
    assert torch.equal(torch.rand(3), wanted)
