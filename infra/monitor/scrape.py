"""Reads the figures of every process, side by side, and tells the history those that are wanted.

To parse a line of an exposition takes longer than all else, and from one reading to the next only
its number changes: so each line is parsed once, and known by what stands before the number then.
"""

from __future__ import annotations

import http.client
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from infra.monitor.history import History, Selection
from infra.targets import Target
from streaming.metrics import parse

logger = logging.getLogger(__name__)
UP = "up"  # as Prometheus says whether it could read a target


class Scraper:
    """Scrapes `targets`; what this process itself tells comes from `own`, not over the network.

    Of each target there is the figure `up`: 1, or 0 if it did not answer within `timeout_s`.
    """

    def __init__(
        self,
        history: History,
        wanted: Iterable[Selection],
        own: tuple[str, Callable[[], bytes]],
        timeout_s: float,
    ) -> None:
        self._history = history
        self._wanted: dict[str, list[Selection]] = {}
        for selection in wanted:
            self._wanted.setdefault(selection.name, []).append(selection)
        self._own_process, self._own = own
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(8, "scrape")
        self._known: dict[Target, _Known] = {}

    def read(self, targets: Sequence[Target]) -> dict[Target, str | None]:
        """What each tells now; None of those that do not answer."""
        return dict(zip(targets, self._pool.map(self._read, targets), strict=True))

    def take(self, told: Mapping[Target, str | None], at: float) -> None:
        """Tells the history what was read at a Unix time."""
        self._history.open(at)
        for gone in self._known.keys() - told.keys():
            del self._known[gone]
        for target, exposition in told.items():
            known = self._known.setdefault(target, _Known(target))
            known.tell(self._history, UP, {}, float(exposition is not None))
            if exposition is not None:
                self._take(known, exposition)

    def close(self) -> None:
        """Lets its threads go."""
        self._pool.shutdown()

    def _read(self, target: Target) -> str | None:
        if target.process == self._own_process:
            return self._own().decode()
        host, _, port = target.address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=self._timeout_s)
        with closing(connection):
            try:
                connection.request("GET", "/metrics")
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException):
                return None
            return body.decode() if answer.status == 200 else None

    def _take(self, known: _Known, exposition: str) -> None:
        history, rows = self._history, known.rows
        for line in exposition.split("\n"):
            if not line or line[0] == "#":
                continue
            key, _, number = line.rpartition(" ")
            row = rows.get(key, -1)
            if row == -1:
                row = rows[key] = self._first(known, key, line)
            if row is not None:
                history.note(row, float(number))

    def _first(self, known: _Known, key: str, line: str) -> int | None:
        """The place of a figure that was not told before; None if it is not wanted."""
        name = key.partition("{")[0]
        if name not in self._wanted:
            return None
        try:
            labels = parse(line + "\n")[0].labels
        except (ValueError, IndexError):
            logger.warning("a line of %s cannot be read: %s", known.target.address, line[:200])
            return None
        labels = known.labelled(labels)
        if not any(selection.takes(name, labels) for selection in self._wanted[name]):
            return None
        return self._history.add(name, labels)


class _Known:
    """What is known of a target: its lines, and where their figures stand in the history."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.rows: dict[str, int | None] = {}
        self._own: dict[str, str] = {
            "process": target.process,
            "rank": str(target.rank),
            "instance": target.address,
        }

    def tell(self, history: History, name: str, labels: Mapping[str, str], value: float) -> None:
        if name not in self.rows:
            self.rows[name] = history.add(name, self.labelled(labels))
        row = self.rows[name]
        if row is not None and not math.isnan(value):
            history.note(row, value)

    def labelled(self, labels: Mapping[str, str]) -> dict[str, str]:
        """The labels of a figure, and whose it is."""
        # What a process tells of another one is that one's (`honor_labels` of Prometheus).
        return {**self._own, **labels}
