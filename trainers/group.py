"""A group of trainers: ranks, each a process of its own, that learn one model in common steps.

Every rank owns a shard of every table and reads its own partitions of `samples`; a step takes the
next record of each rank that has one. Rank 0 *leads*: it runs the very loop that a trainer alone
would (`streaming.loop`), with all partitions' positions, one commit for all, and one cut and one
version of which every rank has written its part. The others, the *members*, do at each point of
the loop what the leader tells them:

- `Start`: load the newest cut, each rank what is its own of it, whatever number of ranks made it;
- `Read`: say which records are there to be learnt;
- `Learn`: learn these of them;
- `Publish`, `Mark`, `Changes`, `Settle`: as the methods of `Trainer`;
- `Stop`.

A rank that dies or hangs breaks the exchange: all others raise `PeerLost`, and a new group goes on
from the cut and the log. The steps of a replay may pair other records than before, but each record
is in one step, so every sample is learnt once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

import msgspec
import numpy as np
from pydantic import PositiveFloat, PositiveInt

from streaming.artefact import Artefact, Part, write_artefact
from streaming.cuts import CutDirectory
from streaming.errors import ArtefactError
from streaming.log import SAMPLES, Append, Log, Positions, Record, TopicPartition
from streaming.loop import Loop
from streaming.read_ahead import ReadAhead
from trainers.exchange import Exchange, PeerLost
from trainers.trainer import Clocks, Trainer
from trainers.version_store import VersionStore
from trainers.versions import Version, new_lineage

_POLL_S = 0.005
Place = tuple[int, int]  # partition and offset of a record of `samples`


@dataclass(frozen=True)
class GroupConfig:
    """How many processes train together; one that is silent for `answer_within_s` is lost."""

    ranks: PositiveInt = 1
    answer_within_s: PositiveFloat = 60.0


class Start(msgspec.Struct, frozen=True, tag=True):
    lineage: str
    steps: int  # of the leader's cut


class Read(msgspec.Struct, frozen=True, tag=True):
    positions: list[Place]
    limit: int


class Learn(msgspec.Struct, frozen=True, tag=True):
    places: list[Place]


class Publish(msgspec.Struct, frozen=True, tag=True):
    now_us: int


class Mark(msgspec.Struct, frozen=True, tag=True):
    number: int


class Changes(msgspec.Struct, frozen=True, tag=True):
    number: int  # of this cut among those of the group
    since: int | None  # a mark


class Settle(msgspec.Struct, frozen=True, tag=True):
    number: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    pass


Command = Start | Read | Learn | Publish | Mark | Changes | Settle | Stop
_commands = msgspec.msgpack.Decoder(Command)
_letters = msgspec.msgpack.Decoder(list[tuple[str, bytes, bytes | None, int | None]])
MakeTrainer = Callable[[str, Artefact | None], Trainer]  # of a lineage, and a state to go on from


def _nobody_told(
    _trainer: Trainer, _records: Sequence[Record], _letters: Sequence[Append], _now_s: float
) -> None:
    pass


class _Rank:
    """What leader and members do alike."""

    def __init__(
        self,
        exchange: Exchange,
        log: Log,
        make: MakeTrainer,
        cuts: Path,
        versions: VersionStore,
    ) -> None:
        self._exchange = exchange
        self._make = make
        self._cuts = cuts
        self._versions = versions
        self._ahead = ReadAhead(log)
        self._there: dict[Place, Record] = {}  # what was read of this rank's, and not learnt
        self._lineage = ""
        self._marks: dict[int, Clocks] = {}
        self.trainer: Trainer

    def close(self) -> None:
        """Lets go of the log and of the others, who notice if they still count on this rank."""
        self._ahead.close()
        self._exchange.leave()

    def _read(self, command: Read) -> list[list[Place]]:
        """Which records the ranks have now, by rank."""
        own = {
            TopicPartition(SAMPLES, partition): offset
            for partition, offset in command.positions
            if partition % self._exchange.size == self._exchange.rank
        }
        records = self._ahead.take(own, command.limit)
        self._there = {(r.partition, r.offset): r for r in records}
        places = np.array(list(self._there), np.int64).reshape(-1, 2)
        told = [rank.tolist() for (rank,) in self._exchange.share([places])]
        self._exchange.is_idle = not any(told)
        return [[(p, at) for p, at in of_rank] for of_rank in told]

    def _learn(self, command: Learn) -> list[Append]:
        """Common steps; returns the letters of all ranks."""
        places: list[list[Place]] = [[] for _ in range(self._exchange.size)]
        for partition, offset in command.places:
            places[partition % self._exchange.size].append((partition, offset))
        refused, letters = self.trainer.refused, []
        for step in zip_longest(*places):
            mine = step[self._exchange.rank]
            letters += self.trainer.step(None if mine is None else self._there.pop(mine))
        if self.trainer.refused == refused:
            return []
        told = np.frombuffer(msgspec.msgpack.encode([tuple(x) for x in letters]), np.uint8)
        shared = self._exchange.share([told])
        return [Append(*x) for (data,) in shared for x in _letters.decode(data.tobytes())]

    def _mark(self, command: Mark) -> None:
        self._marks[command.number] = self.trainer.mark()

    def _changes(self, command: Changes) -> Artefact:
        if command.since is None:
            return self.trainer.snapshot()
        return self.trainer.changes(self._marks[command.since])

    def _settle(self, command: Settle) -> None:
        self.trainer.settle(self._marks[command.number])
        self._marks = {n: mark for n, mark in self._marks.items() if n >= command.number}

    def _part(self, command: Changes, rank: int) -> Path:
        # Named like a cut that is being written: what a dying group leaves is tidied up.
        return self._cuts / f".cut-part-{self._lineage}-{command.number}-{rank}"


class Leader(_Rank):
    """Rank 0, as the step that a `Loop` runs: give it `build` and `read`; `stop` it, `close` it."""

    def __init__(
        self,
        exchange: Exchange,
        log: Log,
        make: MakeTrainer,
        cuts: Path,
        versions: VersionStore,
        config: GroupConfig,
    ) -> None:
        super().__init__(exchange, log, make, cuts, versions)
        self._config = config
        self._number = 0  # of marks and cuts

    def build(self, state: Artefact | None) -> Leader:
        """Makes every rank's trainer."""
        self._lineage = new_lineage()
        self._tell(Start(self._lineage, _steps(state)))
        self.trainer = self._make(self._lineage, state)
        return self

    def read(self, positions: Positions, limit: int, timeout_s: float) -> list[Record]:
        """The next records of every rank, up to `limit` of each; others' without their values."""
        command = Read([(place.partition, at) for place, at in positions.items()], limit)
        deadline = time.monotonic() + timeout_s
        while True:
            self._tell(command)
            others = self._read(command)[1:]
            found = [*self._there.values()]
            found += [
                Record(SAMPLES, *place, None, b"", 0) for places in others for place in places
            ]
            if found or time.monotonic() > deadline:
                return found
            time.sleep(_POLL_S)

    def on_batch(self, records: Sequence[Record]) -> list[Append]:
        command = Learn([(r.partition, r.offset) for r in records])
        self._tell(command)
        return self._learn(command)

    def on_time(self, now_us: int) -> list[Version]:
        if not self.trainer.is_due(now_us):
            return []
        self._tell(Publish(now_us))
        return [
            replace(version, parts=self._parts(partial(self._versions.part_path, version.info)))
            for version in self.trainer.on_time(now_us)
        ]

    def snapshot(self) -> Artefact:
        return self._cut(None)

    def mark(self) -> int:
        self._number += 1
        command = Mark(self._number)
        self._tell(command)
        self._mark(command)
        return self._number

    def changes(self, since: int) -> Artefact:
        return self._cut(since)

    def settle(self, mark: int) -> None:
        command = Settle(mark)
        self._tell(command)
        self._settle(command)

    def stop(self) -> None:
        """Lets the members go."""
        self._tell(Stop())

    def _tell(self, command: Command) -> None:
        self._exchange.share([np.frombuffer(msgspec.msgpack.encode(command), np.uint8)])

    def _cut(self, since: int | None) -> Artefact:
        self._number += 1
        command = Changes(self._number, since)
        self._tell(command)
        parts = self._parts(partial(self._part, command))
        return replace(self._changes(command), parts=parts)

    def _parts(self, path: Callable[[int], Path]) -> list[Part]:
        within_s = self._config.answer_within_s
        ranks = range(1, self._exchange.size)
        return [_Answer(path(rank), f"rank {rank} of the trainer", within_s) for rank in ranks]


