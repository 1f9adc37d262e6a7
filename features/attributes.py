"""What is known of items or of users: one description each, and its values as columns.

A description is a JSON object, kept as it came but for what does not fit its field (`fields`).
Beside it lie its single values as numbers, so that a column for many entities is read at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import PositiveInt

from features.batch import Jagged
from features.fields import Cells, Field, Fields, FieldsConfig, Flat, Refusal
from features.runs import Runs
from features.text import hashed_ngrams, word_ids
from streaming.growing import GrowingArray
from streaming.id_map import IdMap
from streaming.ids import stable_ids
from streaming.kernels import EMPTY, compiled

Ids = NDArray[np.int64]
TURN = 4_096  # entities are taken so many at a time; between turns those beyond the bound go
_WORDS = 64  # of one text
_NO_TEXT = "{}"


@dataclass(frozen=True)
class AttributesConfig(FieldsConfig):
    """At most `entities` are remembered, and up to 4,096 more until the turn ends."""

    entities: PositiveInt = 1_000_000


@dataclass(frozen=True, slots=True)
class Change:
    """What one turn changed: `declared` (n,) have new values, those in `cells`, which names them
    0 to n - 1; and `forgotten` are gone, whether or not they are among `declared`.
    """

    declared: Ids
    cells: Cells
    forgotten: Ids


class Attributes:
    """The entities that were heard of, each with its string and its newest description.

    When there are too many, those that were heard of longest ago are forgotten; that is looked at
    after every 4,096 that were heard, wherever batches end, so that the same events leave the
    same state. Reads may come from other threads: they see an entity as it was or as it is.
    """

    def __init__(self, config: AttributesConfig) -> None:
        self._config = config
        self._lock = Lock()
        self._rows = IdMap()
        self._heard = 0  # so many names, ever
        self.changes = 0  # descriptions that came and went since this was made
        self._newest = GrowingArray(np.int64)  # by row: which of them was the last of this entity
        self._names = np.empty(0, object)  # str by row
        self._texts = np.empty(0, object)  # str by row, None without a description
        self._cells = Runs(3)  # field, token, bits of the number
        self._fields = Fields(config)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def until_turn(self) -> int:
        """How many more are heard of until some may be forgotten, from 1 to `TURN`."""
        return TURN - self._heard % TURN

    # -- writing ---------------------------------------------------------------------------

    def hear(self, names: Sequence[str], texts: Sequence[str | None]) -> list[Change]:
        """Takes entities in order, each with its new description, or None for a mere mention.

        Descriptions must be JSON objects.
        """
        changes = []
        start = 0
        while start < len(names):
            end = min(len(names), start + TURN - self._heard % TURN)
            with self._lock:
                changes.append(self._turn(names[start:end], texts[start:end]))
            start = end
        return changes

    def _turn(self, names: Sequence[str], texts: Sequence[str | None]) -> Change:
        ids, rows = self._mention(names)
        where = np.array([i for i, text in enumerate(texts) if text is not None], np.int64)
        declared, rows = ids[where], rows[where]
        given = [text for text in texts if text is not None]
        previous, last = _chained(rows)
        kept, flat = self._fields.check(
            [names[i] for i in where.tolist()], given, previous, lambda i: self._texts[rows[i]]
        )
        if len(last) < len(rows):
            rows, kept, flat = rows[last], [kept[i] for i in last.tolist()], None
        cells = self._describe(rows, kept, flat)
        forgotten = self._forget() if self._heard % TURN == 0 else declared[:0]
        self.changes += len(declared) + len(forgotten)
        return Change(declared[last], cells, forgotten)

    def _mention(self, names: Sequence[str]) -> tuple[Ids, Ids]:
        """Notes that these were heard of now; their ids and rows."""
        encoded = pa.array(names, pa.string()).dictionary_encode()
        distinct = encoded.dictionary.to_pylist()
        number = encoded.indices.to_numpy()
        ids = stable_ids(distinct)
        rows = self._rows.add(ids)
        self._make_room()
        self._names[rows] = distinct
        newest = self._newest.reserve(self._rows.rows)
        newest[rows[number]] = self._heard + np.arange(len(names))  # of repeats the last counts
        self._heard += len(names)
        return ids[number], rows[number]

    def _make_room(self) -> None:
        if self._rows.rows > len(self._names):
            more = np.empty(max(64, self._rows.rows, len(self._names)), object)
            self._names, self._texts = (
                np.concatenate([column, more]) for column in (self._names, self._texts)
            )

    def _describe(self, rows: Ids, texts: Sequence[str], flat: Flat | None = None) -> Cells:
        """Lays these descriptions in the place of those that were there; rows are distinct."""
        self._texts[rows] = texts
        cells = self._fields.cells(texts, flat)
        columns = np.empty((len(cells.values), 3), np.int64)
        columns[:, 0] = cells.field
        columns[:, 1] = _tokens(cells)
        columns[:, 2] = cells.numbers.view(np.int64)
        offsets = np.searchsorted(cells.owner, np.arange(len(rows) + 1))
        self._cells.put(rows, offsets, columns)
        return cells

    def _forget(self) -> Ids:
        """Lets go those beyond the bound that were heard of longest ago; their ids."""
        more = len(self._rows) - self._config.entities
        if more <= 0:
            return np.empty(0, np.int64)
        rows = np.flatnonzero(self._rows.ids != EMPTY)
        oldest = rows[np.argpartition(self._newest.rows[rows], more - 1)[:more]]
        oldest = oldest[np.argsort(self._newest.rows[oldest])]
        ids = self._rows.ids[oldest]
        self._rows.remove(ids)
        self._names[oldest] = None
        self._texts[oldest] = None
        self._cells.clear(oldest)
        return ids

    # -- reading ---------------------------------------------------------------------------

    def get(self, entity: int) -> tuple[str, dict[str, Any]] | None:
        """The string of a stable id and its attributes, None for who was never heard of."""
        return self.get_each(np.array([entity], np.int64))[0]

    def get_each(self, entities: Ids) -> list[tuple[str, dict[str, Any]] | None]:
        """The string and the attributes of each stable id, None for who was never heard of."""
        names, described = self._described(entities)
        return [None if n is None else (n, d) for n, d in zip(names, described, strict=True)]

    def names(self, entities: Ids) -> list[str | None]:
        """The string of each stable id."""
        with self._lock:
            rows = self._rows.find(entities)
            return [None if row == EMPTY else self._names[row] for row in rows.tolist()]

    def ids(self) -> Ids:
        """The stable ids of all that were heard of."""
        with self._lock:
            ids: Ids = self._rows.ids
            there: Ids = ids[ids != EMPTY]
        return there

    def newest(self, count: int) -> Ids:
        """The `count` entities that were heard of last, the newest first."""
        with self._lock:
            rows = np.flatnonzero(self._rows.ids != EMPTY)
            age = self._heard - self._newest.rows[rows]
            if count < len(rows):
                nearest = np.argpartition(age, count)[:count]
                rows, age = rows[nearest], age[nearest]
            return self._rows.ids[rows[np.argsort(age)]]

    def fields(self) -> list[Field]:
        """Every field that was declared, in the order in which they appeared."""
        with self._lock:
            return self._fields.listed()

    @property
    def beyond(self) -> int:
        """How many values were refused because there were too many fields already."""
        return self._fields.beyond

    def refusals(self) -> list[Refusal]:
        """The newest 100 values that were refused, oldest first."""
        with self._lock:
            return self._fields.refusals()

    def numbers(self, field: str, entities: Ids) -> NDArray[np.float64]:
        """The number in this field of each entity (n,), of several the first; NaN where none is.

        A flag counts as 1 or 0.
        """
        found = np.full(len(entities), np.nan)
        with self._lock:
            offsets, cells = self._take(entities)
            _first_numbers(offsets, cells, self._fields.number(field), found)
        return found

    def tokens(self, entities: Ids, fields: Sequence[str]) -> Jagged:
        """Of each entity the stable ids of "field=value", field by field as they are named here.

        These are the tokens that describe items in samples.
        """
        with self._lock:
            offsets, cells = self._take(entities)
            wanted = np.array([self._fields.number(name) for name in fields], np.int64)
        owner = np.repeat(np.arange(len(entities)), np.diff(offsets))
        place = np.full(int(max(cells[:, 0].max(initial=0), wanted.max(initial=0))) + 1, EMPTY)
        place[wanted[wanted >= 0]] = np.flatnonzero(wanted >= 0)
        places = place[cells[:, 0]]
        chosen = np.flatnonzero(places != EMPTY)
        chosen = chosen[np.lexsort((places[chosen], owner[chosen]))]
        lengths = np.bincount(owner[chosen], minlength=len(entities))
        return Jagged.of(cells[chosen, 1], lengths)

    def texts(self, field: str, entities: Ids) -> list[str]:
        """What this field of each entity says, of several values all, with blanks between."""
        _, described = self._described(entities)
        return [_as_text(one.get(field)) for one in described]

    def words(self, field: str, entities: Ids) -> Jagged:
        """The words in a field of each entity, the first 64, see `word_ids`."""
        return word_ids(self.texts(field, entities), _WORDS)

    def ngrams(self, field: str, entities: Ids, size: int = 3, buckets: int = 1 << 18) -> Jagged:
        """The hashed runs of `size` characters in a field of each entity, see `hashed_ngrams`."""
        return hashed_ngrams(self.texts(field, entities), size, buckets)

    def _described(self, entities: Ids) -> tuple[list[str | None], list[dict[str, Any]]]:
        """The string of each stable id, and its attributes; none of who was never heard of."""
        with self._lock:
            rows = self._rows.find(entities).tolist()
            names = [None if row == EMPTY else self._names[row] for row in rows]
            texts = [None if row == EMPTY else self._texts[row] for row in rows]
        return names, msgspec.json.decode(f"[{','.join(text or _NO_TEXT for text in texts)}]")

    def _take(self, entities: Ids) -> tuple[Ids, Ids]:
        """The cells of each entity, none of one that is not known."""
        rows = self._rows.find(entities)
        known = rows != EMPTY
        offsets, cells = self._cells.take(rows[known])
        lengths = np.zeros(len(entities), np.int64)
        lengths[known] = np.diff(offsets)
        return np.append(0, np.cumsum(lengths)), cells

    # -- the cut ---------------------------------------------------------------------------

    def tables(self, prefix: str) -> dict[str, pa.Table]:
        """All of the state, who was heard of longest ago first."""
        rows = np.flatnonzero(self._rows.ids != EMPTY)
        rows = rows[np.argsort(self._newest.rows[rows])]
        entities = {
            "name": pa.array(self._names[rows], pa.string()),
            "attributes": pa.array(self._texts[rows], pa.string()),
            "heard": pa.array(self._newest.rows[rows]),
        }
        table = pa.table(entities, metadata={"heard": str(self._heard)})
        return {prefix: table, **self._fields.tables(prefix)}

    def restore(self, prefix: str, tables: Mapping[str, pa.Table]) -> list[Change]:
        """Takes up the state of a cut; says, as `hear` does, what there is now."""
        self._fields.restore(prefix, tables)
        changes = []
        for batch in tables[prefix].to_batches(max_chunksize=TURN):
            ids, rows = self._mention(batch["name"].to_pylist())
            self._newest.rows[rows] = batch["heard"].to_numpy()
            where = np.flatnonzero(batch["attributes"].is_valid().to_numpy(zero_copy_only=False))
            cells = self._describe(rows[where], batch["attributes"].drop_null().to_pylist())
            changes.append(Change(ids[where], cells, ids[:0]))
        self._heard = int(tables[prefix].schema.metadata[b"heard"])
        return changes


def _tokens(cells: Cells) -> Ids:
    """The stable id of "field=value" for each cell."""
    pairs = zip(cells.field.tolist(), cells.values, strict=True)
    return stable_ids(f"{cells.names[field]}={value}" for field, value in pairs)


def _chained(rows: Ids) -> tuple[Ids, Ids]:
    """For each row the place where it stood before, -1 for none; and the last place of each."""
    order = np.argsort(rows, kind="stable")
    again = rows[order[1:]] == rows[order[:-1]]
    previous = np.full(len(rows), -1)
    previous[order[1:][again]] = order[:-1][again]
    return previous, np.sort(order[np.append(~again, len(rows) > 0)[: len(rows)]])


def _as_text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(_as_text, value))
    return value if isinstance(value, str) else ""


@compiled
def _first_numbers(offsets: Ids, cells: Ids, field: int, found: NDArray[np.float64]) -> None:
    numbers = cells.view(np.float64)
    for i in range(offsets.size - 1):
        for at in range(offsets[i], offsets[i + 1]):
            if cells[at, 0] == field:
                found[i] = numbers[at, 2]
                break
