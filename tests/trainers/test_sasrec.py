"""What is SASRec's own: nothing is read from what came later, and what each action learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from features.batch import Items, Jagged, Users
from trainers.models import RetrievalStep, create
from trainers.models.parts.history import sequence
from trainers.softmax import Sampling

OPTIONS: dict[str, Any] = {
    "width": 16,
    "hidden": 32,
    "history": 4,
    "temperature": 0.5,
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


def states(model: Any, history: list[int]) -> torch.Tensor:
    with torch.no_grad():
        rows, padded = sequence(model.tables["item"], users([history]), 4)
        found: torch.Tensor = model._states(rows, padded, None)[0]
    return found


def test_a_state_reads_what_came_before_it_and_nothing_later() -> None:
    model = create("sasrec", OPTIONS)
    read = states(model, [1, 2, 3, 4])
    later, before = states(model, [1, 2, 3, 9]), states(model, [9, 2, 3, 4])
    torch.testing.assert_close(read[:3], later[:3])
    assert not torch.isclose(read, before).all(-1).any()


def test_each_action_learns_what_followed_it_if_wanted() -> None:
    given = step([[1, 2, 3], [4], []], following=[5, 6, 7])
    with torch.no_grad():
        plain, every = (
            create("sasrec", {**OPTIONS, "every": weight}).loss(given) for weight in (0.0, 0.5)
        )
        model = create("sasrec", OPTIONS)
        vectors = model.items(given.candidates)
        logits = model.query(given.users)[:, 0] @ vectors.T / 0.5
        torch.testing.assert_close(plain, F.cross_entropy(logits, torch.tensor([5, 6, 7])))
        logits = states(model, [1, 2, 3])[:2] @ vectors.T / 0.5
        followed = F.cross_entropy(logits, torch.tensor([2, 3]), reduction="sum")
        torch.testing.assert_close(every, plain + 0.5 * followed / 3)


def test_it_learns_what_order_alone_can_tell() -> None:
    """Of two items the older one comes back: a bag of items cannot tell which."""
    model = create("sasrec", OPTIONS)
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
