"""What is announced of versions, for those who only look on."""

from __future__ import annotations

from collections.abc import Iterator

from streaming.errors import LogError
from streaming.log import NOBODY, VERSIONS, Log, Record, TopicPartition
from trainers.versions import VersionInfo, is_doorbell, read_announcement

_PLACE = TopicPartition(VERSIONS, 0)
_AT_ONCE = 1_000


class Announcements:
    """Follows the topic `versions`, from `look_back` records before its end on."""

    def __init__(self, log: Log, look_back: int) -> None:
        self._log = log
        first, end = log.positions(NOBODY, [VERSIONS])[_PLACE], log.ends([VERSIONS])[_PLACE]
        self._position = max(first, end - look_back)

    def read(self) -> Iterator[tuple[Record, VersionInfo]]:
        """What was announced since the last time; a log that is away says nothing new."""
        try:
            while records := self._log.read({_PLACE: self._position}, _AT_ONCE, 0.0):
                self._position = records[-1].offset + 1
                for record in records:
                    if not is_doorbell(record):
                        yield record, read_announcement(record)
        except LogError:
            return
