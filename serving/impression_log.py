"""The impression log: every answer that is shown to a user comes back to `events` as impressions.

Of each item: where it stood, the score that it had there, the version that gave it, the arms that
the user was in; and with the first item of an answer the features that were read. So what was
served can be learnt from and judged later. Answers do not wait for the log: they leave some
milliseconds after they were given, many in one record, and a process that is killed takes along
those that had not left yet. The id of an impression is made of its request and its position, so
that one which is sent twice is one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from queue import Empty, Full, Queue
from typing import Any

from pydantic import PositiveInt

from serving.answers import Answer
from serving.metrics import ServingMetrics
from streaming.errors import Backpressure, EventRejected, LogError
from streaming.events import Event, EventRules
from streaming.log import Log
from streaming.producer import EventProducer, EventProducerConfig

logger = logging.getLogger(__name__)
_LOOK_S = 0.1


@dataclass(frozen=True)
class ImpressionLogConfig:
    """Whether answers are logged, and with them the `features` that were read of the user. At most
    `answers` wait; more are lost, and counted. They leave as `producer` says.
    """

    enabled: bool = True
    features: bool = True
    answers: PositiveInt = 10_000
    producer: EventProducerConfig = field(
        default_factory=lambda: EventProducerConfig(close_timeout_s=5.0)
    )


class ImpressionLog:
    """Takes note of answers, and appends their impressions to the log in a thread of its own."""

    def __init__(
        self, log: Log, rules: EventRules, config: ImpressionLogConfig, metrics: ServingMetrics
    ) -> None:
        self._log = log
        self._rules = rules
        self._config = config
        self._metrics = metrics
        self._queue: Queue[tuple[Answer, datetime]] = Queue(config.answers)

    @property
    def enabled(self) -> bool:
        """Whether what is noted is logged at all."""
        return self._config.enabled and "impression" in self._rules.kinds

    def note(self, answer: Answer) -> bool:
        """Remembers an answer, and returns at once whether it will be logged."""
        if not self.enabled or answer.user_id is None:
            return False
        try:
            self._queue.put_nowait((answer, datetime.now(UTC)))
        except Full:
            self._lost(answer)
            return False
        return True

    def run(self, stopping: threading.Event) -> None:
        """Logs what is noted until told to stop; what was noted by then is logged."""
        with self._producer() as producer:
            while not (stopping.is_set() and self._queue.empty()):
                try:
                    answer, at = self._queue.get(timeout=_LOOK_S)
                except Empty:
                    continue
                self._send(producer, answer, at)

    @contextmanager
    def _producer(self) -> Iterator[EventProducer]:
        producer = EventProducer(self._log, self._config.producer, self._rules)
        try:
            yield producer
        finally:
            try:
                producer.close()
            except LogError as error:
                logger.warning("impressions were lost at the end: %s", error)
                self._metrics.impressions.labels("lost").inc(len(producer.undelivered))

    def _send(self, producer: EventProducer, answer: Answer, at: datetime) -> None:
        try:
            for event in impressions(answer, at, features=self._config.features):
                producer.send(event)
                self._metrics.impressions.labels("logged").inc()
        except (Backpressure, EventRejected, LogError) as error:
            logger.warning("impressions of answer %s were lost: %s", answer.request_id, error)
            self._lost(answer)

    def _lost(self, answer: Answer) -> None:
        self._metrics.impressions.labels("lost").inc(len(answer.items))


def impressions(answer: Answer, at: datetime, *, features: bool) -> Iterator[Event]:
    """The impressions of an answer to a user."""
    version = None if answer.version is None else answer.version.name
    for position, one in enumerate(answer.items):
        attributes: dict[str, Any] = {"score": one.score, "source": one.source}
        if version is not None:
            attributes["version"] = version
        if answer.arms:
            attributes["arms"] = dict(answer.arms)
        if features and position == 0:
            attributes["features"] = dict(answer.read)
            if answer.degraded:
                attributes["degraded"] = list(answer.degraded)
        yield Event(
            kind="impression",
            user_id=answer.user_id,
            item_id=one.item.item_id,
            event_id=f"{answer.request_id}/{position}",
            at=at,
            request_id=answer.request_id,
            position=position,
            scenario=answer.scenario,
            attributes=attributes,
        )
