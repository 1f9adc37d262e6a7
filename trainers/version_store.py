"""The version store: `<model>/<lineage>/<number>`, on this machine or in an object store.

A snapshot that stands beside a delta is `<number>.whole`. What is written whole is announced, and
what no replica needs any more is removed. Beside the lineages of a model stands `control.json`: the
version at which its replicas are held, if any.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from streaming.artefact import Shard, total_size
from streaming.artefact_store import Artefacts, LocalArtefacts, StoreAway
from streaming.errors import ArtefactCorrupt, ArtefactError
from streaming.log import Append
from trainers.compaction import compact
from trainers.versions import WHOLE, Version, VersionInfo, announcement

logger = logging.getLogger(__name__)
T = TypeVar("T")
_RANK = re.compile(r"@\d+")  # in the names of shards that a rank other than 0 has written
_CONTROL = "control.json"
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 30.0
_HOUR_US = 3_600_000_000
SNAPSHOTS_KEPT = 2  # of a lineage, the newest, with all that follows them


@dataclass(frozen=True, slots=True)
class Stored:
    """What the store knows of a version without reading its shards.

    `written_us` is by the clock of the store: the times of versions that machines with different
    clocks have written can be compared.
    """

    info: VersionInfo
    shards: Mapping[str, Shard]
    size: int  # in bytes
    written_us: int

    @property
    def rows(self) -> int | None:
        """Rows and tombstones; None if an older release wrote it."""
        counts = [s.rows for name, s in self.shards.items() if name != "dense"]
        return None if None in counts else sum(count or 0 for count in counts)


class VersionStore:
    """Versions of models; old chains are removed, and each model's replicas can be held.

    The `snapshots_kept` newest snapshots stay with all that follows them, and the first snapshot
    of each of the newest `hours_kept` hours, to go back to. One trainer at a time writes the
    versions of a model.

    Where the store is away, versions wait: the deltas are compacted into one, a snapshot with those
    that follow it, and both are tried again later, so that training goes on and no update is lost.
    Those that may not wait are an error, as are those of a group, of which other ranks hold parts.
    """

    def __init__(
        self,
        place: Path | Artefacts,
        snapshots_kept: int = SNAPSHOTS_KEPT,
        hours_kept: int = 0,
        *,
        may_wait: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._artefacts = LocalArtefacts(place) if isinstance(place, Path) else place
        self._may_wait = may_wait
        self._clock = clock
        self._retention = _Retention(self, self._artefacts, snapshots_kept, hours_kept)
        self._late: list[Version] = []  # not written yet: a delta and a snapshot, in this order
        self._delay_s = 0.0
        self._again_at = 0.0

    # -- publishing ------------------------------------------------------------------------

    def execute(self, outputs: Sequence[Version | Append]) -> list[Append]:
        """Writes versions durably; in their place gives the announcements to be appended.

        What waits for a store that was away is tried again, also where nothing is new.

        Raises:
            ArtefactError: there is no space, or no right to write.
            StoreAway: the store is, and the version may not wait.
        """
        if any(isinstance(output, Version) and output.info.base is None for output in outputs):
            self._late = [v for v in self._late if v.info.base is not None]  # a newer one comes
        appends: list[Append] = []
        for output in outputs:
            if isinstance(output, Version):
                self._join(output)
                appends += self._publish()
            else:
                appends.append(output)
        return appends + self._publish()

    def write_part(self, info: VersionInfo, rank: int, shards: Mapping[str, pa.Table]) -> None:
        """Writes what a rank owns of a version, for rank 0 to publish it all."""
        name = _part_name(info, rank)
        _patiently(partial(self._artefacts.write, name, {}, shards))

    def part_path(self, info: VersionInfo, rank: int) -> Path:
        """Where `write_part` writes."""
        return self._artefacts.path(_part_name(info, rank))

    def _join(self, version: Version) -> None:
        """Lets a version wait with those that do."""
        if version.info.base is None:
            # A delta that leads to any other version leads to nothing that is wanted any more.
            same = [v for v in self._late if v.info.name == version.info.name]
            self._late = [*same, version]
            return
        late = [compact(v, version) for v in self._late]
        has_delta = bool(late) and late[0].info.base is not None
        self._late = late if has_delta else [version, *late]

    def _publish(self) -> list[Append]:
        """Writes what waits, if it is time to; gives the announcements of what is written."""
        appends: list[Append] = []
        while self._late and self._clock() >= self._again_at:
            version = self._late[0]
            may_wait = self._may_wait and not version.parts
            try:
                write = partial(self._write, version)
                size = write() if may_wait else _patiently(write)
            except StoreAway as error:
                if not may_wait:
                    raise
                self._put_off(error)
                break
            appends.append(announcement(version.info, size))
            _tell_of(version.info, size)
            self._late = self._late[1:]
            self._retention.written(version.info)
        if self._delay_s and not self._late:
            logger.warning("the store of versions answers again, none waits any more")
            self._delay_s = 0.0
        return appends

    def _write(self, version: Version) -> int:
        meta = asdict(version.info)
        return self._artefacts.write(version.info.artefact, meta, version.shards, version.parts)

    def _put_off(self, error: StoreAway) -> None:
        if not self._delay_s:
            logger.error(
                "versions wait and are compacted into one, training goes on: %s; see to the store",
                error,
            )
        self._delay_s = min(_LONGEST_DELAY_S, 2 * self._delay_s or _FIRST_DELAY_S)
        self._again_at = self._clock() + self._delay_s

    # -- reading ---------------------------------------------------------------------------

    def read(self, info: VersionInfo) -> Version:
        """The version with every checksum verified.

        Raises:
            ArtefactCorrupt: it is gone, incomplete or not what was written.
            StoreAway: that cannot be said now.
        """
        artefact = self._artefacts.read(info.artefact)
        ranks: dict[str, list[pa.Table]] = {}
        for name, table in artefact.shards.items():
            ranks.setdefault(_RANK.sub("", name), []).append(table)
        shards = {name: pa.concat_tables(tables) for name, tables in ranks.items()}
        return Version(VersionInfo(**artefact.meta), shards)

    def models(self) -> list[str]:
        """The models that have versions here."""
        return [entry.name for entry in self._artefacts.entries("") if entry.changed_us is None]

    def artefacts(self, model: str) -> list[str]:
        """The artefacts of a model's versions, two of a version that has a snapshot beside its
        delta; a manifest need not be there.
        """
        return [
            f"{model}/{lineage}/{entry}"
            for lineage in self.lineages(model)
            for entry in self.entries(model, lineage)
        ]

    def lineages(self, model: str) -> list[str]:
        """The lineages of a model, in no order that means anything."""
        found = self._artefacts.entries(model)
        return [entry.name for entry in found if entry.changed_us is None]

    def entries(self, model: str, lineage: str) -> dict[str, int]:
        """The artefacts of a lineage's versions: what each is called in it, and its number."""
        found = self._artefacts.entries(f"{model}/{lineage}")
        numbers = {entry.name: _number(entry.name) for entry in found}
        entries = {name: number for name, number in numbers.items() if number is not None}
        return dict(sorted(entries.items(), key=lambda entry: (entry[1], entry[0])))

    def stored(self, artefact: str) -> Stored:
        """What the store knows of one of `artefacts`.

        Raises:
            ArtefactCorrupt: it is not there, or its manifest is not what was written.
        """
        manifest = self._artefacts.manifest(artefact)
        return Stored(
            VersionInfo(**manifest.meta),
            manifest.shards,
            total_size(manifest.shards) + manifest.size,
            self._artefacts.changed_us(artefact) or 0,
        )

    def chain(self, name: str) -> list[VersionInfo]:
        """A version and what it stands on: the newest snapshot, the deltas that follow, itself.

        Raises:
            ArtefactCorrupt: a link is not there, or its manifest is not what was written.
        """
        links: list[VersionInfo] = []
        folder, _, number = name.rpartition("/")
        there = {entry.name for entry in self._artefacts.entries(folder)}
        while True:
            links.append(self._link(f"{folder}/{number}", f"{number}{WHOLE}" in there))
            base = links[-1].base
            if base is None:
                return links[::-1]
            if base >= links[-1].number:
                raise ArtefactCorrupt(f"{name} says that it continues {base}, which came after it")
            number = str(base)

    def _link(self, name: str, has_whole: bool) -> VersionInfo:
        """The snapshot of a version, where that can be read; else its delta."""
        if has_whole:
            try:
                return VersionInfo(**self._artefacts.manifest(name + WHOLE).meta)
            except ArtefactCorrupt as error:
                logger.warning("going on without a snapshot: %s", error)
        return VersionInfo(**self._artefacts.manifest(name).meta)

    def last_good(self, model: str) -> str | None:
        """The newest version that is not held back; the one before it, as it says, if it is.

        None if there is none, or it cannot be read.
        """
        try:
            found = [self._newest_of(model, lineage) for lineage in self.lineages(model)]
        except StoreAway:
            return None
        there = [stored for stored in found if stored is not None]
        if not there:
            return None
        newest = max(there, key=lambda stored: stored.written_us).info
        return newest.name if newest.held is None else newest.last_good

    def _newest_of(self, model: str, lineage: str) -> Stored | None:
        for entry in reversed(self.entries(model, lineage)):
            try:
                return self.stored(f"{model}/{lineage}/{entry}")
            except ArtefactCorrupt:  # half written
                continue
        return None

    # -- control ---------------------------------------------------------------------------

    def pinned(self, model: str) -> str | None:
        """The name of the version at which replicas of a model are held; None if they follow.

        Raises:
            ArtefactError: the file that says so cannot be understood.
            StoreAway: it cannot be read now.
        """
        data = self._artefacts.get(f"{model}/{_CONTROL}")
        if data is None:
            return None
        try:
            pinned: str | None = json.loads(data)["pinned"]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtefactError(
                f"{self._artefacts.path(f'{model}/{_CONTROL}')} does not say what is pinned:"
                " `headrace versions unpin` writes it anew"
            ) from error
        return pinned

    def pin(self, model: str, name: str | None) -> None:
        """Holds replicas of a model at a version, of now or of before; None lets them follow.

        They act on it when they next look: `trainers.versions.doorbell` makes them.
        """
        pinned = name and name.removesuffix(WHOLE)
        said = {"pinned": pinned, "changed_us": time.time_ns() // 1000}
        self._artefacts.put(f"{model}/{_CONTROL}", json.dumps(said).encode())

    def remove_lineage(self, model: str, lineage: str) -> None:
        """Removes the versions of a lineage, but for what a pinned one stands on."""
        self._retention.remove_lineage(model, lineage)


class _Retention:
    """What is removed when a new snapshot is durable: all that nobody can need any more."""

    def __init__(
        self, store: VersionStore, artefacts: Artefacts, snapshots_kept: int, hours_kept: int
    ) -> None:
        self._store = store
        self._artefacts = artefacts
        self._snapshots_kept = snapshots_kept
        self._hours_kept = hours_kept
        self._newest: list[VersionInfo] = []  # snapshots of this process, the last one newest
        self._hours: dict[str, dict[int, str]] = {}  # of a model: hour -> its first snapshot
        # Of a model: the version at which the gate holds replicas, and how many good snapshots must
        # come before nobody goes back there any more.
        self._good: dict[str, tuple[str, int]] = {}
        self._chains: dict[str, frozenset[str]] = {}  # of versions that are held at
        # Removing takes as many calls as there are versions: far away, training need not wait.
        far = not isinstance(artefacts, LocalArtefacts)
        self._beside = ThreadPoolExecutor(1, "retention") if far else None
        self._removing: Future[None] | None = None

    def written(self, info: VersionInfo) -> None:
        """A version is durable: what it makes useless goes."""
        self._note_good(info)
        if info.base is not None or info.artefact in {s.artefact for s in self._newest}:
            return  # executed once more
        self._newest = [*self._newest, info][-self._snapshots_kept :]
        if self._beside is None:
            self._retire(info)
        elif self._removing is None or self._removing.done():
            self._removing = self._beside.submit(self._retire, info)

    def remove_lineage(self, model: str, lineage: str) -> None:
        try:
            self._remove(model, lineage, self._needed(model))
        except ArtefactError as error:
            logger.warning("old versions are not removed yet: %s", error)

    def _retire(self, snapshot: VersionInfo) -> None:
        try:
            if snapshot.model not in self._hours:
                self._tidy(snapshot)
            self._note_hour(snapshot.artefact)
            self._remove_old(snapshot.model, self._needed(snapshot.model))
        except ArtefactError as error:  # the next snapshot will
            logger.warning("old versions are not removed yet: %s", error)

    def _remove_old(self, model: str, needed: Collection[str]) -> None:
        oldest, own = self._newest[0], {s.lineage for s in self._newest}
        for lineage in self._store.lineages(model):
            if lineage == oldest.lineage:
                self._remove(model, lineage, needed, below=oldest.number)
            elif lineage not in own and len(self._newest) == self._snapshots_kept:
                # Another incarnation's: a replica may still be reading its way through it, so it
                # goes only once this incarnation has a second snapshot.
                self._remove(model, lineage, needed)

    def _remove(
        self, model: str, lineage: str, needed: Collection[str], below: int | None = None
    ) -> None:
        folder = f"{model}/{lineage}"
        if below is None and not any(name.startswith(f"{folder}/") for name in needed):
            self._artefacts.remove(folder)
            return
        for entry, number in self._store.entries(model, lineage).items():
            if f"{folder}/{entry}" not in needed and (below is None or number < below):
                self._artefacts.remove(f"{folder}/{entry}")

    def _needed(self, model: str) -> set[str]:
        """The artefacts that stay whatever their age: of the hours, and of the chains of versions
        at which replicas are held, by hand or by the gate.
        """
        held = {self._store.pinned(model), self._good.get(model, (None, 0))[0]}
        self._chains = {name: self._chain(name) for name in held if name is not None}
        return {*self._hours.get(model, {}).values()}.union(*self._chains.values())

    def _note_good(self, info: VersionInfo) -> None:
        name, snapshots = self._good.pop(info.model, (None, 0))
        if info.held is None and info.base is None:
            snapshots -= 1
        if info.last_good is not None and info.last_good != name:
            name, snapshots = info.last_good, self._snapshots_kept
        if name is not None and snapshots > 0:
            self._good[info.model] = name, snapshots

    def _chain(self, name: str) -> frozenset[str]:
        if name in self._chains:
            return self._chains[name]
        return frozenset(link.artefact for link in self._store.chain(name))

    def _note_hour(self, snapshot: str) -> None:
        model = snapshot.partition("/")[0]
        hours = self._hours.setdefault(model, {})
        if self._hours_kept:
            hour = (self._artefacts.changed_us(snapshot) or 0) // _HOUR_US
            hours.setdefault(hour, snapshot)
            newest = sorted(hours)[-self._hours_kept :]
            self._hours[model] = {hour: hours[hour] for hour in newest}

    def _tidy(self, own: VersionInfo) -> None:
        """Removes what earlier incarnations left half written, and notes their snapshots."""
        found: list[tuple[int, str]] = []
        for lineage in self._store.lineages(own.model):
            if lineage == own.lineage:
                continue
            for entry in self._artefacts.entries(f"{own.model}/{lineage}"):
                name = f"{own.model}/{lineage}/{entry.name}"
                try:
                    stored = self._store.stored(name) if _number(entry.name) is not None else None
                except ArtefactCorrupt:
                    stored = None
                if stored is None:
                    self._artefacts.remove(name)
                elif stored.info.base is None:
                    found.append((stored.written_us, name))
        for _, name in sorted(found):
            self._note_hour(name)


def _number(entry: str) -> int | None:
    """The number of the version whose artefact is called so in its lineage; None of all else."""
    number = entry.removesuffix(WHOLE)
    return int(number) if number.isdecimal() else None


def _part_name(info: VersionInfo, rank: int) -> str:
    lineage, _, entry = info.artefact.rpartition("/")
    return f"{lineage}/.part-{entry}-{rank}"


def _tell_of(info: VersionInfo, size: int) -> None:
    # Deltas come ten a second.
    level = logging.INFO if info.base is None else logging.DEBUG
    logger.log(
        level, "version %s is published: %s bytes", info.artefact, f"{size:,}",
        extra={"version": info.name},
    )  # fmt: skip


def _patiently(act: Callable[[], T]) -> T:
    """Does what other ranks wait for: a store that is away may come back."""
    for pause_s in (0.2, 1.0, 5.0):
        try:
            return act()
        except StoreAway as error:
            logger.warning("trying again in %g s: %s", pause_s, error)
            time.sleep(pause_s)
    return act()
