"""What came to something waits until it is known what came to nothing.

A click leaves the joiner at once, what was passed over when its window ends. Who learns each as it
comes believes too well of whatever was shown lately, of which only the clicks are known; a ranker
would show that to everybody. And he tests a click on a model that has not learnt what the list
around it is tested on. So clicks wait, until impressions come by that were made no earlier and in
vain: then all is known of the time when they were shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_NEVER = -(2**62)


class Waiting:
    """Rows of samples of which one of these labels is positive; at most so many, of more the oldest
    wait no longer.
    """

    def __init__(self, labels: Sequence[str], most: int) -> None:
        self._labels = tuple(labels)
        self._most = most
        self._rows: list[pa.Table] = []  # as they came
        self._known_us = _NEVER  # up to which time of impressions all is known

    def __len__(self) -> int:
        return sum(rows.num_rows for rows in self._rows)

    def take(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """What is to be learnt now, of these rows and of those that wait."""
        told = [_label(batch, name) for name in self._labels]
        positive = np.any([label > 0 for label in told], axis=0)
        vain = np.any([label == 0 for label in told], axis=0) & ~positive
        at_us = _at_us(batch)
        if vain.any():
            self._known_us = max(self._known_us, int(at_us[vain].max()))
        waits = positive & (at_us > self._known_us)
        if waits.any():
            self._rows.append(pa.table(batch).filter(pa.array(waits)))
            batch = batch.filter(pa.array(~waits))
        return self._with_those_due(batch)

    def _with_those_due(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        due = []
        over = len(self) - self._most
        for number, rows in enumerate(self._rows):
            ready = _at_us(rows) <= self._known_us
            if over > 0:
                ready[:over] = True
                over -= rows.num_rows
            if ready.any():
                due.append(rows.filter(pa.array(ready)))
                self._rows[number] = rows.filter(pa.array(~ready))
        if not due:
            return batch
        self._rows = [rows for rows in self._rows if rows.num_rows]
        return _together([pa.table(batch), *due]).to_batches()[0]

    def table(self) -> pa.Table:
        """All that wait, and up to when all is known: a shard of the cut; `load` takes it back."""
        rows = _together(self._rows) if self._rows else pa.table({"at": pa.array([], _AT)})
        return rows.replace_schema_metadata({"known_us": str(self._known_us)})

    def load(self, tables: Sequence[pa.Table]) -> None:
        """Goes on where `table()` was taken, of one or of several ranks."""
        for table in tables:
            self._known_us = max(self._known_us, int(table.schema.metadata[b"known_us"]))
            if table.num_rows:
                self._rows.append(table.replace_schema_metadata(None))


_AT = pa.timestamp("us", "UTC")


def _together(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of samples of several releases as one chunk."""
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def _at_us(rows: pa.RecordBatch | pa.Table) -> NDArray[np.int64]:
    column = rows["at"]
    found: NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    return found


def _label(batch: pa.RecordBatch, name: str) -> NDArray[np.float32]:
    """(n,), NaN where it is not known; of nobody, if the samples have no such label."""
    if f"label_{name}" not in batch.schema.names:
        return np.full(batch.num_rows, np.nan, np.float32)
    known = pc.if_else(batch["user_id"].is_valid(), batch[f"label_{name}"].cast(pa.float32()), None)
    found: NDArray[np.float32] = known.fill_null(np.nan).to_numpy()
    return found
