"""Which archived days daily learning is to learn: chosen, over, and without a hole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from streaming.archive import DAY_US, day_number
from streaming.archive_records import ArchivedSamples
from streaming.errors import ArtefactError, ConfigError
from streaming.log import Log, Positions

_HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Choice:
    """The days from `first` until `last`, both of them too; None leaves that side open.

    Raises:
        ConfigError: one is no day, or they are the wrong way round.
    """

    first: str | None = None
    last: str | None = None

    def __post_init__(self) -> None:
        for name in (self.first, self.last):
            try:
                valid = name is None or date.fromisoformat(name).isoformat() == name
            except ValueError:
                valid = False
            if not valid:
                raise ConfigError(f"day = {name!r}: write it as 2026-11-22")
        if self.first and self.last and self.first > self.last:
            raise ConfigError(f"from {self.first} until {self.last}: give the earlier day first")

    def __contains__(self, day: str) -> bool:
        return (self.first or day) <= day <= (self.last or day)

    def __str__(self) -> str:
        """What it says of samples: "of" one day, or "from" and "until" others.

        >>> str(Choice("2026-11-01", "2026-11-07")), str(Choice("2026-11-01", "2026-11-01"))
        ('from 2026-11-01 until 2026-11-07', 'of 2026-11-01')
        """
        if self.first == self.last:
            return f"of {self.first}" if self.first else "of any day"
        bounds = (("from", self.first), ("until", self.last))
        return " ".join(f"{word} {day}" for word, day in bounds if day)


def closed_days(
    samples: ArchivedSamples, choice: Choice, now_us: int, closed_after_h: float
) -> list[str]:
    """The chosen days that ended at least so many hours ago, in order.

    Raises:
        ConfigError: there is none, and why not.
    """
    found = [day for day in samples.days() if day in choice]
    if not found:
        raise ConfigError(
            f"no samples {choice} are archived in {samples.path}: `headrace archive list` shows"
            " what is there"
        )
    closed = samples.days(now_us - int(closed_after_h * _HOUR_US))
    over = [day for day in found if day in set(closed)]
    if not over:
        end_us = (day_number(found[0]) + 1) * DAY_US + int(closed_after_h * _HOUR_US)
        raise ConfigError(
            f"{found[0]} is not over: it can be learnt from"
            f" {datetime.fromtimestamp(end_us / 1e6, UTC):%Y-%m-%d %H:%M} UTC on"
        )
    return over


def waiting_rows(
    samples: ArchivedSamples, log: Log, days: Sequence[str], positions: Positions
) -> dict[str, int]:
    """How many rows of each day are not learnt yet, for those days that have some.

    Raises:
        ArtefactError: a file is damaged, or from the first until the last of the days one is lost.
    """
    rows = {day: count for day in days if (count := samples.rows(day, positions))}
    for day, record in samples.missing(log, positions).items():
        if days[0] <= day <= days[-1]:
            raise ArtefactError(
                f"{samples.path} has lost samples of {day}: {record.topic}/{record.partition} at"
                f" {record.offset} is in the log and in no file: let the system run for a while,"
                " which completes what a kill cut short, else see what `headrace archive verify`"
                " says"
            )
    return rows
