"""From Arrow samples to model inputs, against a straightforward loop over rows."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from math import isnan
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.batch import (
    Items,
    Jagged,
    Samples,
    Users,
    known_user,
    read_declarations,
    read_samples,
)
from features.behaviour import words_of
from features.definitions import SAMPLE_FEATURES, USER_HISTORY, FeatureError
from features.text import word_ids
from streaming.event_columns import field_codes, scenario_codes
from streaming.samples import sample_schema

SCHEMA = sample_schema((), SAMPLE_FEATURES)
IDS = st.integers(0, 2**63 - 1)
LISTS = st.none() | st.lists(IDS, max_size=4)


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A sample, or the declaration of one of a few items."""
    if draw(st.booleans()):
        return {
            "user_id": None,
            "item_id": draw(st.integers(1, 4)),
            "item_tokens": (tokens := draw(LISTS)),
            "item_fields": tokens and [n % 2 for n in range(len(tokens))],
        }
    history = draw(LISTS)
    # None in all of them where an older release wrote the sample.
    told = None if history is None or draw(st.booleans()) else range(len(history))
    words, passed_over = draw(LISTS), draw(LISTS)
    return {
        "user_id": draw(IDS),
        "item_id": draw(IDS),
        "scenario": draw(st.sampled_from([None, "home", "cart"])),
        "history": history,
        "history_rewards": None if history is None else [n / 8 for n in range(len(history))],
        "history_kinds": told and [n % 3 for n in told],
        "history_at_us": told and [1_000 * n for n in told],
        "history_scenarios": told and [n - 1 for n in told],
        "history_sessions": told and [n // 2 - 1 for n in told],
        "history_values": told and [None if n % 2 else n / 4 for n in told],
        "searched": words,
        "searched_at_us": words and [7 for _ in words],
        "searched_suggested": words and draw(st.none() | st.just([n % 2 == 1 for n in words])),
        "passed_over": passed_over,
        "passed_over_at_us": passed_over and [8 for _ in passed_over],
        "reward": draw(st.sampled_from([None, 0.0, 0.25, 1.0])),
        "label_liked": draw(st.none() | st.booleans()),
    }


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[dict[str, Any]], pa.RecordBatch]:
    """Rows and the batch that holds them, which may be a slice of a longer one."""
    before, inside, after = (draw(st.lists(rows(), max_size=n)) for n in (3, 12, 3))
    filled = [
        {"at": 1_000 + n, "kind": "rate", "logged_us": n, **row}
        for n, row in enumerate([*before, *inside, *after])
    ]
    whole = pa.RecordBatch.from_pylist(filled, schema=SCHEMA)
    start, size = len(before), len(inside)
    return filled[start : start + size], whole.slice(start, size)


def lists(jagged: Jagged) -> list[list[int]]:
    pairs = zip(jagged.offsets[:-1], jagged.offsets[1:], strict=True)
    return [jagged.values[start:end].tolist() for start, end in pairs]


def batch(*rows: dict[str, Any]) -> pa.RecordBatch:
    filled = [{"at": 0, "kind": "rate", "logged_us": 0, **row} for row in rows]
    return pa.RecordBatch.from_pylist(filled, schema=SCHEMA)


def assert_types(samples: Samples) -> None:
    users = samples.users
    for ids in (users.ids, samples.item_ids, samples.at_us, users.history.values):
        assert ids.dtype == np.int64
    assert users.history.offsets.dtype == np.int64
    assert users.rewards.dtype == samples.rewards.dtype == np.float32
    assert samples.liked.dtype == np.bool_


