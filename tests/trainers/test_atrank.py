"""ATRank: behaviours of all kinds, read by attention of the candidate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from features.batch import Details, Jagged, Moments, Users
from trainers.models.atrank import ATRank

NOW_US = 1_700_000_000_000_000


def jagged(*lists: list[int]) -> Jagged:
    values = np.array([value for one in lists for value in one], np.int64)
    return Jagged.of(values, np.array([len(one) for one in lists], np.int64))


def user(*items: int, kind: int = 0, age_s: float = 0.0, **more: Any) -> Users:
    details = Details.unknown(len(items))
    details.kinds[:] = kind
    details.at_us[:] = NOW_US - int(age_s * 1e6)
    history, rewards = jagged([*items]), np.ones(len(items), np.float32)
    one, now = np.array([1]), np.array([NOW_US])
    return Users(one, history, rewards, details, at_us=now, **more)


@pytest.fixture
def model() -> ATRank:
    model = ATRank(ATRank.Config(width=16, heads=2, hidden=32, history=4, words=2, passed_over=2))
    for name, table in model.tables.items():
        rng = np.random.default_rng(len(name))
        table.upsert(np.arange(50), rng.normal(size=(50, 16)).astype(np.float32))
    return model.requires_grad_(False)


def test_a_user_is_asked_by_each_behaviour_and_by_their_mean(model: ATRank) -> None:
    queries = model.query(user(3, 4))[0]
    assert queries.shape == (1 + 4 + 2, 16)
    mean, first, second = queries[:3]
    assert torch.equal(queries[3:], mean.expand(4, 16))  # what is not there says nothing new
    behaviours, mask = model._behaviours(user(3, 4))
    torch.testing.assert_close(mean, F.normalize(behaviours[0][mask[0]].mean(0), dim=0))
    assert not torch.allclose(first, second)


def test_what_was_done_how_and_when_matters(model: ATRank) -> None:
    usual = model.query(user(3, kind=1, age_s=10))
    for other in (user(4, kind=1, age_s=10), user(3, kind=2, age_s=10), user(3, kind=1, age_s=1e6)):
        assert not torch.allclose(model.query(other), usual)
    same_bucket = model.query(user(3, kind=1, age_s=11))
    torch.testing.assert_close(same_bucket, usual)


def test_a_search_is_a_wish_and_what_was_passed_over_only_colours_the_others(
    model: ATRank,
) -> None:
    times = np.full(1, NOW_US)
    words = user(3, searched=Moments(jagged([7]), times))
    passed = user(3, passed_over=Moments(jagged([7]), times))
    queries = [model.query(one)[0] for one in (user(3), words, passed)]
    wishes = [len(torch.unique(query, dim=0)) for query in queries]
    assert wishes == [1, 3, 1]  # each behaviour, and their mean, which of one is that one
    assert not torch.allclose(queries[2], queries[0])


def test_the_order_of_behaviours_says_nothing_but_their_ages_do(model: ATRank) -> None:
    one, other = model.query(user(3, 4))[0], model.query(user(4, 3))[0]
    torch.testing.assert_close(one[0], other[0])
    torch.testing.assert_close(one[1], other[2])


def test_attention_of_the_candidate_prefers_the_behaviour_that_fits(model: ATRank) -> None:
    visitor = user(3, 4)
    keys, mask = model._keys(visitor)
    for place in (1, 2):
        target = keys[:, place]
        logits = (keys[0] @ target[0])[mask[0]] * model.config.sharpness
        read = F.normalize(logits.softmax(0) @ keys[0][mask[0]], dim=0)
        torch.testing.assert_close(model.score(visitor, target), (read @ target[0])[None])
        assert model.score(visitor, target) > 0.9


def test_the_best_behaviour_is_what_sure_attention_gives(model: ATRank) -> None:
    sure = ATRank(ATRank.Config(**{**vars(model.config), "sharpness": 1e6}))
    sure.load_state_dict(model.state_dict())
    sure.tables = model.tables
    visitor, vectors = user(3, 4, 5), F.normalize(torch.randn(20, 16), dim=1)
    best = (model.query(visitor)[0] @ vectors.T).amax(0)
    soft = torch.cat([sure.score(visitor, vector[None]) for vector in vectors])
    torch.testing.assert_close(soft, best, atol=1e-3, rtol=0)


def test_who_did_nothing_is_nobody(model: ATRank) -> None:
    queries = model.query(user())[0]
    torch.testing.assert_close(queries, F.normalize(model.nobody, dim=0).expand_as(queries))
