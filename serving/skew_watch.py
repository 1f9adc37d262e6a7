"""The skew watch: tails the topic `samples` and counts where serving and training saw other things.

It only reads: no group stands anywhere because of it. What it cannot read is passed over, for the
monitor of a service must not end it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from typing import Any

from features.skew import Compared, Outcome, Skew
from serving.answers import Answer
from serving.metrics import ServingMetrics
from streaming.errors import ArtefactCorrupt, LogError
from streaming.ids import stable_id
from streaming.log import SAMPLES, Log, TopicPartition
from streaming.samples import decode_samples

logger = logging.getLogger(__name__)
_AT_ONCE = 64  # records
_REST_S = 0.5  # between two looks while no answer waits for its samples


class SkewWatch:
    """Notes what answers to users were made of, and compares it with the samples that follow.

    While no answer waits, nothing is read: what is joined then is nobody's.
    """

    def __init__(self, log: Log, skew: Skew, metrics: ServingMetrics) -> None:
        self._log = log
        self._skew = skew
        self._metrics = metrics
        self._counts: Counter[tuple[str, Outcome]] = Counter()
        self._positions: dict[TopicPartition, int] = log.ends([SAMPLES])

    def note(self, answer: Answer) -> None:
        """Remembers what was read of the user for this answer."""
        self._skew.note(stable_id(answer.request_id), answer.user, answer.read, _now_us())

    def figures(self) -> dict[str, Any]:
        """`waiting` answers, and for each feature how many comparisons had which outcome."""
        return {
            "waiting": self._skew.waiting(_now_us()),
            "features": {
                name: {str(outcome): self._counts[name, outcome] for outcome in Outcome}
                for name in self._skew.names
            },
        }

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
            logger.warning("the skew watch goes on with the newest samples: %s", error)
            self._positions = self._log.ends([SAMPLES])
            return
        for record in records:
            self._positions[record.place] = record.offset + 1
            try:
                rows = decode_samples(record)
            except ArtefactCorrupt as error:
                logger.warning("the skew watch passes over a record: %s", error)
                continue
            for compared in self._skew.compare(rows):
                self._count(compared)

    def _is_idle(self) -> bool:
        """Whether no answer waits; then it stands at the end."""
        if self._skew.waiting(_now_us()):
            return False
        ends = self._log.ends([SAMPLES])
        if self._skew.waiting(_now_us()):  # its samples may lie before these ends
            return False
        self._positions = ends
        return True

    def _count(self, compared: Compared) -> None:
        view = self._skew.view.name
        for name, outcome in compared.outcomes.items():
            self._counts[name, outcome] += 1
            self._metrics.skew.labels(view, name, outcome).inc()
            if outcome is Outcome.DIFFERENT and self._counts[name, outcome] == 1:
                logger.warning(
                    "training got another %s.%s than serving had read, first for the user with the"
                    " stable id %d", view, name, compared.user,
                )  # fmt: skip
        if compared.behind_s is not None:
            self._metrics.behind.labels(view).observe(compared.behind_s)


def _now_us() -> int:
    return time.time_ns() // 1000
