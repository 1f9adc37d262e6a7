"""Predictions that wait for their labels, so that a label is scored against what was said then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from streaming.kernels import slots_for
from trainers.metric_kernels import (
    DISPLACED,
    DONE,
    END,
    EXPIRED,
    FRONT,
    LABELLED,
    NOW,
    REPEATED,
    UNMATCHED,
    WAITING,
    await_labels,
    expire,
    index_places,
    pair_keys,
    take_labels,
)
from trainers.metrics import OUTCOME, Outcomes

Ids = NDArray[np.int64]
_COUNTS = {
    "waiting": WAITING,
    "labelled": LABELLED,
    "expired": EXPIRED,
    "displaced": DISPLACED,
    "repeated": REPEATED,
    "unmatched": UNMATCHED,
}


@dataclass(frozen=True)
class LabelWindow:
    """How long the predictions of a task wait for a label, and what becomes of them then.

    `window_s` is in event time. Of more than `most` predictions the oldest is dropped.
    """

    window_s: float
    expired: Literal["negative", "drop"] = "negative"
    most: int = 1 << 18

    def __post_init__(self) -> None:
        if not (self.window_s > 0 and self.most >= 1):
            raise ValueError(f"{self} needs a positive window_s and most")


class DelayedLabels:
    """Questions and answers of every task, matched by key.

    `expect` asks, `label` answers, `advance` lets time pass; each returns the `Outcomes` that it
    decided, in the order in which they were. Time is event time: it is the newest that was told
    for the task and never goes back, so that results do not depend on how calls were cut. A
    prediction that has waited for its task's window is expired before anything else of that time
    happens. Keys are non-negative: see `label_keys`.
    """

    def __init__(self, windows: Mapping[str, LabelWindow]) -> None:
        self._queues = {task: _Queue(window) for task, window in windows.items()}

    def expect(self, task: str, keys: Ids, predictions: Outcomes, at_us: Ids) -> Outcomes:
        """Lets predictions (n,) wait under their keys (n,), made at `at_us` (n,), microseconds.

        A key that waits already keeps its first prediction: what was shown twice counts once.
        """
        return self._queue(task).expect(keys, predictions, at_us)

    def label(self, task: str, keys: Ids, labels: NDArray[Any], at_us: Ids) -> Outcomes:
        """Answers the predictions under keys (n,) with labels (n,), known at `at_us` (n,).

        NaN leaves a prediction waiting. A label that finds none is counted: it came too late, or
        twice, or what it belongs to was never scored.
        """
        return self._queue(task).label(keys, np.asarray(labels, np.float64), at_us)

    def advance(self, task: str, now_us: int) -> Outcomes:
        """Lets time pass."""
        return self._queue(task).advance(now_us)

    def get(self) -> dict[str, dict[str, int]]:
        """For each task how many wait, and how many were labelled, expired, displaced by newer
        ones, repeated (not taken), and how many labels were unmatched.
        """
        return {
            task: {name: int(queue.meta[place]) for name, place in _COUNTS.items()}
            for task, queue in self._queues.items()
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """A copy of all that waits: it belongs into the checkpoint's one cut."""
        return {
            f"{task}/{name}": array
            for task, queue in self._queues.items()
            for name, array in queue.state().items()
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on where `state()` was taken; tasks that were not there begin with nothing."""
        for task, queue in self._queues.items():
            if f"{task}/meta" in state:
                queue.load({name: state[f"{task}/{name}"] for name in queue.state()})

    def _queue(self, task: str) -> _Queue:
        if task not in self._queues:
            raise ValueError(f"no window is declared for {task!r}, only for {list(self._queues)}")
        return self._queues[task]


def label_keys(request_ids: Ids, item_ids: Ids) -> Ids:
    """The keys (n,) of what was shown: items (n,) of requests (n,), or of users."""
    return pair_keys(request_ids, item_ids)


class _Queue:
    """The predictions of one task in the order in which they came; `meta[FRONT]` is the oldest.

    Those that wait no more leave holes, which are closed when the arrays are full.
    """

    def __init__(self, window: LabelWindow) -> None:
        self._window = window
        self.meta = np.zeros(UNMATCHED + 1, np.int64)
        self.meta[NOW] = DONE
        self._allocate(1024)

    def expect(self, keys: Ids, predictions: Outcomes, at_us: Ids) -> Outcomes:
        count = len(keys)
        if not count == len(predictions) == len(at_us):
            raise ValueError(
                f"{count} keys, {len(predictions)} predictions and {len(at_us)} times:"
                " give one of each for every prediction"
            )
        self._make_room(count)
        start = int(self.meta[END])
        self._keys[start : start + count] = keys
        self._rows[start : start + count] = predictions
        decided = np.empty(int(self.meta[WAITING]) + count, np.int64)
        bounds = (round(self._window.window_s * 1e6), self._window.most)
        expired = await_labels(
            self._slots, self._keys, self._due, self.meta, at_us, bounds, decided
        )
        return self._decided(decided[:expired], np.full(expired, np.nan))

    def label(self, keys: Ids, labels: NDArray[np.float64], at_us: Ids) -> Outcomes:
        if not len(keys) == len(labels) == len(at_us):
            raise ValueError(
                f"{len(keys)} keys, {len(labels)} labels and {len(at_us)} times:"
                " give one of each for every label"
            )
        if not np.all((labels == 0) | (labels == 1) | np.isnan(labels)):
            raise ValueError("labels must be 0, 1 or NaN: set a threshold to graded ones first")
        waiting = int(self.meta[WAITING])
        places, found = np.empty(waiting, np.int64), np.empty(waiting)
        count = take_labels(
            self._slots, self._keys, self._due, self.meta, keys, at_us, labels, (places, found)
        )
        return self._decided(places[:count], found[:count])

    def advance(self, now_us: int) -> Outcomes:
        self.meta[NOW] = max(int(self.meta[NOW]), now_us)
        decided = np.empty(int(self.meta[WAITING]), np.int64)
        expired = expire(self._slots, self._keys, self._due, self.meta, decided, 0)
        return self._decided(decided[:expired], np.full(expired, np.nan))

    def state(self) -> dict[str, NDArray[Any]]:
        waiting = self._waiting()
        rows = self._rows[waiting]
        meta = self.meta.copy()
        meta[FRONT], meta[END] = 0, len(waiting)  # where they will lie when they are loaded
        return {
            "meta": meta,
            "keys": self._keys[waiting],
            "due": self._due[waiting],
            **{name: rows[name].copy() for name in OUTCOME.names or ()},
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        rows = np.empty(len(state["keys"]), OUTCOME)
        for name in OUTCOME.names or ():
            rows[name] = state[name]
        self.meta[:] = state["meta"]
        self._allocate(2 * len(rows) + 1024)
        self._lay_out(state["keys"], state["due"], rows)

    def _decided(self, places: Ids, labels: NDArray[np.float64]) -> Outcomes:
        rows = self._rows[places]
        if self._window.expired == "drop":
            rows["label"] = labels
            return rows[~np.isnan(labels)]
        rows["label"] = np.nan_to_num(labels, nan=0.0)
        return rows

    def _waiting(self) -> Ids:
        """The places of all that wait, oldest first."""
        front, end = self.meta[[FRONT, END]].tolist()
        places: Ids = front + np.flatnonzero(self._due[front:end] != DONE)
        return places

    def _make_room(self, count: int) -> None:
        if self.meta[END] + count <= len(self._keys):
            return
        waiting = self._waiting()
        keys, due, rows = self._keys[waiting], self._due[waiting], self._rows[waiting]
        # At least half of the room is free then, so that holes are closed rarely.
        if 2 * (len(keys) + count) > len(self._keys):
            self._allocate(3 * (len(keys) + count))
        self._lay_out(keys, due, rows)

    def _allocate(self, room: int) -> None:
        self._keys, self._due = np.empty(room, np.int64), np.empty(room, np.int64)
        self._rows = np.empty(room, OUTCOME)
        self._slots = slots_for(room)

    def _lay_out(self, keys: Ids, due: Ids, rows: Outcomes) -> None:
        """All that waits to the front."""
        count = len(keys)
        self._keys[:count], self._due[:count], self._rows[:count] = keys, due, rows
        index_places(self._slots, keys)
        self.meta[FRONT], self.meta[END] = 0, count
