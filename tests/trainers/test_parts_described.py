"""The items of histories: each once, with what describes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from features.batch import Items, Jagged, Users
from trainers.models.parts.described import history_items

DESCRIBED = Items(
    np.array([5, 7, 9]),
    Jagged.of(np.array([50, 51, 90]), np.array([2, 0, 1])),
    np.array([1, 2, 1], np.int32),
)


def users(*histories: list[int], described: Items | None = DESCRIBED) -> Users:
    history = Jagged.of(
        np.array([item for one in histories for item in one], np.int64),
        np.array([len(one) for one in histories]),
    )
    rewards = np.ones(len(history.values), np.float32)
    return Users(np.arange(len(histories)), history, rewards, described=described)


def test_each_item_is_there_once_with_what_describes_it() -> None:
    found = history_items(users([9, 5, 9], [], [6, 5]), 50)
    items = found.items
    assert items.ids.tolist() == [5, 6, 9]
    assert items.tokens.offsets.tolist() == [0, 2, 2, 3]
    assert items.tokens.values.tolist() == [50, 51, 90]
    assert items.fields.tolist() == [1, 2, 1]
    assert found.numbers.tolist() == [[3, 1, 3], [0, 0, 0], [2, 1, 0]]
    assert found.padded.items.tolist() == [[9, 5, 9], [0, 0, 0], [6, 5, 0]]


def test_only_the_newest_actions_are_read() -> None:
    found = history_items(users([9, 5, 7, 5]), 2)
    assert found.items.ids.tolist() == [5, 7]
    assert found.numbers.tolist() == [[2, 1]]


def test_what_is_known_of_items_is_known_of_actions_and_so_is_the_gradient() -> None:
    found = history_items(users([9, 5, 9], [5]), 50)
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)  # of 5 and 9
    actions = found.of_actions(values)
    assert actions.tolist() == [
        [[3.0, 4.0], [1.0, 2.0], [3.0, 4.0]],
        [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]],
    ]
    actions.sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert values.grad.tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_nobody_who_did_anything_has_no_items() -> None:
    found = history_items(users([], []), 50)
    assert found.items.ids.tolist() == []
    assert found.of_actions(torch.empty(0, 3)).tolist() == [[[0.0] * 3]] * 2


def test_nothing_is_known_of_any_item() -> None:
    nothing = Items(np.empty(0, np.int64), Jagged.of(np.empty(0, np.int64), np.empty(0, np.int64)))
    items = history_items(users([9, 5], described=nothing), 50).items
    assert items.ids.tolist() == [5, 9]
    assert items.tokens.lengths.tolist() == [0, 0]


def test_a_model_that_did_not_ask_for_descriptions_is_told() -> None:
    with pytest.raises(ValueError, match="describes = True"):
        history_items(users([9], described=None), 50)
