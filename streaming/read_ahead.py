"""Records read from a log before they are asked for, so that nobody waits for the log."""

from __future__ import annotations

import threading
from collections import deque

from streaming.log import Log, Positions, Record, TopicPartition


class ReadAhead:
    """Reads on in a thread of its own, up to `ahead` records; `close` ends it."""

    def __init__(self, log: Log, ahead: int = 4, idle_s: float = 0.05) -> None:
        self._log = log
        self._ahead = ahead
        self._idle_s = idle_s
        self._records: deque[Record] = deque()
        self._taken: dict[TopicPartition, int] = {}  # where whoever takes records stands
        self._next: dict[TopicPartition, int] = {}  # where the thread stands
        self._failure: Exception | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def take(self, positions: Positions, limit: int) -> list[Record]:
        """At most `limit` records from `positions` on, if they are there by now; does not wait.

        Raises:
            LogError: the log cannot be read.
        """
        with self._changed:
            if self._failure is not None:
                raise self._failure
            if positions != self._taken:  # it begins, or has not used all that it had taken
                self._records.clear()
                self._taken, self._next = dict(positions), dict(positions)
            taken = [self._records.popleft() for _ in range(min(limit, len(self._records)))]
            self._taken.update({r.place: r.offset + 1 for r in taken})
            self._changed.notify_all()
        return taken

    def close(self) -> None:
        """Returns when the thread has ended."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            while (positions := self._wanted()) is not None:
                self._add(positions, self._log.read(positions, self._ahead, self._idle_s))
        except Exception as error:  # noqa: BLE001 - it is the taker's, who is told
            with self._changed:
                self._failure = error

    def _wanted(self) -> dict[TopicPartition, int] | None:
        """Where to read on, as soon as there is room; None when closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or (self._next and len(self._records) < self._ahead)
            )
            return None if self._closed else dict(self._next)

    def _add(self, positions: Positions, records: list[Record]) -> None:
        """Keeps what was read, unless it was to be read from elsewhere by now."""
        with self._changed:
            if positions == self._next:
                self._records.extend(records)
                self._next.update({r.place: r.offset + 1 for r in records})