class _Answer(Part):
    """A part is an answer like any other: a rank from which none comes is lost."""

    def wait(self, is_there: Callable[[], bool], every_s: float = 0.002) -> None:
        try:
            super().wait(is_there, every_s)
        except ArtefactError as error:
            raise PeerLost(str(error)) from error


class Led:
    """The leader's loop; when that ends, so do the members."""

    def __init__(self, loop: Loop[Leader], leader: Leader) -> None:
        self.loop = loop
        self._leader = leader

    def run(self, stopping: threading.Event) -> None:
        """As `Loop.run`."""
        try:
            self.loop.run(stopping)
            self._leader.stop()
        finally:
            self._leader.close()


class Member(_Rank):
    """A rank that does what the leader says; `told` is told of what it has learnt."""

    def __init__(
        self,
        exchange: Exchange,
        log: Log,
        make: MakeTrainer,
        cuts: Path,
        versions: VersionStore,
        told: Callable[[Trainer, Sequence[Record], Sequence[Append], float], None] = _nobody_told,
    ) -> None:
        super().__init__(exchange, log, make, cuts, versions)
        self._told = told
        self._writer = ThreadPoolExecutor(1, "cuts")
        self._written: Future[int] | None = None

    def run(self, _: threading.Event | None = None) -> None:
        """Returns when the leader says so, whoever else might ask for it.

        Raises:
            PeerLost: another rank died, or was silent for too long.
            ArtefactError: a part of a cut or of a version cannot be written.
        """
        try:
            while not isinstance(command := self._hear(), Stop):
                self._do(command)
                self._check_written()
        finally:
            self.close()
            self._writer.shutdown()
            self._check_written()  # the others may be lost because they waited for it in vain

    def _hear(self) -> Command:
        told = self._exchange.share([np.empty(0, np.uint8)])
        command: Command = _commands.decode(told[0][0].tobytes())
        return command

    def _do(self, command: Command) -> None:
        match command:
            case Start():
                self._start(command)
            case Read():
                self._read(command)
            case Learn():
                records = [self._there[place] for place in command.places if place in self._there]
                letters = self._learn(command)
                self._told(self.trainer, records, letters, time.time())
            case Publish():
                for version in self.trainer.on_time(command.now_us):
                    rank = self._exchange.rank
                    self._versions.write_part(version.info, rank, version.shards)
            case Mark():
                self._mark(command)
            case Changes():
                state, path = self._changes(command), self._part(command, self._exchange.rank)
                self._written = self._writer.submit(write_artefact, path, {}, state.shards)
            case Settle():
                self._settle(command)

    def _start(self, command: Start) -> None:
        state, _ = CutDirectory(self._cuts).newest()
        if _steps(state) != command.steps:
            raise ArtefactError(
                f"rank {self._exchange.rank} finds another cut in {self._cuts} than the leader, of"
                f" {_steps(state)} steps instead of {command.steps}: all ranks must see the same"
                " directory"
            )
        self._lineage = command.lineage
        self.trainer = self._make(self._lineage, state)

    def _check_written(self) -> None:
        if self._written is not None and self._written.done():
            self._written.result()


def _steps(state: Artefact | None) -> int:
    return 0 if state is None else int(state.meta["steps"])
