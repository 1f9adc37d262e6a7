"""What is STAMP's own: its formula, and what it learns of one pair."""

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
    "width": 16,
    "hidden": 16,
    "history": 3,
    "table": {"birth_scale": 1.0, "optimiser": {"learning_rate": 0.3}},
}
PACE = 5.0  # a parameter of an age counts so much


def users(*histories: list[int]) -> Users:
    values = np.array([item for one in histories for item in one], np.int64)
    history = Jagged.of(values, np.array([len(one) for one in histories]))
    return Users(np.arange(len(histories)), history, np.ones(len(values), np.float32))


def items(count: int) -> Items:
    nothing = Jagged(np.empty(0, np.int64), np.zeros(count + 1, np.int64))
    return Items(np.arange(count), nothing)


def test_the_newest_decides_by_how_much_each_item_counts() -> None:
    model = create("stamp", OPTIONS)
    with torch.no_grad():
        model.ages.copy_(torch.tensor([0.3, -0.2, 0.1]) / PACE)
        x = model.tables["item"](np.array([4, 7, 2]))
        weights = (x @ x[2] + torch.tensor([0.1, -0.2, 0.3])).softmax(0)
        expected = F.normalize(weights @ x, dim=0)
        torch.testing.assert_close(model.query(users([4, 7, 2]))[0, 0], expected)
        # What is older than the newest three is not read; where nothing is, all are the same.
        torch.testing.assert_close(model.query(users([9, 4, 7, 2]))[0, 0], expected)
        nobody, other = model.query(users([], []))[:, 0]
    assert torch.equal(nobody, other)


def test_what_was_taken_scores_so_much_more_each_time() -> None:
    plain, model = create("stamp", OPTIONS), create("stamp", {**OPTIONS, "code": 4096})
    with torch.no_grad():
        model.again.copy_(torch.tensor([1.0, 2.0, 4.0]) / PACE)
        some = users([4, 7, 4], [7])
        more = model.query(some)[:, 0] @ model.items(items(10)).T
        more -= plain.query(some)[:, 0] @ plain.items(items(10)).T
    expected = torch.zeros(2, 10)
    expected[0, 4], expected[0, 7], expected[1, 7] = 1.0 + 4.0, 2.0, 1.0
    torch.testing.assert_close(more / model.temperature, expected, atol=0.4, rtol=0)


def repeats(model: Any, history: list[int], item: int) -> Any:
    """A loss of one sample, with the items 0 to 9 as candidates."""
    item_ids = np.array([item])
    sampling = Sampling(
        torch.tensor([item]),
        torch.full((1, 10), -0.5),
        torch.zeros(1, dtype=torch.int64),
        Jagged.of(np.array([*history, item]), np.array([len(history) + 1])),
    )
    nothing = torch.empty(0, model.width)
    one = torch.ones(1)
    return model.loss(
        RetrievalStep(users(history), items(10), nothing, sampling, one, item_ids, item_ids, seed=1)
    )


@pytest.mark.parametrize(("item", "sign"), [(4, -1), (7, -1), (5, 1)])
def test_who_comes_back_teaches_that_one_comes_back(item: int, sign: int) -> None:
    """And who goes on, that one does not; each action of a history says so of its own age."""
    model = create("stamp", {**OPTIONS, "code": 8})
    repeats(model, [7, 4], item).backward()
    newest, older, oldest = model.again.grad.sign().tolist()
    assert {4: newest, 7: older, 5: newest}[item] == sign
    assert oldest == 0
    if sign > 0:
        assert older > 0


def test_the_rows_learn_nothing_from_how_often_one_comes_back() -> None:
    found = []
    for code in (0, 8):
        model = create("stamp", {**OPTIONS, "code": code})
        table = model.tables["item"]
        table.training = True
        repeats(model, [7, 4], 7).backward()
        table.step()
        table.training = False
        with torch.no_grad():
            found.append(table(np.arange(10)))
    assert torch.equal(*found)


def test_a_pair_learnt_in_one_direction_is_known_in_the_other() -> None:
    model = create("stamp", OPTIONS)

    def found(history: int, item: int) -> int:
        with torch.no_grad():
            scores = model.query(users([history]))[0, 0] @ model.items(items(40)).T
        scores[history] = -torch.inf
        return int((scores > scores[item]).sum())

    before = found(history=5, item=3)
    step = RetrievalStep(
        users([3]),
        items(40),
        torch.empty(0, 16),
        Sampling(
            torch.tensor([5]),
            torch.zeros(1, 40),
            torch.zeros(1, dtype=torch.int64),
            Jagged(np.empty(0, np.int64), np.zeros(2, np.int64)),
        ),
        torch.ones(1),
        np.array([5]),
        np.arange(40),
        seed=1,
    )
    for _ in range(3):
        model.tables["item"].training = True
        model.loss(step).backward()
        model.tables["item"].step()
        model.tables["item"].training = False
    assert found(history=3, item=5) == 0
    assert found(history=5, item=3) < max(before, 3)
