"""One copy of a ranker that answers: what is to be expected of items for a user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from features.batch import Ids, Users
from features.shown import Pairs
from serving.served import Changes, Served, Unfit, someone
from streaming.event_columns import NONE
from trainers.calibration import Curves
from trainers.descriptions import Descriptions
from trainers.models import RANKING, Ranker
from trainers.versions import VersionInfo

Floats = NDArray[np.float64]


class ServedRanker(Served):
    """One copy of a ranker, what describes every item, and what calibrates its predictions."""

    family = RANKING

    def __init__(self, info: VersionInfo, device: str = "cpu") -> None:
        super().__init__(info, device)
        self._ranker: Ranker = self.model
        self._descriptions = Descriptions()
        self._curves = Curves({})

    @property
    def tasks(self) -> list[str]:
        """What it predicts."""
        return list(self._ranker.tasks)

    @property
    def learnt(self) -> float:
        """How many samples it has learnt."""
        return self.info.metrics.get("samples", 0.0)

    @torch.inference_mode()
    def rank(self, user: Users, items: Ids) -> Mapping[str, Floats]:
        """What is to be expected of each item (n,) for a user (one), for each task (n,).

        What depends on the user alone is computed once. Of an item that it does not know it says
        what it would of any that nothing is known of.
        """
        if not len(items):
            return {task: np.empty(0) for task in self.tasks}
        pairs = Pairs(
            self._described(user),
            np.zeros(len(items), np.int64),
            self._descriptions.in_order(items),
            np.full(len(items), NONE, np.int32),
        )
        predicted = self._ranker.predict(pairs)
        scenario = int(user.scenarios[0])
        return {
            task: self._curves.calibrated(task, made.cpu().numpy().astype(np.float64), scenario)
            for task, made in predicted.items()
        }

    def _described(self, user: Users) -> Users:
        if not self._ranker.describes:
            return user
        return replace(user, described=self._descriptions.describe(user.history.values))

    # -- changing --------------------------------------------------------------------------

    def check(self, changes: Changes) -> None:
        super().check(changes)
        for shard, missing in (
            ("items", changes.items is None),
            ("calibration", "calibration" not in changes.others),
        ):
            if missing:
                raise Unfit(f"shard {shard!r} is missing")

    def lay(self, changes: Changes) -> None:
        super().lay(changes)
        if changes.items is not None:
            self._descriptions.add(changes.items)
        self._curves = Curves.from_table(changes.others["calibration"])

    def probe(self) -> None:
        found = self.rank(someone(), np.zeros(1, np.int64))
        if not all(np.isfinite(made).all() for made in found.values()):
            raise Unfit("what it answers is not finite")

    def warm(self) -> None:
        self.probe()
        self.rank(someone(1), np.zeros(2, np.int64))

    def twin(self) -> ServedRanker:
        other = ServedRanker(self.info, self._device)
        self._copy_into(other)
        other._descriptions, other._curves = self._descriptions.copy(), self._curves
        return other