@given(batches())
def test_samples_are_those_that_a_loop_over_the_rows_finds(
    drawn: tuple[list[dict[str, Any]], pa.RecordBatch],
) -> None:
    actions = (row for row in drawn[0] if row["user_id"] is not None)
    expected = [row for row in actions if row["reward"] is not None]
    samples = read_samples(drawn[1])
    assert_types(samples)
    assert samples.users.ids.tolist() == [row["user_id"] for row in expected]
    assert samples.item_ids.tolist() == [row["item_id"] for row in expected]
    assert samples.rewards.tolist() == [row["reward"] for row in expected]
    assert samples.liked.tolist() == [bool(row["label_liked"]) for row in expected]
    assert samples.at_us.tolist() == [row["at"] for row in expected]
    assert lists(samples.users.history) == [row["history"] or [] for row in expected]
    rewards = [reward for row in expected for reward in row["history_rewards"] or []]
    assert samples.users.rewards.tolist() == rewards
    assert len(samples.users.rewards) == len(samples.users.history.values)
    assert samples.users.at_us.tolist() == [row["at"] for row in expected]
    places = [row.get("scenario") for row in expected]
    codes = [-1 if place is None else int(scenario_codes([place])[0]) for place in places]
    assert samples.users.scenarios.tolist() == codes
    details = samples.users.details
    for name, found, absent in (
        ("history_kinds", details.kinds, -1),
        ("history_at_us", details.at_us, 0),
        ("history_scenarios", details.scenarios, -1),
        ("history_sessions", details.sessions, -1),
        ("history_values", details.values, None),
    ):
        told = [row[name] or [absent] * len(row["history"] or []) for row in expected]
        known = [None if isnan(value) else value for value in found.tolist()]
        assert known == [value for one in told for value in one], name
    for name, moments, at_us in (
        ("searched", samples.users.searched, 7),
        ("passed_over", samples.users.passed_over, 8),
    ):
        assert lists(moments.ids) == [row[name] or [] for row in expected]
        assert moments.at_us.tolist() == [at_us] * len(moments.ids.values)
    told = [row["searched_suggested"] or [False] * len(row["searched"] or []) for row in expected]
    assert samples.users.searched.suggested.tolist() == [one for said in told for one in said]
    assert not samples.users.passed_over.suggested.any()


def assert_same(one: Any, other: Any) -> None:
    """Equal to the bit, whatever dataclasses of arrays they are made of."""
    if is_dataclass(one):
        for field in fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif one is None:
        assert other is None
    else:
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()


@given(batches())
def test_a_batch_is_its_rows_one_by_one(
    drawn: tuple[list[dict[str, Any]], pa.RecordBatch],
) -> None:
    whole = read_samples(drawn[1])
    parts = [read_samples(drawn[1].slice(n, 1)) for n in range(drawn[1].num_rows)]
    singles = [part for part in parts if len(part.item_ids)]
    assert len(singles) == len(whole.item_ids)
    for n, single in enumerate(singles):
        assert_same(single.users, whole.users.take(np.array([n])))
        for name in ("item_ids", "rewards", "liked", "at_us"):
            assert getattr(single, name).tolist() == getattr(whole, name)[n : n + 1].tolist()


@given(batches(), st.data())
def test_actions_that_are_chosen_keep_all_that_is_known_of_them(
    drawn: tuple[list[dict[str, Any]], pa.RecordBatch], data: st.DataObject
) -> None:
    users = read_samples(drawn[1]).users
    size = len(users.rewards)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool)
    kept = users.where(chosen)
    assert lists(kept.history) == lists(users.history.where(chosen))
    for name in ("kinds", "at_us", "scenarios", "sessions", "values"):
        found, told = getattr(kept.details, name), getattr(users.details, name)
        assert found.tobytes() == told[chosen].tobytes()
    assert kept.rewards.tolist() == users.rewards[chosen].tolist()
    assert_same(kept.searched, users.searched)


def test_items_and_histories_are_described_field_by_field() -> None:
    shop, brand = field_codes(["shop", "brand"])
    described = Items(
        np.array([3, 5]), jagged([[30, 31, 32], [50]]), np.array([shop, brand, shop, brand])
    )
    assert lists(described.of_field(shop)) == [[30, 32], []]
    assert lists(described.take(np.array([1, 0])).of_field(brand)) == [[50], [31]]
    history = jagged([[5, 4, 3], [], [3]])
    users = Users(np.arange(3), history, np.ones(4, np.float32), described=described)
    assert lists(users.history_tokens(shop)) == [[], [], [30, 32], [30, 32]]
    assert lists(users.history_tokens(brand)) == [[50], [], [31], [31]]
    assert lists(users.take(np.array([2])).history_tokens(shop)) == [[30, 32]]
    nothing = replace(users, described=Items(np.empty(0, np.int64), jagged([])))
    assert lists(nothing.history_tokens(shop)) == [[]] * 4
    with pytest.raises(ValueError, match="describes = True"):
        replace(users, described=None).history_tokens(shop)


