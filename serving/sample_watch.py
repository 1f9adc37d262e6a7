"""The sample watch: tails the topic `samples` for those who judge what was served.

It only reads: no group stands anywhere because of it. What it cannot read is passed over, for the
monitor of a service must not end it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import pyarrow as pa

from streaming.errors import ArtefactCorrupt, LogError
from streaming.log import SAMPLES, Log, Record, TopicPartition
from streaming.samples import decode_samples

logger = logging.getLogger(__name__)
_AT_ONCE = 64  # records
_REST_S = 0.5  # between two looks while nobody waits
PATIENCE_S = 0.25  # who only counts loses nothing by it, and to wake up for every write costs


class Joined:
    """A record of samples, of which only what is asked for is decoded.

    Raises:
        ArtefactCorrupt: when asked, if the record is damaged.
    """

    def __init__(self, record: Record) -> None:
        self._record = record

    @cached_property
    def outline(self) -> pa.RecordBatch:
        """The samples with their labels, without features: a fifth of the work."""
        return decode_samples(self._record, features=False)

    @cached_property
    def rows(self) -> pa.RecordBatch:
        """The whole samples."""
        return decode_samples(self._record)


class Watcher(Protocol):
    """Who looks at samples."""

    def patience_s(self) -> float | None:
        """How long the samples that come now may lie; None if they are of no interest."""
        ...

    def take(self, joined: Joined) -> None:
        """Looks at a micro-batch of samples."""
        ...


class SampleWatch:
    """Reads samples as they come, as long as somebody waits for any: what is joined while nobody
    does is nobody's.
    """

    def __init__(self, log: Log, watchers: Sequence[Watcher]) -> None:
        self._log = log
        self._watchers = watchers
        self._positions: dict[TopicPartition, int] = log.ends([SAMPLES])

    def run(self, stopping: threading.Event) -> None:
        """Follows until told to stop."""
        while not stopping.is_set():
            patience_s = self._patience_s()
            if patience_s is None and self._is_idle():
                stopping.wait(_REST_S)
            elif self.turn(timeout_s=0 if patience_s else _REST_S) < _AT_ONCE and patience_s:
                stopping.wait(patience_s)

    def turn(self, timeout_s: float) -> int:
        """Takes what was joined since the last turn; of how many records that is."""
        try:
            records = self._log.read(self._positions, _AT_ONCE, timeout_s)
        except LogError as error:  # samples may be gone before they were looked at
            logger.warning("the sample watch goes on with the newest samples: %s", error)
            self._positions = self._log.ends([SAMPLES])
            return 0
        for record in records:
            self._positions[record.place] = record.offset + 1
            joined = Joined(record)
            try:
                for watcher in self._watchers:
                    watcher.take(joined)
            except ArtefactCorrupt as error:
                logger.warning("the sample watch passes over a record: %s", error)
        return len(records)

    def _is_idle(self) -> bool:
        """Whether nobody waits even now; then it stands at the end."""
        ends = self._log.ends([SAMPLES])
        if self._patience_s() is not None:  # for samples that may lie before these ends
            return False
        self._positions = ends
        return True

    def _patience_s(self) -> float | None:
        """That of the least patient watcher, None if none waits."""
        found = (watcher.patience_s() for watcher in self._watchers)
        return min((one for one in found if one is not None), default=None)
