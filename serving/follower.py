"""The follower: tails the topic `versions` and keeps a replica on the newest version.

What it does next is always a *plan*: the chain of known versions that leads furthest from what is
served: the deltas that continue it, or else a newer snapshot and what follows that, for a delta
costs by its rows and a snapshot by those of all. Deltas that the store has removed since, as it
does after some snapshots, are asked for last. What cannot be read, or the replica refuses, is in
no plan; so a gap, a damaged shard and a new lineage are all healed by the same rule, and what is
served goes on being served meanwhile.

Where the store says that replicas are held at a version, the plan is the way to that one; and where
the newest version is held back by the trainer's gate, the way to the last good one. What is held
back is at most passed through, never stayed at.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from serving.replica import Applied, Replica
from streaming.artefact_store import StoreAway
from streaming.errors import ArtefactError
from streaming.log import VERSIONS, Log, Record, TopicPartition
from trainers.announcements import start_of
from trainers.compaction import compact_chain, rows_in
from trainers.version_store import SNAPSHOTS_KEPT, VersionStore
from trainers.versions import Version, VersionInfo, is_about, is_doorbell, read_announcement

logger = logging.getLogger(__name__)
_PLACE = TopicPartition(VERSIONS, 0)
_ROWS_AT_ONCE = 1_000_000
_LOOK_AT_CONTROL_S = 10.0  # should nobody ring
_LONGEST_DELAY_S = 30.0


class _Failure(NamedTuple):
    """How often something could not be read, and when it is worth trying again."""

    times: int = 0
    again_at: float = 0.0

    def once_more(self, now: float) -> _Failure:
        # At once the first time: what was being moved may be there now.
        delay_s = 0.0 if self.times == 0 else min(_LONGEST_DELAY_S, 0.2 * 2.0**self.times)
        return _Failure(self.times + 1, now + delay_s)


class Follower:
    """Keeps a replica on the newest version that can be reached, or on the one it is held at.

    It is that of a `model`; of any, if that is None and only one is announced.
    Of what waits, the deltas are compacted and laid over the replica in one step, of at most about
    `rows_at_once` rows, and a snapshot is laid with all that follows it. Versions are remembered
    for `look_back` offsets; the trainer makes a snapshot at least that often.

    `applied` is told of the newest version in each step, and of the seconds from the beginning of
    its reading; `refused` of one that the replica did not take, and why; `noted` of each that is
    announced.
    """

    def __init__(  # noqa: PLR0913 - the wiring of a thread, done once
        self,
        log: Log,
        store: VersionStore,
        replica: Replica,
        look_back: int,
        applied: Callable[[VersionInfo, float], None] = lambda _info, _seconds: None,
        refused: Callable[[VersionInfo, str], None] = lambda _info, _reason: None,
        noted: Callable[[VersionInfo], None] = lambda _info: None,
        *,
        model: str | None = None,
        rows_at_once: int = _ROWS_AT_ONCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._store = store
        self._replica = replica
        self._look_back = look_back
        self._applied = applied
        self._refused = refused
        self._noted = noted
        self._rows_at_once = rows_at_once
        self._clock = clock
        self._reader = ThreadPoolExecutor(1, "versions")
        self._model = model
        self._position = start_of(log, look_back, model)
        self._known: dict[str, VersionInfo] = {}  # by artefact, in the order of announcement
        self._newest: VersionInfo | None = None
        self._lineages: dict[str, int] = {}  # their places in the order in which they first came
        self._refusals: dict[str, VersionInfo] = {}  # by artefact, as what follows
        self._failures: dict[str, _Failure] = {}
        self._tried: set[str] = set()  # in vain, in this turn
        self._away = _Failure()
        self._pinned: str | None = None
        self._control_known = False
        self._control_due = 0.0
        self._waits = False  # for a snapshot, and has said so

    @property
    def pinned(self) -> str | None:
        """The version at which the store was last found to hold replicas; None if at none."""
        return self._pinned

    @property
    def target(self) -> str | None:
        """The version at which replicas are to stay, by hand or for the gate; None if they follow
        the newest. "" if the gate holds all there are.
        """
        newest = self.newest
        if self._pinned is None and newest is not None and newest.held is not None:
            return newest.last_good or ""
        return self._pinned

    @property
    def newest(self) -> VersionInfo | None:
        """The newest version that was announced, held back or not."""
        return self._newest

    def run(self, stopping: threading.Event) -> None:
        """Follows until told to stop."""
        while not stopping.is_set():
            self.turn(timeout_s=0.2)

    def turn(self, timeout_s: float) -> None:
        """Takes what was announced since the last turn, and what could not be read then."""
        records = self._log.read({_PLACE: self._position}, self._look_back, timeout_s)
        self._note(records)
        now = self._clock()
        due = min([self._control_due, *(f.again_at for f in self._failures.values())])
        if now >= self._away.again_at and (records or self._away.times or now >= due):
            self._tried.clear()
            try:
                self._advance(now)
            except StoreAway as error:
                self._complain(error)

    def _note(self, records: Sequence[Record]) -> None:
        for record in records:
            self._position = record.offset + 1
            if not is_about(record, self._model):
                continue
            if is_doorbell(record):
                self._control_due = 0.0
                continue
            info = read_announcement(record)
            self._known.setdefault(info.artefact, info)
            self._lineages.setdefault(info.lineage, len(self._lineages))
            self._note_newest(info)
            self._noted(info)
        for artefact in list(self._known)[: -self._look_back]:
            del self._known[artefact]
        self._refusals = {
            artefact: info
            for artefact, info in self._refusals.items()
            if artefact in self._known or info.name == self._pinned
        }

    def _note_newest(self, info: VersionInfo) -> None:
        # Set at once: other threads ask for it.
        newest, order = self._newest, self._lineages
        if newest is None or (order[info.lineage], info.number) >= (
            order[newest.lineage],
            newest.number,
        ):
            self._newest = info

    def _advance(self, now: float) -> None:
        self._look_at_control(now)
        if not self._control_known:
            return
        while plan := self._plan(now):
            self._follow(plan)
        if self._away.times:
            logger.warning("the store of versions answers again")
            self._away = _Failure()
        # One that was due and is in no plan any more is of no interest.
        self._failures = {n: f for n, f in self._failures.items() if f.again_at >= now}
        self._tell_of_gap()

    # -- where to go -----------------------------------------------------------------------

    def _look_at_control(self, now: float) -> None:
        served, newest = self._replica.info, next(reversed(self._known.values()), None)
        current = served or newest
        if current is None or now < self._control_due:
            return
        try:
            pinned = self._store.pinned(current.model)
        except StoreAway:
            raise
        except ArtefactError as error:
            logger.warning("replicas are taken not to be held at a version: %s", error)
            pinned = None
        if pinned != self._pinned:
            extra = {"version": pinned} if pinned else {}
            logger.warning("replicas are held at version %s", pinned or "no more", extra=extra)
        self._pinned, self._control_known = pinned, True
        self._control_due = now + _LOOK_AT_CONTROL_S

    def _plan(self, now: float) -> list[VersionInfo]:
        """What is to be applied next; nothing if there is nothing, or no way."""
        target = self.target
        if target is None:
            return self._way_forward(now)
        return self._way_to(target, now) if target else []

    def _way_to(self, name: str, now: float) -> list[VersionInfo]:
        """The way to one version, of now or of before."""
        served = self._replica.info
        if self._is_passed_over(name, now) or (served and served.name == name):
            return []
        if served is not None:
            deltas = _chain(served, _following(self._usable(now)))
            names = [delta.name for delta in deltas]
            if name in names and not self._are_gone(deltas):
                return deltas[: names.index(name) + 1]
        try:
            chain = self._store.chain(name)
        except StoreAway:
            raise
        except ArtefactError as error:
            self._fail(name, error)
            return []
        if any(self._is_passed_over(link.artefact, now) for link in chain):
            return []
        names = [link.name for link in chain]
        return chain[names.index(served.name) + 1 :] if served and served.name in names else chain

    def _way_forward(self, now: float) -> list[VersionInfo]:
        served, usable = self._replica.info, self._usable(now)
        following = _following(usable)
        starts = [i for i in reversed(usable) if i.base is None and self._is_ahead(i, served)]
        plans = [[start, *_chain(start, following)] for start in starts]
        if served is not None:
            deltas = _chain(served, following)
            plans.insert(len(plans) if self._are_gone(deltas) else 0, deltas)
        ways = [way for way in map(_to_a_good_one, plans) if way]
        # Of those that lead equally far it is the first.
        return max(ways, key=lambda p: (self._lineages[p[-1].lineage], p[-1].number), default=[])

    def _are_gone(self, deltas: Sequence[VersionInfo]) -> bool:
        """Whether the store keeps the first of these deltas no more, or not for long."""
        newer = {
            info.number
            for info in self._known.values()
            if deltas
            and info.base is None
            and info.lineage == deltas[0].lineage
            and info.number > deltas[0].number
        }
        return len(newer) >= SNAPSHOTS_KEPT

    def _usable(self, now: float) -> list[VersionInfo]:
        """What is known and not passed over, in the order of announcement."""
        return [i for i in self._known.values() if not self._is_passed_over(i.artefact, now)]

    def _is_ahead(self, snapshot: VersionInfo, served: VersionInfo | None) -> bool:
        """Whether a snapshot may replace what is served: never by what has learnt less."""
        if served is None:
            return True
        if snapshot.lineage == served.lineage:
            return snapshot.number > served.number
        # One of a trainer that the one being served has replaced is a straggler.
        later = self._lineages[snapshot.lineage] > self._lineages.get(served.lineage, -1)
        return later and (snapshot.watermark_us or 0) >= (served.watermark_us or 0)

    def _is_passed_over(self, artefact: str, now: float) -> bool:
        failure = self._failures.get(artefact, _Failure())
        return artefact in self._refusals or artefact in self._tried or now < failure.again_at

    # -- going there -----------------------------------------------------------------------

    def _follow(self, plan: Sequence[VersionInfo]) -> None:
        """Reads a plan and applies it, as far as that goes."""
        # To a version of before, or past some that are held back, one goes in one step, for those
        # between are not wanted.
        held, whole = self._goes_in_one_step(plan), plan[0].base is None
        begun, rows = time.perf_counter(), 0
        links: list[VersionInfo] = []
        versions: list[Version] = []
        for info, reading in self._read_ahead(plan):
            try:
                version = reading.result()
            except StoreAway:
                if not held:
                    self._take(links, versions, begun)
                raise
            except ArtefactError as error:
                self._fail(info.artefact, error)
                if held:
                    return
                break
            links.append(info)
            versions.append(version)
            rows += rows_in(version)
            if rows < self._rows_at_once:
                continue
            if whole or held:
                versions = [compact_chain(versions)]
            elif self._take(links, versions, begun):
                begun, links, versions = time.perf_counter(), [], []
            else:
                return
            rows = 0
        self._take(links, versions, begun)

    def _goes_in_one_step(self, links: Sequence[VersionInfo]) -> bool:
        """Whether nothing between here and the end of these links may be stayed at."""
        return self.target is not None or any(link.held is not None for link in links)

    def _read_ahead(
        self, plan: Sequence[VersionInfo]
    ) -> Iterator[tuple[VersionInfo, Future[Version]]]:
        """Reads one version while the one before is being dealt with."""
        reading: deque[tuple[VersionInfo, Future[Version]]] = deque()
        for info in plan:
            reading.append((info, self._reader.submit(self._store.read, info)))
            if len(reading) > 1:
                yield reading.popleft()
        yield from reading

    def _take(
        self, links: Sequence[VersionInfo], versions: Sequence[Version], begun: float
    ) -> bool:
        """Applies the versions of a chain as one; False if the replica has not got to its end."""
        if not links:
            return True
        try:
            version = compact_chain(versions)
        except ArtefactError as error:
            self._fail(links[-1].artefact, error)
            return False
        held = self._goes_in_one_step(links)
        outcome = self._replica.take(version, back=held and version.info.base is None)
        if outcome is Applied.APPLIED:
            seconds = time.perf_counter() - begun
            self._applied(version.info, seconds)
            self._tell_of(version.info, seconds)
            self._waits = False
            for link in links:
                self._failures.pop(link.artefact, None)
            return True
        if outcome is Applied.REFUSED and len(links) > 1 and not held:
            return self._take_singly(links)  # to find the one that is refused
        self._refuse(links[-1], outcome)
        return False

    def _take_singly(self, links: Sequence[VersionInfo]) -> bool:
        for link in links:
            begun = time.perf_counter()
            try:
                version = self._store.read(link)
            except StoreAway:
                raise
            except ArtefactError as error:
                self._fail(link.artefact, error)
                return False
            if not self._take([link], [version], begun):
                return False
        return True

    def _tell_of(self, info: VersionInfo, seconds: float) -> None:
        # Deltas come ten a second.
        level = logging.INFO if info.base is None else logging.DEBUG
        extra = {"version": info.name}
        logger.log(level, "version %s is served, after %.3f s", info.name, seconds, extra=extra)

    # -- what goes wrong -------------------------------------------------------------------

    def _refuse(self, info: VersionInfo, outcome: Applied) -> None:
        reason = self._replica.refusal if outcome is Applied.REFUSED else f"it is a {outcome}"
        extra = {"version": info.name}
        logger.error("version %s is not served: %s", info.artefact, reason, extra=extra)
        self._refusals[info.artefact] = info
        self._refused(info, reason)

    def _fail(self, artefact: str, error: ArtefactError) -> None:
        failure = self._failures.get(artefact, _Failure())
        if not failure.times:
            extra = {"version": artefact}
            logger.warning("passing over version %s: %s", artefact, error, extra=extra)
        self._failures[artefact] = failure.once_more(self._clock())
        self._tried.add(artefact)

    def _complain(self, error: StoreAway) -> None:
        if not self._away.times:
            logger.error("what is served goes on being served: %s; see to the store", error)
        self._away = self._away.once_more(self._clock())

    def _tell_of_gap(self) -> None:
        """Says once that what was announced cannot be reached."""
        served, newest = self._replica.info, self.newest
        if newest is None or self.target is not None:
            return
        behind = served is None or (
            newest.lineage == served.lineage and newest.number > served.number
        )
        if behind and not self._waits:
            self._waits = True
            logger.warning(
                "version %s cannot be reached yet, waiting for a snapshot", newest.name,
                extra={"version": newest.name},
            )  # fmt: skip


def _to_a_good_one(plan: Sequence[VersionInfo]) -> list[VersionInfo]:
    """A plan as far as something is not held back."""
    good = [n for n, info in enumerate(plan, 1) if info.held is None]
    return list(plan[: good[-1]]) if good else []


def _following(infos: Sequence[VersionInfo]) -> dict[tuple[str, int], VersionInfo]:
    """The deltas by what they continue."""
    return {(i.lineage, i.base): i for i in infos if i.base is not None and i.base < i.number}


def _chain(
    start: VersionInfo, following: Mapping[tuple[str, int], VersionInfo]
) -> list[VersionInfo]:
    """The deltas that continue a version, one after another."""
    chain = [start]
    while link := following.get((chain[-1].lineage, chain[-1].number)):
        chain.append(link)
    return chain[1:]
