"""Sharing a topic between processes: a `Loop` for each partition that is one's own just now.

Every process of a group runs `Shares`. What partitions it has, the log says (`Log.join`), and it
may say otherwise between any two turns:

* a partition that is gained gets a loop, which goes on from the newest cut and the log, wherever
  the last owner made them. All processes therefore see the same directories of cuts;
* a partition that is lost loses its loop at once and without a cut: what was not committed is
  undone, and done again by the new owner;
* whoever learns too late that a partition was lost is `Fenced` when it commits, which is the same
  as to lose it.

So each record counts once, whoever has its partition and however often that changes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import PositiveInt

from streaming.errors import Fenced
from streaming.log import Log, Record, TopicPartition
from streaming.loop import Loop

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SharesConfig:
    """At most `limit` records are read a turn; a turn waits up to `idle_s` for the first."""

    limit: PositiveInt = 1024
    idle_s: float = 0.05


class Shares:
    """One process's part in a group that shares the partitions of some topics.

    `make_loop` makes the loop of one partition: its group must be `group`, its `only` this
    partition, and its cuts must lie in a directory that belongs to the partition.
    """

    def __init__(
        self,
        log: Log,
        group: str,
        topics: Sequence[str],
        make_loop: Callable[[TopicPartition], Loop[Any]],
        config: SharesConfig | None = None,
    ) -> None:
        self._log = log
        self._make_loop = make_loop
        self._config = config or SharesConfig()
        self._loops: dict[TopicPartition, Loop[Any]] = {}
        self._membership = log.join(group, topics)

    @property
    def loops(self) -> Mapping[TopicPartition, Loop[Any]]:
        """The loops of the partitions that this process has, as of its last turn."""
        return MappingProxyType(self._loops)

    def run(self, stopping: threading.Event) -> None:
        """Turns until told to stop, then makes a cut of each partition and hands them back.

        An error hands them back too, without a cut.
        """
        try:
            while not stopping.is_set():
                self.turn()
            self.cut()
        finally:
            self._loops.clear()
            self._membership.leave()

    def turn(self) -> int:
        """Follows the assignment, then gives each loop its records; returns how many there were.

        One read serves all the loops, so that none of them waits for another.
        """
        self._follow()
        positions = {place: loop.positions[place] for place, loop in self._loops.items()}
        records: dict[TopicPartition, list[Record]] = defaultdict(list)
        begun = time.perf_counter()
        for record in self._log.read(positions, self._config.limit, self._config.idle_s):
            records[record.place].append(record)
        read_s = (time.perf_counter() - begun) / max(1, len(positions))  # each has its share of it
        for place in positions:
            self._unless_lost(place, Loop.take, records[place], read_s)
        return sum(map(len, records.values()))

    def cut(self) -> None:
        """Makes a cut of every partition that is still this process's own."""
        for place in list(self._loops):
            self._unless_lost(place, Loop.cut)

    def _follow(self) -> None:
        """Drops the loops of what was lost, and makes those of what was gained.

        Asks again after each one, for a replay takes time in which more may have moved.
        """
        while True:
            assigned = self._membership.assigned()
            for place in self._loops.keys() - assigned:
                del self._loops[place]
            gained = assigned - self._loops.keys()
            if not gained:
                return
            place = min(gained)
            self._loops[place] = self._make_loop(place)

    def _unless_lost(self, place: TopicPartition, do: Callable[..., None], *args: object) -> None:
        """Does it with the loop of the partition, which is dropped if another process has it."""
        try:
            do(self._loops[place], *args)
        except Fenced as error:
            logger.warning("%s/%d is lost: %s", *place, error)
            del self._loops[place]
