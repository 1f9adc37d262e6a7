"""Fields of pairs: one vector for each thing that is known, all of a table read at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from features.batch import Items, Jagged, Users
from features.shown import Pairs
from streaming.event_columns import NONE, field_codes
from trainers.models.parts.fields import TABLES, Fields
from trainers.models.parts.tables import tables
from trainers.table import EmbeddingTable, TableConfig

WIDTH = 4
NAMES = ("category", "item_id", "hour", "words", "user_id", "disliked", "scenario", "history")
HOUR_US = 3_600_000_000
CATEGORY, WORDS, BRAND = field_codes(["category", "words", "brand"]).tolist()


@pytest.fixture
def learnt() -> dict[str, EmbeddingTable]:
    return tables(TableConfig(), WIDTH, 0, *TABLES)


def jagged(lists: Sequence[Sequence[int]]) -> Jagged:
    values = np.array([value for one in lists for value in one], np.int64)
    return Jagged.of(values, np.array([len(one) for one in lists], np.int64))


def users() -> Users:
    return Users(
        np.array([1, 2, 3]),
        jagged([[10, 11, 12], [], [13]]),
        np.array([1.0, 0.0, 0.5, 0.0], np.float32),
        at_us=np.array([5 * HOUR_US, 0, 29 * HOUR_US]),
        scenarios=np.array([7, NONE, 7], np.int32),
    )


def items() -> Items:
    """The tokens of an item in no order of their fields, some of fields that nobody wants."""
    tokens = jagged([[100, 200, 101, 300], [], [201, 202, 102]])
    codes = [CATEGORY, WORDS, CATEGORY, BRAND, WORDS, NONE, CATEGORY]
    return Items(np.array([20, 21, 22]), tokens, np.array(codes, np.int32))


def rows(table: EmbeddingTable, lists: Sequence[Sequence[int]]) -> Tensor:
    means = [table(np.array(one)).mean(0) if one else torch.zeros(WIDTH) for one in lists]
    return torch.stack(means)


def test_a_field_is_an_id_or_a_mean_and_those_of_users_come_first(
    learnt: dict[str, EmbeddingTable],
) -> None:
    fields = Fields(NAMES, history=2)
    assert fields.of_users == ["hour", "user_id", "disliked", "scenario", "history"]
    assert fields.of_items == ["item_id", "category", "words"]
    made = fields.users(learnt, users())
    context = learnt["context"]
    assert made.shape == (3, 5, WIDTH)
    assert torch.equal(made[0, 0], made[2, 0])  # the same hour of two days
    assert torch.equal(made[:, 1], rows(learnt["user"], [[1], [2], [3]]))
    assert torch.equal(made[:, 2], rows(learnt["item"], [[11], [], [13]]))
    assert torch.equal(made[:, 3], rows(context, [[8], [NONE + 1], [8]]))
    assert torch.equal(made[:, 4], rows(learnt["item"], [[12], [], []]))  # of the newest two
    made = fields.items(learnt, items())
    assert torch.equal(made[:, 0], rows(learnt["item"], [[20], [21], [22]]))
    assert torch.equal(made[:, 1], rows(learnt["token"], [[100, 101], [], [102]]))
    assert torch.equal(made[:, 2], rows(learnt["token"], [[200], [], [201]]))


def test_pairs_have_the_fields_of_their_user_and_their_item(
    learnt: dict[str, EmbeddingTable],
) -> None:
    fields = Fields(NAMES, history=2)
    user_of = np.array([2, 0, 2])
    made = fields(learnt, Pairs(users(), user_of, items(), np.full(3, NONE, np.int32)))
    assert torch.equal(made[:, :5], fields.users(learnt, users())[user_of])
    assert torch.equal(made[:, 5:], fields.items(learnt, items()))


@pytest.mark.parametrize("names", [["user_id"], ["item_id"], ["words", "brand"], ["disliked"]])
def test_fields_of_some_kinds_are_enough(
    names: list[str], learnt: dict[str, EmbeddingTable]
) -> None:
    fields = Fields(names, history=2)
    made = fields.users(learnt, users()) if fields.of_users else fields.items(learnt, items())
    assert made.shape == (3, len(names), WIDTH)


def test_tokens_are_told_apart_as_one_field_after_another_tells_them() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(9, size=50)
    tokens = Jagged.of(rng.integers(1_000, size=lengths.sum()), lengths)
    codes = np.array([BRAND, CATEGORY, WORDS], np.int32)
    of = rng.choice(np.append(codes, NONE), lengths.sum()).astype(np.int32)
    many = Items(np.arange(50), tokens, of)
    found = many.of_fields(codes)
    assert len(found.lengths) == 3 * len(lengths)
    for number, code in enumerate(codes.tolist()):
        one = found.take(np.arange(number, 150, 3))
        wanted = many.of_field(code)
        assert one.values.tolist() == wanted.values.tolist()
        assert one.offsets.tolist() == wanted.offsets.tolist()


def test_what_is_read_is_learnt(learnt: dict[str, EmbeddingTable]) -> None:
    fields = Fields(NAMES, history=2)
    for table in learnt.values():
        table.training = True
    torch.autograd.backward(fields.items(learnt, items())[:, 1].sum())  # the category
    before = learnt["token"].touched_since(0)[1].copy()
    learnt["token"].step()
    ids, after = learnt["token"].touched_since(0)
    assert set(ids[(before != after).any(1)]) == {100, 101, 102}
