"""Open impressions: what was shown and may still be answered, and the rows that come of it.

An impression opens when it is seen and is held under its request and item. Feedback decides one
of its labels at once. When the window of a label ends undecided, the label is negative, and so is
every label that must come *after* it: who did not click did not buy. What was decided stays for
a while, so that a late label still finds its impression; then it is forgotten. Feedback that
comes before its impression waits for it. An impression of which nothing came by the time when its
last label was decided is one that its user passed over: the newest of these are kept of him too.

Every due time is the opening (or the arrival) plus a constant, so that each kind of waiting is a
first-in-first-out queue, and a turn costs nothing for what is not due.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from streaming.artefact import Artefact
from streaming.errors import ConfigError
from streaming.event_columns import ACTION, MOMENT, WORD, Histories, Ids
from streaming.join_kernels import (
    COUNTED,
    COUNTS,
    HISTORIES,
    HISTORY,
    MOST_LABELS,
    OPEN,
    ROW,
    RULES,
    SLOTS,
    WAITERS,
    WAITING,
    fill_maps,
    first_unmet,
    run,
)
from streaming.kernels import EMPTY, grown, has_room, rehash
from streaming.kernels import slots_for as map_for
from streaming.rings import Lists, Rings

_ROWS_AT_ONCE = 8_192
_KEPT = ("actions", "searches", "passed_over")  # of a history, as HISTORY names how many there are


@dataclass(frozen=True)
class Label:
    """A behaviour that an impression may lead to within `window_s`.

    It can only come `after` another label, or after the impression itself. A `graded` label has
    the value of its event (a watched fraction), any other is 1.
    """

    window_s: PositiveFloat
    after: str | None = None
    graded: bool = False


_MINUTE, _DAY = 60.0, 86_400.0


@dataclass(frozen=True)
class ImpressionsConfig:
    """`labels` are kinds of events; each becomes a column `label_<kind>` of the samples.

    Feedback waits `wait_s` for an impression that comes after it, and an impression is remembered
    `remember_s` after its last label was decided: what comes later than that is learnt as an
    action without an impression. `keep_negatives` of the impressions give negative samples at
    all: which ones depends on request and item only. Beyond `most_open` impressions, or
    `most_waiting` feedbacks, the oldest are let go. Of each user, of at most `users`, the newest
    `passed_over` items that were shown in vain are kept. All times are event times.
    """

    labels: Mapping[str, Label] = field(
        default_factory=lambda: {
            "click": Label(10 * _MINUTE),
            "watch": Label(60 * _MINUTE, after="click", graded=True),
            "like": Label(60 * _MINUTE, after="click"),
            "wish": Label(_DAY, after="click"),
            "cart": Label(_DAY, after="click"),
            "buy": Label(3 * _DAY, after="click"),
        }
    )
    wait_s: NonNegativeFloat = 5.0
    remember_s: NonNegativeFloat = 60 * _MINUTE
    keep_negatives: float = 1.0
    most_open: PositiveInt = 2_000_000
    most_waiting: PositiveInt = 200_000
    passed_over: NonNegativeInt = 10
    users: PositiveInt = 1_000_000

    def __post_init__(self) -> None:
        if not 0 < self.keep_negatives <= 1:
            raise ConfigError(
                f"joiner.impressions.keep_negatives = {self.keep_negatives}: a share of the"
                " negatives, more than 0 and at most 1"
            )
        if "liked" in self.labels:
            raise ConfigError("joiner.impressions.labels.liked: every sample has a label_liked,"
                              " made of its reward; give the kind another name")  # fmt: skip
        if len(self.labels) > MOST_LABELS:
            raise ConfigError(
                f"joiner.impressions.labels: {len(self.labels)} of them, at most {MOST_LABELS}"
            )
        for name, label in self.labels.items():
            where = f"joiner.impressions.labels.{name}.after = {label.after!r}"
            if label.after is None:
                continue
            if label.after not in self.labels:
                raise ConfigError(f"{where}: labels are {', '.join(self.labels)}")
            if self.labels[label.after].window_s > label.window_s:
                raise ConfigError(f"{where}: its window ends after that of {name!r}; make it end"
                                  " no later")  # fmt: skip
            if name in self.followers(name):
                raise ConfigError(f"{where}: it comes after itself")

    def followers(self, name: str) -> set[str]:
        """The labels that can only come after this one, directly or not."""
        found: set[str] = set()
        due = {name}
        while due:
            due = {n for n, label in self.labels.items() if label.after in due} - found
            found |= due
        return found


@dataclass(frozen=True, slots=True)
class Rows:
    """n rows that left: `rows` with the fields of ROW, `labels` (n, labels) with NaN where a
    label is not known, and the histories of each; `passed_over` has what was shown in vain.
    """

    rows: NDArray[Any]
    labels: NDArray[np.float32]
    histories: Histories
    passed_over: Lists


class Impressions:
    """All open impressions and waiting feedback of one partition; bounded, and in the cut.

    At most `length` actions and `words` searched for are held of a user's histories.
    """

    def __init__(
        self, config: ImpressionsConfig, length: int, words: int, state: Artefact | None = None
    ) -> None:
        self._config = config
        self._rules = _rules(config)
        self._most = (config.most_open, config.most_waiting)
        self._meta = np.zeros(COUNTS + len(COUNTED), np.int64)
        self._meta[[SLOTS, WAITERS, HISTORIES]] = EMPTY
        queues = int(self._rules["windows"]) + 2
        self._queues = np.full((queues, 2), EMPTY, np.int64)  # first and last of each
        self._keys, self._requests = map_for(0), map_for(0)
        self._open = np.zeros(64, OPEN)
        self._waiting = np.zeros(64, WAITING)
        self._histories = np.zeros(64, HISTORY)
        # What the histories hold, in the order of `_KEPT`.
        shapes = ((length, ACTION), (words, WORD), (config.passed_over, MOMENT))
        self._kept = tuple(np.zeros((64, most), dtype) for most, dtype in shapes)
        self._passed_over = Rings(MOMENT, config.passed_over, config.users)
        self._out = (
            np.zeros(_ROWS_AT_ONCE, ROW),
            np.empty((_ROWS_AT_ONCE, max(1, len(config.labels))), np.float32),
            tuple(
                (np.zeros(_ROWS_AT_ONCE + 1, np.int64), np.empty(_ROWS_AT_ONCE * most, dtype))
                for most, dtype in shapes
            ),
        )
        if state is not None:
            self._restore(state)

    @property
    def counts(self) -> dict[str, int]:
        """What happened since the beginning, and how many are open and waiting now."""
        counted = dict(zip(COUNTED, self._meta[COUNTS:].tolist(), strict=True))
        return {**counted, "open": len(self), "waiting": int(self._meta[WAITERS + 2])}

    def __len__(self) -> int:
        return int(self._meta[SLOTS + 2])

    @property
    def next_due_us(self) -> int | None:
        """From when on something that is held will leave; None if nothing is held.

        What is only remembered does not count: nobody waits for its being forgotten.
        """
        *windows, _, waiter = self._queues[:, 0].tolist()
        due = [int(self._open[slot]["due_us"]) for slot in windows if slot != EMPTY]
        waiter = first_unmet(self._waiting, waiter)
        if waiter != EMPTY:
            due.append(int(self._waiting[waiter]["due_us"]))
        return min(due, default=None)

    @property
    def nbytes(self) -> int:
        """The memory of everything that is held."""
        keys, requests, open_, waiting, histories, kept, passed_over, queues, meta = self._state()
        rows, labels, lists = self._out
        arrays = (keys, requests, open_, waiting, histories, *kept, *passed_over, queues, meta)
        return sum(array.nbytes for array in (*arrays, rows, labels, *chain(*lists)))

    def take(self, events: NDArray[Any], histories: Histories) -> Iterator[Rows]:
        """Takes events with the fields of EVENT; yields the rows that leave, in order."""
        asked = tuple((of.offsets, of.records) for of in (histories.actions, histories.searches))
        self._make_room(len(events))
        done = 0
        while done < len(events):
            self._passed_over.make_room(1)
            done, size = run((self._state(), self._rules, events, asked, self._out), done)
            if size:
                yield self._left(size)

    def _left(self, size: int) -> Rows:
        """Copies of the rows, for the next run writes over what Arrow would only refer to."""
        rows, labels, lists = self._out
        actions, searches, passed_over = (
            Lists(offsets[: size + 1].copy(), records[: offsets[size]].copy())
            for offsets, records in lists
        )
        known = labels[:size, : len(self._config.labels)].copy()
        return Rows(rows[:size].copy(), known, Histories(actions, searches), passed_over)

    def tables(self) -> dict[str, pa.Table]:
        """All of the state."""
        slots, waiters, histories = self._meta[[SLOTS + 1, WAITERS + 1, HISTORIES + 1]]
        return {
            "impressions": _table(self._open[:slots]),
            "impressions-waiting": _table(self._waiting[:waiters]),
            "impressions-histories": _table(self._histories[:histories]),
            **{f"impressions-{name}": self._kept_table(name, histories) for name in _KEPT},
            **self._passed_over.tables("impressions-passed-over"),
            "impressions-labels": self._labels_table(),
            "impressions-meta": pa.table({"meta": self._meta.copy()}),
            "impressions-queues": pa.table({"ends": self._queues.flatten()}),
        }

    def _kept_table(self, name: str, histories: int) -> pa.Table:
        """What the first histories hold of one sort, each field a list column."""
        held = self._histories[:histories]
        records = self._kept[_KEPT.index(name)][:histories]
        sizes = np.where(held["holders"] > 0, held[name], 0)
        offsets = np.append(0, np.cumsum(sizes))
        return pa.table(
            Lists(offsets, records[np.arange(records.shape[1]) < sizes[:, None]]).columns()
        )

    def _labels_table(self) -> pa.Table:
        """What the bits and the queues of the state stand for."""
        labels = self._config.labels
        windows_s = [label.window_s for label in labels.values()]
        return pa.table({"label": pa.array(list(labels), pa.string()),
                         "window_s": pa.array(windows_s, pa.float64())})  # fmt: skip

    def _state(self) -> tuple[Any, ...]:
        return (
            *(self._keys, self._requests, self._open, self._waiting, self._histories),
            *(self._kept, self._passed_over.arrays, self._queues, self._meta),
        )

    def _make_room(self, events: int) -> None:
        """So that none of the events finds a pool or a map full."""
        most_open, most_waiting = self._most
        open_, waiting, histories = (self._meta[p + 2] for p in (SLOTS, WAITERS, HISTORIES))
        self._open = _roomy(self._open, min(open_ + events, most_open))
        self._waiting = _roomy(self._waiting, min(waiting + events, most_waiting))
        self._histories = _roomy(self._histories, histories + events)
        if len(self._kept[0]) < len(self._histories):
            self._kept = tuple(grown(array, len(self._histories)) for array in self._kept)
        self._keys = _roomy_map(self._keys, open_ + waiting + events)
        self._requests = _roomy_map(self._requests, histories + events)

    def _restore(self, state: Artefact) -> None:
        shards = state.shards
        if not shards["impressions-labels"].equals(self._labels_table()):
            raise ConfigError(
                "joiner.impressions.labels are not those of the saved state, or have other windows:"
                " undo the change, or start over with `headrace run --fresh`"
            )
        self._meta = shards["impressions-meta"]["meta"].to_numpy().copy()
        self._queues = shards["impressions-queues"]["ends"].to_numpy().reshape(-1, 2).copy()
        self._open = _records(shards["impressions"], OPEN)
        self._waiting = _records(shards["impressions-waiting"], WAITING)
        self._histories = _records(shards["impressions-histories"], HISTORY)
        self._make_room(0)
        for name, records in zip(_KEPT, self._kept, strict=True):
            self._restore_kept(name, records, shards[f"impressions-{name}"])
        self._passed_over.restore("impressions-passed-over", shards)
        fill_maps(self._state())

    def _restore_kept(self, name: str, records: NDArray[Any], contents: pa.Table) -> None:
        """The newest of each history, where less of it is held than was."""
        most = records.shape[1]
        self._histories[name] = np.minimum(self._histories[name], most)
        for field_name in records.dtype.names or ():
            column = contents[field_name].combine_chunks()
            values = column.flatten().to_numpy(zero_copy_only=False)
            lengths = column.value_lengths().to_numpy(zero_copy_only=False)
            behind = np.repeat(np.cumsum(lengths), lengths) - np.arange(lengths.sum())
            kept = np.arange(most) < lengths[:, None]
            records[field_name][: len(kept)][kept] = values[behind <= most]


def _rules(config: ImpressionsConfig) -> Any:
    """The configuration as a record of RULES."""
    names = list(config.labels)
    windows = sorted({label.window_s for label in config.labels.values()})
    rules = np.zeros(1, RULES)[0]
    rules["windows"], rules["labels"] = len(windows), len(names)
    rules["window_us"][: len(windows)] = [round(window * 1e6) for window in windows]
    rules["decides"][: len(windows)] = [
        _bits(names, {n for n in names if config.labels[n].window_s == window})
        for window in windows
    ]
    rules["follow"][: len(names)] = [_bits(names, config.followers(name)) for name in names]
    rules["wait_us"] = round(config.wait_s * 1e6)
    rules["remember_us"] = round(config.remember_s * 1e6)
    rules["keep"] = min(int(config.keep_negatives * 2**64), 2**64 - 1)
    rules["most_open"], rules["most_waiting"] = config.most_open, config.most_waiting
    return rules


def _bits(names: list[str], chosen: set[str]) -> int:
    return sum(1 << n for n, name in enumerate(names) if name in chosen)


def _roomy(array: NDArray[Any], rows: int) -> NDArray[Any]:
    return array if rows <= len(array) else grown(array, max(64, rows, 3 * len(array) // 2))


def _roomy_map(slots: Ids, count: int) -> Ids:
    if has_room(slots, count):
        return slots
    roomy = map_for(count)
    rehash(slots, roomy)
    return roomy


def _fields(records: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {name: np.ascontiguousarray(records[name]) for name in records.dtype.names or ()}


def _table(records: NDArray[Any]) -> pa.Table:
    return pa.table(_fields(records))


def _records(table: pa.Table, dtype: np.dtype[Any]) -> NDArray[Any]:
    records = np.zeros(table.num_rows, dtype)
    for name in dtype.names or ():
        records[name] = table[name].to_numpy()
    return records
