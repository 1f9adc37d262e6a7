"""Records of the topic `events` to checked columns, in either form and at speed.

The rules are those of `parse_event`. The quick ways only say which events are beyond doubt; every
other one is read by `parse_event` itself, which has the last word and gives the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streaming.arrow_record import STREAM_STARTS, encode_batch, fit_batch, read_batch
from streaming.errors import EventRejected
from streaming.events import (
    ANY_VALUE,
    DEEPEST,
    EVENT_SCHEMA,
    LIMITED_TEXTS,
    LONGEST_IN_LOG,
    Event,
    EventRules,
    Rejected,
    event_batch,
    name_of,
    parse_event,
    parse_object,
    read_event,
)
from streaming.json_columns import MOST_BYTES, Scanned, scan
from streaming.log import Record

_END_OF_TIME_US = 62_135_596_800_000_000  # as long after 1970 as the year 1 is before it


@dataclass(frozen=True, slots=True)
class Decoded:
    """The acceptable events of some records in log order, and what was refused.

    `logged_us` has one entry per event: when its record was appended.
    """

    events: pa.RecordBatch
    logged_us: NDArray[np.int64]
    rejected: list[Rejected]


class _Piece(NamedTuple):
    """Some of the events, and for each which of the given records it is from."""

    events: pa.RecordBatch
    numbers: NDArray[np.int64]


def decode_events(records: Sequence[Record], rules: EventRules) -> Decoded:
    """Reads records of the topic `events`, in either form; never raises for what they hold."""
    logged_us = np.array([record.logged_us for record in records], dtype=np.int64)
    is_arrow = np.array([r.value.startswith(STREAM_STARTS) for r in records], dtype=np.bool_)
    if len(records) > 1 and is_arrow.all():
        together = _all_at_once(records, logged_us, rules)
        if together is not None:
            return together
    pieces: list[_Piece] = []
    rejected: list[tuple[int, Rejected]] = []
    for number in np.flatnonzero(is_arrow).tolist():
        record = records[number]
        try:
            rows, refused = _decode_rows(record, rules)
        except EventRejected as error:
            refused = [Rejected(record, None, record.value, error)]
        else:
            pieces.append(_Piece(rows, np.full(rows.num_rows, number)))
        rejected += [(number, one) for one in refused]
    if not is_arrow.all():
        singles = np.flatnonzero(~is_arrow)
        given = [records[n] for n in singles.tolist()] if is_arrow.any() else records
        found, refused_singles = _decode_singles(given, logged_us[singles], rules)
        pieces += [_Piece(events, singles[rows]) for events, rows in found]
        rejected += [(int(singles[row]), one) for row, one in refused_singles]
    events, numbers = _in_log_order(pieces)
    rejected.sort(key=lambda pair: pair[0])
    return Decoded(events, logged_us[numbers], [one for _, one in rejected])


def _all_at_once(
    records: Sequence[Record], logged_us: NDArray[np.int64], rules: EventRules
) -> Decoded | None:
    """What Arrow records hold, if no row of any is in doubt: as most are, and in half the time."""
    try:
        batches = [fit_batch(read_batch(r.value), EVENT_SCHEMA, "EVENT_SCHEMA") for r in records]
    except ValueError:
        return None
    rows = pa.concat_batches(batches)
    plain = rows["attributes"].null_count == rows.num_rows
    if not plain or not _beyond_doubt(rows, rules, int(logged_us.min())):
        return None
    return Decoded(rows, np.repeat(logged_us, [batch.num_rows for batch in batches]), [])


def _in_log_order(pieces: list[_Piece]) -> _Piece:
    pieces = [piece for piece in pieces if len(piece.numbers)]
    if not pieces:
        return _Piece(event_batch([]), np.zeros(0, dtype=np.int64))
    if len(pieces) == 1:
        return pieces[0]
    events = pa.concat_batches([piece.events for piece in pieces])
    numbers = np.concatenate([piece.numbers for piece in pieces])
    if (numbers[1:] >= numbers[:-1]).all():
        return _Piece(events, numbers)
    order = np.argsort(numbers, kind="stable")
    return _Piece(events.take(pa.array(order)), numbers[order])


# -- one JSON object a record --------------------------------------------------------------


def _decode_singles(
    records: Sequence[Record], logged_us: NDArray[np.int64], rules: EventRules
) -> tuple[list[_Piece], list[tuple[int, Rejected]]]:
    """The events of JSON records: those beyond doubt, those read one by one, and the refused."""
    rows, good = _quick_rows(records, logged_us, rules)
    if good.all():
        return [_Piece(rows, np.arange(len(good)))], []
    events: list[Event] = []
    found: list[int] = []
    rejected: list[tuple[int, Rejected]] = []
    for row in np.flatnonzero(~good).tolist():
        record = records[row]
        try:
            events.append(read_event(record, rules))
            found.append(row)
        except EventRejected as error:
            rejected.append((row, Rejected(record, None, record.value, error)))
    quick = _Piece(rows.filter(pa.array(good)), np.flatnonzero(good))
    return [quick, _Piece(event_batch(events), np.array(found, dtype=np.int64))], rejected


def _quick_rows(
    records: Sequence[Record], logged_us: NDArray[np.int64], rules: EventRules
) -> tuple[pa.RecordBatch, NDArray[np.bool_]]:
    """A row for each JSON record, and whether it is beyond doubt."""
    values = [record.value for record in records]
    sizes = np.fromiter(map(len, values), np.int64, len(values))
    if sizes.sum() + len(sizes) > MOST_BYTES:
        nothing = [pa.nulls(len(values), field.type) for field in EVENT_SCHEMA]
        rows = pa.RecordBatch.from_arrays(nothing, schema=EVENT_SCHEMA)
        return rows, np.zeros(len(values), dtype=np.bool_)
    scanned = scan(values)
    attributes, parsed = _attribute_texts(scanned, rules)
    columns = {
        "event_id": _named(scanned.strings("event_id"), records),
        "at": np.where(scanned.at_us < 0, logged_us, scanned.at_us),
        "position": pa.array(scanned.position, pa.int32(), mask=scanned.position < 0),
        "value": scanned.strings("value").cast(pa.float64()),
        "attributes": attributes,
    }
    arrays = [
        pa.array(columns[f.name], f.type) if f.name in columns else scanned.strings(f.name)
        for f in EVENT_SCHEMA
    ]
    rows = pa.RecordBatch.from_arrays(arrays, schema=EVENT_SCHEMA)
    good = scanned.found & parsed & (sizes <= LONGEST_IN_LOG * rules.max_bytes)
    return rows, good & _acceptable(rows, rules, logged_us)


def _named(event_ids: pa.Array, records: Sequence[Record]) -> pa.Array:
    """The ids, and the names of their records where there are none."""
    if event_ids.null_count == 0:
        return event_ids
    absent = event_ids.is_null()
    rows = np.flatnonzero(absent.to_numpy(zero_copy_only=False)).tolist()
    return pc.replace_with_mask(event_ids, absent, pa.array([name_of(records[r]) for r in rows]))


def _attribute_texts(scanned: Scanned, rules: EventRules) -> tuple[pa.Array, NDArray[np.bool_]]:
    """The attributes, written anew as `event_batch` writes them, and where they could be read."""
    found = scanned.strings("attributes")
    good = np.ones(len(found), dtype=np.bool_)
    if found.null_count == len(found):
        return found, good
    texts = found.to_pylist()
    for row, text in enumerate(texts):
        if text is None:
            continue
        try:
            parsed = parse_object(text.encode(), LONGEST_IN_LOG * rules.max_bytes, DEEPEST - 1)
            texts[row] = msgspec.json.encode(parsed).decode()
        except EventRejected:
            texts[row] = None
            good[row] = False
    return pa.array(texts, pa.string()), good


# -- many rows a record --------------------------------------------------------------------


def _decode_rows(record: Record, rules: EventRules) -> tuple[pa.RecordBatch, list[Rejected]]:
    try:
        rows = fit_batch(read_batch(record.value), EVENT_SCHEMA, "EVENT_SCHEMA")
    except ValueError as error:
        raise EventRejected("event", "an Arrow record", str(error)) from None
    good = _acceptable(rows, rules, record.logged_us) & _parsable(rows["attributes"], rules)
    if good.all():
        return rows, []
    rejected, kept = [], np.ones(rows.num_rows, dtype=np.bool_)
    for row in np.flatnonzero(~good).tolist():
        one = rows.slice(row, 1)
        try:
            parse_event(_row_values(one, rules), rules, record.logged_us)
        except EventRejected as error:
            kept[row] = False
            rejected.append(Rejected(record, row, encode_batch(one), error))
    return rows.filter(pa.array(kept)), rejected


def _row_values(one: pa.RecordBatch, rules: EventRules) -> dict[str, Any]:
    """A batch of one row as a single event would have come; only those get an id and a time."""
    at_us = one["at"].cast(pa.int64())[0].as_py()
    if at_us is not None and abs(at_us) >= _END_OF_TIME_US:  # no datetime can hold it
        raise EventRejected("at", f"{at_us} us", "not within the years 1970 to 9999")
    (row,) = one.to_pylist()
    values = {name: value for name, value in row.items() if value is not None}
    for name in ("event_id", "at"):
        if name not in values:
            raise EventRejected(name, None, "missing, and every row must have it")
    if "attributes" in values:
        try:
            values["attributes"] = parse_object(values["attributes"].encode(), rules.max_bytes)
        except EventRejected as error:
            raise EventRejected("attributes", values["attributes"], error.reason) from None
    return values


def _parsable(attributes: pa.Array, rules: EventRules) -> NDArray[np.bool_]:
    good = np.ones(len(attributes), dtype=np.bool_)
    if attributes.null_count == len(attributes):
        return good
    for row, text in enumerate(attributes.to_pylist()):
        if text is not None:
            try:
                parse_object(text.encode(), rules.max_bytes)
            except EventRejected:
                good[row] = False
    return good


# -- the rules, on columns -----------------------------------------------------------------


def _acceptable(
    rows: pa.RecordBatch, rules: EventRules, logged_us: int | NDArray[np.int64]
) -> NDArray[np.bool_]:
    """A row that is True keeps every rule, but for attributes; any other needs a closer look."""
    if _beyond_doubt(rows, rules, logged_us):
        return np.ones(rows.num_rows, np.bool_)
    at = _filled(rows["at"].cast(pa.int64()), -1)
    good: NDArray[np.bool_] = (at >= 0) & (at <= logged_us + int(rules.max_ahead_s * 1e6))
    for name in LIMITED_TEXTS:
        if rows[name].null_count < rows.num_rows or name == "event_id":
            size = _filled(pc.binary_length(rows[name]), 0 if name == "event_id" else 1)
            # So many bytes have no more characters.
            good &= (size > 0) & (size <= rules.max_id_characters)
    if rows["position"].null_count < rows.num_rows:
        good &= _filled(rows["position"], 0) >= 0
    return good & _kinds_fit(rows, rules)


def _beyond_doubt(
    rows: pa.RecordBatch, rules: EventRules, logged_us: int | NDArray[np.int64]
) -> bool:
    """Whether every row keeps every rule, told from the extremes of each column alone."""
    if rows.num_rows == 0:
        return True
    earliest_us = logged_us if isinstance(logged_us, int) else int(logged_us.min())
    if not _within(rows["at"].view(pa.int64()), 0, earliest_us + int(rules.max_ahead_s * 1e6)):
        return False
    texts = all(
        _within(pc.binary_length(rows[name]), 1, rules.max_id_characters) for name in LIMITED_TEXTS
    )
    if (
        not texts
        or not _within(rows["position"], 0, None)
        or rows["value"].null_count < rows.num_rows
    ):
        return False
    kinds = rows["kind"].unique().to_pylist()
    required = {name for kind in kinds for name in rules.all_kinds.get(kind, ())}
    whole = {"event_id", "at", *required}
    return set(kinds) <= rules.all_kinds.keys() and not any(rows[n].null_count for n in whole)


def _within(numbers: pa.Array, low: int, high: int | None) -> bool:
    """Whether all numbers that are there lie between the two."""
    values = (numbers.drop_null() if numbers.null_count else numbers).to_numpy()
    if not len(values):
        return True
    return bool(values.min() >= low and (high is None or values.max() <= high))


def _kinds_fit(rows: pa.RecordBatch, rules: EventRules) -> NDArray[np.bool_]:
    """Whether each row is of a known kind, has what that requires, and a value in its range."""
    encoded = rows["kind"].dictionary_encode()
    kinds = [*encoded.dictionary.to_pylist(), None]
    kind = _filled(encoded.indices, len(kinds) - 1)
    required = [rules.all_kinds.get(one, ()) for one in kinds]
    good: NDArray[np.bool_] = np.array([one in rules.all_kinds for one in kinds])[kind]
    for name in {name for names in required for name in names}:
        if rows[name].null_count:
            optional = np.array([name not in names for names in required])
            good &= optional[kind] | _valid(rows[name])
    value = rows["value"]
    if value.null_count < rows.num_rows:
        low, high = np.array([rules.value_range.get(one, ANY_VALUE) for one in kinds]).T
        numbers = _filled(value, 0.0)
        within = (low[kind] <= numbers) & (numbers <= high[kind])  # both False for a NaN
        good &= within | ~_valid(value)
    return good


def _valid(column: pa.Array) -> NDArray[np.bool_]:
    valid: NDArray[np.bool_] = column.is_valid().to_numpy(zero_copy_only=False)
    return valid


def _filled(column: pa.Array, value: float) -> NDArray[Any]:
    whole = column.fill_null(value) if column.null_count else column  # it would copy all the same
    filled: NDArray[Any] = whole.to_numpy()
    return filled
