"""What is the two-tower model's own: which part of a history it reads, and how."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from features.batch import Items, Jagged, Users
from trainers.models import create

OPTIONS = {"width": 8, "hidden": 16, "history": 3}


def query(items: list[int], rewards: list[float], user: int = 1, **options: Any) -> Tensor:
    model = create("two_tower", {**OPTIONS, **options})
    offsets = np.array([0, len(items)])
    users = Users(
        np.array([user]),
        Jagged(np.array(items, np.int64), offsets),
        np.array(rewards, np.float32),
    )
    with torch.no_grad():
        answer: Tensor = model.query(users)[0, 0]
    return answer


def test_only_the_newest_actions_of_a_history_are_read() -> None:
    read = query([5, 6, 7], [1, 0, 1])
    assert torch.equal(read, query([9, 8, 5, 6, 7], [1, 1, 1, 0, 1]))
    assert not torch.allclose(read, query([9, 6, 7], [1, 0, 1]))
    assert not torch.allclose(read, query([9, 8, 5, 6, 7], [1, 1, 1, 0, 1], history=4))


def test_an_action_pleased_from_a_reward_of_one_half_on() -> None:
    assert torch.equal(query([5, 6], [0.5, 0.49]), query([5, 6], [1.0, 0.0]))
    assert not torch.allclose(query([5, 6], [0.5, 0.49]), query([5, 6], [0.49, 0.5]))


def test_a_new_user_is_known_by_his_history_alone() -> None:
    assert torch.equal(query([5, 6], [1, 0], user=1), query([5, 6], [1, 0], user=2))


def test_items_without_a_past_are_alike_if_the_same_tokens_describe_them() -> None:
    model = create("two_tower", {**OPTIONS, "table": {"birth_scale": 1.0}, "width": 32})
    tokens = Jagged(np.array([3, 4, 3, 4, 50, 60]), np.array([0, 2, 4, 6]))
    with torch.no_grad():
        one, alike, other = model.items(Items(np.array([100, 200, 300]), tokens))
    assert one @ alike > one @ other + 0.1
