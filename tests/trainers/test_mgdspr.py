"""What is MGDSPR's own: a search that looks through three pasts, and negatives that are mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from features.batch import Details, Items, Jagged, Moments, Users
from streaming.event_columns import field_codes
from trainers.models import RetrievalStep, create
from trainers.models.parts.searches import bigrams
from trainers.softmax import Sampling, sampled_softmax

NOW_US = 1_700_000_000_000_000
MINUTE_US, DAY_US = 60_000_000, 86_400_000_000
CLICK, LIKE, BUY = 0, 1, 4
CATEGORY, BRAND = field_codes(["category", "brand"]).tolist()
OPTIONS = {"width": 8, "heads": 2, "hidden": 16, "history": 3, "table": {"birth_scale": 0.5}}


def model(**options: Any) -> Any:
    return create("mgdspr", {**OPTIONS, **options})


def jagged(*lists: Sequence[int]) -> Jagged:
    values = np.array([value for one in lists for value in one], np.int64)
    return Jagged.of(values, np.array([len(one) for one in lists], np.int64))


def user(
    did: Sequence[tuple[int, int, int]] = (), searched: Sequence[tuple[Sequence[int], int]] = ()
) -> Users:
    """Somebody who did (item, kind, age in µs) and searched for (words, age in µs)."""
    items = [item for item, _, _ in did]
    details = replace(
        Details.unknown(len(did)),
        kinds=np.array([kind for _, kind, _ in did], np.int32),
        at_us=np.array([NOW_US - age for _, _, age in did], np.int64),
    )
    said_us = [NOW_US - age for words, age in searched for _ in words]
    words = Moments(
        jagged([w for words, _ in searched for w in words]), np.array(said_us, np.int64)
    )
    known = Items(
        np.arange(100),
        jagged(*([500 + item % 7, 600 + item % 5] for item in range(100))),
        np.tile(np.array([CATEGORY, BRAND], np.int32), 100),
    )
    rewards = np.ones(len(did), np.float32)
    at_us = np.array([NOW_US])
    return Users(
        np.array([1]), jagged(items), rewards, details, words, at_us=at_us, described=known
    )


@torch.no_grad()
def vector(made: Any, users: Users) -> Tensor:
    found: Tensor = made.query(users)[0, 0]
    return found


# The search


def test_the_views_of_a_search_are_those_of_the_paper() -> None:
    made = model()
    somebody = user(searched=[([1, 2], 5 * DAY_US), ([3], 2 * DAY_US), ([7, 8, 9], MINUTE_US)])
    token = made.tables["token"]
    with torch.no_grad():
        words, pairs, together, alike, mixture = made._views(somebody)[0]
        rows = token(np.array([7, 8, 9]))
        paired = token(bigrams(jagged([7, 8, 9])).values)
        past = torch.stack([token(np.array([1, 2])).mean(0), token(np.array([3]))[0]])
        attention = (past @ rows.mean(0) / 8**0.5).softmax(0)
        seen = made.words(rows[None], torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(words, rows.mean(0))
    torch.testing.assert_close(pairs, paired.mean(0))
    torch.testing.assert_close(together, seen[0].mean(0))
    torch.testing.assert_close(alike, attention @ past)
    torch.testing.assert_close(mixture, words + pairs + together + alike)


def test_a_search_is_the_present_one_until_its_time_is_over() -> None:
    made, did = model(present_s=600), [(5, CLICK, 3 * DAY_US)]
    fresh, stale, older = (
        vector(made, user(did, [([7, 8], age)])) for age in (MINUTE_US, 11 * MINUTE_US, DAY_US)
    )
    torch.testing.assert_close(stale, older)  # nobody asks, and a search alone is no past to ask of
    assert not torch.allclose(fresh, stale, atol=1e-3)


def test_who_searches_for_nothing_asks_with_the_newest_item() -> None:
    made = model()
    with torch.no_grad():
        views = made._views(user([(5, CLICK, 2 * DAY_US), (6, LIKE, DAY_US)]))[0]
        newest, _ = made._actions(user([(6, CLICK, DAY_US)]), 1)
    torch.testing.assert_close(views, newest[0].expand(5, -1))


# The pasts


def test_what_is_before_is_pooled_by_kind_and_field_and_looked_through() -> None:
    made = model()
    did = [(11, CLICK, 20 * DAY_US), (12, CLICK, 19 * DAY_US), (13, LIKE, 18 * DAY_US)]
    views = torch.randn(1, 5, 8)
    item, token = made.tables["item"], made.tables["token"]
    with torch.no_grad():
        expected = torch.zeros(5, 8)
        for table, clicked, liked in (
            (item, [11, 12], [13]),
            (token, [500 + 11 % 7, 500 + 12 % 7], [500 + 13 % 7]),
            (token, [600 + 11 % 5, 600 + 12 % 5], [600 + 13 % 5]),
        ):
            means = [table(np.array(ids)).mean(0) for ids in (clicked, liked)]
            keys = torch.stack([torch.zeros(8), *means])
            expected += (views[0] @ keys.T / 8**0.5).softmax(-1) @ keys
        torch.testing.assert_close(made._before(views, user(did))[0], expected)


@pytest.mark.parametrize("age", [MINUTE_US, 2 * DAY_US, 20 * DAY_US, NOW_US])
def test_every_past_counts_also_one_of_unknown_time(age: int) -> None:
    made, search = model(), [([7, 8], MINUTE_US)]
    one, other = (vector(made, user([(item, CLICK, age)], search)) for item in (5, 60))
    assert not torch.allclose(one, other, atol=1e-4)


def test_with_zeros_to_look_at_a_search_ignores_a_past_that_is_not_like_it() -> None:
    """The same past, for a search that is like it and for one that points away from it."""
    views = 30 * F.normalize(torch.randn(1, 1, 8), dim=-1)
    told = {}
    for zero in (True, False):
        made = model(zero=zero)
        did = [(11, CLICK, 20 * DAY_US), (12, BUY, 19 * DAY_US)]
        rows = torch.cat([views[0], views[0]])
        made.tables["item"].upsert(np.array([11, 12]), rows.numpy())
        for token in (*range(500, 507), *range(600, 605)):
            made.tables["token"].upsert(np.array([token]), views[0].numpy())
        with torch.no_grad():
            told[zero] = [float(made._before(to, user(did)).norm()) for to in (views, -views)]
    (near, far), (near_, far_) = told[True], told[False]
    assert far < 1e-6 * near
    assert far_ == pytest.approx(near_)


def test_a_real_time_action_is_read_in_its_order() -> None:
    made, search = model(), [([7, 8], MINUTE_US)]
    ages = [3 * MINUTE_US, 2 * MINUTE_US]
    session, turned = (
        user([(item, CLICK, age) for item, age in zip(order, ages, strict=True)], search)
        for order in ([5, 60], [60, 5])
    )
    assert not torch.allclose(vector(made, session), vector(made, turned), atol=1e-5)


# Items


def test_an_item_is_its_row_and_its_words() -> None:
    made = model()
    with torch.no_grad():
        found = made.items(Items(np.array([3]), jagged([7, 8])))[0]
        words = made.tables["token"](np.array([7, 8])).mean(0)
        expected = made.tables["item"](np.array([3]))[0] + torch.tanh(made.title(words))
    torch.testing.assert_close(found, F.normalize(expected, dim=0))


# The loss


def step(users: int, candidates: int, hidden: Jagged) -> RetrievalStep:
    someone = user([(5, CLICK, DAY_US)], [([7, 8], MINUTE_US)])
    everyone = replace(
        someone.take(np.zeros(users, np.int64)), ids=np.arange(users, dtype=np.int64)
    )
    return RetrievalStep(
        everyone,
        Items(np.arange(candidates), jagged(*([number] for number in range(candidates)))),
        torch.empty(0, 8),
        Sampling(
            torch.arange(users),
            torch.full((1, candidates), -1.0),
            torch.zeros(users, dtype=torch.int64),
            hidden,
        ),
        torch.linspace(0.5, 1.0, users),
        np.arange(users),
        np.empty(0, np.int64),
        seed=3,
    )


def test_the_mixed_negatives_are_the_best_candidates_mixed_with_the_own_item() -> None:
    """Mixed as vectors, one by one, with the share at 0.5 so that nothing is left to chance."""
    made = model(hard=2, mixed=(0.5, 0.5), hard_weight=0.7, temperature=0.5)
    asked = step(3, 6, jagged([4], [], [0, 1, 3, 4, 5]))  # who is 2 knows all others
    with torch.no_grad():
        queries, vectors = made.query(asked.users)[:, 0], made.items(asked.candidates)
        expected = []
        for row, hidden in enumerate(([4], [], [0, 1, 3, 4, 5])):
            others = [c for c in range(6) if c != row and c not in hidden]
            best = sorted(others, key=lambda c: -float(queries[row] @ vectors[c]))[:2]
            mixes = [0.5 * vectors[row] + 0.5 * vectors[c] for c in best]
            logits = torch.stack([queries[row] @ v for v in (vectors[row], *mixes)]) / 0.5
            expected.append(-logits.log_softmax(0)[0])
        plain = sampled_softmax(queries, vectors, asked.sampling, asked.weights, 0.5)
        mixed = (torch.stack(expected) * asked.weights).mean()
        torch.testing.assert_close(made.loss(asked), plain + 0.7 * mixed)


def test_shares_are_drawn_from_the_seed_of_the_step() -> None:
    made, asked = model(mixed=(0.0, 0.9)), step(4, 9, jagged([], [], [], []))
    with torch.no_grad():
        losses = [float(made.loss(replace(asked, seed=seed))) for seed in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]


def test_who_has_seen_all_else_is_no_obstacle_to_learning() -> None:
    made = model()
    others = [[c for c in range(3) if c != row] for row in range(3)]
    loss = made.loss(step(3, 3, jagged(*others)))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)
