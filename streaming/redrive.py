"""Re-driving dead letters: mended, held against the rules once more, and into the log again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from streaming.arrow_record import STREAM_STARTS, read_batch
from streaming.dead_letters import DeadLetter, Filed, Letters
from streaming.errors import ConfigError, EventRejected
from streaming.events import EventRules, encode_event, parse_event, parse_object
from streaming.log import EVENTS, Append
from streaming.sources.mapping import FIELDS, lenient_event

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST = 16 << 20
_AT_ONCE = 500


@dataclass(frozen=True)
class Mending:
    """What is changed in a record: fields renamed (`mapped` names the old one), set, or dropped.

    `at_format` tells how times are written, as for `headrace ingest`.
    """

    constants: Mapping[str, str] = field(default_factory=dict)
    mapped: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    at_format: str = "auto"

    def __post_init__(self) -> None:
        for name in (*self.constants, *self.mapped):
            if name not in FIELDS:
                raise ConfigError(
                    f"{name!r} is no field of an event: known are {', '.join(FIELDS)}"
                )

    def apply(self, values: Mapping[str, Any]) -> dict[str, Any]:
        renamed = {old: new for new, old in self.mapped.items()}
        # A field that is given a new value goes, whatever it was.
        gone = {*self.dropped, *self.constants, *(set(self.mapped) & set(values))}
        kept = {renamed.get(name, name): v for name, v in values.items() if name not in gone}
        return {**kept, **self.constants}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A letter that would be refused again."""

    filed: Filed
    error: EventRejected


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many letters went in again, as how many events, and what is still refused."""

    letters: int
    events: int
    refused: list[Refusal]


def records_of(letter: DeadLetter) -> list[dict[str, Any]]:
    """What was refused, decoded; an Arrow record may hold several rows.

    Raises:
        EventRejected: it cannot be decoded at all, or is no event.
    """
    if letter.topic not in (None, EVENTS):
        raise EventRejected("record", letter.origin, f"of {letter.topic}, where no events are")
    if not letter.record.startswith(STREAM_STARTS):
        return [parse_object(letter.record, _LONGEST)]
    try:
        rows = read_batch(letter.record).to_pylist()
    except ValueError as error:
        raise EventRejected("event", "an Arrow record", str(error)) from None
    return [{name: v for name, v in row.items() if v is not None} for row in rows]


def mended(filed: Filed, mending: Mending, rules: EventRules, now_us: int) -> list[Append]:
    """The events of a letter, as records of the topic `events`.

    Raises:
        EventRejected: one of them still breaks a rule.
    """
    letter = filed.letter
    appends = []
    for number, values in enumerate(records_of(letter)):
        event = lenient_event(mending.apply(values), mending.at_format)
        arrived_us = letter.logged_us or filed.logged_us
        named = msgspec.structs.replace(
            event,
            event_id=event.event_id or _name(filed, number),
            at=event.at or _EPOCH + timedelta(microseconds=arrived_us),
        )
        checked = parse_event(msgspec.json.encode(named), rules, now_us)
        appends.append(encode_event(checked))
    return appends


def redrive(
    letters: Letters, chosen: Iterable[Filed], mending: Mending, rules: EventRules, now_us: int
) -> Outcome:
    """Puts the chosen letters into `events` again, each once or not at all.

    Raises:
        Fenced: somebody else re-drives at the same time; what was done until then counts.
    """
    done, events = 0, 0
    refused: list[Refusal] = []
    pending: list[Filed] = []
    appends: list[Append] = []

    def commit() -> None:
        nonlocal done, events
        if pending:
            letters.redrive(pending, appends)
            done, events = done + len(pending), events + len(appends)
            pending.clear()
            appends.clear()

    for filed in chosen:
        try:
            appends += mended(filed, mending, rules, now_us)
        except EventRejected as error:
            refused.append(Refusal(filed, error))
            continue
        pending.append(filed)
        if len(pending) >= _AT_ONCE:
            commit()
    commit()
    return Outcome(done, events, refused)


def _name(filed: Filed, number: int) -> str:
    """The id of an event that has none: that of its first place in the log, else of its letter."""
    letter = filed.letter
    if letter.topic is None:
        return f"dead-letters/{filed.name}/{number}"
    place = f"{letter.topic}/{letter.partition}/{letter.offset}"
    return place if letter.row is None and number == 0 else f"{place}/{letter.row or number}"
