"""A transactional producer that never waits for ever, and is never used after a failure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from streaming.kafka_client import (
    Cluster,
    KafkaError,
    KafkaTimeoutError,
    OffsetAndMetadata,
    Place,
    explain,
)


class Writer:
    """A transactional producer whose waits end: kafka-python's own have no limit.

    Making one ends every other producer of the same id, and what it had not committed is undone.
    After an error it must be abandoned: what became of its transaction, only the broker knows.
    """

    def __init__(self, cluster: Cluster, transactional_id: str) -> None:
        self._cluster = cluster
        self.ended = False
        self._producer = cluster.producer(transactional_id)
        try:
            with cluster.translated():
                self._producer.init_transactions()
        except BaseException:
            self.abandon()
            raise

    def commit(
        self,
        records: Iterable[tuple[Place, bytes | None, bytes]],
        positions: Mapping[Place, int],
        group: Any,
    ) -> None:
        """Makes records and the group's positions visible together.

        Raises:
            Fenced: another process has taken over; nothing of this became visible.
            LogError: it failed; whether it became visible, the positions of the group say.
        """
        producer = self._producer
        manager = producer._transaction_manager
        try:
            producer.begin_transaction()
            if positions:
                # First, for here a process that was superseded is refused.
                offsets = {place: OffsetAndMetadata(at, "", -1) for place, at in positions.items()}
                self._wait(manager.send_offsets_to_transaction(offsets, group))
            for place, key, value in records:
                producer.send(place.topic, value, key, partition=place.partition)
            self._wait(manager.begin_commit())
        except BaseException as error:
            self._undo(error)
            raise

    def abandon(self) -> None:
        """Stops at once, whatever is under way."""
        self.ended = True
        producer = self._producer
        producer._sender.force_close()
        producer._sender.join(1)
        producer._unregister_cleanup()
        producer._closed = True  # its own close() would wait for what will never come

    def close(self) -> None:
        """Ends after a good commit."""
        self._producer.close(timeout=1)

    def _wait(self, result: Any) -> None:
        self._producer._sender.wakeup()
        if not result.wait(timeout_ms=self._cluster.patience_s * 1000):
            raise KafkaTimeoutError("the broker did not answer")

    def _undo(self, error: BaseException) -> None:
        """Aborts if that is still possible; else the broker does, when the id is used again."""
        manager = self._producer._transaction_manager
        cause = manager.last_error or error
        with suppress(KafkaError):
            if not isinstance(error, KafkaTimeoutError):
                self._wait(manager.begin_abort())
        self.abandon()
        if isinstance(error, KafkaError | ValueError):
            raise explain(cause, str(self._cluster.url)) from error
