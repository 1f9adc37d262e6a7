"""Samples to pairs: who was shown what, where, and what came of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from features.batch import Items, Jagged
from features.definitions import SAMPLE_FEATURES
from features.shown import read_shown
from streaming.event_columns import NONE, scenario_codes
from streaming.samples import sample_schema

NOW_US = 1_700_000_000_000_000


def batch(*rows: dict[str, Any], labels: tuple[str, ...] = ("click", "buy")) -> pa.RecordBatch:
    defaults = {"kind": "click", "at": NOW_US, "logged_us": NOW_US, "user_id": 5, "item_id": 7}
    schema = sample_schema(labels, SAMPLE_FEATURES)
    return pa.RecordBatch.from_pylist([{**defaults, **row} for row in rows], schema=schema)


def test_each_row_is_a_pair_of_its_own_with_what_is_known_of_it() -> None:
    shown = read_shown(
        batch(
            {"label_click": 1.0, "position": 3, "scenario": "home", "history": [1, 2]},
            {"label_click": 0.0, "label_buy": 0.0, "item_id": 8, "user_id": 6},
        ),
        ("click", "buy"),
    )
    pairs = shown.pairs
    assert len(pairs) == 2
    assert pairs.user_of.tolist() == [0, 1]
    assert pairs.users.ids.tolist() == [5, 6]
    assert pairs.items.ids.tolist() == [7, 8]
    assert pairs.positions.tolist() == [3, NONE]
    assert pairs.positions.dtype == np.int32
    assert pairs.users.scenarios.tolist() == [int(scenario_codes(["home"])[0]), NONE]
    assert pairs.users.history.lengths.tolist() == [2, 0]
    assert shown.at_us.tolist() == [NOW_US, NOW_US]
    np.testing.assert_array_equal(shown.labels["click"], [1.0, 0.0])
    np.testing.assert_array_equal(shown.labels["buy"], [np.nan, 0.0])
    assert pairs.items.tokens.lengths.tolist() == [0, 0]  # which describes nothing yet


def test_rows_of_which_no_label_is_known_are_not_read() -> None:
    rows = batch(
        {"user_id": None, "item_tokens": [1]},  # which declares an item
        {"reward": 1.0},  # which is an action
        {"label_buy": 1.0, "item_id": 9},
        {"label_click": 1.0, "item_id": 10},
    )
    assert read_shown(rows, ("click", "buy")).pairs.items.ids.tolist() == [9, 10]
    assert read_shown(rows, ("buy",)).pairs.items.ids.tolist() == [9]
    assert len(read_shown(rows, ("like",)).pairs) == 0


def test_a_label_that_samples_do_not_have_is_known_of_nobody() -> None:
    shown = read_shown(batch({"label_click": 1.0}), ("click", "share"))
    np.testing.assert_array_equal(shown.labels["share"], [np.nan])


def test_items_compete_within_a_request_or_else_within_a_user() -> None:
    rows = [{"label_click": 1.0, "user_id": user} for user in (5, 5, 6)]
    rows[1]["request_id"] = 99
    assert read_shown(batch(*rows), ("click",)).groups.tolist() == [5, 99, 6]


def test_of_samples_that_do_not_say_it_none_were_left_out() -> None:
    rows = [{"label_click": 0.0, "negative_rate": 0.25}, {"label_click": 1.0}]
    assert read_shown(batch(*rows), ("click",)).rates.tolist() == [0.25, 1.0]


def test_what_describes_items_is_laid_beside_their_pairs() -> None:
    shown = read_shown(batch({"label_click": 1.0}), ("click",))
    known = Items(np.array([7]), Jagged.of(np.array([3, 4]), np.array([2])))
    described = shown.describe(known)
    assert described.pairs.items is known
    assert described.labels is shown.labels
