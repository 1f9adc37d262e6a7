"""A history split by when it happened: in this session, lately, or long ago; and by kind.

The sessions are those of SDM (Lv et al. 2019, section 3): neighbours are of one session if their
events have the same session id, or if they are less than ten minutes apart, whatever the ids say;
no more than 50 actions are, counted from the newest back. The periods are those of MGDSPR (Li et
al. 2021, section 3.3): real-time is the session that goes on, short what was before it within ten
days, long what was before that within a month.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.batch import Ids, Jagged, Users
from streaming.event_columns import NONE
from streaming.kernels import compiled_in_place

Codes = NDArray[np.int32]

_SECOND_US = 1_000_000
_DAY_US = 86_400 * _SECOND_US
GAP_US = 600 * _SECOND_US
LONGEST = 50
SHORT_US, LONG_US = 10 * _DAY_US, 30 * _DAY_US
REALTIME, SHORT, LONG, OLDER = range(4)


@dataclass(frozen=True, slots=True)
class Periods:
    """The same users three times, with the actions of one period each."""

    realtime: Users
    short: Users
    long: Users


def session_numbers(at_us: Ids, history: Jagged, sessions: Codes) -> Ids:
    """For each action the number of its session, 0 for the user's newest, (m,).

    `at_us` (m,) is when each action of `history` happened, `sessions` (m,) the code of the session
    id that its event had, -1 for none. An action that came late, with a time before that of the one
    in front of it, is in the session of its neighbours.

    >>> minutes = np.array([0, 30, 35, 60, 80])
    >>> history = Jagged.of(np.array([7, 8, 9, 7, 8]), np.array([5]))
    >>> for sessions in ([4, 4, 6, 6, -1], [-1, -1, -1, -1, -1]):
    ...     session_numbers(minutes * 60_000_000, history, np.array(sessions, np.int32)).tolist()
    [1, 1, 1, 1, 0]
    [3, 2, 2, 1, 0]
    """
    numbers = np.empty(len(at_us), np.int64)
    _number(at_us, history.offsets, sessions, numbers)
    return numbers


def periods(at_us: Ids, history: Jagged, sessions: Codes, now_us: Ids) -> NDArray[np.int8]:
    """For each action REALTIME, SHORT, LONG or OLDER, (m,), for users whose now is `now_us` (n,).

    A session goes on until ten minutes after its newest action: now has no session id. An action of
    which the time is not known (0) is OLDER.

    >>> days = np.array([0, 25, 39.99, 39.999])
    >>> at_us, now_us = (days * 86_400e6).astype(int), np.array([40 * 86_400_000_000])
    >>> history = Jagged.of(np.array([7, 8, 9, 7]), np.array([4]))
    >>> for sessions in ([4, 5, -1, -1], [4, 5, 6, 6]):
    ...     periods(at_us, history, np.array(sessions, np.int32), now_us).tolist()
    [3, 2, 1, 0]
    [3, 2, 0, 0]
    """
    numbers, owners = session_numbers(at_us, history, sessions), history.owners()
    age_us = now_us[owners] - at_us
    newest = at_us[history.offsets[1:][owners] - 1] if len(at_us) else at_us
    goes_on = (numbers == 0) & (now_us[owners] - newest < GAP_US)
    found = np.full(len(at_us), OLDER, np.int8)
    found[age_us <= LONG_US] = LONG
    found[age_us <= SHORT_US] = SHORT
    found[goes_on] = REALTIME
    return found


def split(users: Users, now_us: Ids) -> Periods:
    """The actions of each user by period, for users whose now is `now_us` (n,); older ones are
    in none.
    """
    details = users.details
    of = periods(details.at_us, users.history, details.sessions, now_us)
    return Periods(*(users.where(of == period) for period in (REALTIME, SHORT, LONG)))


def of_kinds(users: Users, kinds: Sequence[int]) -> Users:
    """The same users with only their actions of these kinds, as numbers."""
    return users.where(np.isin(users.details.kinds, kinds))


@compiled_in_place
def _number(at_us: Ids, offsets: Ids, sessions: Codes, numbers: Ids) -> None:
    for user in range(offsets.size - 1):
        number, size = 0, 0
        newest = offsets[user + 1] - 1
        for i in range(newest, offsets[user] - 1, -1):
            if i < newest:
                same = sessions[i] != NONE and sessions[i] == sessions[i + 1]
                near = at_us[i + 1] - at_us[i] < GAP_US
                if size == LONGEST or not (same or near):
                    number, size = number + 1, 0
            numbers[i] = number
            size += 1
