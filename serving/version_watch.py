"""The version watch: how long a replica has been waiting for a version that it could serve.

It reads what is announced by itself, for a follower that is stuck does not say so.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from streaming.log import Log
from trainers.announcements import Announcements
from trainers.versions import VersionInfo


@dataclass(frozen=True, slots=True)
class _Announced:
    name: str
    logged_s: float


class VersionWatch:
    """Compares what is announced of a model with what is `served`; None if that is nothing yet.

    Of what was announced before it was made, it looks at the last `look_back` records.
    """

    def __init__(
        self,
        log: Log,
        served: Callable[[], VersionInfo | None],
        look_back: int,
        model: str | None = None,
    ) -> None:
        self._announcements = Announcements(log, look_back, model)
        self._served = served
        self._ahead: deque[_Announced] = deque(maxlen=look_back)  # of what is served, and may be
        self._at: str | None = None  # what was served when it was last looked at
        self._since_s: float | None = None
        self._begun_s = time.time()
        self._lock = threading.Lock()  # Prometheus and the monitor may ask at once

    def behind_s(self) -> float:
        """How long there has been a version that could be served instead; 0 if there is none."""
        with self._lock:
            self._read()
            served = self._served()
            name = None if served is None else served.name
            if any(one.name == name for one in self._ahead):
                while self._ahead[0].name != name:
                    self._ahead.popleft()
                while self._ahead and self._ahead[0].name == name:  # a snapshot beside a delta
                    self._ahead.popleft()
            if not self._ahead:
                self._since_s = None
                return 0.0
            if self._since_s is None or name != self._at:
                self._at, self._since_s = name, max(self._begun_s, self._ahead[0].logged_s)
            return max(0.0, time.time() - self._since_s)

    def _read(self) -> None:
        """Takes note of what was announced."""
        for record, info in self._announcements.read():
            wanted: str | None = info.name
            if info.held is not None:  # then it is the last good one, and nothing between
                self._ahead.clear()
                wanted = info.last_good
            if wanted is not None:
                self._ahead.append(_Announced(wanted, record.logged_us / 1e6))
