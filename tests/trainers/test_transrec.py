"""What is TransRec's own: its formula, the ball, new users, and what it learns of pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from features.batch import Items, Jagged, Users
from trainers.models import RetrievalStep, create
from trainers.softmax import Sampling

OPTIONS: dict[str, Any] = {
    "width": 4,
    "table": {"birth_scale": 1.0, "optimiser": {"learning_rate": 0.2}},
}
ITEMS = 12


def users(ids: list[int], histories: list[list[int]]) -> Users:
    values = np.array([item for one in histories for item in one], np.int64)
    history = Jagged.of(values, np.array([len(one) for one in histories]))
    return Users(np.array(ids), history, np.ones(len(values), np.float32))


def items(ids: Any) -> Items:
    nothing = Jagged(np.empty(0, np.int64), np.zeros(len(ids) + 1, np.int64))
    return Items(np.asarray(ids, np.int64), nothing)


def step(
    of: Users, positive: list[int], drawn: list[int], hidden: Jagged | None = None
) -> RetrievalStep:
    none = Jagged.of(np.empty(0, np.int64), np.zeros(len(positive), np.int64))
    return RetrievalStep(
        of,
        items(range(ITEMS)),
        torch.empty(0, 5),
        Sampling(
            torch.tensor(positive),
            torch.zeros(1, ITEMS),
            torch.zeros(len(positive), dtype=torch.int64),
            hidden or none,
        ),
        torch.ones(len(positive)),
        np.array(positive),
        np.array(drawn),
        seed=1,
    )


def learn(model: Any, given: RetrievalStep) -> float:
    for table in model.tables.values():
        table.training = True
    loss = model.loss(given)
    loss.backward()
    for table in model.tables.values():
        table.step()
        table.training = False
    return float(loss.detach())


def set_rows(model: Any, name: str, ids: list[int], rows: torch.Tensor) -> None:
    model.tables[name].upsert(np.array(ids), rows.numpy())


def test_the_dot_product_is_the_papers_score_but_for_a_number_of_the_user() -> None:
    model = create("transrec", OPTIONS)
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(ITEMS, 4, generator=generator)
    points /= 2 * points.norm(dim=1, keepdim=True)
    biases = torch.randn(ITEMS, 1, generator=generator)
    own = torch.randn(1, 4, generator=generator)
    set_rows(model, "item", list(range(ITEMS)), points)
    set_rows(model, "bias", list(range(ITEMS)), biases)
    set_rows(model, "user", [7], own)
    with torch.no_grad():
        found = model.query(users([7], [[9, 3]]))[0] @ model.items(items(range(ITEMS))).T
        x = points[3] + model.translation + own[0]
        expected = biases[:, 0] - (x - points).square().sum(1) + x.square().sum()
    torch.testing.assert_close(found[0], expected)


def test_who_has_left_the_ball_is_read_where_it_ends() -> None:
    model = create("transrec", OPTIONS)
    outside = torch.tensor([[3.0, 0.0, 4.0, 0.0]])
    set_rows(model, "item", [1, 2], torch.cat([outside, outside / 5]))
    with torch.no_grad():
        far, edge = model.items(items([1, 2]))
        torch.testing.assert_close(far, edge)
        torch.testing.assert_close(model.query(users([5], [[1]])), model.query(users([5], [[2]])))


def test_a_new_user_is_led_by_what_all_have_in_common() -> None:
    model = create("transrec", OPTIONS)
    set_rows(model, "user", [7], torch.ones(1, 4))
    with torch.no_grad():
        new, other, known = model.query(users([1, 2, 7], [[4], [4], [4]]))[:, 0]
        nobody = model.query(users([1], [[]]))[0, 0]
    assert torch.equal(new, other)
    assert not torch.allclose(new, known)
    torch.testing.assert_close(nobody[:4], 2 * model.translation.detach())


def test_the_loss_compares_with_what_was_drawn_and_not_taken() -> None:
    model = create("transrec", OPTIONS)
    of = users([1, 2], [[0], [5]])
    hidden = Jagged.of(np.array([3, 6]), np.array([2, 0]))  # of the first user
    given = step(of, positive=[1, 2], drawn=[1, 3, 4, 6], hidden=hidden)
    with torch.no_grad():
        scores = model.query(of)[:, 0] @ model.items(items(range(ITEMS))).T
        first = -F.logsigmoid(scores[0, 1] - scores[0, 4])
        second = -F.logsigmoid(scores[1, 2] - scores[1, [1, 3, 4, 6]]).mean()
        found = model.loss(given)
    torch.testing.assert_close(found, (first + second) / 2)


def test_without_draws_it_says_what_to_set() -> None:
    model = create("transrec", OPTIONS)
    with pytest.raises(ValueError, match=r"negatives\.uniform"):
        model.loss(step(users([1], [[0]]), positive=[1], drawn=[]))
    softmax = create("transrec", {**OPTIONS, "learns_by": "softmax"})
    assert torch.isfinite(softmax.loss(step(users([1], [[0]]), positive=[1], drawn=[])))


@pytest.mark.parametrize("learns_by", ["s-bpr", "softmax"])
def test_it_learns_which_item_follows_which(learns_by: str) -> None:
    """To each of the first six belongs one of the last six, for everybody: t leads there."""
    model = create("transrec", {**OPTIONS, "learns_by": learns_by})
    first, second = np.arange(6), np.arange(6, ITEMS)
    dense = torch.optim.Adam(model.parameters(), lr=0.05)

    def pairs(user: int) -> Users:
        return users((user + first).tolist(), [[item] for item in first.tolist()])

    for number in range(100):  # each user comes once
        dense.zero_grad()
        learn(model, step(pairs(6 * number), positive=second.tolist(), drawn=list(range(ITEMS))))
        dense.step()
    with torch.no_grad():
        scores = model.query(pairs(10**6))[:, 0] @ model.items(items(range(ITEMS))).T
    assert (scores.argmax(1).numpy() == second).all()
