"""One process's part in a consumer group of Kafka."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from streaming.errors import LogError
from streaming.kafka_client import Cluster, Owned
from streaming.log import TopicPartition


class KafkaMembership:
    """`Membership` by a consumer that reads nothing and only belongs; `left` is told of the end."""

    def __init__(
        self, cluster: Cluster, group: str, topics: Sequence[str], left: Callable[[], object]
    ) -> None:
        self._cluster = cluster
        self._prefix = cluster.url.topic_prefix
        self._tell = left
        self._lock = threading.Lock()
        self._left = False
        # It never reads, so where it would start to does not matter.
        self._consumer = cluster.consumer(group_id=self._prefix + group, auto_offset_reset="latest")
        _keep_answers(self._consumer._coordinator)
        self._owned = Owned(self._consumer)
        self._consumer.subscribe([self._prefix + topic for topic in topics], listener=self._owned)

    def assigned(self) -> frozenset[TopicPartition]:
        with self._lock, self._cluster.translated():
            self._consumer.poll(timeout_ms=0 if self._owned.places else 100)
            mine = self._owned.places
        return frozenset(TopicPartition(t[len(self._prefix) :], p) for t, p in mine)

    def metadata(self) -> Any:
        """What the broker knows this member by; it refuses the commits of one it knows no more."""
        with self._lock:
            return self._consumer.group_metadata()

    def leave(self) -> None:
        with self._lock:
            if not self._left:
                self._left = True
                self._tell()
                with suppress(LogError), self._cluster.translated():
                    self._consumer.close(autocommit=False, timeout_ms=5_000)


def _keep_answers(coordinator: Any) -> None:
    """What the group answers between two polls counts in the next one.

    kafka-python (3.0.12) takes an answer only while a poll waits for it, and otherwise joins anew:
    members that are polled for a short time now and then can miss answers for minutes.
    """
    join = coordinator._do_join_and_sync_async
    answer: bytes | None = None

    async def join_or_take() -> bytes:
        nonlocal answer
        # Whoever takes an answer is stable; who joins while it rebalances has not taken the last.
        if answer is None or not coordinator.rebalance_in_progress():
            answer = None
            answer = await join()
        return answer

    coordinator._do_join_and_sync_async = join_or_take
