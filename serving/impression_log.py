"""The impression log: every answer that is shown to a user comes back to `events` as impressions.

Of each item: where it stood, the score that it had there, the version that gave it, the arms that
the user was in; and with the first item of an answer the features that were read. So what was
served can be learnt from and judged later. Answers do not wait for the log: they leave a little
after they were given, many in one record, and a process that is killed takes along those that had
not left yet. The id of an impression is made of its request and its position, so that one which is
sent twice is one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from serving.answers import Answer
from serving.metrics import ServingMetrics
from streaming.errors import LogError
from streaming.events import EVENT_SCHEMA, EventRules, encode_events
from streaming.log import EVENTS, Append, Log

logger = logging.getLogger(__name__)
_KIND = "impression"
_SHORTEST_S = 0.01
_FIRST_RETRY_S = 0.05


@dataclass(frozen=True)
class ImpressionLogConfig:
    """Whether answers are logged, and with them the `features` that were read of the user.

    Answers leave together, every `linger_s`. While the log fails it is asked again after ever
    longer pauses, up to `max_retry_s`; at the end for no more than `close_timeout_s`. At most
    `answers` wait; more are lost, and counted.
    """

    enabled: bool = True
    features: bool = True
    linger_s: NonNegativeFloat = 0.25
    answers: PositiveInt = 10_000
    max_retry_s: PositiveFloat = 5.0
    close_timeout_s: NonNegativeFloat = 5.0


class _Noted(NamedTuple):
    answer: Answer
    at_us: int


class ImpressionLog:
    """Takes note of answers, and appends their impressions to the log in a thread of its own."""

    def __init__(
        self, log: Log, rules: EventRules, config: ImpressionLogConfig, metrics: ServingMetrics
    ) -> None:
        self._log = log
        self._config = config
        self._logged = metrics.impressions.labels("logged")
        self._lost = metrics.impressions.labels("lost")
        # Nobody is woken for an answer: to be woken takes as long as a twentieth of making one.
        self._noted: deque[_Noted] = deque()
        self.enabled = config.enabled and _KIND in rules.kinds

    def note(self, answer: Answer) -> bool:
        """Remembers an answer, and returns at once whether it will be logged."""
        if not self.enabled or answer.user_id is None:
            return False
        if len(self._noted) >= self._config.answers:
            self._lost.inc(len(answer.items))
            return False
        self._noted.append(_Noted(answer, time.time_ns() // 1000))
        return True

    def run(self, stopping: threading.Event) -> None:
        """Logs what is noted until told to stop; what was noted by then is logged."""
        while not stopping.wait(max(_SHORTEST_S, self._config.linger_s)) or self._noted:
            if noted := [self._noted.popleft() for _ in range(len(self._noted))]:
                self._append(noted, stopping)

    def _append(self, noted: Sequence[_Noted], stopping: threading.Event) -> None:
        by_partition: dict[int, list[_Noted]] = {}
        for one in noted:
            key = str(one.answer.user_id).encode()
            by_partition.setdefault(self._log.partition_of(EVENTS, key), []).append(one)
        appends = [
            encode_events(impressions(theirs, features=self._config.features))._replace(
                partition=partition
            )
            for partition, theirs in by_partition.items()
        ]
        count = sum(len(one.answer.items) for one in noted)
        (self._logged if self._insist(appends, stopping) else self._lost).inc(count)

    def _insist(self, appends: Sequence[Append], stopping: threading.Event) -> bool:
        """Appends, however often that takes; False if it could not be done before the end."""
        retry_s, ends_at = 0.0, None
        while True:
            try:
                self._log.append(appends)
            except LogError as error:
                if not retry_s:
                    logger.warning("impressions wait for the log: %s", error)
                retry_s = min(self._config.max_retry_s, max(_FIRST_RETRY_S, 2 * retry_s))
            else:
                return True
            if stopping.is_set():
                ends_at = ends_at or time.monotonic() + self._config.close_timeout_s
                if time.monotonic() > ends_at:
                    logger.error("impressions were lost at the end: the log did not take them")
                    return False
                time.sleep(_FIRST_RETRY_S)
            else:
                stopping.wait(retry_s)


def impressions(noted: Sequence[tuple[Answer, int]], *, features: bool) -> pa.RecordBatch:
    """The impressions of answers to users, given at these times (µs), with `EVENT_SCHEMA`."""
    columns: dict[str, list[Any]] = {name: [] for name in EVENT_SCHEMA.names}
    for answer, at_us in noted:
        count = len(answer.items)
        places = range(count)
        columns["event_id"] += [f"{answer.request_id}/{place}" for place in places]
        columns["kind"] += [_KIND] * count
        columns["at"] += [at_us] * count
        columns["user_id"] += [answer.user_id] * count
        columns["item_id"] += [one.item.item_id for one in answer.items]
        columns["request_id"] += [answer.request_id] * count
        columns["position"] += places
        columns["scenario"] += [answer.scenario] * count
        columns["attributes"] += _attributes(answer, features)
        for name in ("session_id", "value", "query"):
            columns[name] += [None] * count
    arrays = [pa.array(columns[field.name], field.type) for field in EVENT_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=EVENT_SCHEMA)


def _attributes(answer: Answer, features: bool) -> list[str]:
    """What an answer says of each of its items, as JSON."""
    common: dict[str, Any] = {}
    if answer.version is not None:
        common["version"] = answer.version.name
    if answer.arms:
        common["arms"] = dict(answer.arms)
    said = [{"score": float(one.score), "source": one.source, **common} for one in answer.items]
    if features and said:
        said[0]["features"] = dict(answer.read)
        if answer.degraded:
            said[0]["degraded"] = list(answer.degraded)
    return [msgspec.json.encode(one).decode() for one in said]
