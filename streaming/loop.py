"""The loop that never loses count: any Step, each record exactly once.

Starting:

0. load the newest complete cut, rebuild the step from it, and silently replay the records
   between the cut's positions and the group's committed ones: their outputs were already made.

Then, for ever, the commit order:

1. *read* the records that follow the positions;
2. *step*: `on_batch`, then `on_time`, return outputs and do no I/O;
3. *execute* the outputs that are not log records; each is idempotent, for it is done again
   when the process dies before 4. The executor is asked in every turn, also where there are no
   outputs: it may have some left that could not be carried out when they came;
4. *commit* the outputs that are log records together with the new positions;
5. *cut*, now and then: positions and state, or what changed of it, as one artefact, renamed into
   place;
6. *tidy*: make one whole cut of a long chain of changes, drop the cuts that newer ones replace.

Dying before 4 undoes the turn: it is read again. Dying between 4 and 5 leaves committed work
that the next start replays silently, which is why a Step must be deterministic in its records.
Dying during 5 leaves the cut before, dying during 6 leaves cuts to be dropped later.

With `LoopConfig.background` the loop itself only copies the state; a thread beside it makes 5 and
6 of the copy while 1 to 4 go on. At most one cut is under way: the next waits for it to be done.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from pydantic import PositiveInt

from streaming.artefact import Artefact
from streaming.cuts import CutDirectory
from streaming.errors import ArtefactError, Fenced
from streaming.log import NOBODY, Append, Log, Positions, Record, TopicPartition

logger = logging.getLogger(__name__)
_SLOW_CUT_S = 5.0
REPLAY_WAIT_S = 10.0  # for records that must be there, from a log that may be far away
Output = Any  # an Append, or an instruction that the loop's executor understands
Executor = Callable[[Sequence[Output]], Sequence[Append]]
Read = Callable[[Positions, int, float], list[Record]]  # as `Log.read`


class Step(Protocol):
    """A pure state machine: no clock, no I/O, and the same records give the same state."""

    def on_batch(self, records: Sequence[Record]) -> Sequence[Output]:
        """Takes the next records. The state must not depend on how they were cut into batches."""
        ...

    def on_time(self, now_us: int) -> Sequence[Output]:
        """Told the time after every turn. It may emit; it may not change what `snapshot` holds."""
        ...

    def snapshot(self) -> Artefact:
        """All of the state, from which `build` makes the same step again.

        In the background it is written while the step goes on, so it must share no memory with it.
        """
        ...


@runtime_checkable
class Incremental(Step, Protocol):
    """A Step that can tell what changed of its state; `streaming.cuts` says in which form.

    A mark is never None. Some are never settled, as when a cut fails: then the next `changes` are
    since an older one.
    """

    def mark(self) -> Any:
        """A cursor on what has changed so far."""
        ...

    def changes(self, since: Any) -> Artefact:
        """As `snapshot`, with only the changed rows of each keyed shard, and those that went."""
        ...

    def settle(self, mark: Any) -> None:
        """Changes up to the mark are durable: nobody will ask for them any more."""
        ...


class Turn(NamedTuple):
    """One pass through the commit order: what was dealt with, and how long each part took.

    `done_s` is when it was committed, as a Unix time; `appends` is what went into the log then.
    """

    step: Any
    records: Sequence[Record]
    outputs: Sequence[Output]
    done_s: float
    read_s: float
    step_s: float
    execute_s: float
    commit_s: float
    appends: Sequence[Append] = ()


class LoopObserver(Protocol):
    """Is told what a loop does, in the loop's own thread: the loop stands still meanwhile, and an
    error ends it. It may look at the step, which changes nowhere else, and must not change it.
    """

    def begun(self, step: Any) -> None:
        """The step is there, with all that was committed before."""
        ...

    def turned(self, turn: Turn) -> None:
        """A turn is committed; most have no records."""
        ...

    def cut(self, seconds: float) -> None:
        """A cut has kept the loop from its turns for so long."""
        ...


class Unobserved:
    """The observer that lets a loop be."""

    def begun(self, step: Any) -> None:
        pass

    def turned(self, turn: Turn) -> None:
        pass

    def cut(self, seconds: float) -> None:
        pass


S = TypeVar("S", bound=Step)


def append_only(outputs: Sequence[Output]) -> Sequence[Append]:
    """The executor of a step that only appends to the log."""
    return outputs


@dataclass(frozen=True)
class LoopConfig:
    """`limit` records are read at most a turn; a cut is due `cut_every_s` after the one before.

    In the `background` cuts are written while the loop goes on. `cuts_kept` whole ones stay, with
    what continues them; an `Incremental` step's is made whole again after `deltas` that continue
    it, or earlier if these are large.
    """

    limit: PositiveInt = 64
    idle_s: float = 0.05
    cut_every_s: float = 10.0
    cuts_kept: PositiveInt = 2
    background: bool = False
    deltas: PositiveInt = 16


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where a cut stands: in the log, and by the mark of an `Incremental` step."""

    positions: Positions
    mark: Any = None
    whole: bool = True