def test_who_asks_is_known_with_when_and_where_and_what_he_searches_for_now() -> None:
    row = {**USER_HISTORY.defaults, "searched": [5, 6], "searched_at_us": [1, 1],
           "searched_suggested": [True, True]}  # fmt: skip
    words = words_of("the Heat")
    user = known_user(7, row, at_us=9, scenario="search", words=words)
    assert (user.ids.tolist(), user.at_us.tolist()) == ([7], [9])
    assert user.scenarios.tolist() == scenario_codes(["search"]).tolist()
    assert lists(user.searched.ids) == [[5, 6, *word_ids(["the", "heat"], 9).values.tolist()]]
    assert user.searched.at_us.tolist() == [1, 1, 9, 9]
    assert user.searched.suggested.tolist() == [True, True, False, False]
    nobody = known_user(7, USER_HISTORY.defaults)
    assert (nobody.at_us.tolist(), nobody.scenarios.tolist()) == ([0], [-1])
    assert lists(nobody.searched.ids) == [[]]


def test_of_users_made_without_details_nothing_more_is_known() -> None:
    users = Users(np.array([1, 2]), jagged([[3], [4, 5]]), np.ones(3, np.float32))
    assert users.details.kinds.tolist() == [-1, -1, -1]
    assert lists(users.searched.ids) == lists(users.passed_over.ids) == [[], []]
    assert users.take(np.array([1])).details.at_us.tolist() == [0, 0]


@given(batches())
def test_the_last_declaration_of_an_item_counts(
    drawn: tuple[list[dict[str, Any]], pa.RecordBatch],
) -> None:
    expected: dict[int, list[int]] = {}
    for row in drawn[0]:
        if row["user_id"] is None:
            expected.pop(row["item_id"], None)
            expected[row["item_id"]] = row["item_tokens"] or []
    items = read_declarations(drawn[1])
    told = [n % 2 for tokens in expected.values() for n in range(len(tokens))]
    assert items.fields.tolist() == told
    assert items.ids.dtype == items.tokens.values.dtype == items.tokens.offsets.dtype == np.int64
    assert items.ids.tolist() == list(expected)
    assert lists(items.tokens) == list(expected.values())


def test_an_empty_batch_has_no_samples_and_no_declarations() -> None:
    samples, items = read_samples(batch()), read_declarations(batch())
    assert_types(samples)
    assert len(samples.users.ids) == len(samples.item_ids) == len(items.ids) == 0
    assert lists(samples.users.history) == lists(items.tokens) == []
    assert samples.users.history.offsets.tolist() == items.tokens.offsets.tolist() == [0]


def test_a_batch_of_one_sort_has_none_of_the_other() -> None:
    sample = {"user_id": 1, "item_id": 2, "reward": 0.5, "history": [3], "history_rewards": [1.0]}
    declaration = {"item_id": 2, "item_tokens": [4, 5]}
    assert len(read_declarations(batch(sample)).ids) == 0
    assert len(read_samples(batch(declaration)).item_ids) == 0


def test_the_end_of_a_window_is_no_action() -> None:
    """A retrieval model learns from what users did, not from what they let pass."""
    shown = {"user_id": 1, "item_id": 2, "kind": "impression", "reward": None}
    schema = sample_schema(["click"], SAMPLE_FEATURES)
    rows = [{"at": 0, "logged_us": 0, **shown, "label_click": 0.0},
            {"at": 0, "logged_us": 0, **shown, "reward": 0.0, "label_click": 1.0}]  # fmt: skip
    found = pa.RecordBatch.from_pylist(rows, schema=schema)
    assert read_samples(found).rewards.tolist() == [0.0]
    assert len(read_declarations(found).ids) == 0


def test_what_samples_of_before_did_not_know_is_not_known_of_anybody() -> None:
    row = {"user_id": 1, "item_id": 2, "reward": 0.5, "history": [3], "history_rewards": [1.0]}
    then = batch(row).drop_columns(SAMPLE_FEATURES.names[2:])
    now, before = read_samples(batch(row)).users, read_samples(then).users
    assert repr(before) == repr(now)
    assert before.details.kinds.tolist() == [-1]


