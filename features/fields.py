"""What fields entities are described with, of which type each is, and what does not fit.

The first value of a field decides its type for good. A value of another type is refused, with a
sentence that says why; it is counted, and the newest refusals are kept to be read.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import PositiveInt

from streaming.errors import EventRejected

Ids = NDArray[np.int64]
TEXT_ALWAYS = "title"  # whatever comes in this field is written as text
_KEPT_REFUSALS = 100
_EXAMPLE = 80  # characters

# Kinds of values: the numbers of their types, where an empty list decides none, and for null.
_TYPES = ("number", "flag", "text", "numbers", "texts", "nested", "undecided")
NUMBER, FLAG, TEXT, NUMBERS, TEXTS, NESTED, EMPTY, NOTHING = range(8)
_UNDECIDED = _TYPES.index("undecided")  # only empty lists so far
_KIND_OF = {
    int: NUMBER,
    float: NUMBER,
    bool: FLAG,
    str: TEXT,
    dict: NESTED,
    list: EMPTY,
    type(None): NOTHING,
}
_SHOWN = ("a number", "true or false", "a text", "a list of numbers", "a list of texts",
          "an object or a mixed list", "an empty list")  # fmt: skip


@dataclass(frozen=True)
class FieldsConfig:
    """At most `fields` are known, and of a longer list the first `values` distinct values kept."""

    fields: PositiveInt = 256
    values: PositiveInt = 64


@dataclass(frozen=True, slots=True)
class Field:
    """One field: `type` is number, flag (true or false), text, numbers, texts, nested (objects
    and mixed lists, kept but not understood), or undecided (only empty lists so far).

    Declarations are counted: those that had it, those whose value was `refused`, and those whose
    list was `cut`. `example` is its first value as JSON, `since` the entity that had it.
    """

    name: str
    type: str
    count: int
    example: str
    since: str
    refused: int
    cut: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """One value that was not taken: whose, and what EventRejected says of it."""

    entity: str
    field: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.entity}: {self.field} = {self.value}: {self.reason}"


@dataclass(slots=True)
class _Known:
    """A field while it is counted; `type` is a number of _TYPES."""

    name: str
    type: int
    example: str
    since: str
    count: int = 0
    refused: int = 0
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Cells:
    """The single values of n descriptions, description by description, field by field.

    Value i belongs to description `owner[i]` and to field `names[field[i]]`; of a list there is
    one for each of its values. Objects and mixed lists have none. `numbers` (k,) are those values
    that are numbers or flags, NaN for texts.
    """

    names: Sequence[str]

    owner: Ids
    field: Ids
    values: list[Any]
    numbers: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Flat:
    """Every key and value of n JSON objects, one after another."""

    owner: Ids
    keys: list[str]
    values: list[Any]
    kinds: NDArray[np.int8]


class Fields:
    """The fields of one sort of entity."""

    def __init__(self, config: FieldsConfig) -> None:
        self._config = config
        self._numbers: dict[str, int] = {}
        self._known: list[_Known] = []
        self._refusals: deque[Refusal] = deque(maxlen=_KEPT_REFUSALS)
        self.beyond = 0  # values refused because there were `fields` fields already

    def __len__(self) -> int:
        return len(self._known)

    def number(self, name: str) -> int:
        """The number of a field, -1 if there is none of that name."""
        return self._numbers.get(name, -1)

    def listed(self) -> list[Field]:
        """Every field, in the order in which they appeared."""
        return [
            Field(f.name, _TYPES[f.type], f.count, f.example, f.since, f.refused, f.cut)
            for f in self._known
        ]

    def refusals(self) -> list[Refusal]:
        """The newest 100 refusals, oldest first."""
        return list(self._refusals)

    def check(
        self,
        names: Sequence[str],
        texts: Sequence[str],
        previous: Ids,
        stored: Callable[[int], str | None],
    ) -> tuple[list[str], Flat | None]:
        """The descriptions (JSON objects) of these entities as they may be kept, in order; and
        what is in them, if they are all as they came.

        Where a value is refused, the one that the entity had stays: that of its description
        `previous[i]` among these, or, where that is negative, of the one in `stored(i)`.
        """
        flat = _flatten(texts)
        fields = self._enter(flat, names)
        types = np.array([f.type for f in self._known] + [-1])[fields]
        kinds = flat.kinds
        fits = types == kinds
        here = kinds != NOTHING
        title = here & (fields == self._numbers.get(TEXT_ALWAYS, len(self)))
        fits |= (types == NESTED) & np.isin(kinds, (TEXTS, NUMBERS))
        fits |= title | ((kinds == EMPTY) & (fields >= 0))
        self._count(fields[fits & here], "count")
        many = np.flatnonzero(fits & np.isin(kinds, (TEXTS, NUMBERS)))
        lengths = np.fromiter((len(flat.values[i]) for i in many.tolist()), np.int64, len(many))
        cut = np.zeros(len(kinds), np.bool_)
        cut[many[lengths > self._config.values]] = True
        self._count(fields[cut], "cut")
        odd = ~fits | cut | (title & (kinds != TEXT))
        if not odd.any():
            return list(texts), flat
        kept = list(texts)
        bounds = np.searchsorted(flat.owner, np.arange(len(texts) + 1))
        for owner in np.unique(flat.owner[odd]).tolist():
            rows = range(bounds[owner], bounds[owner + 1])
            earlier = int(previous[owner])
            old = stored(owner) if earlier < 0 else kept[earlier]
            kept[owner] = self._mended(names[owner], flat, rows, fits, fields, old)
        return kept, None

    def cells(self, texts: Sequence[str], flat: Flat | None = None) -> Cells:
        """The single values of descriptions that `check` returned, as it returned them."""
        flat = _flatten(texts) if flat is None else flat
        lists = np.flatnonzero(np.isin(flat.kinds, (TEXTS, NUMBERS)))
        inside = [flat.values[i] for i in lists.tolist()]
        lengths = np.where(np.isin(flat.kinds, (NUMBER, FLAG, TEXT)), 1, 0)
        lengths[lists] = np.fromiter(map(len, inside), np.int64, len(inside))
        # Laid side by side without a tuple for each: so many would set off the garbage collector.
        of_value = np.repeat(np.arange(len(lengths)), lengths)
        kinds = flat.kinds[of_value]
        listed = np.isin(kinds, (TEXTS, NUMBERS))
        values = np.empty(len(of_value), object)
        values[listed] = [one for values in inside for one in values]
        values[~listed] = [flat.values[i] for i in of_value[~listed].tolist()]
        is_number = ~np.isin(kinds, (TEXT, TEXTS))
        numbers = np.full(len(values), np.nan)
        numbers[is_number] = as_numbers(values[is_number].tolist())
        fields = np.fromiter(map(self._numbers.__getitem__, flat.keys), np.int64, len(flat.keys))
        owner, field = flat.owner[of_value], fields[of_value]
        return Cells([f.name for f in self._known], owner, field, values.tolist(), numbers)

    def tables(self, prefix: str) -> dict[str, pa.Table]:
        """All of the state."""
        known = {
            "name": pa.array([f.name for f in self._known], pa.string()),
            "type": pa.array([_TYPES[f.type] for f in self._known], pa.string()),
            "example": pa.array([f.example for f in self._known], pa.string()),
            "since": pa.array([f.since for f in self._known], pa.string()),
            **{
                figure: pa.array([getattr(f, figure) for f in self._known], pa.int64())
                for figure in ("count", "refused", "cut")
            },
        }
        refusals = {
            name: pa.array([getattr(r, name) for r in self._refusals], pa.string())
            for name in ("entity", "field", "value", "reason")
        }
        return {
            f"{prefix}_fields": pa.table(known, metadata={"beyond": str(self.beyond)}),
            f"{prefix}_refusals": pa.table(refusals),
        }

    def restore(self, prefix: str, tables: Mapping[str, pa.Table]) -> None:
        """Takes up the state of a cut."""
        table = tables[f"{prefix}_fields"]
        self.beyond = int(table.schema.metadata[b"beyond"])
        self._known = [
            _Known(**{**row, "type": _TYPES.index(row["type"])}) for row in table.to_pylist()
        ]
        self._numbers = {f.name: number for number, f in enumerate(self._known)}
        self._refusals.extend(Refusal(**r) for r in tables[f"{prefix}_refusals"].to_pylist())

    def _enter(self, flat: Flat, names: Sequence[str]) -> Ids:
        """The field of each value, -1 where there is no room for it; new ones get their type."""
        here = np.flatnonzero(flat.kinds != NOTHING)
        keys = pa.array([flat.keys[i] for i in here.tolist()], pa.string()).dictionary_encode()
        codes = keys.indices.to_numpy()
        _, firsts = np.unique(codes, return_index=True)
        for name, first in zip(keys.dictionary.to_pylist(), here[firsts].tolist(), strict=True):
            room = len(self._known) < self._config.fields or name == TEXT_ALWAYS
            if name not in self._numbers and room:
                self._numbers[name] = len(self._known)
                example = _as_json(flat.values[first])
                example = example if len(example) <= _EXAMPLE else f"{example[: _EXAMPLE - 3]}..."
                kind = TEXT if name == TEXT_ALWAYS else int(flat.kinds[first])
                self._known.append(_Known(name, kind, example, names[flat.owner[first]]))
        numbers = np.array([self.number(n) for n in keys.dictionary.to_pylist()], np.int64)
        fields = np.full(len(flat.kinds), -1)
        fields[here] = numbers[codes]
        self._decide(fields, flat.kinds)
        return fields

    def _decide(self, fields: Ids, kinds: NDArray[np.int8]) -> None:
        """A field that had only empty lists takes the type of its first value that is none."""
        for number, known in enumerate(self._known):
            if known.type == _UNDECIDED:
                found = np.flatnonzero((fields == number) & (kinds < EMPTY))
                if len(found):
                    known.type = int(kinds[found[0]])

    def _count(self, fields: Ids, figure: str) -> None:
        numbers, counts = np.unique(fields, return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            known = self._known[number]
            setattr(known, figure, getattr(known, figure) + count)

    def _mended(
        self,
        entity: str,
        flat: Flat,
        rows: Iterable[int],
        fits: NDArray[np.bool_],
        fields: Ids,
        old: str | None,
    ) -> str:
        """A description without what does not fit, as JSON."""
        kept: dict[str, Any] = {}
        earlier: dict[str, Any] | None = None
        for i in rows:
            key, value, kind = flat.keys[i], flat.values[i], int(flat.kinds[i])
            if kind == NOTHING:
                continue
            if not fits[i]:
                self._refuse(entity, key, value, kind, int(fields[i]))
                earlier = json.loads(old or "{}") if earlier is None else earlier
                if key in earlier:
                    kept[key] = earlier[key]
            elif key == TEXT_ALWAYS:
                kept[key] = value if kind == TEXT else str(value)
            elif kind in (TEXTS, NUMBERS) and len(value) > self._config.values:
                kept[key] = list(islice(dict.fromkeys(value), self._config.values))
            else:
                kept[key] = value
        return _as_json(kept)

    def _refuse(self, entity: str, key: str, value: object, kind: int, field: int) -> None:
        if field < 0:
            self.beyond += 1
            reason = (
                f"there are {self._config.fields} fields already, and no more are kept: drop some,"
                " or raise `fields`"
            )
        else:
            known = self._known[field]
            known.refused += 1
            reason = (
                f"{_SHOWN[kind]}, where {known.since} was first to send {_SHOWN[known.type]}: send"
                " that, or use a field of another name"
            )
        error = EventRejected(key, value, reason)
        self._refusals.append(Refusal(entity, error.field, error.value, error.reason))


def as_numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    """Values as floats: NaN for a text, and what is too large for a float is infinite."""
    try:
        return np.array(values, np.float64)
    except (OverflowError, ValueError, TypeError):
        return np.array([_as_number(value) for value in values], np.float64)


def _as_number(value: object) -> float:
    if not isinstance(value, int | float):
        return float("nan")
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _flatten(texts: Sequence[str]) -> Flat:
    """One call of the parser for all texts; what lists hold decides their kinds."""
    objects = msgspec.json.decode(f"[{','.join(texts)}]")
    keys = [key for one in objects for key in one]
    values = [value for one in objects for value in one.values()]
    sizes = np.fromiter(map(len, objects), np.int64, len(objects))
    kinds = np.fromiter((_KIND_OF[type(value)] for value in values), np.int8, len(values))
    lists = np.flatnonzero(kinds == EMPTY)
    inside = [values[i] for i in lists.tolist()]
    lengths = np.fromiter(map(len, inside), np.int64, len(inside))
    owners = np.repeat(np.arange(len(inside)), lengths)
    each = np.fromiter(
        (_KIND_OF[type(one)] for values in inside for one in values), np.int8, int(lengths.sum())
    )
    kinds[lists[lengths > 0]] = NESTED
    for kind, of_list in ((TEXT, TEXTS), (NUMBER, NUMBERS)):
        all_alike = np.bincount(owners[each == kind], minlength=len(inside)) == lengths
        kinds[lists[all_alike & (lengths > 0)]] = of_list
    return Flat(np.repeat(np.arange(len(objects)), sizes), keys, values, kinds)
