"""Skew: which outcome each feature has, whatever was read, dropped, lost or sent twice."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.definitions import USER_HISTORY, Feature, View
from features.skew import Compared, Skew, SkewConfig

SAME, BEHIND, DIFFERENT = "same", "behind", "different"
ACTIONS = ("items", "rewards", "at_us")
VIEW = View(
    "acts",
    "user_id",
    (
        Feature("items", pa.list_(pa.int64()), "", (), sample="history"),
        Feature("rewards", pa.list_(pa.float32()), "", (), sample="history_rewards"),
        Feature("at_us", pa.list_(pa.int64()), "", (), sample="history_at_us"),
        Feature("searched", pa.list_(pa.int64()), "", (), sample="searched"),
        Feature("newest_us", pa.int64(), ""),  # does not travel
        Feature("mood", pa.list_(pa.int64()), "", (), ("training",), "mood"),  # is not served
    ),
    sequences=(ACTIONS, ("searched",)),
)
EMPTY: dict[str, list[Any]] = {"items": [], "rewards": [], "at_us": [], "searched": []}


def rows(*given: dict[str, Any], user: int = 1) -> pa.RecordBatch:
    """Samples, each with its request and the lists that training got; others are empty."""
    names = {f.name: f for f in VIEW.features if f.sample}
    columns: dict[str, pa.Array] = {
        "user_id": pa.array([one.get("user", user) for one in given], pa.int64()),
        "request_id": pa.array([one.get("request") for one in given], pa.int64()),
    }
    for name, feature in names.items():
        columns[str(feature.sample)] = pa.array([one.get(name, []) for one in given], feature.type)
    return pa.RecordBatch.from_pydict(columns)


def compared(read: dict[str, Any], got: dict[str, Any], length: int = 100) -> Compared:
    """One request of user 1 that was read at 1,000 s."""
    skew = Skew(VIEW, (length, length))
    skew.note(5, 1, {**EMPTY, **read}, 1_000_000_000)
    (found,) = skew.compare(rows({"request": 5, **got}))
    return found


@pytest.mark.parametrize(
    ("read", "got", "length", "outcome"),
    [
        ([], [], 9, SAME),
        ([1, 2], [1, 2], 9, SAME),
        ([1, 2, 3, 4], [3, 4], 2, SAME),  # fewer travel with samples
        ([1, 2], [1, 2, 3], 9, BEHIND),
        ([], [1, 2], 9, BEHIND),
        ([], [1, 2], 2, BEHIND),
        ([1, 2, 3], [2, 3, 4], 3, BEHIND),  # the oldest made room
        ([1, 2, 3], [3, 4, 5], 3, BEHIND),
        ([1, 2, 3, 4], [3, 4, 5], 3, BEHIND),
        ([1, 2, 3], [2, 3, 4], 9, DIFFERENT),  # it had room
        ([1, 2, 3], [1, 3], 9, DIFFERENT),
        ([1, 3], [1, 2, 3], 9, DIFFERENT),
        ([2, 3], [1, 2, 3], 9, DIFFERENT),
        ([2, 3], [1, 2, 3], 3, DIFFERENT),
        ([1, 2], [2, 1], 9, DIFFERENT),
        ([1, 2], [1], 9, DIFFERENT),  # serving cannot know more
        ([1], [], 9, DIFFERENT),
        ([1, 2, 3], [4, 5, 6], 3, DIFFERENT),  # nothing is left to tell it by
        (None, [], 9, SAME),
        (["no number"], [1], 9, DIFFERENT),
        ([2**70], [1], 9, DIFFERENT),
    ],
)
def test_what_was_read_is_the_same_or_older_or_different(
    read: Any, got: list[int], length: int, outcome: str
) -> None:
    assert compared({"searched": read}, {"searched": got}, length).outcomes["searched"] == outcome


def test_only_what_is_served_and_travels_is_compared() -> None:
    assert list(compared({}, {}).outcomes) == [*ACTIONS, "searched"]
    assert Skew(VIEW, (1, 1)).names == [*ACTIONS, "searched"]


def test_not_a_number_is_null_and_equals_itself() -> None:
    read = {"items": [1, 2, 3], "rewards": [0.1, float("nan"), None], "at_us": [1, 2, 3]}
    got = {"items": [1, 2, 3], "rewards": [0.1, None, float("nan")], "at_us": [1, 2, 3]}
    assert set(compared(read, got).outcomes.values()) == {SAME}
    assert compared({**read, "rewards": [0.1, 0.0, 0.0]}, got).outcomes["rewards"] == DIFFERENT


def history(count: int, length: int) -> dict[str, Any]:
    """The newest of so many actions; the rewards are all the same."""
    which = range(max(0, count - length), count)
    return {"items": [*which], "rewards": [0.5] * len(which), "at_us": [10 * i for i in which]}


@given(st.integers(0, 30), st.integers(0, 30), st.integers(2, 12))
def test_any_delay_is_told_apart_from_skew(count: int, more: int, length: int) -> None:
    read, got = history(count, length), history(count + more, length)
    found = compared(read, got, length).outcomes
    if more == 0:
        assert set(found.values()) == {SAME}
    elif count == 0 or more < length:
        assert {found[name] for name in ACTIONS} == {BEHIND}
    else:
        assert found["items"] == found["at_us"] == DIFFERENT


@given(st.integers(1, 30), st.integers(0, 5), st.integers(6, 12), st.data())
def test_skew_in_one_feature_is_seen_in_that_one_alone(
    count: int, more: int, length: int, data: st.DataObject
) -> None:
    read, got = history(count, length), history(count + more, length)
    name = data.draw(st.sampled_from(ACTIONS))
    kept = range(max(0, count + more - length) - max(0, count - length), len(read[name]))
    at = data.draw(st.sampled_from([*kept] or [0]))
    read[name][at] += 1_000
    found = compared(read, got, length).outcomes
    if kept:
        assert {n for n in ACTIONS if found[n] == DIFFERENT} == {name}
    if kept and not more:
        assert {n for n in ACTIONS if found[n] == SAME} == {*ACTIONS} - {name}


def test_a_delay_is_told_where_one_feature_cannot_tell_it() -> None:
    """Of equal rewards, those of an action that is missing in the middle look only old."""
    whole = history(3, 9)
    torn = {name: [values[0], values[2]] for name, values in whole.items()}
    found = compared(torn, whole).outcomes
    assert found["items"] == found["at_us"] == DIFFERENT


def test_what_may_be_the_same_or_behind_is_the_same() -> None:
    read = {**history(2, 2), "items": [8, 9], "at_us": [8, 9]}
    assert compared(read, history(2, 2), 2).outcomes["rewards"] == SAME


@pytest.mark.parametrize(
    ("lacked_s", "behind_s"), [((990.0, 999.5), 10.0), ((999.5, 1_001.0), 0.5), ((1_001.0,), 0.0)]
)
def test_age_is_that_of_the_oldest_entry_that_was_lacking(
    lacked_s: tuple[float, ...], behind_s: float
) -> None:
    times = [100_000_000, *(round(at * 1e6) for at in lacked_s)]
    got = {"items": [*range(len(times))], "rewards": [1.0] * len(times), "at_us": times}
    found = compared({name: values[:1] for name, values in got.items()}, got)
    assert found.behind_s == behind_s
    assert compared(got, got).behind_s is None


def test_each_request_is_compared_once_and_only_for_its_user() -> None:
    skew = Skew(VIEW, (9, 9))
    skew.note(5, 1, {"items": [1]}, 0)
    skew.note(6, 2, {"items": [2]}, 0)
    assert skew.compare(rows({"request": 5, "user": 2}, {"request": 7}, {}, {"user": None})) == []
    samples = rows({"request": 5, "items": [1]}, {"request": 5}, {"request": 6, "user": 2})
    found = skew.compare(samples)
    assert [(one.request, one.user, one.outcomes["items"]) for one in found] == [
        (5, 1, SAME), (6, 2, DIFFERENT),
    ]  # fmt: skip
    assert skew.compare(samples) == []
    assert skew.waiting(0) == 0


def test_only_the_newest_requests_are_remembered_and_not_for_ever() -> None:
    skew = Skew(VIEW, (9, 9), SkewConfig(requests=2, wait_s=10))
    for second, request in enumerate((16, 32, 48), start=1):
        skew.note(request, 1, {}, second * 1_000_000)
    assert skew.waiting(11_000_000) == 2
    assert skew.waiting(12_500_000) == 1
    found = skew.compare(rows(*({"request": request} for request in (16, 32, 48))))
    assert [one.request for one in found] == [48]


def test_of_many_answers_only_one_of_sixteen_is_remembered() -> None:
    skew = Skew(VIEW, (9, 9), SkewConfig(requests=100))
    for request in range(1, 1_000):
        skew.note(request, 1, {}, 1_000_000)
    remembered = rows(*({"request": request} for request in range(1, 1_000)))
    found = [one.request for one in skew.compare(remembered)]
    assert found[-48:] == [n for n in range(1, 1_000) if n % 16 == 0][-48:]
    assert len(found) == 100


def test_none_is_remembered_if_none_is_to_be() -> None:
    skew = Skew(VIEW, (9, 9), SkewConfig(requests=0))
    skew.note(1, 1, {}, 0)
    assert skew.waiting(0) == 0


def test_columns_that_a_sample_does_not_have_have_no_outcome() -> None:
    skew = Skew(VIEW, (9, 9))
    for request in (1, 2):
        skew.note(request, 1, {"items": [1]}, 0)
    samples = rows({"request": 1, "items": None}, {"request": 2, "items": [1]})
    first, second = skew.compare(samples.drop_columns(["history_rewards", "searched"]))
    assert dict(first.outcomes) == {"at_us": SAME}
    assert dict(second.outcomes) == {"items": SAME, "at_us": SAME}


def test_of_the_real_view_every_list_is_compared() -> None:
    names = Skew(USER_HISTORY, (100, 20)).names
    assert names == [f.name for f in USER_HISTORY.features if f.sample is not None]
    assert {"items", "rewards", "searched"} <= set(names)
