"""Position bias: what is learnt of places, and what is left of them in serving."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streaming.errors import ConfigError
from trainers.models.parts.chance import generator
from trainers.models.parts.position_bias import (
    PAL,
    Hows,
    Places,
    PositionBias,
    PositionConfig,
    make_position_bias,
)
from trainers.optimisers import OptimiserConfig
from trainers.table import EmbeddingTable, TableConfig
from trainers.tasks import Task, log_loss

WIDTH = 4
TASKS = {"click": Task(), "watch": Task("squared", "click"), "share": Task()}


class Rows(nn.Module):
    """Rows of ids as they come, in place of a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Parameter(0.1 * torch.randn(20, WIDTH))
        self._known: dict[int, int] = {}

    def forward(self, ids: NDArray[np.int64]) -> Tensor:
        each, inverse = np.unique(ids, return_inverse=True)
        places = [self._known.setdefault(one, len(self._known)) for one in each.tolist()]
        return self.rows[torch.tensor(places)[inverse]]


@pytest.fixture
def tables() -> Any:
    return {"context": Rows()}


def worn(how: Hows, **settings: Any) -> PositionBias:
    torch.manual_seed(0)
    return make_position_bias(PositionConfig(how, **settings), WIDTH, TASKS)


def places(count: int, positions: int = 4, step: int = 0) -> Places:
    numbers = np.arange(count, dtype=np.int32)
    return Places(numbers % positions, numbers // positions % 2, generator(0, step))


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(
        loss, [*module.parameters()], retain_graph=True, materialize_grads=True
    )
    return list(found)


@pytest.mark.parametrize("how", ["ignore", "feature", "pal", "shallow"])
def test_serving_takes_the_outputs_as_they_are(how: Hows, tables: Any) -> None:
    outputs = torch.randn(5, 3)
    torch.testing.assert_close(worn(how).outputs(outputs, tables, None), outputs)


def test_a_feature_is_the_row_of_the_place_and_served_that_of_one(tables: Any) -> None:
    bias = worn("feature", served=2)
    shown, served = bias.field(tables, places(8), 8), bias.field(tables, None, 3)
    assert shown is not None
    assert served is not None
    torch.testing.assert_close(shown[:4], shown[4:])
    torch.testing.assert_close(served, shown[2].expand(3, -1))


def test_pal_finds_how_likely_a_place_is_to_be_noticed_up_to_a_factor(tables: Any) -> None:
    rows = 24_000
    random = torch.Generator().manual_seed(1)
    where = places(rows)
    items = torch.randint(6, (rows,), generator=random)
    # Good items stand further down, so that clicks alone say that they are worse.
    kept = (
        torch.rand(rows, generator=random)
        < torch.tensor(
            [[0.9 if (item < 3) == (place < 2) else 0.2 for place in range(4)] for item in range(6)]
        )[items, torch.from_numpy(where.positions).long()]
    )
    liked = torch.tensor([0.1, 0.15, 0.2, 0.3, 0.4, 0.5])
    noticed = torch.tensor([1.0, 0.5, 0.25, 0.1])
    chance = noticed[torch.from_numpy(where.positions).long()] * liked[items]
    clicks = torch.where(kept, (torch.rand(rows, generator=random) < chance).float(), torch.nan)
    bias, logits = worn("pal"), nn.Parameter(torch.zeros(6))
    learnt = [logits, *bias.parameters(), *tables["context"].parameters()]
    optimiser = torch.optim.Adam(learnt, lr=0.05)
    for _ in range(120):
        optimiser.zero_grad()
        seen = bias.seen(tables, where)
        assert seen is not None
        log_loss(seen * logits.sigmoid()[items], clicks).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert seen is not None
    found = seen[:4].detach()  # of one scenario
    torch.testing.assert_close(found / found[0], noticed, rtol=0.15, atol=0.02)
    served = logits.sigmoid().detach()
    torch.testing.assert_close(served / served[-1], liked / liked[-1], rtol=0.15, atol=0.02)


@pytest.mark.parametrize("how", ["pal", "shallow"])
def test_where_rows_learn_fast_a_first_click_in_vain_does_not_decide_of_a_place(how: Hows) -> None:
    fast = OptimiserConfig(learning_rate=1.0, first_square=1e-8)
    fresh = {"context": EmbeddingTable(TableConfig(width=16, optimiser=fast))}
    bias = make_position_bias(PositionConfig(how, dropout=0.0), 16, {"click": Task()})

    def logit() -> Tensor:
        if isinstance(bias, PAL):
            made: Tensor = bias.tower(fresh, places(8))
            return made
        return bias.outputs(torch.zeros(8, 1), fresh, places(8))

    fresh["context"].training = True
    before = logit()
    log_loss(before.sigmoid()[:, 0], torch.zeros(8)).backward()  # type: ignore[no-untyped-call]
    fresh["context"].step()
    fresh["context"].training = False
    with torch.no_grad():
        assert (logit() - before).min() > -10.0  # the sum of 32 numbers that moved by 1 each is 32


def test_a_shallow_tower_adds_to_the_outputs_of_its_tasks_alone(tables: Any) -> None:
    outputs, where = torch.zeros(400, 3), places(400)
    first = worn("shallow", dropout=0.0).outputs(outputs, tables, where)
    assert (first[:, [0, 2]] != 0).all()  # those that come first
    assert (first[:, 1] == 0).all()
    torch.testing.assert_close(first[:8], first[8:16])  # of the same place and scenario
    named = worn("shallow", dropout=0.0, tasks=("watch",)).outputs(outputs, tables, where)
    assert (named[:, 1] != 0).all()
    assert (named[:, [0, 2]] == 0).all()


def test_a_shallow_tower_is_left_out_of_a_share_of_the_pairs(tables: Any) -> None:
    bias, outputs = worn("shallow", dropout=0.3), torch.zeros(2_000, 3)
    made = [bias.outputs(outputs, tables, places(2_000, step=step)) for step in (5, 5, 6)]
    left_out = (made[0][:, 0] == 0).float().mean().item()
    assert left_out == pytest.approx(0.3, abs=0.04)
    assert ((made[0][:, 0] == 0) == (made[0][:, 2] == 0)).all()
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=0)
    assert (made[0] != made[2]).any()


