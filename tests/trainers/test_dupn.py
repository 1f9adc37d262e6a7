"""DUPN: properties at the gates, attention by who asks and for what, one vector for all tasks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from features.batch import Moments, Users
from tests.trainers.contract import DAY_US, jagged, some_users, strangers
from trainers.models import create
from trainers.models.dupn import PropertyGatedLSTM


@pytest.fixture
def lstm() -> PropertyGatedLSTM:
    torch.manual_seed(0)
    return PropertyGatedLSTM(items=5, properties=3, state=4)


@pytest.fixture
def model() -> Any:
    small = {"width": 4, "state": 8, "attention": 8, "described": ("category",)}
    # With rows of a size at which something can be seen.
    return create("dupn", {**small, "table": {"birth_scale": 1.0}})


def test_without_properties_it_is_an_lstm(lstm: PropertyGatedLSTM) -> None:
    nn.init.zeros_(lstm.properties.weight)
    usual = nn.LSTM(5, 4, batch_first=True)

    def in_its_order(weights: torch.Tensor) -> torch.Tensor:
        i, f, o, new = weights.chunk(4)
        return torch.cat([i, f, new, o])

    usual.load_state_dict(
        {
            "weight_ih_l0": in_its_order(lstm.items.weight),
            "weight_hh_l0": in_its_order(lstm.states.weight),
            "bias_ih_l0": in_its_order(lstm.items.bias),
            "bias_hh_l0": torch.zeros(16),
        }
    )
    items = torch.randn(2, 6, 5)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    found = lstm(items, torch.randn(2, 6, 3), mask)
    torch.testing.assert_close(found, usual(items)[0] * mask[..., None])


def test_properties_say_how_much_and_are_nothing_that_goes_in(lstm: PropertyGatedLSTM) -> None:
    items, mask = torch.randn(1, 3, 5), torch.ones(1, 3, dtype=torch.bool)
    one, other = (lstm(items, properties, mask) for properties in torch.randn(2, 1, 3, 3))
    assert not torch.isclose(one, other).any()
    with torch.no_grad():  # what may go in is nothing
        lstm.items.weight[12:] = 0.0
        lstm.items.bias[12:] = 0.0
        lstm.states.weight[12:] = 0.0
    assert not lstm(items, torch.randn(1, 3, 3), mask).any()


def test_a_gate_that_is_shut_by_its_property_lets_nothing_in(lstm: PropertyGatedLSTM) -> None:
    with torch.no_grad():
        lstm.properties.weight.zero_()
        lstm.properties.weight[:4, 0] = -50.0  # of the gate through which items go in
    items, mask = torch.randn(1, 2, 5), torch.ones(1, 2, dtype=torch.bool)
    shut = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
    assert lstm(items, shut, mask).abs().max() < 1e-12
    assert lstm(items, 0.0 * shut, mask).abs().max() > 1e-3


def vectors(model: Any, users: Users) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.user_part(users, model.fields.users(model.tables, users))
    return found


def attended(model: Any, users: Users) -> torch.Tensor:
    return vectors(model, users)[:, : model.config.state]


def test_a_vector_is_what_was_attended_to_and_who_the_user_is(model: Any) -> None:
    users = some_users(6)
    found = vectors(model, users)
    own = len(model.fields.of_users) * model.config.width
    assert found.shape == (6, model.config.state + own) == (6, model.user_width)
    torch.testing.assert_close(found[:, model.config.state :], model.fields.users(
        model.tables, users).flatten(1))  # fmt: skip
    assert not attended(model, strangers(3)).any()  # who did nothing


def test_what_is_searched_for_decides_what_is_attended_to(model: Any) -> None:
    users = some_users(6)
    busy = users.history.lengths > 1

    def asking(word: int, age_us: int = 0) -> Users:
        at_us = users.at_us - age_us
        return dataclasses.replace(users, searched=Moments(jagged([[word]] * 6), at_us))

    one, other = (attended(model, asking(word)) for word in (3, 4))
    assert not torch.isclose(one, other).all(1)[busy].any()
    long_ago = [attended(model, asking(word, DAY_US)) for word in (3, 4)]
    assert torch.equal(*long_ago)


def test_the_newest_behaviours_are_read_in_their_order(model: Any) -> None:
    items = [[7, 8, 9, *range(20, 39)], [9, 8, *range(20, 39)], [*range(38, 19, -1), 8]]
    histories = jagged(items)
    size = len(histories.values)
    nobody = strangers(3)
    users = dataclasses.replace(
        nobody,
        ids=np.zeros(3, np.int64),
        history=histories,
        rewards=np.ones(size, np.float32),
        details=type(nobody.details).unknown(size),
    )
    model.config = dataclasses.replace(model.config, behaviours=19)
    found = attended(model, users)
    torch.testing.assert_close(found[0], found[1])  # what is older is not read
    assert not torch.isclose(found[0], found[2]).all()
