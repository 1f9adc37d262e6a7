"""Rows as Feast's online stores take and give them, from Arrow and back.

Feast's own way goes through pandas and finds out each value's type anew. The interface is a tuple
of messages for each row, so here, and only here, there is a loop over rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String

from features.definitions import EVENT_TIME, FeatureError, View, type_name

Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_SCALARS = {
    pa.int32(): (Int32, "int32"),
    pa.int64(): (Int64, "int64"),
    pa.float32(): (Float32, "float"),
    pa.float64(): (Float64, "double"),
    pa.bool_(): (Bool, "bool"),
    pa.string(): (String, "string"),
}
_TYPES = {kind: (feast, f"{name}_val") for kind, (feast, name) in _SCALARS.items()} | {
    pa.list_(kind): (Array(feast), f"{name}_list_val") for kind, (feast, name) in _SCALARS.items()
}


def feast_type(where: str, kind: pa.DataType) -> Any:
    """Feast's type for an Arrow type.

    Raises:
        FeatureError: it has none that is kept here.
    """
    if kind not in _TYPES:
        known = ", ".join(map(type_name, _SCALARS))
        raise FeatureError(
            f"{where} is declared as {type_name(kind)}, which the store cannot keep: take one of"
            f" {known}, or a list of one"
        )
    return _TYPES[kind][0]


def entity_key(view: View, key: int) -> EntityKey:
    """The key of one entity."""
    return EntityKey(join_keys=[view.key], entity_values=[Value(int64_val=key)])


def key_of(entity: EntityKey) -> int:
    """The stable id in a key."""
    return int(entity.entity_values[0].int64_val)


def time_us(at: datetime) -> int:
    """µs since 1970; Feast means UTC where it names no zone."""
    aware = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return (aware - EPOCH) // timedelta(microseconds=1)


def to_rows(view: View, table: pa.Table) -> list[Row]:
    """A push with `view.schema` as rows for an online store."""
    keys = [entity_key(view, key) for key in table[view.key].to_pylist()]
    times = table[EVENT_TIME].cast(pa.int64()).to_pylist()
    columns = [_values(table[feature.name], feature.type) for feature in view.features]
    names = view.names
    return [
        (key, dict(zip(names, values, strict=True)), EPOCH + timedelta(microseconds=us), None)
        for key, us, *values in zip(keys, times, *columns, strict=True)
    ]


def _values(column: pa.ChunkedArray, kind: pa.DataType) -> list[Value]:
    field = _TYPES[kind][1]
    if not pa.types.is_list(kind):
        return [Value() if one is None else Value(**{field: one}) for one in column.to_pylist()]
    lists = column.combine_chunks()
    flat = lists.values
    plain = flat.null_count == 0 and not pa.types.is_string(flat.type)
    items = flat.to_numpy(zero_copy_only=False).tolist() if plain else flat.to_pylist()
    bounds = lists.offsets.to_pylist()
    known = lists.is_valid().to_pylist()
    found = []
    for begin, end, there in zip(bounds, bounds[1:], known, strict=False):
        value = Value()
        if there:
            told = getattr(value, field)
            told.SetInParent()  # an empty list is not the same as none
            told.val.extend(items[begin:end])
        found.append(value)
    return found


def from_row(view: View, names: Sequence[str], found: Mapping[str, Value] | None) -> dict[str, Any]:
    """Features by name; the default of each that is not there."""
    known = _known(found) if found else {}
    if len(known) < len(names):
        defaults = view.defaults
        return {name: known.get(name, defaults[name]) for name in names}
    return {name: known[name] for name in names}


def _known(found: Mapping[str, Value]) -> dict[str, Any]:
    """What is there in plain Python."""
    known = {}
    for name, value in found.items():
        field = value.WhichOneof("val")
        if field is not None:
            one = getattr(value, field)
            known[name] = list(one.val) if field.endswith("_list_val") else one
    return known