def test_a_feature_that_has_changed_its_type_is_refused() -> None:
    number = SCHEMA.get_field_index("history_kinds")
    schema = SCHEMA.set(number, pa.field("history_kinds", pa.list_(pa.int8())))
    with pytest.raises(FeatureError, match=r"history_kinds as list of int8, and .* list of int32"):
        read_samples(pa.RecordBatch.from_pylist([], schema=schema))


def test_a_label_that_is_not_known_reads_as_not_liked() -> None:
    known = [{"user_id": n, "item_id": 2, "reward": 0.0, "label_liked": liked}
             for n, liked in enumerate((True, None, False))]  # fmt: skip
    assert read_samples(batch(*known)).liked.tolist() == [True, False, False]


# Jagged

JAGGED = st.lists(st.lists(st.integers(-9, 9), max_size=4), max_size=6)


def jagged(values: list[list[int]]) -> Jagged:
    return Jagged.from_column(pa.array(values, pa.list_(pa.int64())))


@given(JAGGED)
def test_lists_come_back_with_their_lengths_and_owners(values: list[list[int]]) -> None:
    made = jagged(values)
    assert lists(made) == values
    assert made.lengths.tolist() == [len(one) for one in values]
    assert made.owners().tolist() == [n for n, one in enumerate(values) for _ in one]


@given(JAGGED, st.data())
def test_taking_lists_is_indexing_a_list_of_lists(
    values: list[list[int]], data: st.DataObject
) -> None:
    numbers = st.integers(0, max(0, len(values) - 1))
    chosen = data.draw(st.lists(numbers, max_size=8 if values else 0))
    taken = jagged(values).take(np.array(chosen, np.int64))
    assert lists(taken) == [values[n] for n in chosen]


@given(JAGGED, st.data())
def test_keeping_values_keeps_the_number_of_lists(
    values: list[list[int]], data: st.DataObject
) -> None:
    size = sum(map(len, values))
    chosen = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    kept = jagged(values).where(np.array(chosen, bool))
    flags = iter(chosen)
    assert lists(kept) == [[value for value in one if next(flags)] for one in values]


@pytest.mark.parametrize("chunks", [[], [[[1], None]], [[[1], None], [[]], [[2, 3]]]])
def test_a_column_in_chunks_reads_as_one(chunks: list[Any]) -> None:
    column = pa.chunked_array(chunks, pa.list_(pa.int64()))
    expected = [one or [] for chunk in chunks for one in chunk]
    assert lists(Jagged.from_column(column)) == expected


def test_a_null_list_with_values_under_it_reads_as_empty() -> None:
    column = pa.ListArray.from_arrays(
        pa.array([0, 2, 4], pa.int32()), pa.array([1, 2, 3, 4]), mask=pa.array([True, False])
    )
    assert lists(Jagged.from_column(column)) == [[], [3, 4]]


def test_items_are_what_a_model_asks_for() -> None:
    items = read_declarations(batch({"item_id": 9, "item_tokens": [4, 5]}))
    assert isinstance(items, Items)
    assert (items.ids.tolist(), lists(items.tokens)) == ([9], [[4, 5]])


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, float("nan")]), max_size=5)),
    st.integers(0, 4),
)
def test_the_newest_actions_are_split_by_their_rewards(
    lists: list[list[float]], count: int
) -> None:
    rewards = [one for each in lists for one in each]
    history = Jagged.of(np.arange(len(rewards)) + 100, np.array([len(one) for one in lists], int))
    users = Users(np.arange(len(lists)), history, np.array(rewards, np.float32))
    those, others = users.split(count, 0.5)
    for user, theirs in enumerate(lists):
        start = int(history.offsets[user])
        newest = [(100 + start + i, r) for i, r in enumerate(theirs)][max(0, len(theirs) - count) :]
        found = [
            one.values[slice(*one.offsets[user : user + 2])].tolist() for one in (those, others)
        ]
        assert found == [
            [item for item, reward in newest if reward >= 0.5],
            [item for item, reward in newest if not reward >= 0.5],
        ]
    assert those.values.flags.c_contiguous
    assert others.values.flags.c_contiguous
