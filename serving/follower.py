"""The follower: tails the topic `versions` and keeps a replica on the newest version."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from serving.replica import Applied, Replica
from streaming.errors import ArtefactError
from streaming.log import VERSIONS, Log, Record, TopicPartition
from trainers.versions import VersionInfo, VersionStore, read_announcement

logger = logging.getLogger(__name__)
_PLACE = TopicPartition(VERSIONS, 0)


class Follower:
    """Applies announced versions in order; a gap is healed from the newest snapshot.

    While it heals, the replica goes on answering with what it has. `look_back` offsets are searched
    for a snapshot; the trainer makes one at least that often.
    """

    def __init__(
        self,
        log: Log,
        store: VersionStore,
        replica: Replica,
        look_back: int,
        applied: Callable[[VersionInfo, float], None] = lambda _info, _seconds: None,
    ) -> None:
        self._log = log
        self._store = store
        self._replica = replica
        self._look_back = look_back
        self._applied = applied
        self._lineages: list[str] = []  # in the order in which they first came
        # A group that never was stands at the first record that is still there.
        self._first = log.positions("follower", [VERSIONS])[_PLACE]
        self._position = max(self._first, log.ends([VERSIONS])[_PLACE] - self._look_back)

    def run(self, stopping: threading.Event) -> None:
        """Follows until told to stop."""
        while not stopping.is_set():
            self.turn(timeout_s=0.2)

    def turn(self, timeout_s: float) -> None:
        """Takes what was announced since the last turn."""
        records = self._log.read({_PLACE: self._position}, self._look_back, timeout_s)
        if not records:
            return
        self._position = records[-1].offset + 1
        infos = [read_announcement(record) for record in records]
        self._lineages = list(dict.fromkeys([*self._lineages, *(i.lineage for i in infos)]))
        for info in infos[self._start(infos) :]:
            if not self._is_past(info) and self._take(info) is Applied.GAP:
                self._heal(info)

    def _start(self, infos: Sequence[VersionInfo]) -> int:
        """Where to begin: if nothing is served yet, after the newest snapshot that can be read.

        Whatever lies before a snapshot is contained in it.
        """
        if self._replica.info is None:
            for i in reversed([i for i, info in enumerate(infos) if info.base is None]):
                if self._take(infos[i]) is Applied.APPLIED:
                    return i + 1
        return 0

    def _is_past(self, info: VersionInfo) -> bool:
        """Whether it is a straggler of a trainer that the one being served has replaced."""
        served = self._replica.info
        if served is None or served.lineage not in self._lineages:
            return False
        return self._lineages.index(info.lineage) < self._lineages.index(served.lineage)

    def _take(self, info: VersionInfo) -> Applied:
        begun = time.perf_counter()
        try:
            outcome = self._replica.take(self._store.read(info))
        except ArtefactError as error:
            logger.warning("passing over version %s: %s", info.name, error)
            return Applied.GAP
        if outcome is Applied.APPLIED:
            self._applied(info, time.perf_counter() - begun)
        return outcome

    def _heal(self, info: VersionInfo) -> None:
        """Loads the newest snapshot of the lineage that can be read, and what followed it."""
        served = self._replica.info
        chain = [i for i in self._recent() if i.lineage == info.lineage and i.number <= info.number]
        for start in reversed([n for n, link in enumerate(chain) if link.base is None]):
            link = chain[start]
            if served and served.lineage == link.lineage and link.number <= served.number:
                break
            if self._take(link) is Applied.APPLIED:
                for following in chain[start + 1 :]:
                    if self._take(following) is Applied.GAP:
                        break
                return
        logger.warning("version %s cannot be reached yet, waiting for a snapshot", info.name)

    def _recent(self) -> list[VersionInfo]:
        records: list[Record] = []
        position = max(self._first, self._position - self._look_back)
        while position < self._position:
            found = self._log.read({_PLACE: position}, self._look_back, timeout_s=0)
            if not found:
                break
            records += found
            position = found[-1].offset + 1
        return [read_announcement(record) for record in records]
