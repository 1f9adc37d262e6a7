"""The sample watch: tails the topic `samples` for those who judge what was served.

It only reads: no group stands anywhere because of it. What it cannot read is passed over, for the
monitor of a service must not end it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from streaming.errors import ArtefactCorrupt, LogError
from streaming.log import SAMPLES, Log, TopicPartition
from streaming.samples import decode_samples

logger = logging.getLogger(__name__)
_AT_ONCE = 64  # records
_REST_S = 0.5  # between two looks while nobody waits


class Watcher(Protocol):
    """Who looks at samples."""

    def is_waiting(self) -> bool:
        """Whether the samples that come now may be of any interest."""
        ...

    def take(self, rows: pa.RecordBatch) -> None:
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
            if self._is_idle():
                stopping.wait(_REST_S)
            else:
                self.turn(timeout_s=_REST_S)

    def turn(self, timeout_s: float) -> None:
        """Takes what was joined since the last turn."""
        try:
            records = self._log.read(self._positions, _AT_ONCE, timeout_s)
        except LogError as error:  # samples may be gone before they were looked at
            logger.warning("the sample watch goes on with the newest samples: %s", error)
            self._positions = self._log.ends([SAMPLES])
            return
        for record in records:
            self._positions[record.place] = record.offset + 1
            try:
                rows = decode_samples(record)
            except ArtefactCorrupt as error:
                logger.warning("the sample watch passes over a record: %s", error)
                continue
            for watcher in self._watchers:
                watcher.take(rows)

    def _is_idle(self) -> bool:
        """Whether nobody waits; then it stands at the end."""
        if self._anybody_waits():
            return False
        ends = self._log.ends([SAMPLES])
        if self._anybody_waits():  # for samples that may lie before these ends
            return False
        self._positions = ends
        return True

    def _anybody_waits(self) -> bool:
        return any(watcher.is_waiting() for watcher in self._watchers)
