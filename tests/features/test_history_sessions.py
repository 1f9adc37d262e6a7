"""Sessions and periods of histories, against a walk back through each list."""

from __future__ import annotations

from dataclasses import replace
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
from streaming.event_columns import NONE

MINUTE = 60_000_000
DAY = 1_440 * MINUTE
GAPS = st.sampled_from([0, MINUTE, 10 * MINUTE - 1, 10 * MINUTE, 3 * DAY, 9 * DAY, -MINUTE])
SESSIONS = st.sampled_from([NONE, 0, 7])
Past = list[tuple[int, int]]  # when a user did something and in which session, oldest first


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Past], list[int]]:
    """Of some users what they did, and their now."""
    pasts, now_us = [], []
    for _ in range(draw(st.integers(0, 4))):
        steps = draw(st.lists(st.tuples(GAPS, SESSIONS), max_size=8))
        steps += [draw(st.sampled_from([(MINUTE, NONE), (DAY, 7)]))] * draw(
            st.sampled_from([0, 0, 49, 120])
        )
        gaps = np.array([gap for gap, _ in steps], np.int64)
        times = (100 * DAY + np.cumsum(gaps)).tolist()
        pasts.append([(at_us, session) for at_us, (_, session) in zip(times, steps, strict=True)])
        now_us.append((times[-1] if times else 100 * DAY) + draw(GAPS))
    return pasts, now_us


def users_of(pasts: list[Past], kinds: list[list[int]] | None = None) -> Users:
    """Users whose n-th action of all is on item n."""
    lengths = np.array([len(past) for past in pasts], np.int64)
    at_us = np.array([at for past in pasts for at, _ in past], np.int64)
    sessions = np.array([session for past in pasts for _, session in past], np.int32)
    told = replace(Details.unknown(len(at_us)), at_us=at_us, sessions=sessions)
    if kinds:
        told = replace(told, kinds=np.array([kind for one in kinds for kind in one]))
    history = Jagged.of(np.arange(len(at_us)), lengths)
    return Users(np.arange(len(pasts)), history, np.arange(len(at_us), dtype=np.float32), told)


def unnamed(*times: int) -> Past:
    """What was done in sessions without an id."""
    return [(at_us, NONE) for at_us in times]


def numbers_of(users: Users) -> list[int]:
    details = users.details
    found: list[int] = session_numbers(details.at_us, users.history, details.sessions).tolist()
    return found


def walked(past: Past) -> list[int]:
    """The session of each action of one user, from the newest back."""
    numbers: list[int] = []
    number = size = 0
    after: tuple[int, int] | None = None
    for at_us, session in reversed(past):
        if after is not None:
            together = after[0] - at_us < 10 * MINUTE or (session == after[1] and session != NONE)
            if size == 50 or not together:
                number, size = number + 1, 0
        numbers.append(number)
        size += 1
        after = at_us, session
    return numbers[::-1]


@given(histories())
def test_sessions_are_those_of_a_walk_back(drawn: tuple[list[Past], list[int]]) -> None:
    expected = [number for past in drawn[0] for number in walked(past)]
    assert numbers_of(users_of(drawn[0])) == expected


@given(histories())
def test_periods_are_those_of_a_walk_back(drawn: tuple[list[Past], list[int]]) -> None:
    expected: list[int] = []
    for past, now_us in zip(*drawn, strict=True):
        for (at_us, _), number in zip(past, walked(past), strict=True):
            if number == 0 and now_us - past[-1][0] < 10 * MINUTE:
                expected.append(REALTIME)
            elif now_us - at_us <= 10 * DAY:
                expected.append(SHORT)
            else:
                expected.append(LONG if now_us - at_us <= 30 * DAY else OLDER)
    users, now = users_of(drawn[0]), np.array(drawn[1], np.int64)
    details = users.details
    assert periods(details.at_us, users.history, details.sessions, now).tolist() == expected
    parts: Any = split(users, now)
    for period, part in ((REALTIME, parts.realtime), (SHORT, parts.short), (LONG, parts.long)):
        items = [item for item, of in enumerate(expected) if of == period]
        assert part.history.values.tolist() == part.rewards.tolist() == items
        assert len(part.history.offsets) == len(drawn[0]) + 1


def test_a_session_has_no_more_than_50_actions_and_the_rest_is_the_one_before() -> None:
    for past in (unnamed(*range(0, 120 * MINUTE, MINUTE)), [(n * DAY, 7) for n in range(120)]):
        assert numbers_of(users_of([past])) == [2] * 20 + [1] * 50 + [0] * 50


def test_an_id_holds_a_session_together_over_any_gap_and_two_ids_do_not_part_neighbours() -> None:
    slow = [(0, 7), (DAY, 7), (2 * DAY, 8), (2 * DAY + MINUTE, 9)]
    assert numbers_of(users_of([slow])) == [1, 1, 0, 0]
    assert numbers_of(users_of([unnamed(0, DAY, 2 * DAY)])) == [2, 1, 0]


def test_a_phone_and_a_desk_used_at_the_same_time_are_one_session() -> None:
    past = [(n * MINUTE, 7 + n % 2) for n in range(6)]
    assert numbers_of(users_of([past])) == [0] * 6


def test_who_comes_back_after_ten_minutes_has_nothing_of_this_session() -> None:
    users = users_of([unnamed(DAY, DAY + MINUTE)])
    parts = split(users, np.array([DAY + 11 * MINUTE]))
    assert parts.realtime.history.values.tolist() == []
    assert parts.short.history.values.tolist() == [0, 1]


def test_actions_of_unknown_time_are_in_no_period() -> None:
    """As in samples of an older release."""
    parts = split(users_of([unnamed(0, 0)]), np.array([1_700_000_000_000_000]))
    sizes = [len(part.history.values) for part in (parts.realtime, parts.short, parts.long)]
    assert sizes == [0, 0, 0]


def test_a_history_has_parts_by_kind() -> None:
    users = of_kinds(users_of([unnamed(1, 2, 3), unnamed(4)], kinds=[[0, 2, 1], [2]]), kinds=[1, 2])
    assert users.history.values.tolist() == [1, 2, 3]
    assert users.history.offsets.tolist() == [0, 2, 3]
    assert users.details.kinds.tolist() == [2, 1, 2]
