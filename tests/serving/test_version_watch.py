"""The version watch: a replica that does not move while it could is behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from serving.version_watch import VersionWatch
from streaming.file_log import FileLog
from trainers.versions import Version, VersionInfo, announcement, doorbell

MakeVersion = Callable[..., Version]


class Stage:
    """A log with announcements, and what is served."""

    def __init__(self, log: FileLog, make: MakeVersion) -> None:
        self._log = log
        self._make = make
        self.served: VersionInfo | None = None
        self.watch = VersionWatch(log, lambda: self.served, look_back=100)

    def announce(self, number: int, **said: Any) -> VersionInfo:
        info = replace(self._make(number).info, **said)
        self._log.append([announcement(info, 1)])
        return info

    def is_behind(self) -> bool:
        time.sleep(0.002)  # what waits has waited for some time
        return self.watch.behind_s() > 0


@pytest.fixture
def stage(log: FileLog, constant_version: MakeVersion) -> Stage:
    return Stage(log, constant_version)


def test_it_is_behind_from_the_first_version_that_it_lacks(stage: Stage, log: FileLog) -> None:
    assert not stage.is_behind()
    stage.served = stage.announce(0)
    assert not stage.is_behind()
    stage.announce(1)
    assert stage.is_behind()
    # A replica that is stuck is ever more behind, however quickly new versions come.
    before = stage.watch.behind_s()
    for number in range(2, 6):
        newest = stage.announce(number)
        now = stage.watch.behind_s()
        assert now > before
        before = now
    log.append([doorbell("two_tower")])
    stage.served = newest
    assert not stage.is_behind()


def test_who_has_caught_up_in_part_counts_from_the_next(stage: Stage) -> None:
    stage.served = stage.announce(0)
    middle = stage.announce(1)
    time.sleep(0.1)
    stage.announce(2)
    assert stage.watch.behind_s() >= 0.1
    stage.served = middle
    assert stage.watch.behind_s() < 0.1


def test_a_version_that_is_held_is_not_waited_for(stage: Stage) -> None:
    good = stage.served = stage.announce(0)
    stage.announce(1, held="its rows are not finite", last_good=good.name)
    stage.announce(2, held="its rows are not finite", last_good=good.name)
    assert not stage.is_behind()
    stage.served = stage.announce(3)
    stage.announce(4, held="it finds too little", last_good=good.name)
    assert stage.is_behind()  # it has to go back
    stage.served = good
    assert not stage.is_behind()
    stage.announce(5)
    assert stage.is_behind()


def test_a_log_that_is_away_says_nothing_new(stage: Stage, log: FileLog) -> None:
    stage.served = stage.announce(0)
    stage.announce(1)
    assert stage.is_behind()
    log.close()
    assert stage.is_behind()
