"""How much the fields of items tell of each other, counted on the stream.

Self-supervised item models mask correlated fields together: a seed field, and those that have the
highest mutual information with it (Yao et al., "Self-supervised Learning for Large-scale Item
Recommendations", CIKM 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streaming.artefact import Artefact
from streaming.errors import ConfigError
from streaming.kernels import compiled, home

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


class MutualInformation:
    """Mutual information between every two of `fields`, of values hashed into `buckets`.

    Items are counted for each two fields that both have a value, in `buckets ** 2` numbers of 8
    bytes: 0.5 MB for two fields by default, 24 MB for ten.

    Two biases are worth knowing. Values that share a bucket are one value here, and what is made of
    two fields tells no more of each other than they do: the estimate is from *below*, by the more,
    the more values there are than buckets; log(buckets) bounds it. From n items it comes out too
    high, since chance looks like dependence: the first-order term, `(cells - rows - columns + 1) /
    2n` of those that are not empty, is subtracted (Miller 1955; Panzeri and Treves 1996), and what
    becomes negative is 0. It is of no use before n is several times the cells that are not empty.

    >>> information = MutualInformation(["brand", "maker", "size"])
    >>> brand, size = np.arange(4_000) % 4, np.arange(4_000) // 4 % 5
    >>> information.update(np.column_stack([brand, brand // 2, size]))
    >>> information.get().round(3)
    array([[0.   , 0.693, 0.   ],
           [0.693, 0.   , 0.   ],
           [0.   , 0.   , 0.   ]])
    >>> information.most_correlated("brand", 1)
    ['maker']
    """

    def __init__(
        self, fields: Sequence[str], buckets: int = 256, state: Artefact | None = None
    ) -> None:
        if len(set(fields)) != len(fields) or len(fields) < 2 or buckets < 2:
            raise ConfigError(
                f"mutual information of {list(fields)} in {buckets} buckets cannot be counted: give"
                " two different fields or more, and two buckets or more"
            )
        self.fields = tuple(fields)
        self._pairs = np.array(list(combinations(range(len(fields)), 2)), np.int64)
        # How often two values came together, (pairs, buckets, buckets): all of the state.
        self.counts = np.zeros((len(self._pairs), buckets, buckets), np.int64)
        if state is not None:
            self._restore(state.shards["mutual_information"])

    def update(self, values: Ids) -> None:
        """Counts n items by the stable ids of their values, (n, fields), negative for none.

        An item of several values in a field may be counted once for each, or by a hash of them all.
        """
        _count(np.ascontiguousarray(values, np.int64), self._pairs, self.counts)

    def get(self) -> Floats:
        """Mutual information in nats, (fields, fields), symmetric, never negative; the diagonal
        is 0.
        """
        found = np.zeros((len(self.fields), len(self.fields)))
        for (i, j), counts in zip(self._pairs, self.counts, strict=True):
            found[i, j] = found[j, i] = _information(counts)
        return found

    def most_correlated(self, seed: str, count: int) -> list[str]:
        """The fields that tell most of `seed`, best first; of equal ones the first goes first."""
        row = self.get()[self.fields.index(seed)]
        ordered = [self.fields[k] for k in np.argsort(-row, kind="stable")]
        return [field for field in ordered if field != seed][:count]

    def merge(self, other: MutualInformation) -> None:
        """Adds what another one counted: exactly what one would have counted of both streams.

        Raises:
            ConfigError: the other counts other fields, or in other buckets.
        """
        if other.fields != self.fields or other.counts.shape != self.counts.shape:
            raise ConfigError(
                f"counts of {list(other.fields)} cannot be added to those of {list(self.fields)}:"
                " give both the same fields and buckets"
            )
        self.counts += other.counts

    def tables(self) -> dict[str, pa.Table]:
        """All of the state: the counts that are not zero, and where they lie."""
        flat = self.counts.ravel()
        places = np.flatnonzero(flat)
        metadata = {"fields": "\n".join(self.fields), "buckets": str(self.counts.shape[1])}
        table = pa.table({"place": pa.array(places), "count": pa.array(flat[places])})
        return {"mutual_information": table.replace_schema_metadata(metadata)}

    def _restore(self, table: pa.Table) -> None:
        metadata = {name.decode(): text.decode() for name, text in table.schema.metadata.items()}
        expected = {"fields": "\n".join(self.fields), "buckets": str(self.counts.shape[1])}
        if metadata != expected:
            raise ConfigError(
                f"mutual information was counted of {metadata['fields'].split()} in"
                f" {metadata['buckets']} buckets, not of {list(self.fields)} in"
                f" {expected['buckets']}: give the same, or start afresh"
            )
        self.counts.ravel()[table["place"].to_numpy()] = table["count"].to_numpy()


def _information(counts: Ids) -> float:
    """Of the counts (a, b) of two values, in nats, less the part that is there by chance."""
    total = counts.sum()
    rows, columns = np.nonzero(counts)
    if total == 0:
        return 0.0
    joint = counts[rows, columns] / total
    of_rows, of_columns = counts.sum(1) / total, counts.sum(0) / total
    told = (joint * np.log(joint / (of_rows[rows] * of_columns[columns]))).sum()
    cells, values = len(joint), np.count_nonzero(of_rows) + np.count_nonzero(of_columns)
    return max(0.0, float(told - (cells - values + 1) / (2 * total)))


@compiled
def _count(values: Any, pairs: Any, counts: Any) -> None:
    buckets = np.uint64(counts.shape[1])
    places = np.empty(values.shape[1], np.int64)
    for row in range(values.shape[0]):
        for k in range(places.size):
            value = values[row, k]
            places[k] = np.int64(home(value, buckets)) if value >= 0 else -1
        for p in range(pairs.shape[0]):
            a, b = places[pairs[p, 0]], places[pairs[p, 1]]
            if a >= 0 and b >= 0:
                counts[p, a, b] += 1
