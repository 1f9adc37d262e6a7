"""What is BERT4Rec's own: order, both sides, and the cloze."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from features.batch import Items, Jagged, Users
from trainers.models import RetrievalStep, create
from trainers.softmax import Sampling

OPTIONS: dict[str, Any] = {
    "width": 16,
    "hidden": 32,
    "history": 4,
    "dropout": 0.0,
    "table": {"birth_scale": 0.5, "optimiser": {"learning_rate": 0.1}},
}
ITEMS = 10


def users(histories: list[list[int]]) -> Users:
    values = np.array([item for one in histories for item in one], np.int64)
    history = Jagged.of(values, np.array([len(one) for one in histories]))
    return Users(np.arange(len(histories)), history, np.ones(len(values), np.float32))


def items(count: int) -> Items:
    nothing = Jagged(np.empty(0, np.int64), np.zeros(count + 1, np.int64))
    return Items(np.arange(count), nothing)


def step(histories: list[list[int]], following: list[int], seed: int = 1) -> RetrievalStep:
    size = len(histories)
    return RetrievalStep(
        users(histories),
        items(ITEMS),
        torch.empty(0, 16),
        Sampling(
            torch.tensor(following),
            torch.zeros(1, ITEMS),
            torch.zeros(size, dtype=torch.int64),
            Jagged.of(np.empty(0, np.int64), np.zeros(size, np.int64)),
        ),
        torch.ones(size),
        np.array(following),
        np.arange(ITEMS),
        seed=seed,
    )


def query(model: Any, *history: int) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.query(users([list(history)]))[0, 0]
    return found


def test_order_counts_and_what_stands_before_the_newest_does_not() -> None:
    model = create("bert4rec", OPTIONS)
    read = query(model, 1, 2, 3, 4)
    assert not torch.allclose(read, query(model, 2, 1, 3, 4))
    assert torch.equal(read, query(model, 9, 8, 1, 2, 3, 4))


def test_each_place_is_read_from_both_sides() -> None:
    model = create("bert4rec", OPTIONS)
    there = torch.ones(1, 3, dtype=torch.bool)
    rows = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model._read(rows.clone(), there, None)
        rows[0, 2] *= -1.0
        after = model._read(rows, there, None)
    assert not torch.isclose(before, after).all(-1).any()  # the first place, too


def test_without_masked_items_the_loss_is_that_of_what_comes_next() -> None:
    model = create("bert4rec", {**OPTIONS, "masked": 0.0})
    given = step([[1, 2], [3], []], following=[4, 5, 6])
    with torch.no_grad():
        logits = model.query(given.users)[:, 0] @ model.items(given.candidates).T
        expected = F.cross_entropy(logits, torch.tensor([4, 5, 6]))
        torch.testing.assert_close(model.loss(given), expected)


def test_the_cloze_asks_for_what_was_masked_among_the_drawn() -> None:
    """With nearly all masked nothing but the places is left to be read: both losses are plain."""
    model = create("bert4rec", {**OPTIONS, "masked": 1 - 1e-9, "cloze": 0.5})
    given = step([[1, 2, 3], [4]], following=[5, 6])
    with torch.no_grad():
        hidden = model.mask.expand(2, 3, -1)
        there = torch.tensor([[True, True, True], [True, False, False]])
        logits = model._read(hidden, there, None) @ model.items(given.candidates).T
        following = F.cross_entropy(logits[:, 0], torch.tensor([5, 6]))
        found = F.cross_entropy(logits[:, 1:][there], torch.tensor([1, 2, 3, 4]), reduction="sum")
        torch.testing.assert_close(model.loss(given), following + 0.5 * found / 2)


def test_what_is_masked_depends_on_the_step_alone() -> None:
    model = create("bert4rec", {**OPTIONS, "dropout": 0.1})
    histories, following = [[1, 2, 3], [4, 5], [6, 7, 8, 9]], [4, 6, 1]
    with torch.no_grad():
        losses = [float(model.loss(step(histories, following, seed))) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_it_learns_what_order_alone_can_tell() -> None:
    """Of two items the older one comes back: a bag of items cannot tell which."""
    model = create("bert4rec", OPTIONS)
    dense = torch.optim.Adam(model.parameters(), lr=0.005)
    random = np.random.default_rng(0)
    for number in range(200):
        pairs = [random.choice(ITEMS, 2, replace=False).tolist() for _ in range(32)]
        for table in model.tables.values():
            table.training = True
        dense.zero_grad()
        model.loss(step(pairs, [older for older, _ in pairs], number)).backward()
        dense.step()
        for table in model.tables.values():
            table.step()
            table.training = False
    pairs = [[a, b] for a in range(ITEMS) for b in range(ITEMS) if a != b]
    with torch.no_grad():
        best = (model.query(users(pairs))[:, 0] @ model.items(items(ITEMS)).T).argmax(1)
    assert (best == torch.tensor(pairs)[:, 0]).float().mean() > 0.9
