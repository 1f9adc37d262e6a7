"""Versions: a model on its way to the replicas, as a snapshot and then deltas of touched rows.

Rows are absolute values, so applying one twice changes nothing. A version is written as an
artefact first and announced on the topic `versions` last, in the transaction that commits the
samples it has learnt.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from streaming.artefact import Part, read_artefact, write_artefact
from streaming.log import VERSIONS, Append, Record

_RANK = re.compile(r"@\d+")  # in the names of shards that a rank other than 0 has written


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """Which version this is. `base` is the number it continues, None for a snapshot.

    `lineage` is one incarnation of the trainer: numbers are only comparable inside it.
    `watermark_us` is the newest event time learnt, None before the first sample.
    `learnt_logged_us` is when the event of the newest sample reached the log; None in the first
    version of a lineage, which may have learnt it long ago.
    """

    model: str
    lineage: str
    number: int
    base: int | None
    watermark_us: int | None
    learnt_logged_us: int | None
    step: int
    options: dict[str, Any]
    metrics: dict[str, float]

    @property
    def name(self) -> str:
        return f"{self.model}/{self.lineage}/{self.number}"


@dataclass(frozen=True, slots=True)
class Version:
    """A version and its shards: `table-<name>` and `vectors` (id, row), `dense`.

    A delta also has `table-<name>.gone` (id): rows that are no more, unless they are among its own.
    Of a group, `parts` have what the other ranks own; their shards are called `<name>@<rank>`.
    """

    info: VersionInfo
    shards: Mapping[str, pa.Table]
    parts: Sequence[Part] = ()


def new_lineage() -> str:
    """A name for one incarnation of a trainer, such as `20261121T101502-9f3a`."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"


class VersionStore:
    """Versions in a directory, `<model>/<lineage>/<number>`; old chains are removed."""

    def __init__(self, root: Path, snapshots_kept: int = 2) -> None:
        self._root = root
        self._snapshots_kept = snapshots_kept
        self._snapshots: list[VersionInfo] = []

    def execute(self, outputs: Sequence[Version | Append]) -> list[Append]:
        """Writes versions durably; in their place gives the announcements to be appended."""
        return [self._publish(o) if isinstance(o, Version) else o for o in outputs]

    def read(self, info: VersionInfo) -> Version:
        """The version with every checksum verified.

        Raises:
            ArtefactCorrupt: it is gone, incomplete or not what was written.
        """
        artefact = read_artefact(self._path(info))
        ranks: dict[str, list[pa.Table]] = {}
        for name, table in artefact.shards.items():
            ranks.setdefault(_RANK.sub("", name), []).append(table)
        shards = {name: pa.concat_tables(tables) for name, tables in ranks.items()}
        return Version(VersionInfo(**artefact.meta), shards)

    def write_part(self, info: VersionInfo, rank: int, shards: Mapping[str, pa.Table]) -> None:
        """Writes what a rank owns of a version, for rank 0 to publish it all."""
        path = self.part_path(info, rank)
        shutil.rmtree(path, ignore_errors=True)
        write_artefact(path, {}, shards)

    def part_path(self, info: VersionInfo, rank: int) -> Path:
        """Where `write_part` writes."""
        return self._path(info).with_name(f".part-{info.number}-{rank}")

    def _publish(self, version: Version) -> Append:
        path = self._path(version.info)
        shutil.rmtree(path, ignore_errors=True)  # what an execution cut short left behind
        size = write_artefact(path, asdict(version.info), version.shards, version.parts)
        if version.info.base is None:
            self._retire(version.info)
        announcement = json.dumps({**asdict(version.info), "bytes": size})
        return Append(VERSIONS, announcement.encode(), version.info.model.encode())

    def _retire(self, snapshot: VersionInfo) -> None:
        """Removes what no replica needs: all before the oldest snapshot that is kept."""
        if snapshot.name in {s.name for s in self._snapshots}:
            return  # executed once more
        self._snapshots = [*self._snapshots, snapshot][-self._snapshots_kept :]
        oldest = self._snapshots[0]
        for lineage in (self._root / snapshot.model).iterdir():
            if lineage.name not in {s.lineage for s in self._snapshots}:
                # Another incarnation's: a replica may still be reading its way through it, so
                # it goes only once this incarnation has a second snapshot.
                if len(self._snapshots) == self._snapshots_kept:
                    shutil.rmtree(lineage, ignore_errors=True)
            elif lineage.name == oldest.lineage:
                for path in lineage.iterdir():
                    if path.name.isdigit() and int(path.name) < oldest.number:
                        shutil.rmtree(path, ignore_errors=True)

    def _path(self, info: VersionInfo) -> Path:
        return self._root / info.model / info.lineage / str(info.number)


def read_announcement(record: Record) -> VersionInfo:
    """The version that a record of `versions` announces."""
    announced = json.loads(record.value)
    announced.pop("bytes", None)
    return VersionInfo(**announced)
