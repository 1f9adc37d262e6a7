"""The loop that never loses count: any Step, each record exactly once.

Starting:

0. load the newest complete cut, rebuild the step from it, and silently replay the records
   between the cut's positions and the group's committed ones: their outputs were already made.

Then, for ever, the commit order:

1. *read* the records that follow the positions;
2. *step*: `on_batch`, then `on_time`, return outputs and do no I/O;
3. *execute* the outputs that are not log records; each is idempotent, for it is done again
   when the process dies before 4;
4. *commit* the outputs that are log records together with the new positions;
5. *cut*, now and then: positions and state as one artefact, renamed into place;
6. *tidy*: drop cuts that are older than the two newest.

Dying before 4 undoes the turn: it is read again. Dying between 4 and 5 leaves committed work
that the next start replays silently, which is why a Step must be deterministic in its records.
Dying during 5 leaves the cut before.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pydantic import PositiveInt

from streaming.artefact import Artefact, read_artefact, read_manifest, write_artefact
from streaming.errors import ArtefactCorrupt, ArtefactError, Fenced
from streaming.log import NOBODY, Append, Log, Positions, Record, TopicPartition

logger = logging.getLogger(__name__)

REPLAY_WAIT_S = 10.0  # for records that must be there, from a log that may be far away
Output = Any  # an Append, or an instruction that the loop's executor understands
Executor = Callable[[Sequence[Output]], Sequence[Append]]


class Step(Protocol):
    """A pure state machine: no clock, no I/O, and the same records give the same state."""

    def on_batch(self, records: Sequence[Record]) -> Sequence[Output]:
        """Takes the next records. The state must not depend on how they were cut into batches."""
        ...

    def on_time(self, now_us: int) -> Sequence[Output]:
        """Told the time after every turn. It may emit; it may not change what `snapshot` holds."""
        ...

    def snapshot(self) -> Artefact:
        """All of the state, from which `build` makes the same step again."""
        ...


S = TypeVar("S", bound=Step)


def append_only(outputs: Sequence[Output]) -> Sequence[Append]:
    """The executor of a step that only appends to the log."""
    return outputs


@dataclass(frozen=True)
class LoopConfig:
    """`limit` records are read at most a turn; a cut is due `cut_every_s` after the one before."""

    limit: PositiveInt = 64
    idle_s: float = 0.05
    cut_every_s: float = 10.0
    cuts_kept: PositiveInt = 2


class Loop(Generic[S]):
    """Runs the step that `build` makes for a consumer group over some topics.

    `execute` carries out outputs that are not log records and returns those that are. `redo` is
    given the outputs of records that are replayed silently: their appends are in the log, but
    effects that only `flush` makes last may have died with the process. `flush` is called before
    every cut.

    `reached` is called with the number of every point of the commit order as the loop gets
    there; tests use it to die on the spot.
    """

    def __init__(  # noqa: PLR0913 - the wiring of a whole consumer, done once
        self,
        log: Log,
        group: str,
        topics: Sequence[str],
        build: Callable[[Artefact | None], S],
        cuts: Path,
        *,
        only: Collection[TopicPartition] | None = None,
        execute: Executor = append_only,
        redo: Executor = append_only,
        flush: Callable[[], None] = lambda: None,
        config: LoopConfig | None = None,
        clock: Callable[[], float] = time.time,
        reached: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._log = log
        self._group = group
        self._topics = topics
        self._only = only
        self._execute = execute
        self._redo = redo
        self._flush = flush
        self._config = config or LoopConfig()
        self._clock = clock
        self._reached = reached
        self._cuts = CutDirectory(cuts, self._config.cuts_kept)
        self._cut_positions: dict[TopicPartition, int] = {}
        self.step, self._positions = self._recover(build)
        self._cut_due = clock() + self._config.cut_every_s

    def run(self, stopping: threading.Event) -> None:
        """Turns until told to stop; ends with a cut, so that the next start replays nothing."""
        while not stopping.is_set():
            self.turn()
        self.cut()

    def turn(self) -> int:
        """One pass through the commit order; returns how many records it dealt with."""
        records = self._log.read(self._positions, self._config.limit, self._config.idle_s)
        self.take(records)
        return len(records)

    def take(self, records: Sequence[Record]) -> None:
        """The commit order from 2 on, for records that somebody read from `positions` on.

        After an error the loop must not be used again: its step is ahead of its positions.

        Raises:
            Fenced: another process works for the group; what was taken is undone.
        """
        self._reached(1)
        outputs = list(self.step.on_batch(records)) if records else []
        outputs += self.step.on_time(int(self._clock() * 1e6))
        self._reached(2)
        appends = self._execute(outputs) if outputs else ()
        self._reached(3)
        if records or appends:
            self._commit(appends, {r.place: r.offset + 1 for r in records})
        self._reached(4)
        if self._clock() >= self._cut_due:
            self.cut()

    def cut(self) -> None:
        """Saves positions and state now, unless nothing was read since the last cut.

        Raises:
            Fenced: another process works for the group, and its cuts are the ones that count.
        """
        self._cut_due = self._clock() + self._config.cut_every_s
        if self._positions == self._cut_positions:
            return
        if self._committed() != self._positions:
            raise Fenced(
                f"group {self._group!r} has moved on from {self._positions}: another process"
                " works for it; stop one of the two"
            )
        self._flush()
        self._cuts.save(self._positions, self.step.snapshot())
        self._cut_positions = dict(self._positions)
        self._reached(5)
        self._cuts.tidy()
        self._reached(6)

    def _commit(self, appends: Sequence[Append], moved: Mapping[TopicPartition, int]) -> None:
        with self._log.transaction(self._group) as transaction:
            if appends:
                transaction.append(appends)
            # Even where nothing moved: it is what keeps a superseded process from appending.
            transaction.advance(self._positions, {**self._positions, **moved})
        self._positions.update(moved)

    @property
    def positions(self) -> Positions:
        """The next record of every partition that the loop reads."""
        return self._positions

    def _committed(self, group: str | None = None) -> dict[TopicPartition, int]:
        positions = self._log.positions(group or self._group, self._topics)
        only = self._only
        return {place: at for place, at in positions.items() if only is None or place in only}

    def _recover(
        self, build: Callable[[Artefact | None], S]
    ) -> tuple[S, dict[TopicPartition, int]]:
        state, cut = self._cuts.newest()
        # Only now, or a cut that is made meanwhile would seem to be ahead of the log.
        committed = self._committed()
        positions = self._begin(cut, committed)
        self._cut_positions = dict(positions)
        step = build(state)
        if any(at > 0 and place not in cut for place, at in positions.items()):
            # Where the log no longer begins at 0, only a cut can say where this group began.
            self._cuts.save(positions, step.snapshot())
        self._reached(0)
        while behind := {p: at for p, at in positions.items() if at < committed[p]}:
            records = self._log.read(behind, self._config.limit, REPLAY_WAIT_S)
            again = [r for r in records if r.offset < committed[r.place]]
            if not again:
                raise self._irreplayable(behind)
            self._redo(step.on_batch(again))
            positions.update({r.place: r.offset + 1 for r in again})
        return step, positions

    def _begin(self, cut: Positions, committed: Positions) -> dict[TopicPartition, int]:
        """Where the replay begins: at the cut, and without one where the group itself began."""
        first = self._committed(NOBODY)
        new = {place: at for place, at in committed.items() if at == first[place]}
        positions = {place: cut.get(place, new.get(place, 0)) for place in committed}
        for place, at in positions.items():
            if at > committed[place]:
                raise ArtefactError(
                    f"the cut in {self._cuts.path} is ahead of the log ({place.topic}/"
                    f"{place.partition}: {at} > {committed[place]}): the log was replaced;"
                    " restore it, or start over with `headrace run --fresh`"
                )
            if at < min(first[place], committed[place]):
                raise self._irreplayable({place: at})
        return positions

    def _irreplayable(self, positions: Positions) -> ArtefactError:
        return ArtefactError(
            f"group {self._group!r} cannot replay {dict(positions)}: the log no longer holds those"
            " records; start over with `headrace run --fresh`"
        )


class CutDirectory:
    """The cuts of one step: `cut-00000001`, `cut-00000002`, ...; the newest complete one counts."""

    def __init__(self, path: Path, kept: int = 2) -> None:
        self.path = path
        self._kept = kept

    def save(self, positions: Mapping[TopicPartition, int], state: Artefact) -> Path:
        """Writes the next cut; positions and state become the newest cut together."""
        name = f"cut-{self._number(self._all()[-1]) + 1 if self._all() else 1:08d}"
        places = [[topic, partition, at] for (topic, partition), at in sorted(positions.items())]
        write_artefact(self.path / name, {"positions": places, "state": state.meta}, state.shards)
        return self.path / name

    def newest(self) -> tuple[Artefact | None, dict[TopicPartition, int]]:
        """State and positions of the newest complete cut; (None, {}) where there was never one.

        Raises:
            ArtefactCorrupt: there are cuts, and none of them can be read.
        """
        failures: list[str] = []
        for path in reversed(self._all()):
            try:
                cut = read_artefact(path)
            except ArtefactCorrupt as error:
                logger.warning("passing over a damaged cut: %s", error)
                failures.append(str(error))
                continue
            positions = {TopicPartition(t, p): at for t, p, at in cut.meta["positions"]}
            return Artefact(cut.meta["state"], cut.shards), positions
        if failures:
            raise ArtefactCorrupt(
                f"no cut in {self.path} can be read ({failures[0]}): delete that directory to"
                " rebuild the state from the log, or start over with `headrace run --fresh`"
            )
        return None, {}

    def newest_meta(self) -> dict[str, Any] | None:
        """The `meta` of the newest cut's state, without reading its shards; for status."""
        for path in reversed(self._all()):
            try:
                meta: dict[str, Any] = read_manifest(path)["state"]
            except ArtefactError:
                continue
            return meta
        return None

    def tidy(self) -> None:
        """Removes what newer cuts have made useless, and what a dying process left half-written."""
        for path in self._all()[: -self._kept]:
            shutil.rmtree(path)
        for path in self.path.glob(".cut-*"):
            shutil.rmtree(path)

    def _all(self) -> list[Path]:
        return sorted(self.path.glob("cut-*"))

    @staticmethod
    def _number(path: Path) -> int:
        return int(path.name.removeprefix("cut-"))