class Loop(Generic[S]):
    """Runs the step that `build` makes for a consumer group over some topics.

    `read` takes the place of the log's. `execute` carries out outputs that are not log records and
    returns those that are. `redo` is given the outputs of records that are replayed silently: their
    appends are in the log, but effects that only `flush` makes last may have died with the process.
    `flush` is called before every cut; the `observer` is told of every turn and cut.

    `reached` is called with the number of every point of the commit order as the loop gets
    there, with 5 and 6 by the thread that does them; tests use it to die on the spot.
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
        read: Read | None = None,
        execute: Executor = append_only,
        redo: Executor = append_only,
        flush: Callable[[], None] = lambda: None,
        config: LoopConfig | None = None,
        observer: LoopObserver | None = None,
        clock: Callable[[], float] = time.time,
        reached: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._log = log
        self._read = read or log.read
        self._group = group
        self._topics = topics
        self._only = only
        self._execute = execute
        self._redo = redo
        self._flush = flush
        self._config = config or LoopConfig()
        self._observer = observer or Unobserved()
        self._clock = clock
        self._reached = reached
        self._cuts = CutDirectory(cuts, self._config.cuts_kept, self._config.deltas)
        self._writer = ThreadPoolExecutor(1, "cuts") if self._config.background else None
        self._writing: tuple[_Cut, Future[None]] | None = None
        self._durable = _Cut({})
        self.step, self._positions = self._recover(build)
        self._observer.begun(self.step)
        self._cut_due = clock() + self._config.cut_every_s

    def run(self, stopping: threading.Event) -> None:
        """Turns until told to stop; ends with a cut, so that the next start replays nothing."""
        while not stopping.is_set():
            self.turn()
        self.cut()

    def turn(self) -> int:
        """One pass through the commit order; returns how many records it dealt with."""
        begun = time.perf_counter()
        records = self._read(self._positions, self._config.limit, self._config.idle_s)
        self.take(records, time.perf_counter() - begun)
        return len(records)

    def take(self, records: Sequence[Record], read_s: float = 0.0) -> None:
        """The commit order from 2 on, for records that somebody read from `positions` on, which
        took him `read_s`.

        After an error the loop must not be used again: its step is ahead of its positions.

        Raises:
            Fenced: another process works for the group; what was taken is undone.
            ArtefactError: a cut cannot be written. If it was being written in the background,
                nothing was taken, and the loop may be used again.
        """
        self._finish_cut()
        self._reached(1)
        begun = time.perf_counter()
        outputs = list(self.step.on_batch(records)) if records else []
        outputs += self.step.on_time(int(self._clock() * 1e6))
        stepped = time.perf_counter()
        self._reached(2)
        appends = self._execute(outputs)
        executed = time.perf_counter()
        self._reached(3)
        if records or appends:
            self._commit(appends, {r.place: r.offset + 1 for r in records})
        committed = time.perf_counter()
        self._reached(4)
        parts_s = (read_s, stepped - begun, executed - stepped, committed - executed)
        turn = Turn(self.step, records, outputs, self._clock(), *parts_s, appends)
        self._observer.turned(turn)
        if self._clock() >= self._cut_due and self._writing is None:
            begun = time.perf_counter()
            self._begin_cut()
            self._tell_of_cut(time.perf_counter() - begun)

    def cut(self) -> None:
        """Saves positions and state now, unless nothing was read since the last cut.

        Returns when they are durable. A cut that fails loses nothing: the next one tells of all
        that changed since the last one that did not.

        Raises:
            Fenced: another process works for the group, and its cuts are the ones that count.
            ArtefactError: it cannot be written, or the one before could not, in the background.
        """
        begun = time.perf_counter()
        self._finish_cut(wait=True)
        self._begin_cut()
        self._finish_cut(wait=True)
        self._tell_of_cut(time.perf_counter() - begun)

    def _tell_of_cut(self, seconds: float) -> None:
        self._observer.cut(seconds)
        if seconds > _SLOW_CUT_S:
            logger.warning("the %s stood still for %.1f s, for a cut", self._group, seconds)

    def _begin_cut(self) -> None:
        """Copies the state and sees to it that the copy is written."""
        self._cut_due = self._clock() + self._config.cut_every_s
        if self._positions == self._durable.positions:
            return
        if self._committed() != self._positions:
            raise Fenced(
                f"group {self._group!r} has moved on from {self._positions}: another process"
                " works for it; stop one of the two"
            )
        self._flush()
        cut, state = self._copy()
        if self._writer is None:
            self._write(cut, state)
            self._settle(cut)
        else:
            self._writing = cut, self._writer.submit(self._write, cut, state)

    def _copy(self) -> tuple[_Cut, Artefact]:
        """The cut that is to be made now; whole, if this loop has made none yet."""
        positions, step, since = dict(self._positions), self.step, self._durable.mark
        if not isinstance(step, Incremental):
            return _Cut(positions), step.snapshot()
        whole = since is None or not self._cuts.continuable
        cut = _Cut(positions, step.mark(), whole)
        return cut, step.snapshot() if whole else step.changes(since)

    def _write(self, cut: _Cut, state: Artefact) -> None:
        if cut.whole:
            self._cuts.save(cut.positions, state)
        else:
            self._cuts.extend(cut.positions, state)
        self._reached(5)
        self._cuts.compact()
        self._cuts.tidy()
        self._reached(6)

    def _finish_cut(self, *, wait: bool = False) -> None:
        """Takes note of what became of the cut in the background, if that is known."""
        if self._writing is not None and (wait or self._writing[1].done()):
            cut, written = self._writing
            self._writing = None
            written.result()
            self._settle(cut)

    def _settle(self, cut: _Cut) -> None:
        self._durable = cut
        if isinstance(self.step, Incremental):
            self.step.settle(cut.mark)

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
        self._durable = _Cut(dict(positions))
        step = build(state)
        if any(at > 0 and place not in cut for place, at in positions.items()):
            # Where the log no longer begins at 0, only a cut can say where this group began.
            self._cuts.save(positions, step.snapshot())
        self._reached(0)
        while behind := {p: at for p, at in positions.items() if at < committed[p]}:
            records = self._read(behind, self._config.limit, REPLAY_WAIT_S)
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
