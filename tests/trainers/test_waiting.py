"""What came to something waits until it is known what came to nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from features.definitions import SAMPLE_FEATURES
from streaming.samples import sample_schema
from trainers.waiting import Waiting

LABELS = ("click", "buy")
Rows = list[dict[str, Any]]


def row(item: int, at_us: int, click: float | None = None, buy: float | None = None) -> Any:
    told = {"label_click": click, "label_buy": buy}
    return {"user_id": 1, "item_id": item, "kind": "view", "at": at_us, "logged_us": 0, **told}


def batch(rows: Rows) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=sample_schema(LABELS, SAMPLE_FEATURES))


def learnt(waiting: Waiting, *rows: Any) -> list[int]:
    """The items of the rows that are to be learnt after these have come."""
    found: list[int] = waiting.take(batch(list(rows)))["item_id"].to_pylist()
    return found


def waits(most: int = 100) -> Waiting:
    return Waiting(["click"], most)


def test_a_click_waits_for_what_was_shown_in_vain_no_earlier() -> None:
    waiting = waits()
    assert learnt(waiting, row(1, 10, 1.0), row(2, 20, 1.0)) == []
    assert learnt(waiting, row(3, 9, 0.0, 0.0)) == [3]
    assert learnt(waiting, row(4, 10, 0.0, 0.0)) == [4, 1]
    assert len(waiting) == 1
    assert learnt(waiting, row(5, 25, 0.0, 0.0), row(6, 25, 1.0)) == [5, 6, 2]
    assert len(waiting) == 0


def test_what_is_known_of_a_time_that_is_over_does_not_wait() -> None:
    waiting = waits()
    learnt(waiting, row(1, 50, 0.0, 0.0))
    assert learnt(waiting, row(2, 40, 1.0), row(3, 60, 1.0)) == [2]


def test_other_labels_do_not_wait_nor_end_it() -> None:
    waiting = waits()
    assert learnt(waiting, row(1, 10, 1.0), row(2, 10, None, 1.0), row(3, 90, None, 0.0)) == [2, 3]
    assert len(waiting) == 1


def test_declarations_pass() -> None:
    declared = {"item_id": 7, "kind": "item", "at": 1, "logged_us": 0}
    assert learnt(waits(), declared) == [7]


def test_of_too_many_the_oldest_wait_no_longer() -> None:
    waiting = waits(2)
    assert learnt(waiting, row(1, 10, 1.0), row(2, 11, 1.0)) == []
    assert learnt(waiting, row(3, 12, 1.0)) == [1]
    assert learnt(waiting, row(4, 13, 1.0), row(5, 14, 1.0)) == [2, 3]
    assert len(waiting) == 2


def test_with_room_for_none_nothing_waits() -> None:
    waiting = waits(0)
    assert learnt(waiting, row(1, 10, 1.0), row(2, 10, None, 1.0)) == [2, 1]


def test_samples_of_an_older_release_can_wait() -> None:
    """Which had fewer columns."""
    waiting = waits()
    old = batch([row(1, 10, 1.0)]).drop_columns(["history", "label_buy"])
    assert waiting.take(old).num_rows == 0
    assert learnt(waiting, row(2, 10, 0.0, 0.0)) == [2, 1]


def test_it_goes_on_from_its_table() -> None:
    first, again = waits(), waits()
    for one in (row(1, 10, 1.0), row(2, 5, 0.0, 0.0), row(3, 30, 1.0)):
        learnt(first, one)
    again.load([first.table()])
    for one in (row(4, 10, 0.0, 0.0), row(5, 35, 1.0), row(6, 40, 0.0, 0.0)):
        assert learnt(first, one) == learnt(again, one)
    assert first.table().equals(again.table())


def test_one_rank_goes_on_for_several() -> None:
    ranks = [waits(), waits()]
    for number, waiting in enumerate(ranks):
        learnt(waiting, row(number, 10 * number, 1.0))
    alone = waits()
    alone.load([waiting.table() for waiting in ranks])
    assert learnt(alone, row(9, 20, 0.0, 0.0)) == [9, 0, 1]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 1.0, None])), max_size=40),
    st.integers(0, 5),
)
def test_every_row_is_learnt_once_and_no_click_too_soon(
    told: list[tuple[int, float | None]], most: int
) -> None:
    waiting, known_us, seen = waits(most), -1, list[int]()
    for item, (at_us, click) in enumerate(told):
        if click == 0.0:
            known_us = max(known_us, at_us)
        found = learnt(waiting, row(item, at_us, click))
        seen += found
        held = [i for i, (_, y) in enumerate(told[: item + 1]) if y == 1.0 and i not in seen]
        assert len(held) <= most
        assert all(told[i][0] > known_us for i in held)
    rest = learnt(waiting, row(len(told), 99, 0.0, 0.0))
    assert sorted([*seen, *rest]) == list(range(len(told) + 1))
    assert np.unique(seen).size == len(seen)
