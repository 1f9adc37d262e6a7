"""Dead letters: what was refused, why, where it came from, and which were driven in again.

The topic `dead-letters` holds two kinds of records. A letter is a refused record with its reason.
A mark names letters that have been re-driven; it is committed together with their events, so that
a letter goes in again once or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from streaming.errors import EventRejected, LogError
from streaming.events import Rejected
from streaming.log import DEAD_LETTERS, NOBODY, Append, Log, Record, TopicPartition

_GROUP = "redrive"
_TURN = TopicPartition(DEAD_LETTERS, 0)  # its position in the group counts the re-drives
_MARK_STARTS = b'{"redriven"'
_READ_AT_ONCE = 512
_READS_A_COUNT = 20
_BYTE = re.compile(r" \(byte \d+\)")
_PATIENCE_S = 10.0


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A refused record: its place in the log, or the `line` of the `source` it was read from.

    `row` counts from 0 inside an Arrow record, `line` from 1. `record` is what was refused, as it
    came (base64 in JSON): an event, or a whole micro-batch of `samples`. `logged_us` is when it
    arrived, where that is known.
    """

    reason: str
    field: str = "record"
    value: str = ""
    record: bytes = b""
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    row: int | None = None
    source: str | None = None
    line: int | None = None
    logged_us: int | None = None

    @property
    def origin(self) -> str:
        """Where it came from, for people."""
        if self.source is not None:
            return f"{self.source} line {self.line}"
        place = f"{self.topic}/{self.partition}/{self.offset}"
        return place if self.row is None else f"{place} row {self.row}"


class Mark(msgspec.Struct, frozen=True):
    """Says that the letters at these (partition, offset) have been re-driven."""

    redriven: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Filed:
    """A letter with its own place in the topic, and when it was put there."""

    partition: int
    offset: int
    logged_us: int
    letter: DeadLetter

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return f"{self.partition}/{self.offset}"


def same_reason(reason: str) -> str:
    """A reason without the byte at which it showed, so that equal ones can be counted."""
    return _BYTE.sub("", reason)


def dead_letter(rejected: Rejected) -> Append:
    """What a consumer refused, with the place it came from and the reason."""
    record, error = rejected.record, rejected.error
    letter = DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        row=rejected.row,
        field=error.field,
        value=error.value,
        reason=error.reason,
        record=rejected.raw,
        logged_us=record.logged_us,
    )
    return encode_letter(letter, record.key)


def refused_line(source: str, line: int, raw: bytes, error: EventRejected) -> DeadLetter:
    """What an ingestion refused, before it reached the log."""
    return DeadLetter(
        source=source,
        line=line,
        field=error.field,
        value=error.value,
        reason=error.reason,
        record=raw,
    )


def encode_letter(letter: DeadLetter, key: bytes | None = None) -> Append:
    """The letter as a record."""
    return Append(DEAD_LETTERS, msgspec.json.encode(letter), key)


def decode_letter(value: bytes) -> DeadLetter | Mark | None:
    """What a record of the topic holds; None if it is neither a letter nor a mark."""
    try:
        if value.startswith(_MARK_STARTS):
            return msgspec.json.decode(value, type=Mark)
        return msgspec.json.decode(value, type=DeadLetter)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class Letters:
    """The dead letters of a log as they lay when this was made."""

    def __init__(self, log: Log) -> None:
        self._log = log
        # Read first: whoever re-drives after this moves it, and `redrive` will see that.
        self._turn = log.positions(_GROUP, [DEAD_LETTERS])[_TURN]
        self._ends = log.ends([DEAD_LETTERS])
        self.redriven = {
            place
            for record in self._records()
            if isinstance(mark := decode_letter(record.value), Mark)
            for place in mark.redriven
        }

    def waiting(self) -> Iterator[Filed]:
        """The letters that were not re-driven, oldest first in each partition."""
        for record in self._records():
            letter = decode_letter(record.value)
            place = (record.partition, record.offset)
            if isinstance(letter, DeadLetter) and place not in self.redriven:
                yield Filed(*place, record.logged_us, letter)

    def find(self, partition: int, offset: int) -> Filed | None:
        """The letter at one place; None if there is none."""
        place = TopicPartition(DEAD_LETTERS, partition)
        if not 0 <= offset < self._ends.get(place, 0):
            return None
        for record in self._log.read({place: offset}, 1, _PATIENCE_S):
            letter = decode_letter(record.value)
            if record.offset == offset and isinstance(letter, DeadLetter):
                return Filed(partition, offset, record.logged_us, letter)
        return None

    def redrive(self, letters: Sequence[Filed], events: Sequence[Append]) -> None:
        """Appends the events of these letters and marks them: both or neither.

        Raises:
            Fenced: somebody else has re-driven letters since this was made; nothing was done.
        """
        mark = Mark([(filed.partition, filed.offset) for filed in letters])
        with self._log.transaction(_GROUP) as transaction:
            transaction.append([*events, Append(DEAD_LETTERS, msgspec.json.encode(mark))])
            transaction.advance({_TURN: self._turn}, {_TURN: self._turn + 1})
        self._turn += 1

    def _records(self) -> Iterator[Record]:
        """Every record up to the ends; memory holds some hundreds of them."""
        behind = {
            place: start
            for place, start in self._log.positions(NOBODY, [DEAD_LETTERS]).items()
            if start < self._ends[place]
        }
        while behind:
            records = self._log.read(behind, _READ_AT_ONCE, _PATIENCE_S)
            if not records:
                raise LogError(
                    f"the log does not give the dead letters from {behind} on: try again, or look"
                    " whether its broker is well"
                )
            for record in records:
                if record.offset < self._ends[record.place]:
                    yield record
                behind[record.place] = record.offset + 1
            behind = {place: at for place, at in behind.items() if at < self._ends[place]}


class WaitingLetters:
    """Counts the letters that were not re-driven, again and again: it reads only what is new.

    One that falls out of retention counts on until there is a new object.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._positions = dict(log.positions(NOBODY, [DEAD_LETTERS]))
        self._waiting = 0

    def count(self) -> int:
        """How many wait; at first, of very many, perhaps not all: it looks at some thousands at a
        time.
        """
        for _ in range(_READS_A_COUNT):
            records = self._log.read(self._positions, _READ_AT_ONCE, 0.0)
            if not records:
                break
            for record in records:
                self._positions[record.place] = record.offset + 1
                match decode_letter(record.value):
                    case Mark(redriven):
                        self._waiting -= len(redriven)
                    case DeadLetter():
                        self._waiting += 1
        return self._waiting
