"""Versions: a model on its way to the replicas, as a snapshot and then deltas of touched rows.

Now and then there is a snapshot beside the delta, of the same number: a replica that has what went
before takes the delta, one that starts, or has missed something, the snapshot, and both have the
same rows then. Rows are absolute values, so applying one twice changes nothing.

A version is written to a store first (`trainers.version_store`) and announced on the topic
`versions` last, in the transaction that commits the samples it has learnt.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from streaming.artefact import Part
from streaming.log import VERSIONS, Append, Record

WHOLE = ".whole"  # at the end of the name of a snapshot's artefact that stands beside a delta


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """Which version this is. `base` is the number it continues, None for a snapshot.

    `model` is what the model is called, and `kind` the registered one that it is of, where that
    is called otherwise: several of a kind may run side by side.
    `lineage` is one incarnation of the trainer: numbers are only comparable inside it.
    `watermark_us` is the newest event time learnt, None before the first sample.
    `learnt_logged_us` is when the event of the newest sample reached the log; None in the first
    version of a lineage, which may have learnt it long ago.

    `held` says why replicas must not serve it, and `last_good` names the one that they are to stay
    at, or to go back to; None if there is none. Where the gate only watches, `suspect` is what it
    would have said.
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
    held: str | None = None
    last_good: str | None = None
    suspect: str | None = None
    kind: str | None = None

    @property
    def name(self) -> str:
        """What the version is called, whichever way a replica comes to it."""
        return f"{self.model}/{self.lineage}/{self.number}"

    @property
    def artefact(self) -> str:
        """What it is called in the store: `.../200`, and `.../200.whole` the snapshot beside it."""
        beside_a_delta = self.base is None and self.number > 0
        return self.name + WHOLE if beside_a_delta else self.name


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


def announcement(info: VersionInfo, size: int) -> Append:
    """The record that says a version of so many bytes is there."""
    value = json.dumps({**asdict(info), "bytes": size})
    return Append(VERSIONS, value.encode(), info.model.encode())


def read_announcement(record: Record | Append) -> VersionInfo:
    """The version that a record of `versions` announces, which is no doorbell."""
    announced = json.loads(record.value)
    announced.pop("bytes", None)
    return VersionInfo(**announced)


def doorbell(model: str) -> Append:
    """The record that says: look at what the store holds replicas of the model at.

    It says no more than that, so that one that is lost or comes twice does no harm.
    """
    return Append(VERSIONS, json.dumps({"control": True, "model": model}).encode(), model.encode())


def is_about(record: Record, model: str | None) -> bool:
    """Whether a record of `versions` is about a model; None is any."""
    return model is None or record.key == model.encode()


def is_doorbell(record: Record) -> bool:
    """Whether a record of `versions` announces no version."""
    return bool(json.loads(record.value).get("control"))
