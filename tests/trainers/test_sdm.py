"""What is SDM's own: which actions are of the session and which before it, and what reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from features.batch import Details, Items, Jagged, Users
from streaming.event_columns import field_codes
from trainers.models import create

OPTIONS = {"width": 8, "heads": 2, "table": {"birth_scale": 0.5}}
MINUTE_US = 60_000_000
DAY_US = 1_440 * MINUTE_US
NOW_US = 1_700_000_000_000_000
BRAND, COLOUR = field_codes(["brand", "colour"]).tolist()

Action = tuple[int, float]  # an item, and how many minutes ago


def items(
    ids: list[int], brands: list[int] | None = None, colours: list[int] | None = None
) -> Items:
    """Items with one brand and one colour each, or with nothing."""
    if brands is None or colours is None:
        return Items(
            np.array(ids, np.int64), Jagged.of(np.empty(0, np.int64), np.zeros(len(ids), int))
        )
    tokens = np.stack([brands, colours], 1).ravel()
    fields = np.tile(np.array([BRAND, COLOUR], np.int32), len(ids))
    return Items(np.array(ids, np.int64), Jagged.of(tokens, np.full(len(ids), 2)), fields)


def user(
    *actions: Action, sessions: list[int] | None = None, described: Items | None = None
) -> Users:
    details = Details.unknown(len(actions))
    at_us = np.array([NOW_US - int(ago * MINUTE_US) for _, ago in actions], np.int64)
    codes = details.sessions if sessions is None else np.array(sessions, np.int32)
    return Users(
        np.array([1]),
        Jagged.of(np.array([item for item, _ in actions], np.int64), np.array([len(actions)])),
        np.ones(len(actions), np.float32),
        Details(details.kinds, at_us, details.scenarios, codes, details.values),
        at_us=np.array([NOW_US]),
        described=described or items([]),
    )


def query(*actions: Action, sessions: list[int] | None = None, **options: Any) -> Tensor:
    model = create("sdm", {**OPTIONS, **options})
    with torch.no_grad():
        answer: Tensor = model.query(user(*actions, sessions=sessions))[0, 0]
    return answer


BEFORE: tuple[Action, ...] = ((1, 900), (2, 800), (3, 700))
SESSION: tuple[Action, ...] = ((4, 15), (5, 8), (6, 1))


def test_the_session_is_a_sequence_and_what_was_before_it_a_set() -> None:
    found = query(*BEFORE, *SESSION)
    torch.testing.assert_close(found, query((3, 900), (1, 800), (2, 700), *SESSION))
    assert not torch.allclose(found, query(*BEFORE, (6, 15), (4, 8), (5, 1)))
    assert not torch.allclose(found, query((4, 900), (2, 800), (3, 700), (1, 15), (5, 8), (6, 1)))


@pytest.mark.parametrize(("fusion", "reads_session", "reads_before"), [
    ("gate", True, True), ("concat", True, True), ("short", True, False), ("long", False, True),
])  # fmt: skip
def test_each_fusion_reads_what_it_says(
    fusion: str, reads_session: bool, reads_before: bool
) -> None:
    found = query(*BEFORE, *SESSION, fusion=fusion)
    other_session = query(*BEFORE, (4, 15), (7, 8), (6, 1), fusion=fusion)
    other_before = query((1, 900), (7, 800), (3, 700), *SESSION, fusion=fusion)
    assert torch.allclose(found, other_session) != reads_session
    assert torch.allclose(found, other_before) != reads_before


def test_a_pause_of_ten_minutes_ends_a_session_unless_its_id_goes_on() -> None:
    apart = ((1, 30.0), (2, 15.0), (3, 5.0))
    alone = query((3, 5), fusion="short")
    assert torch.equal(query(*apart, fusion="short"), alone)
    assert torch.equal(query(*apart, sessions=[7, 8, 9], fusion="short"), alone)
    together = query((1, 12), (2, 8), (3, 5), fusion="short")
    assert torch.equal(query(*apart, sessions=[7, 7, 7], fusion="short"), together)


def test_what_lies_more_than_a_week_before_the_session_is_not_read() -> None:
    days = DAY_US / MINUTE_US
    found = query(*BEFORE, *SESSION)
    assert torch.equal(found, query((9, 7.5 * days), *BEFORE, *SESSION))
    assert not torch.allclose(found, query((9, 6.5 * days), *BEFORE, *SESSION))
    assert not torch.allclose(found, query((9, 7.5 * days), *BEFORE, *SESSION, long_days=8))
    absent = [(item, ago + 30 * days) for item, ago in (*BEFORE, *SESSION)]
    assert torch.equal(found, query(*absent))  # the week is that before the session, not now


def test_only_the_newest_actions_of_each_are_read() -> None:
    found = query(*BEFORE[1:], *SESSION[1:], history=2)
    assert torch.equal(found, query(*BEFORE, *SESSION, history=2))


def test_the_named_fields_are_read_and_no_others() -> None:
    plain = items([1, 2], [10, 20], [30, 40])
    other_colour, other_brand = items([1, 2], [10, 20], [30, 41]), items([1, 2], [10, 21], [30, 40])
    model = create("sdm", {**OPTIONS, "fields": ["brand"]})
    actions = ((1, 900.0), (2, 1.0))
    with torch.no_grad():
        for read in (
            lambda described: model.query(user(*actions, described=described)),
            model.items,
        ):
            assert torch.equal(read(plain), read(other_colour))
            assert not torch.allclose(read(plain), read(other_brand))


def test_sets_are_read_by_the_user_and_joined_as_the_paper_says() -> None:
    """The long view of one user by its formulas, value by value."""
    model = create("sdm", {**OPTIONS, "fields": ["brand", "colour"], "fusion": "long"})
    described = items([1, 2], [10, 20], [30, 40])  # and nothing of item 3
    with torch.no_grad():
        found = model.query(user(*BEFORE, (9, 1), described=described))[0, 0]
        e = model.everyone  # a user that nobody knows
        read = []
        for name, values in (("item", [1, 2, 3]), ("token", [10, 20]), ("token", [30, 40])):
            rows = model.tables[name](np.array(values))
            fits = torch.stack([(row @ e) / 8**0.5 for row in rows])
            read.append(sum(a * row for a, row in zip(fits.softmax(0), rows, strict=True)))
        long = read[0] + torch.tanh(model.long_net(torch.cat(read)))
        expected = torch.nn.functional.normalize(long + model.nobody, dim=0)
    torch.testing.assert_close(found, expected)
