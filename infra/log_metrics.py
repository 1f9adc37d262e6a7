"""What the log says of all who read it: true also of a group whose process is dead."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from streaming.dead_letters import WaitingLetters
from streaming.errors import LogError
from streaming.log import NOBODY, TOPICS, Log
from streaming.metrics import Metrics

logger = logging.getLogger(__name__)
_MOST = 4_096  # partitions, of all topics and groups


class LogMetrics:
    """Where every partition ends and every group stands, as of the last `look`.

    `groups` are the topics that each reads.
    """

    def __init__(self, metrics: Metrics, log: Log, groups: Mapping[str, Sequence[str]]) -> None:
        self._log = log
        self._groups = groups
        self._letters = WaitingLetters(log)
        self._end = metrics.gauge(
            "headrace_partition_end_records",
            "Where a partition ends: records that were ever appended to it.",
            ["topic", "partition"],
            most=_MOST,
        )
        self._position = metrics.gauge(
            "headrace_group_position_records",
            "The next record of a partition that a consumer group will take.",
            ["group", "topic", "partition"],
            most=_MOST,
        )
        self._lag = metrics.gauge(
            "headrace_group_lag_records",
            "Records of a partition that a consumer group has still to take.",
            ["group", "topic", "partition"],
            most=_MOST,
        )
        self._waiting = metrics.gauge(
            "headrace_dead_letters_waiting", "Dead letters that were not re-driven."
        ).labels()

    def look(self) -> None:
        """Reads it from the log. If that is away, what it said last stays."""
        try:
            self._look()
        except LogError as error:
            logger.warning("the figures of the log are those of before: %s", error)

    def _look(self) -> None:
        # Positions first: what is appended in between makes a lag too large, never negative.
        positions = {
            group: self._log.positions(group, topics) for group, topics in self._groups.items()
        }
        ends, firsts = self._log.ends(TOPICS), self._log.positions(NOBODY, TOPICS)
        for (topic, partition), end in ends.items():
            self._end.labels(topic, str(partition)).set(end)
        for group, places in positions.items():
            for place, at in places.items():
                labels = (group, place.topic, str(place.partition))
                # What fell out of retention is not waiting for anybody.
                still = max(at, firsts.get(place, 0))
                self._position.labels(*labels).set(at)
                self._lag.labels(*labels).set(max(0, ends[place] - still))
        self._waiting.set(self._letters.count())
