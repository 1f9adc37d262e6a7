"""The arm watch: what came of the answers to the users of each arm of an experiment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.experiments import Experiment, arm_of
from serving.metrics import ServingMetrics
from streaming.samples import labels_in


@dataclass(slots=True)
class _Tally:
    """Of one label in one arm: of how many impressions it is known, and what it adds up to."""

    known: float = 0.0
    total: float = 0.0


class ArmWatch:
    """Counts the labels of impressions by the arms of their users.

    Of impressions that came to nothing only some become samples: each of these counts for all that
    it stands for. Samples that were no answer of a request are not looked at.
    """

    def __init__(self, experiments: Mapping[str, Experiment], metrics: ServingMetrics) -> None:
        self._experiments = experiments
        self._metrics = metrics
        self._tallies: dict[tuple[str, str, str], _Tally] = defaultdict(_Tally)

    def is_waiting(self) -> bool:
        return bool(self._experiments)

    def take(self, rows: pa.RecordBatch) -> None:
        for name, experiment in self._experiments.items():
            mine = pc.and_(rows["request_id"].is_valid(), rows["negative_rate"].is_valid())
            if experiment.scenarios:
                scenarios = pa.array(experiment.scenarios, pa.string())
                mine = pc.and_(mine, pc.is_in(rows["scenario"], scenarios))
            served = rows.filter(mine)
            if served.num_rows:
                self._count(name, experiment, served)

    def figures(self) -> dict[str, Any]:
        """Of each experiment, arm and label: of how many impressions it is known, and its mean."""
        found: dict[str, dict[str, dict[str, dict[str, float]]]] = {
            name: {arm: {} for arm in experiment.arms}
            for name, experiment in self._experiments.items()
        }
        for (name, arm, label), tally in self._tallies.items():
            found[name][arm][label] = {"known": tally.known, "mean": tally.total / tally.known}
        return found

    def _count(self, name: str, experiment: Experiment, rows: pa.RecordBatch) -> None:
        users, user = np.unique(rows["user_id"].to_numpy(), return_inverse=True)
        arms = np.array([arm_of(name, experiment, one) for one in users.tolist()])[user]
        stands_for = 1.0 / rows["negative_rate"].to_numpy()
        for label in labels_in(rows.schema):
            values = rows[f"label_{label}"].to_numpy(zero_copy_only=False)
            for arm in np.unique(arms[~np.isnan(values)]).tolist():
                theirs = values[(arms == arm) & ~np.isnan(values)]
                weights = stands_for[(arms == arm) & ~np.isnan(values)]
                known = float(np.where(theirs > 0, 1.0, weights).sum())
                tally = self._tallies[name, arm, label]
                tally.known += known
                tally.total += float(theirs.sum())
                self._metrics.arm_known.labels(name, arm, label).inc(known)
                self._metrics.arm_total.labels(name, arm, label).inc(float(theirs.sum()))
