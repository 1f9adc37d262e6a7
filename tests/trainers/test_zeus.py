"""What is ZEUS's own: the next search, one vector for all scenarios, and a small part for each."""

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
from streaming.event_columns import NONE
from trainers.models import RetrievalStep, create
from trainers.models.parts.searches import Searches
from trainers.models.zeus import ZEUS
from trainers.softmax import Sampling, sampled_softmax

NOW_US = 1_700_000_000_000_000
MINUTE_US = 60_000_000
OPTIONS = {"width": 8, "heads": 2, "hidden": 16, "table": {"birth_scale": 0.5}}
Asked = tuple[Sequence[int], int]  # words, and how long ago, in minutes


def model(**options: Any) -> ZEUS:
    made: ZEUS = create("zeus", {**OPTIONS, **options})
    return made


def jagged(lists: Sequence[Sequence[int]]) -> Jagged:
    values = np.array([value for one in lists for value in one], np.int64)
    return Jagged.of(values, np.array([len(one) for one in lists], np.int64))


def users(*people: tuple[Sequence[tuple[int, int]], Sequence[Asked]], scenario: int = 1) -> Users:
    """Of each what he did, (item, minutes ago), and what he searched for."""
    did = [one for done, _ in people for one in done]
    details = Details.unknown(len(did))
    at_us = np.array([NOW_US - age * MINUTE_US for _, age in did], np.int64)
    said = [[(w, age) for words, age in asked for w in words] for _, asked in people]
    said_us = [NOW_US - age * MINUTE_US for one in said for _, age in one]
    count = len(people)
    return Users(
        np.arange(count),
        jagged([[item for item, _ in done] for done, _ in people]),
        np.ones(len(did), np.float32),
        replace(details, at_us=at_us),
        Moments(jagged([[w for w, _ in one] for one in said]), np.array(said_us, np.int64)),
        at_us=np.full(count, NOW_US),
        scenarios=np.full(count, scenario, np.int32),
        described=Items(np.arange(9), jagged([[50 + item] for item in range(9)])),
    )


def step(of: Users, candidates: int = 6) -> RetrievalStep:
    count = len(of.ids)
    return RetrievalStep(
        of,
        Items(np.arange(candidates), jagged([[50 + item] for item in range(candidates)])),
        torch.empty(0, 8),
        Sampling(
            torch.arange(count),
            torch.full((1, candidates), -1.0),
            torch.zeros(count, dtype=torch.int64),
            jagged([[]] * count),
        ),
        torch.ones(count),
        np.arange(count),
        np.empty(0, np.int64),
        seed=1,
    )


SOMEBODY: tuple[list[tuple[int, int]], list[Asked]] = ([(5, 30)], [([7, 8], 90), ([9], 10)])


def training(made: ZEUS) -> ZEUS:
    for table in made.tables.values():
        table.training = True
    return made


# Scenarios


def test_in_a_scenario_that_nobody_knows_users_want_what_they_want_anywhere() -> None:
    made = model()
    for scenario in (NONE, 7):
        of = users(SOMEBODY, scenario=scenario)
        with torch.no_grad():
            common = made.common(of, Searches.of(of.searched))
            torch.testing.assert_close(made.query(of), common)


def test_the_row_of_a_scenario_stretches_and_moves_what_users_want_there() -> None:
    made = model()
    row = torch.randn(16)
    made.tables["scenario"].upsert(np.array([3]), row[None].numpy())
    here, elsewhere = users(SOMEBODY, scenario=3), users(SOMEBODY, scenario=4)
    with torch.no_grad():
        common = made.query(elsewhere)
        expected = F.normalize(common * (1 + row[:8]) + row[8:], dim=-1)
        torch.testing.assert_close(made.query(here), expected)


def test_the_loss_of_a_scenario_reaches_its_row_alone() -> None:
    made = training(model(search_weight=0))
    asked = step(users(SOMEBODY, ([(3, 5)], [])))
    common = made.common(asked.users, Searches.of(asked.users.searched))
    vectors = made.items(asked.candidates)
    plain = made._taken(common, vectors, asked)
    plain.backward()  # type: ignore[no-untyped-call]
    expected = [p.grad.clone() for p in made.parameters() if p.grad is not None]
    rows = {name: _learnt(made, name) for name in ("item", "token", "scenario")}
    again = training(model(search_weight=0))
    loss = again.loss(asked)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(2 * plain.item())  # a scenario's row is born zero
    for p, grad in zip(again.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad)
    for name in ("item", "token"):
        torch.testing.assert_close(_learnt(again, name), rows[name])
    assert rows["scenario"].numel() == 0
    assert _learnt(again, "scenario").any()


