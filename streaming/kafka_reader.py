"""A consumer that goes on where its last reader stopped, and shares out what it has fetched."""

from __future__ import annotations

import time
from collections.abc import Mapping

from streaming.errors import LogError
from streaming.kafka_client import Cluster, Place
from streaming.log import Record

MOST_FETCHED = 1_024  # records of one poll
MOST_HELD = 8_192  # records that wait to be taken, before more are asked for
_SHORT_MS = 100  # how long a broker may hold a question back, for who waits for nothing new


class Reader:
    """Reads some partitions; for one thread at a time.

    kafka-python's consumers drain one partition before they turn to the next; here each has its
    share. A place that is read on from where it was left is not sought again: behind the last
    record of a transaction lies its marker, and the consumer is past it already.
    """

    def __init__(self, cluster: Cluster, *, waits: bool) -> None:
        self.waits = waits
        self._cluster = cluster
        self._consumer = cluster.consumer(**({} if waits else {"fetch_max_wait_ms": _SHORT_MS}))
        self._next: dict[Place, int] = {}
        self._fetched: dict[Place, list[Record]] = {}
        # On the monotonic clock.
        self.used_s = 0.0
        self.checked_s = time.monotonic()
        self.missed_s: float | None = None  # since when the broker has not answered

    def continues(self, positions: Mapping[Place, int]) -> bool:
        """Whether it stands exactly there."""
        return self._next == positions

    def read(self, positions: Mapping[Place, int], limit: int, timeout_s: float) -> list[Record]:
        """As `Log.read`, though it may return early with nothing."""
        self.turn_to(positions)
        share = max(1, limit // len(positions))
        held = sum(map(len, self._fetched.values()))
        if held < MOST_HELD and not all(self._fetched.values()):
            self._poll(0.0 if held else timeout_s)
        return self._take(share)

    def read_all_there_is(
        self, positions: Mapping[Place, int], limit: int, ends: Mapping[Place, int]
    ) -> list[Record]:
        """As `Log.read`, and it waits until the broker has shown all that lies before `ends`."""
        self.turn_to(positions)
        share = max(1, limit // len(positions))
        deadline = time.monotonic() + self._cluster.patience_s
        while any(
            len(self._fetched[place]) < share and self._consumer.position(place) < ends[place]
            for place in positions
        ):
            if time.monotonic() > deadline:
                raise LogError(
                    f"{self._cluster.url} has records and does not deliver them: look at the"
                    " broker, then start again"
                )
            self._poll(0.1)
        return self._take(share)

    def turn_to(self, positions: Mapping[Place, int]) -> None:
        """Stands at the positions, and keeps what was fetched where it stood there before."""
        if self._next == positions:
            return
        if self._next.keys() != positions.keys():
            self._consumer.assign(list(positions))
            kept = {p: at for p, at in self._next.items() if p in positions}
            self._next = kept
            self._fetched = {p: self._fetched.get(p, []) for p in positions}
        for place, at in positions.items():
            if self._next.get(place) != at:
                self._consumer.seek(place, at)
                self._next[place] = at
                self._fetched[place] = []

    def _poll(self, timeout_s: float) -> None:
        # No partition is paused for having enough: kafka-python may forget one that was resumed.
        polled = self._consumer.poll(timeout_s * 1000, max_records=MOST_FETCHED)
        for place, found in polled.items():
            self._fetched[place] += found
        if polled:  # the next is on its way while these are dealt with
            self._consumer._fetcher.send_fetches()

    def _take(self, share: int) -> list[Record]:
        taken: list[Record] = []
        for place, records in self._fetched.items():
            if records:
                if len(records) <= share:
                    taken += records
                    self._fetched[place] = []
                else:
                    taken += records[:share]
                    del records[:share]
                self._next[place] = taken[-1].offset + 1
        return taken

    def close(self) -> None:
        """Lets go of the connection."""
        self._consumer.close(autocommit=False, timeout_ms=1_000)
