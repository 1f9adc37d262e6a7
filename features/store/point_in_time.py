"""Feast's point-in-time join over directories of Parquet files."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast.infra.offline_stores.offline_store import RetrievalJob
from numpy.typing import NDArray

from features.batch import Jagged
from features.definitions import EVENT_TIME, KEPT, STEP
from features.store.part_files import read_parts

Ids = NDArray[np.int64]
_TIME = "datetime64[us, UTC]"
_NONE = -1


@dataclass(frozen=True, slots=True)
class Wanted:
    """Some features of one view, whose Parquet files lie in a directory."""

    directory: Path
    key: str
    names: list[str]
    sequences: list[list[str]]
    view: str = ""
    lives: timedelta | None = None


class _Job(RetrievalJob):  # type: ignore[misc]
    """What Feast asks of a job, but for the table that it makes."""

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    @property
    def full_feature_names(self) -> bool:
        return False

    @property
    def on_demand_feature_views(self) -> list[Any]:
        return []

    @property
    def metadata(self) -> None:
        return None

    def persist(self, storage: Any, allow_overwrite: bool | None = False,
                timeout: int | None = None) -> None:  # fmt: skip
        raise NotImplementedError


class PointInTimeJob(_Job):
    """For each row of `entities` the features as they were known at its time, or null.

    Among rows about one moment the last that was pushed counts. Of a sequence, what counts is all
    steps by then, as many of the newest as were kept then.
    """

    def __init__(self, wanted: list[Wanted], entities: pd.DataFrame, full: bool) -> None:
        self._wanted = wanted
        self._entities = entities
        self._full = full

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002
        answer = pa.Table.from_pandas(self._entities, preserve_index=False)
        for wanted in self._wanted:
            columns = _Join(wanted, self._entities[[wanted.key, EVENT_TIME]]).columns()
            for name in wanted.names:
                shown = f"{wanted.view}__{name}" if self._full else name
                answer = answer.append_column(shown, columns[name])
        return answer

    @property
    def full_feature_names(self) -> bool:
        return self._full


class LatestJob(_Job):
    """The features of every entity that has a row from `start` to `end`, as they were at the end,
    and the time of the newest row.
    """

    def __init__(self, wanted: Wanted, start: datetime | None, end: datetime | None) -> None:
        self._wanted = wanted
        self._start = start
        self._end = end or datetime.now(UTC)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002
        key = self._wanted.key
        rows = _read(self._wanted)
        chosen = pc.less_equal(rows[EVENT_TIME], pa.scalar(self._end, rows[EVENT_TIME].type))
        if self._start is not None:
            start = pa.scalar(self._start, rows[EVENT_TIME].type)
            chosen = pc.and_(chosen, pc.greater_equal(rows[EVENT_TIME], start))
        keys = pc.unique(rows[key].filter(chosen))
        asked = pd.DataFrame({key: keys.to_numpy(), EVENT_TIME: self._end})
        columns = _Join(self._wanted, asked, rows).columns()
        return pa.table({key: keys, **columns})


class _Join:
    """The features of one view for n entities, each at a time of its own."""

    def __init__(self, wanted: Wanted, asked: pd.DataFrame, rows: pa.Table | None = None) -> None:
        self._wanted = wanted
        self._asked = asked.astype({EVENT_TIME: _TIME})
        self._rows = _read(wanted, set(asked[wanted.key])) if rows is None else rows

    def columns(self) -> dict[str, pa.Array | pa.ChunkedArray]:
        """Each feature by name, (n,), and the time of the row that it is from."""
        rows, names = self._rows, self._wanted.names
        places = self._newest(rows, self._wanted.lives)
        where = pa.array(places, mask=places == _NONE)
        columns = {name: rows[name].take(where) for name in (*names, EVENT_TIME)}
        if STEP in rows.column_names:
            is_step = rows[STEP].take(where).is_valid()
            for sequence in self._wanted.sequences:
                asked = [name for name in sequence if name in names]
                for name, lists in self._lists(sequence, asked, places != _NONE).items():
                    columns[name] = pc.if_else(is_step, lists, columns[name])
        return columns

    def _lists(
        self, sequence: list[str], names: list[str], known: NDArray[np.bool_]
    ) -> dict[str, pa.Array]:
        """The newest steps of a sequence by each moment; empty where nothing is known."""
        rows, key = self._rows, self._wanted.key
        has_one = pc.greater(pc.list_value_length(rows[sequence[0]]), 0)
        steps = rows.filter(pc.and_(rows[STEP].is_valid(), has_one))
        steps = steps.sort_by([(key, "ascending"), (STEP, "ascending")])
        ends = self._newest(steps) + 1
        starts = np.searchsorted(steps[key].to_numpy(), self._asked[key].to_numpy())
        kept = np.append(0, steps[KEPT].to_numpy())[ends]
        starts = np.maximum(starts, ends - kept)
        taken = Jagged.of(np.empty(0, np.int64), np.where(known, np.maximum(ends - starts, 0), 0))
        places = np.arange(taken.offsets[-1]) + np.repeat(
            starts - taken.offsets[:-1], taken.lengths
        )
        offsets = pa.array(taken.offsets, pa.int32())
        found = {}
        for name in names:
            values = steps[name].combine_chunks().flatten().take(pa.array(places))
            lists = pa.ListArray.from_arrays(offsets, values)
            found[name] = lists.cast(rows.schema.field(name).type)
        return found

    def _newest(self, rows: pa.Table, lives: timedelta | None = None) -> Ids:
        """For each entity the last of the rows with its key that is not after its time.

        -1 where there is none, or where that one had lived its time.
        """
        known = rows.select([self._wanted.key, EVENT_TIME]).to_pandas().astype({EVENT_TIME: _TIME})
        found = pd.merge_asof(
            self._asked.assign(place=range(len(self._asked))).sort_values(
                EVENT_TIME, kind="stable"
            ),
            known.assign(row=range(len(known))).sort_values(EVENT_TIME, kind="stable"),
            on=EVENT_TIME,
            by=self._wanted.key,
            tolerance=None if lives is None else pd.Timedelta(lives),
        ).sort_values("place")
        places: Ids = found["row"].fillna(_NONE).to_numpy(np.int64)
        return places


def _read(wanted: Wanted, keys: set[int] | None = None) -> pa.Table:
    """All rows, or those of some entities, in the order in which they were pushed, each step once.

    A step may be there again: a process that ended before its cut was made makes them anew.
    """
    chosen = None if keys is None else [(wanted.key, "in", keys)]
    rows = read_parts(wanted.directory, chosen)
    if STEP not in rows.column_names:
        return rows
    steps = rows[STEP].fill_null(_NONE).to_numpy()
    _, first = np.unique(steps, return_index=True)
    alone = np.concatenate([np.flatnonzero(steps == _NONE), first[steps[first] != _NONE]])
    return rows.take(pa.array(alone))
