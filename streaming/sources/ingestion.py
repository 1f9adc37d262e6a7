"""An ingestion: the rows of a file into the log, each once, the refused ones as dead letters.

What the rows became and how far the file is dealt with are committed in one transaction, as the
position of a group that nobody else uses. A killed ingestion goes on from there, a finished one
has nothing to do, and one of a file that has grown takes what is new. Two numbers are kept: how
much of the file is dealt with, and a fingerprint of that much, so that a file that was changed
further up is noticed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from streaming.dead_letters import encode_letter, refused_line, same_reason
from streaming.decode import decode_events
from streaming.errors import ConfigError
from streaming.events import EventRules, Rejected, encode_events
from streaming.log import DEAD_LETTERS, EVENTS, NOBODY, Append, Log, Record, TopicPartition
from streaming.sources.mapping import EventMapping, Mapped, Refused, with_ids, with_times
from streaming.sources.tabular import Chunk, Table

_DONE = TopicPartition(EVENTS, 0)
_FINGERPRINT = TopicPartition(DEAD_LETTERS, 0)
_MOST_REASONS = 100
_EXAMPLE_BYTES = 160
_LARGEST_RECORD = 512 * 1024


@dataclass(frozen=True, slots=True)
class Example:
    """A row that was refused."""

    line: int
    value: str
    raw: str


@dataclass(slots=True)
class Tally:
    """What became of the rows; the first example of each (field, reason) that was refused."""

    accepted: int = 0
    refused: int = 0
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], Example] = field(default_factory=dict)

    def count(self, accepted: int, refused: list[Refused]) -> None:
        self.accepted += accepted
        self.refused += len(refused)
        for one in refused:
            why = (one.error.field, same_reason(one.error.reason))
            if why not in self.reasons and len(self.reasons) >= _MOST_REASONS:
                why = (one.error.field, "other reasons")
            self.reasons[why] += 1
            if why not in self.examples:
                raw = one.raw[:_EXAMPLE_BYTES].decode(errors="replace")
                self.examples[why] = Example(one.line, one.error.value, raw)


@dataclass(frozen=True, slots=True)
class Checked:
    """The rows of a chunk that are events, those that are not, and on which `lines` events are."""

    events: pa.RecordBatch
    lines: list[int]
    refused: list[Refused]


class RowCheck:
    """Rows of a file to events that keep the rules; `name` is the file's in ids and letters."""

    def __init__(self, mapping: EventMapping, rules: EventRules, name: str) -> None:
        self._mapping = mapping
        self._rules = rules
        self._name = name

    def check(self, chunk: Chunk, now_us: int) -> Checked:
        mapped = self._mapping.events(chunk)
        events = with_times(with_ids(mapped, self._name), now_us)
        # Read as the joiner will read it: what it would refuse never gets into the log.
        record = Record(EVENTS, 0, 0, None, encode_events(events).value, now_us)
        decoded = decode_events([record], self._rules)
        if not decoded.rejected:
            return Checked(decoded.events, mapped.lines, mapped.refused)
        late = [one for r in decoded.rejected for one in _refused(r, mapped, events)]
        gone = {one.line for one in late}
        kept = [line for line in mapped.lines if line not in gone]
        refused = sorted([*mapped.refused, *late], key=lambda one: one.line)
        return Checked(decoded.events, kept, refused)


def _refused(rejected: Rejected, mapped: Mapped, events: pa.RecordBatch) -> Iterator[Refused]:
    rows = range(events.num_rows) if rejected.row is None else [rejected.row]
    for row in rows:
        (values,) = events.slice(row, 1).to_pylist()
        present = {name: value for name, value in values.items() if value is not None}
        yield Refused(mapped.lines[row], msgspec.json.encode(present), rejected.error)


class LogSink:
    """Puts checked rows into a log, and remembers there how far the file was dealt with.

    `identity` is what makes two readings of a file the same: its name, head and mapping.
    """

    keeps_refused = True

    def __init__(self, log: Log, name: str, identity: str) -> None:
        self._log = log
        self._name = name
        self._group = f"ingest:{xxhash.xxh3_128_hexdigest(identity.encode())}"
        self._partitions = len(log.ends([EVENTS]))
        self._at = self._positions(self._group)

    def resume(self, table: Table) -> int:
        """Passes over what was dealt with earlier; returns how much that was.

        Raises:
            ConfigError: that is not how this table begins any more.
        """
        if self._at == self._positions(NOBODY):
            return 0
        done = self._at[_DONE]
        if table.skip(done) != self._at[_FINGERPRINT]:
            raise ConfigError(
                f"{self._name} was changed in its first {done:,} lines since they were ingested:"
                " give --again to send all of it (an event whose id is among the last 200,000 is"
                " dropped), or --name to make it another source"
            )
        return done

    def take(self, chunk: Chunk, checked: Checked) -> list[Refused]:
        """Events, dead letters and progress become visible together; returns nothing refused."""
        appends = _by_partition(self._log, checked.events, self._partitions)
        for one in checked.refused:
            letter = refused_line(self._name, one.line, one.raw, one.error)
            appends.append(encode_letter(letter))
        end = {_DONE: chunk.done, _FINGERPRINT: chunk.fingerprint}
        with self._log.transaction(self._group) as transaction:
            if appends:
                transaction.append(appends)
            transaction.advance(self._at, {**self._at, **end})
        self._at.update(end)
        return []

    def _positions(self, group: str) -> dict[TopicPartition, int]:
        found = self._log.positions(group, [EVENTS, DEAD_LETTERS])
        return {place: found[place] for place in (_DONE, _FINGERPRINT)}


def _by_partition(log: Log, events: pa.RecordBatch, partitions: int) -> list[Append]:
    """The events as records, those of one user in one partition and in their order."""
    if events.num_rows == 0:
        return []
    if partitions == 1:
        return _records(events, 0)
    users = pc.coalesce(events["user_id"], events["item_id"], pa.scalar("")).dictionary_encode()
    of_user = [log.partition_of(EVENTS, user.encode()) for user in users.dictionary.to_pylist()]
    of_row = np.array(of_user)[users.indices.to_numpy()]
    return [
        record
        for partition in np.unique(of_row).tolist()
        for record in _records(events.filter(pa.array(of_row == partition)), partition)
    ]


def _records(events: pa.RecordBatch, partition: int) -> list[Append]:
    """One record, or as many as it takes for each to be small enough for any broker."""
    record = encode_events(events)._replace(partition=partition)
    if len(record.value) <= _LARGEST_RECORD or events.num_rows == 1:
        return [record]
    half = events.num_rows // 2
    return [*_records(events.slice(0, half), partition), *_records(events.slice(half), partition)]
