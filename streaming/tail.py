"""The tail: the same state as a loop's in another process, without being part of its group.

It starts from the cuts that the loop makes and reads on from there. It commits nothing, cuts
nothing and appends nothing, so that any number of them leave the loop and the log as they are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import PositiveInt

from streaming.artefact import Artefact
from streaming.cuts import CutDirectory
from streaming.errors import ArtefactCorrupt, ArtefactError
from streaming.log import NOBODY, Log, Positions, TopicPartition
from streaming.loop import Step

S = TypeVar("S", bound=Step)
_TRIES = 3


@dataclass(frozen=True)
class TailConfig:
    """`limit` records are read at most a turn, which waits `idle_s` for the first."""

    limit: PositiveInt = 64
    idle_s: float = 0.05


class Tail(Generic[S]):
    """Keeps the step that `build` makes as the loop keeps it whose cuts are in `cuts`.

    The outputs of the step are the loop's to carry out: here nobody sees them.

    Raises:
        ArtefactError: the state cannot be had: there is no cut and the log no longer begins at its
            beginning, or it no longer holds what follows the newest cut, or holds less.
    """

    def __init__(
        self,
        log: Log,
        topics: Sequence[str],
        build: Callable[[Artefact | None], S],
        cuts: Path,
        config: TailConfig | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._config = config or TailConfig()
        self._clock = clock
        state, cut = _newest(cuts)
        # In this order: what is appended or dropped meanwhile can only look like more to read.
        self._goal = dict(log.ends(topics))
        first = log.positions(NOBODY, topics)
        self._positions = _begin(cut, first, self._goal, cuts)
        self.step = build(state)

    @property
    def behind(self) -> int:
        """How many records are left of those that were in the log when it began."""
        positions = self._positions
        return sum(max(0, end - positions[place]) for place, end in self._goal.items())

    @property
    def positions(self) -> Positions:
        """The next record of every partition."""
        return self._positions

    def run(self, stopping: threading.Event) -> None:
        """Follows until told to stop."""
        while not stopping.is_set():
            self.turn()

    def turn(self) -> int:
        """Takes the next records; returns how many."""
        records = self._log.read(self._positions, self._config.limit, self._config.idle_s)
        if records:
            self.step.on_batch(records)
        self.step.on_time(int(self._clock() * 1e6))
        for record in records:
            self._positions[record.place] = record.offset + 1
        return len(records)


def _newest(cuts: Path) -> tuple[Artefact | None, Positions]:
    """The newest cut; while it was being read, newer ones may have taken its place."""
    for _ in range(_TRIES - 1):
        try:
            return CutDirectory(cuts).newest()
        except (ArtefactCorrupt, FileNotFoundError):
            continue
    return CutDirectory(cuts).newest()


def _begin(
    cut: Positions, first: Positions, ends: Positions, cuts: Path
) -> dict[TopicPartition, int]:
    """Where to read on, for every partition: at the cut, and without one at the very beginning."""
    begin = {place: cut.get(place, 0) for place in ends}
    for place, at in begin.items():
        where = f"{place.topic}/{place.partition}"
        if at < first[place]:
            raise ArtefactError(
                f"{cuts} ends at {at} in {where}, and the log begins at {first[place]}: start"
                " `headrace run` on this home, which makes cuts, or keep the events for longer"
                if cut
                else f"there is no cut in {cuts}, and of {where} the log no longer holds the first"
                f" {first[place]} records: start `headrace run` on this home, which makes one"
            )
        if at > ends[place]:
            raise ArtefactError(
                f"the cut in {cuts} is ahead of the log ({where}: {at} > {ends[place]}): name the"
                " log that this home belongs to, or the home that belongs to this log"
            )
    return begin
