"""What is announced of versions, for those who only look on."""

from __future__ import annotations

from collections.abc import Iterator

from streaming.errors import LogError
from streaming.log import NOBODY, VERSIONS, Log, Record, TopicPartition
from trainers.versions import VersionInfo, is_about, is_doorbell, read_announcement

_PLACE = TopicPartition(VERSIONS, 0)
_AT_ONCE = 1_000


def start_of(log: Log, look_back: int, model: str | None = None) -> int:
    """Where in `versions` to begin so that the last `look_back` records about a model come, if
    there are so many: between them may be any number about others.
    """
    first, end = log.positions(NOBODY, [VERSIONS])[_PLACE], log.ends([VERSIONS])[_PLACE]
    distance = look_back
    while True:
        position = max(first, end - distance)
        if model is None or position == first or _count(log, position, model) >= look_back:
            return position
        distance *= 2


def _count(log: Log, position: int, model: str) -> int:
    """Records about a model, from a position on."""
    found = 0
    while records := log.read({_PLACE: position}, _AT_ONCE, 0.0):
        position = records[-1].offset + 1
        found += sum(is_about(record, model) for record in records)
    return found


class Announcements:
    """Follows what is announced of a model, or of any, from the last `look_back` records on."""

    def __init__(self, log: Log, look_back: int, model: str | None = None) -> None:
        self._log = log
        self._model = model
        self._position = start_of(log, look_back, model)

    def read(self) -> Iterator[tuple[Record, VersionInfo]]:
        """What was announced since the last time; a log that is away says nothing new."""
        try:
            while records := self._log.read({_PLACE: self._position}, _AT_ONCE, 0.0):
                self._position = records[-1].offset + 1
                for record in records:
                    if is_about(record, self._model) and not is_doorbell(record):
                        yield record, read_announcement(record)
        except LogError:
            return