def penalty(bias: PositionBias, tables: Any, base: Tensor) -> Tensor:
    clicks = torch.tensor([1.0, 0.0, 0.0, 0.0, torch.nan]).repeat(len(base) // 5)
    return bias.penalty(base, tables, places(len(base)), [clicks])


def test_the_adversary_learns_of_the_base_and_the_base_of_its_success(tables: Any) -> None:
    base = torch.randn(40, 6, requires_grad=True)
    by_strength = {}
    for strength in (0.0, 1.0, 2.0):
        bias = worn("adversarial", strength=strength)
        loss = penalty(bias, tables, base)
        (of_base,) = torch.autograd.grad(loss, base, retain_graph=True)
        by_strength[strength] = (of_base, gradients(loss, bias), gradients(loss, tables["context"]))
    assert not by_strength[0.0][0].any()
    assert by_strength[1.0][0].any()
    torch.testing.assert_close(by_strength[2.0][0], 2 * by_strength[1.0][0])
    for part in (1, 2):  # what the adversary and the click rates learn, whatever the strength
        torch.testing.assert_close(by_strength[0.0][part], by_strength[2.0][part])
        assert any(gradient.any() for gradient in by_strength[0.0][part])


def test_what_the_adversary_cannot_tell_has_no_penalty(tables: Any) -> None:
    strong, without = worn("adversarial", strength=1e6), worn("adversarial", strength=0.0)
    alike = torch.ones(40, 6)
    torch.testing.assert_close(penalty(strong, tables, alike), penalty(without, tables, alike))
    telling = alike + torch.from_numpy(places(40).positions)[:, None]
    assert penalty(strong, tables, telling) > penalty(without, tables, telling)


def test_the_adversary_reads_a_base_of_any_width(tables: Any) -> None:
    bias = worn("adversarial")
    for width in (1, 512, 1_300):
        base = torch.randn(40, width, requires_grad=True)
        (found,) = torch.autograd.grad(penalty(bias, tables, base), base)
        assert found.isfinite().all()
        assert (found != 0).any(0).all()


def test_the_bypass_is_served_with_the_click_rate_of_one_place(tables: Any) -> None:
    bias, outputs = worn("adversarial", served=2, tasks=("share",)), torch.zeros(8, 3)
    learnt, served = (bias.outputs(outputs, tables, where) for where in (places(8), None))
    torch.testing.assert_close(served, learnt[2].expand(8, -1))
    assert (served[:, :2] == 0).all()
    assert served[0, 2] != 0


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(ConfigError, match="'like' is no task; these are click, watch, share"):
        worn("pal", tasks=("like",))
    with pytest.raises(ConfigError, match=r"position.dropout = 1"):
        PositionConfig("shallow", dropout=1.0)
