"""What is kept of users, as the columns in which it is pushed and travels in samples.

One place makes them all, so that training and serving cannot drift apart here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.definitions import EVENT_TIME, KEPT, STEP, USER_HISTORY, USER_PASSED_OVER, View
from streaming.event_columns import Actions, Histories, Ids, Searches
from streaming.kernels import compiled
from streaming.rings import Lists


def history_columns(histories: Histories) -> dict[str, pa.ListArray]:
    """The list features of USER_HISTORY of m users, by name, each (m,)."""
    actions, searches = histories.actions.columns(), histories.searches.columns()
    return {
        "items": actions["item"],
        "rewards": actions["reward"],
        "kinds": actions["kind"],
        "at_us": actions["at_us"],
        "scenarios": actions["scenario"],
        "sessions": actions["session"],
        "values": actions["value"],
        "searched": searches["id"],
        "searched_at_us": searches["at_us"],
        "searched_suggested": searches["suggested"],
    }


def sample_columns(histories: Histories, passed_over: Lists) -> dict[str, pa.ListArray]:
    """The same and the features of USER_PASSED_OVER, by the columns of samples they travel in."""
    passed = passed_over.columns()
    return {
        **_renamed(USER_HISTORY, history_columns(histories)),
        **_renamed(USER_PASSED_OVER, {"items": passed["id"], "at_us": passed["at_us"]}),
    }


def pushed_columns(users: Ids, histories: Histories, newest_us: Ids) -> dict[str, pa.Array]:
    """All columns of a push to USER_HISTORY, of users (m,) whose newest event is at `newest_us`."""
    columns = history_columns(histories)
    return {
        **columns,
        "values": _without_nulls(columns["values"]),
        "newest_us": pa.array(newest_us),
        USER_HISTORY.key: pa.array(users),
        EVENT_TIME: pa.array(newest_us),
    }


def step_columns(
    actions: Actions,
    searches: Searches,
    users: Ids,
    newest_us: Ids,
    first: int,
    kept: tuple[int, int],
) -> dict[str, pa.Array]:
    """The same for every step by itself, numbered from `first` on, in the order of the events.

    `users` (m,) are all who are in it, ascending, and `newest_us` (m,) are the times of their
    newest events before these. Of a user's actions and words so many are `kept`.
    """
    rows = np.concatenate([actions.rows, searches.rows])
    order = np.argsort(rows, kind="stable")
    who = np.concatenate([actions.user_id, searches.user_id])[order]
    at_us = np.concatenate([actions.at_us, searches.words["at_us"]])[order]
    is_action = order < len(actions.rows)
    time_us = _running_newest(np.searchsorted(users, who), at_us, newest_us.copy())
    alone = Histories(
        Lists(_one_where(is_action), actions.records()),
        Lists(_one_where(~is_action), searches.words),
    )
    return {
        **pushed_columns(who, alone, time_us),
        STEP: pa.array(first + np.arange(len(rows))),
        KEPT: pa.array(np.where(is_action, *kept)),
    }


def _one_where(chosen: NDArray[np.bool_]) -> Ids:
    """The offsets of lists with one entry where chosen, and none elsewhere."""
    return np.append(0, np.cumsum(chosen))


def _without_nulls(lists: pa.ListArray) -> pa.ListArray:
    """Feast's lists have no nulls: there it is not a number."""
    return pa.ListArray.from_arrays(lists.offsets, lists.values.fill_null(float("nan")))


def _renamed(view: View, columns: Mapping[str, pa.ListArray]) -> dict[str, pa.ListArray]:
    return {f.sample: columns[f.name] for f in view.features if f.sample is not None}


@compiled
def _running_newest(users: Ids, at_us: Ids, newest_us: Ids) -> Ids:
    """For each event the time of its user's newest one by then; `newest_us` ends as the last."""
    found = np.empty(users.size, np.int64)
    for i in range(users.size):
        newest_us[users[i]] = max(newest_us[users[i]], at_us[i])
        found[i] = newest_us[users[i]]
    return found