def _learnt(made: ZEUS, name: str) -> Tensor:
    """The rows of a table after a step, by id."""
    table = made.tables[name]
    table.step()
    ids, rows = table.touched_since(0)
    return torch.from_numpy(rows[np.argsort(ids)])


# The next search


def test_the_next_search_is_told_from_what_was_before_it_among_those_of_others() -> None:
    made = model(temperature=0.5)
    of = users(
        ([(5, 30)], [([7, 8], 90), ([9], 10)]),
        ([(3, 50), (4, 40)], [([6], 20)]),
        ([], [([9], 4)]),  # the same search as that of the first, and no negative of it
        ([(1, 2)], [([2], 3)]),  # has acted since
        ([(1, 2)], []),
    )
    before = users(([(5, 30)], [([7, 8], 90)]), ([(3, 50), (4, 40)], []), ([], []))
    at_us = NOW_US - MINUTE_US * np.array([10, 20, 4])
    before = replace(before, at_us=at_us)
    with torch.no_grad():
        known = made.common(before, Searches.of(before.searched))  # (3, K, d)
        wanted = F.normalize(made.tables["token"](np.array([9, 6, 9])), dim=1)
        scores = torch.einsum("bkd,nd->bnk", known, wanted).amax(-1) / 0.5
        scores[0, 2] = scores[2, 0] = -torch.inf
        expected = -scores.log_softmax(1).diagonal().sum() / 5
        torch.testing.assert_close(made._next_search(of), expected)


def test_suggested_searches_are_neither_read_nor_learnt() -> None:
    made = model()
    typed: list[Asked] = [([7, 8], 90), ([9], 20)]
    of = users(([], [*typed, ([6], 5)]), ([], [([6], 30)]), ([], [([5], 4)]), ([], [([3], 7)]))
    since = NOW_US - of.searched.at_us
    suggested = (since == 5 * MINUTE_US) | (since == 30 * MINUTE_US)
    said = replace(of, searched=replace(of.searched, suggested=suggested))
    without = users(([], typed), ([], []), ([], [([5], 4)]), ([], [([3], 7)]))
    with torch.no_grad():
        torch.testing.assert_close(made._next_search(said), made._next_search(without))
        assert made._next_search(said) != made._next_search(of)
        torch.testing.assert_close(made.query(said), made.query(without))
        assert not torch.equal(made.query(said), made.query(of))


def test_a_search_is_learnt_once_in_a_step() -> None:
    made = model()
    of = users(([], [([7], 5)]), ([], [([8], 5)]))
    twice = of.take(np.array([0, 1, 0, 0]))
    with torch.no_grad():
        torch.testing.assert_close(4 * made._next_search(twice), 2 * made._next_search(of))


def test_without_another_search_there_is_nothing_to_tell_it_from() -> None:
    made = model()
    assert made._next_search(users(SOMEBODY)) == 0
    assert made._next_search(users(([], []))) == 0


def test_searches_teach_what_items_are_by_their_words() -> None:
    """Who searched for 7 searches for 50 next, the word of item 0; nobody has taken any item."""
    made = training(model())
    dense = torch.optim.Adam(made.parameters(), lr=0.01)
    rng = np.random.default_rng(0)
    for _ in range(60):
        pairs = rng.integers(0, 4, 16)
        of = users(*[([], [([20 + p], 60), ([50 + p], 5)]) for p in pairs.tolist()])
        dense.zero_grad()
        made._next_search(of).backward()  # type: ignore[no-untyped-call]
        dense.step()
        for table in made.tables.values():
            table.step()
    with torch.no_grad():
        asked = users(*[([], [([20 + p], 60)]) for p in range(4)])
        items = made.items(Items(np.arange(100, 104), jagged([[50 + p] for p in range(4)])))
        scores = torch.einsum("bkd,nd->bnk", made.query(asked), items).amax(-1)
    assert scores.argmax(1).tolist() == [0, 1, 2, 3]


# What was taken


def test_each_learns_by_the_answer_that_is_nearest_to_what_he_took() -> None:
    made = model()
    asked = step(users(SOMEBODY, ([(3, 5)], []), ([(1, 9), (2, 8)], [([6], 7)])))
    with torch.no_grad():
        queries, vectors = made.query(asked.users), made.items(asked.candidates)
        best = [int((queries[i] @ vectors[i]).argmax()) for i in range(3)]
        chosen = torch.stack([queries[i, k] for i, k in enumerate(best)])
        expected = sampled_softmax(chosen, vectors, asked.sampling, asked.weights, 0.07)
        torch.testing.assert_close(made._taken(queries, vectors, asked), expected)
    assert len(set(best)) > 1
