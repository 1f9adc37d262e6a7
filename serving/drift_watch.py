"""The drift watch: whether samples are as they were a while ago, column by column.

Of a list the length is looked at and the newest element; of a time how long before the sample it
was. Scenario, position, reward, the labels and the score that was served are looked at like
features.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.drift import ColumnDrift, DriftConfig, Kind, Rate
from serving.recent_ids import RecentIds
from serving.sample_watch import PATIENCE_S, Joined
from streaming.ids import stable_ids
from streaming.metrics import Metrics
from streaming.samples import features_in, labels_in

_AGE = "_at_us"  # at the end of the name of a time
_OWN = ("scenario", "position", "reward", "served_score")
_FLEETING = {"history_sessions"}  # other ones at every visit
_MOST = 256  # columns
_IDS = {"user": "user_id", "item": "item_id"}
Values = NDArray[Any]


class DriftWatch:
    """Watches the columns of samples, how many new ids there are, and the rates of labels.

    An id is new if it was not among the samples that this process has seen; there are many of them
    just after it has started. Any thread may ask; one takes samples.
    """

    def __init__(
        self,
        config: DriftConfig,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._columns: dict[str, ColumnDrift] = {}
        self._ids = {kind: RecentIds(config.ids) for kind in _IDS}
        self._new = {kind: Rate(config.rate_s) for kind in _IDS}
        self._labels: dict[str, tuple[Rate, Rate]] = {}  # how many were known, what they add up to
        self._allowed, self._allowed_at = float(config.rows_per_s), clock()
        self._tell_at = clock() + config.tell_every_s
        self._told_psi = metrics.gauge(
            "headrace_drift_psi",
            "Population stability index of a column of samples, now against the long run.",
            ["feature"],
            most=_MOST,
        )
        self._told_active = metrics.gauge(
            "headrace_drift_active", "Whether a column of samples drifts.", ["feature"], most=_MOST
        )
        self._told_new = metrics.gauge(
            "headrace_new_ids_per_minute", "Ids in samples that were not seen before.", ["kind"]
        )
        self._told_label = metrics.gauge(
            "headrace_label_rate", "Mean of a label among those that became known lately.",
            ["label"],
        )  # fmt: skip

    def patience_s(self) -> float | None:
        return PATIENCE_S if self._config.enabled else None

    def take(self, joined: Joined) -> None:
        if not self._config.enabled:
            return
        rows, now_s = _of_users(joined.outline), self._clock()
        with self._lock:
            if rows.num_rows:
                self._count_ids(rows, now_s)
                self._count_labels(rows, now_s)
                if self._may_look(rows.num_rows, now_s):
                    self._look_at(self._some(_of_users(joined.rows)), now_s)
            if now_s >= self._tell_at:
                self._tell(now_s)
                self._tell_at = now_s + self._config.tell_every_s

    def figures(self) -> dict[str, Any]:
        """`features`, those that drift most first; `new_ids` a minute; `label_rates`."""
        with self._lock:
            now_s = self._clock()
            features = [
                {"feature": name, **column.figures()} for name, column in self._columns.items()
            ]
            return {
                "features": sorted(features, key=lambda f: (not f["active"], -(f["psi"] or 0))),
                "new_ids": {kind: 60 * rate.get(now_s) for kind, rate in self._new.items()},
                "label_rates": self._label_rates(now_s),
            }

    # -- looking ---------------------------------------------------------------------------

    def _may_look(self, rows: int, now_s: float) -> bool:
        """Whether so many may be looked at now: it is their columns that take time."""
        per_s = self._config.rows_per_s
        earned = max(0.0, now_s - self._allowed_at) * per_s
        self._allowed = min(float(per_s), self._allowed + earned)
        self._allowed_at = now_s
        count = min(rows, per_s)
        if self._allowed < count:
            return False
        self._allowed -= count
        return True

    def _some(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Of very many rows some, all over the batch."""
        count = min(rows.num_rows, self._config.rows_per_s)
        if count == rows.num_rows:
            return rows
        return rows.take(pa.array(np.arange(count) * rows.num_rows // count))

    def _look_at(self, rows: pa.RecordBatch, now_s: float) -> None:
        for name, kind, values in columns(rows):
            if name not in self._columns and len(self._columns) < _MOST:
                self._columns[name] = ColumnDrift(kind, self._config)
            if name in self._columns:
                self._columns[name].update(values, now_s)

    def _count_ids(self, rows: pa.RecordBatch, now_s: float) -> None:
        for kind, column in _IDS.items():
            new = self._ids[kind].new(rows[column].to_numpy())
            self._new[kind].update(len(new), now_s)

    def _count_labels(self, rows: pa.RecordBatch, now_s: float) -> None:
        rates = rows["negative_rate"].fill_null(1.0).to_numpy(zero_copy_only=False)
        for label in labels_in(rows.schema):
            column = rows[f"label_{label}"]
            if column.null_count == len(column):
                continue
            values = column.to_numpy(zero_copy_only=False)
            stands_for = np.where(values > 0, 1.0, 1.0 / rates)[~np.isnan(values)]
            known, total = self._labels.setdefault(
                label, (Rate(self._config.rate_s), Rate(self._config.rate_s))
            )
            known.update(float(stands_for.sum()), now_s)
            total.update(float(np.nansum(values)), now_s)

    def _label_rates(self, now_s: float) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for label, (known, total) in self._labels.items():
            # Both have faded alike; a label that was not heard of for long has no rate.
            count = known.get(now_s)
            found[label] = total.get(now_s) / count if count > 1e-9 else None
        return found

    def _tell(self, now_s: float) -> None:
        for name, column in self._columns.items():
            if column.index is not None:
                self._told_psi.labels(name).set(column.index)
                self._told_active.labels(name).set(column.active)
        for kind, rate in self._new.items():
            self._told_new.labels(kind).set(60 * rate.get(now_s))
        for label, value in self._label_rates(now_s).items():
            if value is not None:
                self._told_label.labels(label).set(value)


def _of_users(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows but those that declare items."""
    return rows.filter(rows["user_id"].is_valid()) if rows["user_id"].null_count else rows


def columns(rows: pa.RecordBatch) -> Iterator[tuple[str, Kind, Values]]:
    """What is watched of samples: a name, whether it is a number or one of several values, and the
    values, as `ColumnDrift.update` takes them; only where they may be known.
    """
    at_us = rows["at"].view(pa.int64()).to_numpy()
    features = [name for name in features_in(rows.schema).names if name not in _FLEETING]
    for name in (*_OWN, *features):
        yield from _of_column(name, rows[name], at_us)
    for label in labels_in(rows.schema):
        known = rows[f"label_{label}"].drop_null()
        if len(known):
            yield f"label_{label}", "number", known.to_numpy().astype(np.float64)


def _of_column(name: str, column: pa.Array, at_us: Values) -> Iterator[tuple[str, Kind, Values]]:
    if not pa.types.is_list(column.type):
        yield from _of_values(name, column, at_us)
        return
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    if pa.types.is_int64(column.type.value_type) and not name.endswith(_AGE):
        yield f"{name}.length", "number", lengths.astype(np.float64)
    newest = pa.array(column.offsets.to_numpy()[1:] - 1, mask=lengths == 0)
    yield from _of_values(name, column.values.take(newest), at_us)


def _of_values(name: str, column: pa.Array, at_us: Values) -> Iterator[tuple[str, Kind, Values]]:
    kind = column.type
    if pa.types.is_floating(kind):
        yield name, "number", _numbers(column)
    elif name.endswith(_AGE):
        then = column.fill_null(0).to_numpy()
        age_s = np.where(then > 0, (at_us - then) / 1e6, np.nan)
        yield name.removesuffix(_AGE) + "_age_s", "number", age_s
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        yield name, "value", column.cast(pa.int64()).fill_null(-1).to_numpy()
    elif pa.types.is_string(kind):
        encoded = column.dictionary_encode()
        ids = np.append(stable_ids(encoded.dictionary.to_pylist()), -1)
        yield name, "value", ids[encoded.indices.fill_null(-1).to_numpy()]


def _numbers(column: pa.Array) -> Values:
    """As float64, NaN where there is none, or it is not finite."""
    numbers = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.where(np.isfinite(numbers), numbers, np.nan)
