"""Layers of one input in one product, in bfloat16 or not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainers.models.parts import products
from trainers.softmax import Precision


@pytest.fixture
def layers() -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(20, 7), nn.Linear(20, 3, bias=False)]


@pytest.mark.parametrize(("precision", "off"), [("float32", 1e-6), ("bfloat16", 0.02)])
def test_each_layer_gets_what_it_would_alone_and_its_gradient(
    layers: list[nn.Linear], precision: Precision, off: float
) -> None:
    rows = torch.randn(50, 20, requires_grad=True)
    found = products.products([rows[:, :13], rows[:, 13:]], layers, precision)
    assert [(each.shape, each.dtype) for each in found] == [
        ((50, 7), torch.float32),
        ((50, 3), torch.float32),
    ]
    parameters = [rows, *(p for layer in layers for p in layer.parameters())]
    gradients = torch.autograd.grad(torch.cat(found, 1).sin().sum(), parameters)
    alone = [layer(rows) for layer in layers]
    wanted = torch.autograd.grad(torch.cat(alone, 1).sin().sum(), parameters)
    for one, other in zip([*found, *gradients], [*alone, *wanted], strict=True):
        most = float(other.detach().abs().max())
        torch.testing.assert_close(one, other, rtol=off, atol=off * most)


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_bfloat16_where_the_machine_is_fast_and_the_product_large(
    layers: list[nn.Linear], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "fast_bfloat16", lambda device: fast)
    monkeypatch.setattr(products, "_PAYS_FROM", 50 * 20 * 10)
    rows = torch.randn(50, 20)

    def same(count: int, precision: Precision) -> bool:
        auto = products.products([rows[:count]], layers, "auto")
        others = products.products([rows[:count]], layers, precision)
        return all(torch.equal(one, other) for one, other in zip(auto, others, strict=True))

    assert same(50, "bfloat16" if fast else "float32")
    assert same(49, "float32")
