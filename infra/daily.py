"""Daily learning: archived days on top of what was learnt before, each row once.

The trainer, its steps and its versions are those of live learning; `streaming.archive_records`
makes the archive's rows the records that they came from. At the end of a day, and now and then
within it, what was done is committed:

1. *step*: records are learnt, one after another;
2. *publish*: at the end of a day, the version is written, as a snapshot and, if it is not the
   first of this process, as a delta;
3. *cut*: the state, how far each day is learnt, and the *notices* that are to follow (the
   announcements of the version, dead letters) become durable together;
4. *notify*: the notices are appended to the log, in one transaction with the number of the cut.

Dying before 3 undoes what came after the last cut: it is learnt again. Dying between 3 and 4
leaves notices that the log has not had, as its number tells: the next start appends them.
"""

from __future__ import annotations

import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from infra.home import DAILY, TRAINER, Home, daily_group
from infra.recipe import Recipe
from streaming.archive import Archive
from streaming.archive_records import ArchivedSamples
from streaming.artefact import Artefact
from streaming.artefact_store import open_artefacts
from streaming.cuts import CutDirectory
from streaming.errors import ArtefactError, LogError
from streaming.log import VERSIONS, Append, Log, TopicPartition
from streaming.metrics import Metrics
from trainers.trainer import Trainer
from trainers.trainer_metrics import TrainerMetrics
from trainers.version_store import VersionStore
from trainers.versions import Version, VersionInfo, new_lineage

_TURN = TopicPartition(VERSIONS, 0)  # its position in the group is the number of the last notices
_LINEAGES_KEPT = 2


