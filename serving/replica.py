"""A replica: a model that is read all the time while newer versions are laid over it.

Two copies of the model take turns (left-right; Ramalhete and Correia 2015). Requests read the one
in front; a version is laid over the one behind, the two change places in one assignment, and when
the last reader of the old one has left, it gets the version too. So a request reads one whole
version from start to end, no reader ever waits, and applying costs in proportion to the rows of the
version. A reader that does not leave keeps the copy that it reads, and another one is made.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic
from weakref import WeakSet

import torch
from pydantic import PositiveFloat
from typing_extensions import TypeVar  # its default is of Python 3.13

from serving.index import IndexConfig
from serving.served import Changes, Served, Unfit
from serving.served_model import Asked, ServedModel
from serving.served_ranker import ServedRanker
from streaming.errors import ConfigError
from trainers.versions import Version, VersionInfo

__all__ = ["Applied", "Asked", "Replica", "ReplicaConfig", "ServedModel", "ServedRanker"]
S = TypeVar("S", bound=Served, default=ServedModel)
logger = logging.getLogger(__name__)
_MOST_LEFT = 2  # copies that were left to readers; then it is waited for one of these


class Applied(StrEnum):
    """What became of a version that a replica was given."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"  # it was there already
    GAP = "gap"  # it continues a version that is not the one in front
    STALE = "stale"  # a new chain that has learnt less than what was already served
    REFUSED = "refused"  # it would answer with nonsense, or not at all: see `Replica.refusal`


@dataclass(frozen=True)
class ReplicaConfig:
    """How versions are kept.

    Tables and towers lie on a `device` of torch's, the `index` of the items in memory. A copy that
    is still being read after `patience_s` is left to who reads it.
    """

    device: str = "cpu"
    index: IndexConfig = field(default_factory=IndexConfig)
    patience_s: PositiveFloat = 5.0


class _Side(Generic[S]):
    """A copy and the number of requests that are reading it."""

    def __init__(self, served: S) -> None:
        self.served = served
        self.readers = 0


class Replica(Generic[S]):
    """Takes versions in, gives a whole version to whoever reads.

    There are two copies of the model; while a snapshot is loaded, one of the old version and one
    of the new; and beside these the few that are left to readers.

    `model` is what its model is called; only recipes with several need to say it. What a version
    becomes `make` says; a retriever if nothing is said.

    Raises:
        ConfigError: the device is not there.
    """

    def __init__(
        self,
        config: ReplicaConfig | None = None,
        model: str = "",
        make: Callable[[VersionInfo, ReplicaConfig], S] | None = None,
    ) -> None:
        self.model = model
        self._config = config or ReplicaConfig()
        self._make: Callable[[VersionInfo, ReplicaConfig], Any] = make or retriever
        self.refusal = ""  # why the last version that was refused was
        self._front: _Side[S] | None = None
        self._back: _Side[S] | None = None  # None while it is not whole: it is made when needed
        self._left = WeakSet[_Side[S]]()
        self._taking = threading.Lock()
        self._changed = threading.Condition()  # guards the numbers of readers, and which is front
        _check_device(self._config.device)

    @property
    def info(self) -> VersionInfo | None:
        """The version in front; None before the first."""
        front = self._front
        return None if front is None else front.served.info

    def take(self, version: Version, *, back: bool = False) -> Applied:
        """Makes the version the one that is read, if it continues what is there or replaces it.

        With `back` a snapshot is taken though it is older than what is there. Whatever it answers
        and raises: what is read is one whole version.
        """
        with self._taking:
            passed_over = self._pass_over(version.info, back)
            if passed_over is not None:
                return passed_over
            try:
                changes = Changes.of(version)
                if version.info.base is None:
                    self._load(changes)
                else:
                    self._apply(changes)
            except (Unfit, ConfigError) as error:
                self.refusal = (
                    f"version {version.info.name} is not served, what was served before is until a"
                    f" good snapshot comes: {error}"
                )
                return Applied.REFUSED
            return Applied.APPLIED

    @contextmanager
    def reading(self) -> Iterator[S | None]:
        """One immutable version for as long as the block lasts; None before the first."""
        with self._changed:
            side = self._front
            if side is not None:
                side.readers += 1
        try:
            yield None if side is None else side.served
        finally:
            if side is not None:
                with self._changed:
                    side.readers -= 1
                    self._changed.notify_all()

    def _pass_over(self, info: VersionInfo, back: bool) -> Applied | None:
        """Why a version is not to be taken; None if it is."""
        served = self.info
        if served is None:
            return None if info.base is None else Applied.GAP
        same, older = info.lineage == served.lineage, info.number < served.number
        if same and (info.number == served.number or (older and not (back and info.base is None))):
            return Applied.DUPLICATE
        if info.base is not None:
            return None if same and info.base == served.number else Applied.GAP
        behind = (info.watermark_us or 0) < (served.watermark_us or 0)
        return Applied.STALE if behind and not back else None

    def _load(self, snapshot: Changes) -> None:
        self._wait_for_room()
        served: S = self._make(snapshot.info, self._config)
        served.check(snapshot)
        self._back = None  # its room is needed
        served.lay(snapshot)
        served.warm()
        self._swap(_Side(served))
        self._back = _Side(served.twin())

    def _apply(self, delta: Changes) -> None:
        front = self._front
        if front is None:
            raise RuntimeError("a delta needs a version to be laid over")
        back = self._back or self._another(front)
        back.served.check(delta)
        self._back = None  # it is not whole until it has the delta, and nor is the other
        back.served.lay(delta)
        back.served.probe()
        self._swap(back)
        if self._free(front):
            front.served.lay(delta)
            self._back = front

    def _another(self, front: _Side[S]) -> _Side[S]:
        self._wait_for_room()
        return _Side(front.served.twin())

    def _swap(self, side: _Side[S]) -> None:
        with self._changed:
            old, self._front = self._front, side
            if old is not None:
                self._left.add(old)

    def _free(self, side: _Side[S]) -> bool:
        """Waits until its last reader has left; whether that was in good time."""
        patience_s = self._config.patience_s
        with self._changed:
            free = self._changed.wait_for(lambda: side.readers == 0, patience_s)
        if free:
            self._left.discard(side)
        else:
            logger.warning(
                "version %s is still being read after %g s: that copy is left to its readers",
                side.served.info.name, patience_s, extra={"version": side.served.info.name},
            )  # fmt: skip
        return free

    def _wait_for_room(self) -> None:
        with self._changed:
            if not self._changed.wait_for(self._has_room, self._config.patience_s):
                logger.warning(
                    "%d copies of the model are still being read by requests that do not end: no"
                    " newer version is taken before one of them does",
                    _MOST_LEFT,
                )
                self._changed.wait_for(self._has_room)

    def _has_room(self) -> bool:
        return sum(side.readers > 0 for side in self._left) < _MOST_LEFT


def retriever(info: VersionInfo, config: ReplicaConfig) -> ServedModel:
    """A version of a retriever."""
    return ServedModel(info, config.device, config.index)


def ranker(info: VersionInfo, config: ReplicaConfig) -> ServedRanker:
    """A version of a ranker."""
    return ServedRanker(info, config.device)


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(f"device = {device!r} cannot be used here ({why}): try 'cpu'") from error
