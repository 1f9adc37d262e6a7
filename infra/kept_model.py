"""A model as a process serves it: its replica, and what keeps that on the newest version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infra.home import Home
from infra.recipe import Recipe
from infra.wiring import version_store
from serving.follower import Follower
from serving.replica import Replica, ranker, retriever
from serving.version_watch import VersionWatch
from streaming.log import Log
from trainers.models import RANKING, family_of
from trainers.trainer import TrainerConfig
from trainers.versions import VersionInfo


class KeptModel:
    """The replica of a model that a recipe trains; `follower.run` keeps it fresh.

    `applied`, `refused` and `noted` hear what the follower does.
    """

    def __init__(  # noqa: PLR0913 - the wiring of a replica, done once
        self,
        recipe: Recipe,
        home: Home,
        log: Log,
        trainer: TrainerConfig,
        applied: Callable[[VersionInfo, float], None],
        refused: Callable[[VersionInfo, str], None],
        noted: Callable[[VersionInfo], None],
    ) -> None:
        self.name = trainer.called
        self.family = family_of(trainer.model)
        self.replica: Replica[Any] = Replica(
            recipe.replica, self.name, ranker if self.family == RANKING else retriever
        )
        # Two snapshots and the deltas between; three offsets an announcement, for each may come in
        # a transaction of its own, which may use up some.
        look_back = 3 * (2 * (trainer.snapshot_every + 1) + 1)
        self.follower = Follower(
            log,
            version_store(recipe, home),
            self.replica,
            look_back,
            applied,
            refused,  # the follower itself logs which one, and why
            noted,
            model=self.name,
        )
        self._watch = VersionWatch(log, lambda: self.replica.info, look_back, self.name)

    @property
    def served(self) -> str | None:
        """The version that answers; None before the first."""
        return None if self.replica.info is None else self.replica.info.name

    def behind_s(self) -> float:
        """How long there has been a version that could be served instead; 0 if there is none."""
        behind_s = self._watch.behind_s()  # it knows of versions that are held back
        return behind_s if self.follower.pinned is None else 0.0  # there it is to stay