class DailyTraining:
    """Learns days of a home's archive with the model of a role; goes on from what the last one,
    however it ended, learnt.

    Cuts are made as the recipe's `trainer_loop` says, and when a day ends or a stop is asked for.
    Versions go out at the end of each day, and with `publish_every_s` also within it. What is
    learnt and published is told by `metrics`.

    `reached` is called with the number of every point of a commit as it gets there; tests use it
    to die on the spot.

    Raises:
        ArtefactError: what was learnt before cannot be read, or does not fit the recipe.
        LogError: the log has no topic `versions`.
    """

    def __init__(  # noqa: PLR0913 - the wiring of a process, done once
        self,
        recipe: Recipe,
        home: Home,
        log: Log,
        role: str = TRAINER,
        *,
        publish_every_s: float | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
        reached: Callable[[int], None] = lambda _: None,
    ) -> None:
        torch.set_num_threads(1)  # the bits of a result must not depend on how many there are
        self.samples = ArchivedSamples(Archive(home.archive))
        self.version: VersionInfo | None = None
        self._log = log
        self._clock = clock
        self._reached = reached
        self._metrics = None if metrics is None else TrainerMetrics(metrics)
        self._lineage = new_lineage()
        self._versions = VersionStore(
            open_artefacts(recipe.versions or home.versions), may_wait=False
        )
        self._cuts = CutDirectory(
            home.cuts(daily_group(role)), recipe.trainer_loop.cuts_kept, recipe.trainer_loop.deltas
        )
        # Every version has a snapshot, and whether it is time for one is decided here.
        self._trainer_config = replace(recipe.trainers[role], publish_every_s=0.0, snapshot_every=1)
        self._durable: Any = None  # the mark of the last cut that this process made
        self._notices: list[Append] = []
        self._lineages: list[str] = []
        self.begun: str | None = None  # the day that was not learnt to its end
        self._group = daily_group(role)
        self._number = _number_in(log, self._group)
        self._publish_within = publish_every_s is not None
        self._commit_every_s = publish_every_s or recipe.trainer_loop.cut_every_s
        self._due_s = clock() + self._commit_every_s
        self.trainer, self.positions = self._recover()

    def learn(
        self, day: str, stopping: threading.Event, report: Callable[[int], None] = lambda _: None
    ) -> bool:
        """Learns the rows of a day that are not learnt yet, then publishes a version.

        `report` is told how many rows are done so far. False if it was told to stop before the
        end: what was learnt until then is kept, and not published. After an error nothing more
        can be learnt; another object goes on from the last cut.

        Raises:
            ArtefactError: a file of the archive is damaged, or there is no space to write.
            Fenced: another process does the same for this log.
        """
        done = 0
        self.begun = day
        for record, rows, place in self.samples.records(day, dict(self.positions)):
            self._notices += self.trainer.on_batch([record])
            self.positions[place] = record.offset + 1
            self._reached(1)
            self._tell()
            done += rows
            report(done)
            if stopping.is_set():
                self._commit(publish=False)
                return False
            if self._clock() >= self._due_s:
                self._commit(publish=self._publish_within)
        self.begun = None
        self._commit(publish=True)
        return True

    def _commit(self, *, publish: bool) -> None:
        self._due_s = self._clock() + self._commit_every_s
        versions = self._publish() if publish else []
        self._reached(2)
        self._cut()
        self._reached(3)
        self._notify(self._notices)
        self._tell(versions, self._notices)
        self._notices = []
        self._reached(4)

    def _tell(self, versions: Sequence[Version] = (), notices: Sequence[Append] = ()) -> None:
        # Of no record: how long ago it was logged says nothing of how fresh answers are.
        if self._metrics is not None:
            self._metrics.told(self.trainer, (), versions, self._clock(), notices)

    def _publish(self) -> list[Version]:
        versions = self.trainer.on_time(int(self._clock() * 1e6))
        self._notices += self._versions.execute(versions)
        if versions:
            self.version = versions[-1].info
        # The store knows only of this process's own, and a day has perhaps no more than one.
        self._lineages = [name for name in self._lineages if name != self._lineage]
        for old in self._lineages[: 1 - _LINEAGES_KEPT]:
            self._versions.remove_lineage(self._trainer_config.called, old)
        self._lineages = [*self._lineages[1 - _LINEAGES_KEPT :], self._lineage]
        return versions

    def _cut(self) -> None:
        mark = self.trainer.mark()
        whole = self._durable is None or not self._cuts.continuable
        state = self.trainer.snapshot() if whole else self.trainer.changes(self._durable)
        state.meta[DAILY] = {
            "number": self._number + bool(self._notices),
            "notices": [_in_json(notice) for notice in self._notices],
            "lineages": self._lineages,
            "begun": self.begun,
        }
        (self._cuts.save if whole else self._cuts.extend)(self.positions, state)
        self.trainer.settle(mark)
        self._durable = mark
        self._cuts.compact()
        self._cuts.tidy()

    def _notify(self, notices: Sequence[Append]) -> None:
        if not notices:
            return
        with self._log.transaction(self._group) as transaction:
            transaction.append(notices)
            transaction.advance({_TURN: self._number}, {_TURN: self._number + 1})
        self._number += 1

    def _recover(self) -> tuple[Trainer, dict[TopicPartition, int]]:
        try:
            state, positions = self._cuts.newest()
            good = self._versions.last_good(self._trainer_config.called)
            trainer = Trainer(self._trainer_config, self._lineage, state, last_good=good)
        except ArtefactError as error:
            # The sentence is the realtime trainer's: --fresh would remove the archive as well.
            over = f"delete {self._cuts.path} to learn all that is archived again"
            sentence = str(error).replace("start over with `headrace run --fresh`", over)
            raise ArtefactError(sentence) from error
        if state is not None:
            self._go_on(state)
        return trainer, positions

    def _go_on(self, state: Artefact) -> None:
        """Appends the notices of the last cut, if its process died before it could."""
        daily = state.meta[DAILY]
        self._lineages, self.begun = list(daily["lineages"]), daily["begun"]
        if daily["number"] == self._number + 1:
            self._notify([_from_json(notice) for notice in daily["notices"]])


def _number_in(log: Log, group: str) -> int:
    try:
        return log.positions(group, [VERSIONS])[_TURN]
    except KeyError:
        raise LogError(
            f"the log has no topic {VERSIONS}: `headrace topics --apply` makes it"
        ) from None


def _in_json(notice: Append) -> list[str | None]:
    key = None if notice.key is None else b64encode(notice.key).decode()
    return [notice.topic, b64encode(notice.value).decode(), key]


def _from_json(notice: Sequence[Any]) -> Append:
    topic, value, key = notice
    return Append(topic, b64decode(value), None if key is None else b64decode(key))
