"""Sessions and periods of histories, against a walk back through each list."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.batch import Details, Jagged, Users
from features.sessions import (
    LONG,
    OLDER,
    REALTIME,
    SHORT,
    of_kinds,
    periods,
    session_numbers,
    split,
)

MINUTE = 60_000_000
DAY = 1_440 * MINUTE
GAPS = st.sampled_from([0, MINUTE, 10 * MINUTE - 1, 10 * MINUTE, 3 * DAY, 9 * DAY, -MINUTE])


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Of some users the times of their actions, oldest first, and their now."""
    times, now_us = [], []
    for _ in range(draw(st.integers(0, 4))):
        gaps = draw(st.lists(GAPS, max_size=8)) + [MINUTE] * draw(st.sampled_from([0, 0, 49, 120]))
        times.append((100 * DAY + np.cumsum(np.array(gaps, np.int64))).tolist())
        newest = times[-1][-1] if times[-1] else 100 * DAY
        now_us.append(newest + draw(GAPS))
    return times, now_us


def users_of(times: list[list[int]], kinds: list[list[int]] | None = None) -> Users:
    """Users whose n-th action of all is on item n."""
    lengths = np.array([len(one) for one in times], np.int64)
    at_us = np.array([at for one in times for at in one], np.int64)
    history = Jagged.of(np.arange(len(at_us)), lengths)
    details = Details.unknown(len(at_us))
    flat = [kind for one in kinds or [] for kind in one]
    told = Details(np.array(flat, np.int8) if kinds else details.kinds, at_us, details.scenarios,
                   details.values)  # fmt: skip
    return Users(np.arange(len(times)), history, np.arange(len(at_us), dtype=np.float32), told)


def walked(times: list[int]) -> list[int]:
    """The session of each action of one user, from the newest back."""
    numbers: list[int] = []
    session = size = 0
    for i in reversed(range(len(times))):
        if numbers and (times[i + 1] - times[i] >= 10 * MINUTE or size == 50):
            session, size = session + 1, 0
        numbers.append(session)
        size += 1
    return numbers[::-1]


@given(histories())
def test_sessions_are_those_of_a_walk_back(drawn: tuple[list[list[int]], list[int]]) -> None:
    users = users_of(drawn[0])
    found = session_numbers(users.details.at_us, users.history)
    assert found.tolist() == [number for times in drawn[0] for number in walked(times)]


@given(histories())
def test_periods_are_those_of_a_walk_back(drawn: tuple[list[list[int]], list[int]]) -> None:
    expected: list[int] = []
    for times, now_us in zip(*drawn, strict=True):
        for at_us, session in zip(times, walked(times), strict=True):
            if session == 0 and now_us - times[-1] < 10 * MINUTE:
                expected.append(REALTIME)
            elif now_us - at_us <= 10 * DAY:
                expected.append(SHORT)
            else:
                expected.append(LONG if now_us - at_us <= 30 * DAY else OLDER)
    users, now = users_of(drawn[0]), np.array(drawn[1], np.int64)
    assert periods(users.details.at_us, users.history, now).tolist() == expected
    parts: Any = split(users, now)
    for period, part in ((REALTIME, parts.realtime), (SHORT, parts.short), (LONG, parts.long)):
        items = [item for item, of in enumerate(expected) if of == period]
        assert part.history.values.tolist() == part.rewards.tolist() == items
        assert len(part.history.offsets) == len(drawn[0]) + 1


def test_a_session_has_no_more_than_50_actions_and_the_rest_is_the_one_before() -> None:
    users = users_of([[n * MINUTE for n in range(1, 121)]])
    found = session_numbers(users.details.at_us, users.history).tolist()
    assert found == [2] * 20 + [1] * 50 + [0] * 50


def test_who_comes_back_after_ten_minutes_has_nothing_of_this_session() -> None:
    users = users_of([[DAY, DAY + MINUTE]])
    parts = split(users, np.array([DAY + 11 * MINUTE]))
    assert parts.realtime.history.values.tolist() == []
    assert parts.short.history.values.tolist() == [0, 1]


def test_actions_of_unknown_time_are_in_no_period() -> None:
    """As in samples of an older release."""
    parts = split(users_of([[0, 0]]), np.array([1_700_000_000_000_000]))
    sizes = [len(part.history.values) for part in (parts.realtime, parts.short, parts.long)]
    assert sizes == [0, 0, 0]


def test_a_history_has_parts_by_kind() -> None:
    users = of_kinds(users_of([[1, 2, 3], [4]], kinds=[[0, 2, 1], [2]]), kinds=[1, 2])
    assert users.history.values.tolist() == [1, 2, 3]
    assert users.history.offsets.tolist() == [0, 2, 3]
    assert users.details.kinds.tolist() == [2, 1, 2]
